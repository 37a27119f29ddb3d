//! The merge: an exact running weighted mean of adapters, or what another rule makes of them.
//!
//! Each element becomes a whole number of grid points, and a running sum of `weight * points` is kept per element. Whole
//! numbers add up to the same sum in any order, and subtracting what was added leaves no trace; so the merged bytes
//! depend on which adapters are in, and on nothing else: not on order, repetition, threads, machine or build.
//!
//! Refused: adapters of another shape, values the grid cannot hold, weight zero, more weight in all than the sums have
//! room for, and a merge of nothing. Who is in, and with which weight, is decided elsewhere.

mod accumulator;
mod error;
mod extremes;
mod merged;
mod plan;
mod products;
mod recompute;
mod rule;
mod stack;
#[cfg(test)]
mod tests;

pub use crate::number::Factor;
pub use accumulator::{Accumulator, Direction, Fold};
pub use error::MergeError;
pub use plan::{Account, Member, Plan, ReadAt};
pub use recompute::Made;
pub(crate) use rule::members_for;
pub use rule::{KRUM_MEMBERS_MAX, MergeRule, ROBUST_MEMBERS_MAX};

/// The total weight stays below this: 2^31 times the 2^32 grid points of the largest element fills an `i64`.
pub const TOTAL_WEIGHT_LIMIT: u64 = 1 << 31;

/// Whether running sums have room for `max_members` adapters of weight `max_weight` each. A round's manifest is refused
/// where this is false; then nothing needs to be checked in the fold's inner loop.
pub const fn weights_fit(max_weight: u64, max_members: u64) -> bool {
    match max_weight.checked_mul(max_members) {
        Some(total) => total < TOTAL_WEIGHT_LIMIT,
        None => false,
    }
}
