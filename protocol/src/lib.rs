//! What all mingle peers must agree on, and nothing else.
//!
//! Pure rules: no clock, socket, file, thread, async runtime or random source. Time and randomness are handed in.

pub mod adapter;
pub mod encoding;
pub mod hash;
pub mod identity;
pub mod ledger;
pub mod machine;
pub mod merge;
pub mod number;
pub mod receipt;
pub mod record;
pub mod round;
pub mod sync;
