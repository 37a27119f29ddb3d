//! Reconciliation: how a peer that was away learns every record it missed.
//!
//! Two requests at most. `Compare` carries the fingerprint of the asker's ledger; the answer is `Same` or all record
//! identities. `Exchange` then asks for what is missing here and hands over what is missing there, a bounded batch at
//! a time; whatever did not fit goes with the next reconciliation, which the asker starts at once.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::encoding::{EncodingError, byte_string, from_cbor, to_cbor};
use crate::hash::ContentHash;
use crate::ledger::Ledger;
use crate::record::{RECORD_BYTES_MAX, RecordId, SignedRecord};
use crate::round::{MEMBERS_MAX, RoundId};
use crate::standing::STANDINGS_MAX;

/// Records in one message, so that it stays far below [`REQUEST_BYTES_MAX`].
pub const BATCH_MAX: usize = 48;
/// Record identities in one answer: two for every slot a round can have, and every change of standing.
const IDS_MAX: usize = (MEMBERS_MAX as usize + STANDINGS_MAX) * 2 + STANDINGS_MAX;
/// Largest request a peer reads.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Largest answer a peer reads.
pub const RESPONSE_BYTES_MAX: usize = IDS_MAX * 34 + 1_024;

/// A record as bytes, not yet verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RawRecord(#[serde(with = "byte_string")] pub Vec<u8>);

/// What a peer asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Compare { round: RoundId, count: u64, fingerprint: ContentHash },
    Exchange { round: RoundId, wanted: Vec<RecordId>, records: Vec<RawRecord> },
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Response {
    Same,
    Ids(Vec<RecordId>),
    Records(Vec<RawRecord>),
    /// The two peers are not in the same round.
    WrongRound(RoundId),
}

impl Request {
    pub fn compare(round: RoundId, ledger: &Ledger) -> Self {
        Self::Compare { round, count: ledger.record_count(), fingerprint: ledger.fingerprint() }
    }

    /// # Errors
    /// Bytes that are not a request within its bounds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EncodingError> {
        let request: Self = from_cbor(bytes, REQUEST_BYTES_MAX)?;
        if let Self::Exchange { wanted, records, .. } = &request {
            at_most(wanted.len(), BATCH_MAX)?;
            at_most(records.len(), BATCH_MAX)?;
        }
        Ok(request)
    }

    /// # Errors
    /// None for requests this room makes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EncodingError> {
        to_cbor(self)
    }
}

impl Response {
    /// # Errors
    /// Bytes that are not a response within its bounds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EncodingError> {
        let response: Self = from_cbor(bytes, RESPONSE_BYTES_MAX)?;
        match &response {
            Self::Ids(ids) => at_most(ids.len(), IDS_MAX)?,
            Self::Records(records) => at_most(records.len(), BATCH_MAX)?,
            Self::Same | Self::WrongRound(_) => {}
        }
        Ok(response)
    }

    /// # Errors
    /// None for responses this room makes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EncodingError> {
        to_cbor(self)
    }
}

fn at_most(found: usize, max: usize) -> Result<(), EncodingError> {
    if found > max { Err(EncodingError::Schema { why: format!("a list of {found} where at most {max} are allowed") }) } else { Ok(()) }
}

/// The answer to a comparison.
pub fn compare(ledger: &Ledger, count: u64, fingerprint: ContentHash) -> Response {
    if count == ledger.record_count() && fingerprint == ledger.fingerprint() {
        Response::Same
    } else {
        Response::Ids(ledger.records().map(SignedRecord::id).collect())
    }
}

/// What to ask for and hand over, seeing the identities a peer holds; `None` when there is nothing to do.
pub fn exchange(round: RoundId, ledger: &Ledger, theirs: &[RecordId]) -> Option<Request> {
    let mine: BTreeSet<RecordId> = ledger.records().map(SignedRecord::id).collect();
    // In their order: changes of standing come first, without which other records may be refused.
    let wanted: Vec<RecordId> = theirs.iter().filter(|id| !mine.contains(id)).copied().take(BATCH_MAX).collect();
    let theirs: BTreeSet<RecordId> = theirs.iter().copied().collect();
    let records: Vec<RawRecord> = raw(ledger.records().filter(|record| !theirs.contains(&record.id())));
    (!wanted.is_empty() || !records.is_empty()).then_some(Request::Exchange { round, wanted, records })
}

/// The records of `wanted` that the ledger holds.
pub fn supply(ledger: &Ledger, wanted: &[RecordId]) -> Response {
    let wanted: BTreeSet<&RecordId> = wanted.iter().collect();
    Response::Records(raw(ledger.records().filter(|record| wanted.contains(&record.id()))))
}

fn raw<'a>(records: impl Iterator<Item = &'a SignedRecord>) -> Vec<RawRecord> {
    records.take(BATCH_MAX).map(|record| RawRecord(record.bytes().to_vec())).collect()
}

// A full batch with its heads must fit into one request.
const _: () = assert!(BATCH_MAX * (RECORD_BYTES_MAX + 34 + 8) + 1_024 <= REQUEST_BYTES_MAX);

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
mod tests {
    use super::*;
    use crate::record::UnverifiedRecord;
    use crate::record::tests::{announce, round};

    fn ledger(members: impl IntoIterator<Item = u8>) -> Ledger {
        let mut ledger = Ledger::new(&round());
        for member in members {
            ledger.insert(announce(member, 1, &[member]));
        }
        ledger
    }

    fn absorb(ledger: &mut Ledger, records: &[RawRecord]) {
        for RawRecord(bytes) in records {
            ledger.insert(UnverifiedRecord(bytes).verify(&round()).unwrap());
        }
    }

    #[test]
    fn two_ledgers_end_equal_after_one_exchange() {
        let (mut ours, mut theirs) = (ledger([1, 2]), ledger([2, 3]));
        let id = round().id();
        let Request::Compare { count, fingerprint, .. } = Request::compare(id, &ours) else { panic!() };
        let Response::Ids(ids) = compare(&theirs, count, fingerprint) else { panic!() };
        let Some(Request::Exchange { wanted, records, .. }) = exchange(id, &ours, &ids) else { panic!() };
        absorb(&mut theirs, &records);
        let Response::Records(records) = supply(&theirs, &wanted) else { panic!() };
        absorb(&mut ours, &records);
        assert_eq!(ours, theirs);
        assert_eq!(ours, ledger([1, 2, 3]));
        let Request::Compare { count, fingerprint, .. } = Request::compare(id, &ours) else { panic!() };
        assert_eq!(compare(&theirs, count, fingerprint), Response::Same);
        assert_eq!(exchange(id, &ours, &ids), exchange(id, &theirs, &ids));
    }

    #[test]
    fn messages_come_back_as_they_went_and_lists_are_bounded() {
        let ledger = ledger([1, 2]);
        let ids: Vec<_> = ledger.records().map(SignedRecord::id).collect();
        let request = Request::Exchange { round: round().id(), wanted: ids.clone(), records: raw(ledger.records()) };
        assert_eq!(Request::from_bytes(&request.to_bytes().unwrap()).unwrap(), request);
        let response = Response::Ids(ids.clone());
        assert_eq!(Response::from_bytes(&response.to_bytes().unwrap()).unwrap(), response);
        let greedy = Request::Exchange { round: round().id(), wanted: vec![ids[0]; BATCH_MAX + 1], records: vec![] };
        assert!(Request::from_bytes(&greedy.to_bytes().unwrap()).is_err());
        let full = Response::Ids(vec![ids[0]; IDS_MAX]);
        assert!(Response::from_bytes(&full.to_bytes().unwrap()).is_ok());
    }
}
