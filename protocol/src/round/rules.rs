//! What a round must be for its merge rule: checked in its manifest, so that no set of its members can surprise the rule.

use super::{AdapterKind, Manifest, MergeRule, Round, RoundError, WeightRule};
use crate::adapter::{Dtype, Layers, LayersError, MergedFile, ShapeError, Slice, canonical_header};
use crate::merge::members_for;

/// A billion: far beyond any update.
const CLIP_MILLIONTHS_MAX: u64 = 1_000_000_000_000_000;

pub(super) fn check(manifest: &Manifest) -> Result<(), RoundError> {
    let Manifest { rule, member_max, .. } = manifest;
    let refused = |why: String| Err(RoundError::Rule { rule: rule.name(), why });
    if rule.is_robust() && manifest.weight != WeightRule::Equal {
        return refused("needs equal weights: who says how many examples it has could outweigh the rest".into());
    }
    if let Some(max) = rule.members_max().filter(|max| member_max > max) {
        return refused(format!("takes at most {max} members, but the round allows {member_max}"));
    }
    if rule.told() == Some(0) {
        return refused("needs to be told of at least 1 bad member".into());
    }
    if let Some(bad) = rule.told().filter(|bad| members_for(*bad) > u64::from(*member_max)) {
        return refused(format!("stands {bad} bad members among {} or more, but the round allows {member_max}", members_for(bad)));
    }
    let saved = manifest.kind.low_rank().is_some_and(|shape| !shape.saved.is_empty());
    if *rule == MergeRule::Stack && (saved || !matches!(manifest.kind, AdapterKind::Lora(_))) {
        return refused("needs adapters of kind lora that send no tensor whole: there is nothing else to stack".into());
    }
    match manifest.clip_millionths {
        Some(found) if !(1..=CLIP_MILLIONTHS_MAX).contains(&found) => {
            let allowed = format!("1 to {CLIP_MILLIONTHS_MAX} millionths");
            Err(RoundError::Field { what: "the largest norm", found: found.to_string(), allowed })
        }
        Some(_) if saved => Err(RoundError::Field {
            what: "the largest norm",
            found: "given".into(),
            allowed: "left out where tensors are sent whole: how far they moved cannot be seen without the base".into(),
        }),
        _ => Ok(()),
    }
}

/// The merged file; of a stack the largest there can be.
pub(super) fn merged(manifest: &Manifest) -> Result<MergedFile, ShapeError> {
    match manifest.rule {
        MergeRule::Stack => {
            let sent = manifest.kind.tensors()?.up_to()?;
            let rank = u64::from(manifest.member_max).saturating_mul(sent.rank());
            MergedFile::stack(sent, rank)
        }
        _ => manifest.kind.merged(),
    }
}

impl Round {
    /// The merged file of so many bytes, if there can be one.
    pub fn merged_of_size(&self, size: u64) -> Option<MergedFile> {
        let fits = |merged: MergedFile| (merged.bytes() == size).then_some(merged);
        if self.manifest.rule != MergeRule::Stack {
            return fits(self.merged.clone());
        }
        let (most, least) = (self.merged.tensors().rank(), MergedFile::stack(self.tensors().clone(), 1).ok()?);
        let bytes_a_rank = least.tensors().elements().saturating_mul(Dtype::F32.bytes() as u64).max(1);
        // How long a header is hardly depends on the rank that it tells of: a second look is right.
        let mut header = canonical_header(least.tensors(), Dtype::F32).len() as u64;
        for _ in 0..8 {
            let rank = size.saturating_sub(header).checked_div(bytes_a_rank)?.clamp(1, most);
            let merged = MergedFile::stack(self.tensors().clone(), rank).ok()?;
            let found = canonical_header(merged.tensors(), Dtype::F32).len() as u64;
            if found == header {
                return fits(merged);
            }
            header = found;
        }
        None
    }

    /// Some layers of the merged file.
    ///
    /// # Errors
    /// A layer that it does not have, or a stack: where its layers lie depends on who is in it.
    pub fn slice(&self, layers: &Layers) -> Result<Slice, LayersError> {
        if self.manifest.rule == MergeRule::Stack {
            return Err(LayersError::Stack);
        }
        self.merged.slice(layers)
    }
}
