//! What reconciling peers say to each other, and the bounds of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::SyncError;
use crate::attestation::RawAttestation;
use crate::encoding::{EncodingError, byte_string, from_cbor, to_cbor};
use crate::hash::ContentHash;
use crate::record::{RECORD_BYTES_MAX, RecordId};
use crate::round::RoundId;

/// Records in one message, if they are of the usual size.
pub const BATCH_MAX: usize = 256;
/// Bytes of records in one message.
pub const BATCH_BYTES_MAX: usize = 192 << 10;
/// A ledger of more records than this is compared by ranges instead of a list.
pub const IDS_MAX: usize = 1_000;
/// Where a message about ranges is cut off; the rest follows as one range.
pub(super) const FRAME_BYTES: usize = 48 << 10;
/// Largest message about ranges a peer reads: the library ends a frame with the range it is at.
pub const RANGE_BYTES_MAX: usize = 64 << 10;
/// Attestations in one message.
pub const ATTESTATIONS_MAX: usize = 16;
/// Largest request a peer reads.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Largest answer a peer reads.
pub const RESPONSE_BYTES_MAX: usize = 256 << 10;

/// The first half of a record's identity. To find another record with the same half takes 2^128 tries; a member that
/// finds two of its own with the same half (2^64) keeps only its own record from travelling.
pub type ShortId = [u8; 16];

pub fn short(id: RecordId) -> ShortId {
    id.0.0.first_chunk().copied().unwrap_or_default()
}

/// Names of records, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShortIds(#[serde(with = "byte_string")] Vec<u8>);

impl ShortIds {
    pub fn iter(&self) -> impl Iterator<Item = ShortId> + '_ {
        self.0.as_chunks().0.iter().copied()
    }

    pub fn to_set(&self) -> BTreeSet<ShortId> {
        self.iter().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn check(&self, max: usize) -> Result<(), EncodingError> {
        let (names, rest) = self.0.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(EncodingError::Schema { why: format!("{} bytes are no list of 16-byte names", self.0.len()) });
        }
        at_most(names.len(), max)
    }
}

impl FromIterator<ShortId> for ShortIds {
    fn from_iter<T: IntoIterator<Item = ShortId>>(names: T) -> Self {
        Self(names.into_iter().flatten().collect())
    }
}

/// A record as bytes, not yet verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RawRecord(#[serde(with = "byte_string")] pub Vec<u8>);

/// A message of the range comparison (negentropy, version 1), not yet read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RangeMessage(#[serde(with = "byte_string")] pub Vec<u8>);

/// What a peer asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Compare {
        round: RoundId,
        count: u64,
        fingerprint: ContentHash,
        /// The asker's own, where the other is not known to have it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attestation: Option<RawAttestation>,
        /// How many attestations of its current set the other shall answer with.
        #[serde(default, skip_serializing_if = "is_zero")]
        attestations: u8,
    },
    Range {
        round: RoundId,
        message: RangeMessage,
    },
    Exchange {
        round: RoundId,
        wanted: ShortIds,
        records: Vec<RawRecord>,
    },
}

fn is_zero(count: &u8) -> bool {
    *count == 0
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    pub answer: Answer,
    /// The answerer's own attestation first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attestations: Vec<RawAttestation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    Same,
    /// Not the same, and these are all that the answerer holds.
    Ids(ShortIds),
    /// Not the same, and too many to list: compare ranges.
    Differs,
    Range(RangeMessage),
    Records(Vec<RawRecord>),
    /// The two peers are not in the same round.
    WrongRound(RoundId),
    /// The question was no question.
    Refused,
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Self {
        Self { answer, attestations: Vec::new() }
    }
}

impl Request {
    pub fn round(&self) -> RoundId {
        match self {
            Self::Compare { round, .. } | Self::Range { round, .. } | Self::Exchange { round, .. } => *round,
        }
    }

    /// # Errors
    /// Bytes that are not a request within its bounds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SyncError> {
        let request: Self = from_cbor(bytes, REQUEST_BYTES_MAX)?;
        match &request {
            Self::Compare { .. } => {}
            Self::Range { message, .. } => message.check()?,
            Self::Exchange { wanted, records, .. } => {
                wanted.check(BATCH_MAX)?;
                at_most(records.len(), BATCH_MAX)?;
            }
        }
        Ok(request)
    }

    /// # Errors
    /// None for requests this room makes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SyncError> {
        Ok(to_cbor(self)?)
    }
}

impl Response {
    /// # Errors
    /// Bytes that are not a response within its bounds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SyncError> {
        let response: Self = from_cbor(bytes, RESPONSE_BYTES_MAX)?;
        at_most(response.attestations.len(), ATTESTATIONS_MAX)?;
        match &response.answer {
            Answer::Ids(ids) => ids.check(IDS_MAX)?,
            Answer::Range(message) => message.check()?,
            Answer::Records(records) => at_most(records.len(), BATCH_MAX)?,
            Answer::Same | Answer::Differs | Answer::WrongRound(_) | Answer::Refused => {}
        }
        Ok(response)
    }

    /// # Errors
    /// None for responses this room makes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SyncError> {
        Ok(to_cbor(self)?)
    }
}

impl RangeMessage {
    fn check(&self) -> Result<(), EncodingError> {
        let found = self.0.len();
        if found > RANGE_BYTES_MAX { Err(EncodingError::TooLarge { found, max: RANGE_BYTES_MAX }) } else { Ok(()) }
    }
}

fn at_most(found: usize, max: usize) -> Result<(), EncodingError> {
    if found > max { Err(EncodingError::Schema { why: format!("a list of {found} where at most {max} are allowed") }) } else { Ok(()) }
}

// Full batches with their heads must fit into one message.
const _: () = assert!(BATCH_BYTES_MAX + RECORD_BYTES_MAX + BATCH_MAX * (3 + 16) + 1_024 <= REQUEST_BYTES_MAX);
const _: () = assert!(IDS_MAX * 16 + ATTESTATIONS_MAX * (crate::attestation::ATTESTATION_BYTES_MAX + 3) + 1_024 <= RESPONSE_BYTES_MAX);
