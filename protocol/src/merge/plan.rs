//! A merge as the round has pinned it: the rule, the clip, and what the tensors mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::MergeError;
use super::products::norm_squared;
use super::rule::MergeRule;
use crate::adapter::{Layout, MergedFile, TensorList, Updates};
use crate::hash::ContentHash;
use crate::identity::MemberKey;
use crate::number::Factor;
use crate::round::Round;

/// An adapter's file, read at any place.
pub trait ReadAt {
    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// Why they cannot be had, such as a file that ends before.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), MergeError>;

    /// The same bytes without a copy, where they lie in memory.
    fn held(&self, _offset: u64, _length: usize) -> Option<&[u8]> {
        None
    }
}

/// A file held in memory.
impl ReadAt for Vec<u8> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), MergeError> {
        let bytes = self.held(offset, out.len());
        let bytes = bytes.ok_or_else(|| MergeError::Unread(format!("there are no {} bytes at {offset}", out.len())))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn held(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(length)?)
    }
}

/// One adapter of a merge. Its values were checked ([`Layout::scan`]).
#[derive(Clone, Copy)]
pub struct Member<'a> {
    pub key: MemberKey,
    /// The hash of its file.
    pub adapter: ContentHash,
    pub weight: u64,
    /// Of [`Plan::clip`].
    pub clip: Factor,
    pub layout: &'a Layout,
    /// Usually the plan's; only in a stack may scales differ.
    pub updates: &'a Updates,
    pub data: &'a dyn ReadAt,
}

/// What a rule did to single members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Whose update was clipped, to how many 2^-24 of itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clipped: BTreeMap<MemberKey, Factor>,
    /// Whom multi-Krum left out.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub left_out: BTreeSet<MemberKey>,
}

impl Account {
    /// Nothing left out, and clipped whose factor is below one.
    pub fn of_clips(clips: impl Iterator<Item = (MemberKey, Factor)>) -> Self {
        Self { clipped: clips.filter(|(_, clip)| *clip != Factor::ONE).collect(), left_out: BTreeSet::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.clipped.is_empty() && self.left_out.is_empty()
    }
}

/// All that a merge needs beside the adapters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plan {
    rule: MergeRule,
    /// Largest norm of an update, in millionths.
    clip_millionths: Option<u64>,
    updates: Updates,
    merged: MergedFile,
    clipped: Arc<[bool]>,
}

impl Plan {
    /// `merged` is the file of the means, or for a stack any file that has the sent tensors.
    pub fn new(rule: MergeRule, clip_millionths: Option<u64>, updates: Updates, merged: MergedFile) -> Self {
        let clipped = (0..merged.sent().len()).map(|tensor| clip_millionths.is_some() && updates.clip(tensor)).collect();
        Self { rule, clip_millionths, updates, merged, clipped }
    }

    pub fn of(round: &Round) -> Self {
        let manifest = round.manifest();
        Self::new(manifest.rule, manifest.clip_millionths, round.kind().updates(round.tensors()), round.merged().clone())
    }

    pub fn rule(&self) -> MergeRule {
        self.rule
    }

    /// What a member's tensors mean.
    pub fn updates(&self) -> &Updates {
        &self.updates
    }

    /// The tensors that members send.
    pub fn tensors(&self) -> &TensorList {
        self.merged.sent()
    }

    /// The file of the means.
    pub(super) fn merged(&self) -> &MergedFile {
        &self.merged
    }

    /// Which of the sent tensors a clip changes.
    pub(super) fn clipped(&self) -> &Arc<[bool]> {
        &self.clipped
    }

    /// What an adapter's update is multiplied with, so that its norm is at most the round's: reads the whole file once, a
    /// small part at a time. One where nothing is clipped.
    ///
    /// # Errors
    /// Bytes that cannot be read.
    pub fn clip(&self, layout: &Layout, updates: &Updates, data: &dyn ReadAt) -> Result<Factor, MergeError> {
        match self.clip_millionths {
            None => Ok(Factor::ONE),
            Some(millionths) => Ok(Factor::clip(norm_squared(layout, updates, data)?, millionths)),
        }
    }

    /// Whether so many adapters are enough.
    ///
    /// # Errors
    /// They are not.
    pub fn check_enough(&self, have: u64) -> Result<(), MergeError> {
        self.rule.check_enough(have)
    }
}
