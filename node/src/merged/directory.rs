//! Whether a merged directory holds the bytes that its receipt speaks of.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{CheckedProof, Proof};
use crate::merger::hash_of;
use crate::sent::merged_file;
use crate::slice;

impl Proof {
    /// As [`Proof::check`], and the merged file beside it, or the layers of it, must be the ones that were proved.
    ///
    /// # Errors
    /// What is false, or a file that cannot be read.
    pub fn check_in(&self, folder: &Path) -> Result<CheckedProof> {
        let checked = self.check()?;
        match &checked.slice {
            Some(slice) => slice::check(folder, &checked, slice)?,
            None => {
                let file = merged_file(folder, checked.round.kind());
                let found = hash_of(&file).with_context(|| format!("cannot read {}", file.display()))?;
                let merged = checked.receipt.merged;
                ensure!(found == merged, "{} has hash {found}, but the receipt says {merged}", file.display());
            }
        }
        Ok(checked)
    }
}
