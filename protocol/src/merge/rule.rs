//! The rules by which adapters become one: what a round's manifest pins, and what each of them asks for.
//!
//! Formulas, sources and costs: docs/rules.md.

use serde::{Deserialize, Serialize};

use super::error::MergeError;

/// How the admitted adapters become one. Each is a function of the admitted set alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MergeRule {
    /// The weighted mean of each tensor (FedAvg, arXiv 1602.05629), exact.
    Mean,
    /// The members' low-rank matrices side by side: their product is the weighted mean of the updates (FLoRA, arXiv 2409.05976).
    Stack,
    /// At each coordinate the mean without the `trim` least and the `trim` greatest values (arXiv 1803.01498).
    TrimmedMean { trim: u32 },
    /// At each coordinate the median (arXiv 1803.01498).
    Median,
    /// The mean of all but the `faulty` adapters that lie furthest from their nearest (arXiv 1703.02757).
    MultiKrum { faulty: u32 },
}

/// Members of a round whose merge is made from all adapters at once; of multi-Krum, which compares every two, fewer.
pub const ROBUST_MEMBERS_MAX: u32 = 1024;
pub const KRUM_MEMBERS_MAX: u32 = 256;
/// Beyond this, running extremes take more memory than making a trimmed mean anew takes time.
const RUNNING_TRIM_MAX: u32 = 4;

impl MergeRule {
    /// As people and the round's identity call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Stack => "stack",
            Self::TrimmedMean { .. } => "trimmed-mean",
            Self::Median => "median",
            Self::MultiKrum { .. } => "multi-krum",
        }
    }

    /// Whether it holds against bad members. Such a rule counts every adapter alike.
    pub const fn is_robust(&self) -> bool {
        matches!(self, Self::TrimmedMean { .. } | Self::Median | Self::MultiKrum { .. })
    }

    /// Most members of a round of a robust rule.
    pub const fn members_max(&self) -> Option<u32> {
        match self {
            Self::Mean | Self::Stack => None,
            Self::TrimmedMean { .. } | Self::Median => Some(ROBUST_MEMBERS_MAX),
            Self::MultiKrum { .. } => Some(KRUM_MEMBERS_MAX),
        }
    }

    /// How many bad members it was told to stand.
    pub const fn told(&self) -> Option<u32> {
        match self {
            Self::TrimmedMean { trim: bad } | Self::MultiKrum { faulty: bad } => Some(*bad),
            Self::Mean | Self::Stack | Self::Median => None,
        }
    }

    /// Fewest adapters it can merge.
    pub fn needs(&self) -> u64 {
        match self {
            Self::Mean | Self::Stack | Self::Median => 1,
            Self::TrimmedMean { trim } => u64::from(*trim).saturating_mul(2).saturating_add(1),
            Self::MultiKrum { faulty } => members_for(*faulty),
        }
    }

    /// Whether so many adapters are enough.
    ///
    /// # Errors
    /// They are not.
    pub fn check_enough(&self, have: u64) -> Result<(), MergeError> {
        match (have, self.needs()) {
            (0, _) => Err(MergeError::Empty),
            (have, needs) if have < needs => Err(MergeError::TooFew { rule: self.name(), have, needs }),
            _ => Ok(()),
        }
    }

    /// How many bad ones among `members` adapters cannot take the merge where they like. Never more than
    /// `(members - 3) / 2`, whatever the rule was told.
    pub fn stands(&self, members: u64) -> u64 {
        match self {
            Self::Mean | Self::Stack => 0,
            Self::Median => members.saturating_sub(3) / 2,
            Self::TrimmedMean { trim: bad } | Self::MultiKrum { faulty: bad } if members >= members_for(*bad) => u64::from(*bad),
            Self::TrimmedMean { .. } | Self::MultiKrum { .. } => 0,
        }
    }

    /// Whether every arrival moves running sums, instead of making the merge anew from all adapters.
    pub const fn runs(&self) -> bool {
        match self {
            Self::Mean => true,
            Self::TrimmedMean { trim } => *trim <= RUNNING_TRIM_MAX,
            Self::Stack | Self::Median | Self::MultiKrum { .. } => false,
        }
    }
}

/// Fewest members among whom so many bad ones are stood.
pub(crate) fn members_for(bad: u32) -> u64 {
    u64::from(bad).saturating_mul(2).saturating_add(3)
}
