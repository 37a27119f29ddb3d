//! A round as one file, for sites without a network: its round file, its records and its adapters.
//!
//! A bundle is a neighbour on a stick. Nothing in it is believed for its place in the file: records are verified by the
//! protocol as if they had come by gossip, adapters group by group against their hash as if they had come by a stream,
//! and only adapters that an admitted record names are kept. docs/protocol.md has every byte.

mod export;
mod format;
mod import;

use mingle_protocol::encoding::EncodingError;
use mingle_protocol::ledger::Ledger;
use mingle_protocol::record::UnverifiedRecord;
use mingle_protocol::round::{Round, RoundError, RoundId};

pub use export::{Exported, Selection, export};
pub use format::{Bundle, Index, MergedParts, Part};
pub use import::{Imported, Refusals, import};

use crate::store::Store;

/// Why a file is no bundle, or no bundle to be used here. Nothing of it was taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("it does not begin as a bundle does")]
    NotABundle,
    #[error("it is a bundle of another version; this program reads version 1")]
    Version,
    #[error("it ends within {what}")]
    Truncated { what: &'static str },
    #[error("{what} of {size} bytes is larger than the {max} allowed")]
    TooLarge { what: &'static str, size: u64, max: u64 },
    #[error("{what} was changed since it was written: it does not have the hash it should")]
    Damaged { what: &'static str },
    #[error("{what} is malformed: {why}")]
    Malformed { what: &'static str, why: String },
    #[error("{extra} bytes follow its end")]
    Extra { extra: u64 },
    #[error("it is of round {found}, not of round {expected}")]
    OtherRound { found: RoundId, expected: RoundId },
    #[error("its round file is refused: {0}")]
    Round(#[from] RoundError),
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

impl BundleError {
    fn index(error: &EncodingError) -> Self {
        Self::Malformed { what: "its index", why: error.to_string() }
    }
}

/// What a stopped peer's store knows of a round. Records that no longer hold are left out.
///
/// # Errors
/// What the store says.
pub fn ledger_of(store: &Store, round: &Round) -> Result<Ledger, crate::store::StoreError> {
    let mut records = Vec::new();
    for (id, bytes) in store.records()? {
        match UnverifiedRecord(&bytes).verify(round) {
            Ok(record) => records.push(record),
            Err(error) => tracing::warn!(%error, id = mingle_protocol::hash::encode_hex(&id), "leaving out a stored record"),
        }
    }
    Ok(Ledger::holding(round, records))
}
