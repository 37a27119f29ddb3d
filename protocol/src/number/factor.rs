//! What an adapter's update is multiplied with: the scale of low-rank products, the clip, a member's share of a stack.

use serde::{Deserialize, Serialize};

/// A number from 0 to 1 in steps of 2^-24: what a clipped update is multiplied with. With as few digits as an element has,
/// their product is exact in an `f64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct Factor(u32);

/// A count of steps beyond 2^24.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a factor of {found} steps of 2^-24 is above 1")]
pub struct FactorError {
    pub found: u32,
}

impl From<Factor> for u32 {
    fn from(factor: Factor) -> Self {
        factor.0
    }
}

impl TryFrom<u32> for Factor {
    type Error = FactorError;
    fn try_from(found: u32) -> Result<Self, FactorError> {
        if found <= Self::STEPS { Ok(Self(found)) } else { Err(FactorError { found }) }
    }
}

impl Factor {
    /// Steps of a whole.
    const STEPS: u32 = 1 << 24;
    /// Nothing is clipped.
    pub const ONE: Self = Self(Self::STEPS);

    /// `min(1, tau / norm)` rounded down, for tau in millionths.
    pub fn clip(norm_squared: f64, millionths: u64) -> Self {
        let tau = millionths as f64 / 1e6;
        let ratio = tau / norm_squared.sqrt();
        // No update has a ratio without bound, which is above 1 too.
        if ratio >= 1.0 { Self::ONE } else { Self((ratio * f64::from(Self::STEPS)) as u32) }
    }

    /// Grid points per unit of an element that is multiplied with this.
    pub fn grid(self) -> f64 {
        f64::from(self.0) * 16.0
    }

    /// As a number.
    pub fn value(self) -> f64 {
        f64::from(self.0) / f64::from(Self::STEPS)
    }
}

/// What a product of two matrices of this rank is multiplied with.
pub(crate) fn scaling(alpha: u32, rank: u32, by_root: bool) -> f64 {
    let rank = f64::from(rank);
    f64::from(alpha) / if by_root { rank.sqrt() } else { rank }
}

/// What the B of one member of a stack is multiplied with: its weight times its scale times its clip, of the total weight.
pub(crate) fn stacked(weight: u64, scale: f64, clip: Factor, total_weight: u64) -> f64 {
    weight as f64 * scale * clip.value() / total_weight as f64
}

/// An element times such a number, rounded once.
#[inline(always)]
pub(crate) fn times(element: f32, by: f64) -> f32 {
    (f64::from(element) * by) as f32
}
