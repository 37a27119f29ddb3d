//! What all mingle peers must agree on, and nothing else.
//!
//! Pure rules: no clock, socket, file, thread, async runtime or random source. Time and randomness are handed in.

#![deny(
    clippy::arithmetic_side_effects, // an overflow two builds treat differently would split peers
    clippy::indexing_slicing,        // a stranger's number must not be able to panic a peer
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::float_arithmetic // rounding lives in `number` alone
)]

pub mod adapter;
pub mod attestation;
pub mod encoding;
pub mod hash;
pub mod identity;
pub mod ledger;
pub mod link;
pub mod machine;
pub mod merge;
pub mod number;
pub mod receipt;
pub mod record;
pub mod round;
pub mod standing;
pub mod sync;
pub mod verdict;
