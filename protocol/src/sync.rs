//! Reconciliation: how a peer that was away learns every record it missed.
//!
//! `Compare` carries the fingerprint of the asker's ledger. Equal: done. Otherwise a small ledger answers with all its
//! identities; a large one with `Differs`, and the two narrow their differences down range by range. Either way the
//! asker ends with two lists, what it lacks and what the other lacks, and works them off by `Exchange`, a bounded batch
//! at a time. Who answers keeps nothing between two questions.

mod catalogue;
mod messages;
mod session;
#[cfg(test)]
mod tests;

pub use catalogue::Catalogue;
pub use messages::{
    ATTESTATIONS_MAX, Answer, BATCH_BYTES_MAX, BATCH_MAX, IDS_MAX, RANGE_BYTES_MAX, REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX, RangeMessage,
    RawRecord, Request, Response, ShortId, ShortIds, short,
};
pub use session::Session;

use crate::encoding::EncodingError;
use crate::ledger::Ledger;
use crate::record::SignedRecord;

/// Why a reconciliation came to no end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    #[error("neighbour's ranges are refused: {why}")]
    Range { why: String },
    #[error("neighbour claims to have more than {max} records")]
    TooMany { max: usize },
    #[error("neighbour did not come to an end within {max} questions")]
    Endless { max: u32 },
}

/// The records of `wanted` that the ledger holds, as many as fit one answer.
pub fn supply(ledger: &Ledger, wanted: &ShortIds) -> Answer {
    let wanted = wanted.to_set();
    Answer::Records(batch(ledger.records().filter(|record| wanted.contains(&short(record.id())))).0)
}

/// As many records as fit one message, and their names.
fn batch<'a>(records: impl Iterator<Item = &'a SignedRecord>) -> (Vec<RawRecord>, Vec<ShortId>) {
    let (mut raw, mut names, mut bytes) = (Vec::new(), Vec::new(), 0usize);
    for record in records {
        bytes = bytes.saturating_add(record.bytes().len());
        if raw.len() >= BATCH_MAX || bytes > BATCH_BYTES_MAX {
            break;
        }
        raw.push(RawRecord(record.bytes().to_vec()));
        names.push(short(record.id()));
    }
    (raw, names)
}
