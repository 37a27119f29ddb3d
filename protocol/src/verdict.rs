//! Verdicts: what a member found when it tried another member's adapter on held-out data of its own.
//!
//! The manifest says whether verdicts are given and how many approvals an adapter needs before it counts. A verdict is
//! its judge's word and no more: nobody else has the data. What it does is the same at every peer, since it follows from
//! the records alone (`ledger/verdicts.rs`).

use serde::{Deserialize, Serialize};

use crate::identity::{MemberKey, Roster};
use crate::record::RecordId;
use crate::round::{Manifest, RoundId};

/// Most places of a round in which members judge each other.
pub const JUDGED_MEMBERS_MAX: u32 = 256;
/// Pairs of judge and subject of which a ledger keeps a verdict: all of the largest such round.
pub const VERDICTS_MAX: usize = 65_536;

/// How members judge each other's adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerdictRule {
    /// Members other than its author that must approve an adapter before it counts. With 0 verdicts are given and shown,
    /// and nothing depends on them.
    pub approvals: u32,
}

impl VerdictRule {
    /// The first bound that this manifest's rule breaks: what it is, what was found, what is allowed.
    pub(crate) fn broken_bound(self, manifest: &Manifest) -> Option<(&'static str, String, String)> {
        let Roster::Members(members) = &manifest.roster else {
            // Whoever likes could make as many judges as it needs.
            return Some((
                "the roster",
                "open".into(),
                "given where members judge each other: with an open one anybody could approve".into(),
            ));
        };
        if manifest.member_max > JUDGED_MEMBERS_MAX {
            let allowed = format!("1 to {JUDGED_MEMBERS_MAX} where members judge each other");
            return Some(("the member cap", manifest.member_max.to_string(), allowed));
        }
        // Founders may add members later, up to the cap; without them the roster is all there will be.
        let places = if manifest.founders.is_some() { u64::from(manifest.member_max) } else { members.len() as u64 };
        let allowed = format!("less than {places}, since nobody approves its own adapter");
        (u64::from(self.approvals) >= places).then(|| ("the number of approvals", self.approvals.to_string(), allowed))
    }
}

/// "This is what that adapter does to my data."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub round: RoundId,
    /// The judge.
    pub member: MemberKey,
    /// Whose adapter it is.
    pub subject: MemberKey,
    /// The announcement of that adapter: a later one needs new verdicts.
    pub announcement: RecordId,
    /// Counts this judge's verdicts on this subject, from 1; a higher sequence supersedes.
    pub sequence: u64,
    pub approves: bool,
    pub losses: TrialLosses,
    /// Held-out examples that were measured.
    pub examples: u64,
}

/// Mean loss a token on the judge's held-out data, in millionths of a nat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialLosses {
    /// With what the round starts from: its base, or its parent's merge.
    pub base_micronats: u64,
    /// With what the judge had merged before; absent when that was nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_micronats: Option<u64>,
    /// With the adapter merged as well; absent when that is no finite number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_micronats: Option<u64>,
}

/// Why a verdict is refused whatever a ledger holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerdictError {
    #[error("verdict is given in a round that asks for none")]
    NotAsked,
    #[error("member {member} judges its own adapter")]
    OwnAdapter { member: MemberKey },
    #[error("verdict rests on no example")]
    NoExamples,
    #[error("verdict approves an adapter with which the loss is no number")]
    ApprovesNoLoss,
}

impl Verdict {
    pub(crate) fn check(&self, rule: Option<VerdictRule>) -> Result<(), VerdictError> {
        if rule.is_none() {
            return Err(VerdictError::NotAsked);
        }
        if self.member == self.subject {
            return Err(VerdictError::OwnAdapter { member: self.member });
        }
        if self.examples == 0 {
            return Err(VerdictError::NoExamples);
        }
        if self.approves && self.losses.with_micronats.is_none() {
            return Err(VerdictError::ApprovesNoLoss);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
