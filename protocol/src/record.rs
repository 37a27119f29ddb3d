//! Signed records: what members say. An announcement names a member's one adapter; a withdrawal takes it back; a change
//! of standing, said by founders, makes a key a member, a reader, or neither; a verdict says what an adapter did to its
//! judge's data.
//!
//! This is the only file in which bytes from the network become a [`Record`]: [`UnverifiedRecord`] offers nothing but
//! [`UnverifiedRecord::verify`], and [`SignedRecord`] has no other constructor than that and [`SignedRecord::sign`].
//!
//! On the wire a record is 64 bytes of signature followed by its payload in CBOR. The signature covers the payload
//! exactly as it was sent, and the record's identity is a hash of the payload.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::encoding::{EncodingError, from_cbor, to_cbor};
use crate::hash::{ContentHash, DomainHasher};
use crate::identity::{MemberKey, SecretKey};
use crate::round::{Round, RoundId};
use crate::standing::{StandingChange, StandingError};
use crate::verdict::{Verdict, VerdictError};

/// Records travel by gossip, so they stay small.
pub const RECORD_BYTES_MAX: usize = 4_096;
/// A key is spoken of at most so often in a round: what peers store and pass on for one member is bounded.
pub const SEQUENCE_MAX: u64 = 1_024;
const SIGNATURE_BYTES: usize = 64;
const DOMAIN: &str = "record/1";

/// Names a record: a hash of its payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordId(pub ContentHash);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a member says in a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Record {
    Announcement(Announcement),
    Withdrawal(Withdrawal),
    Standing(StandingChange),
    Verdict(Verdict),
}

/// "This is my adapter."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    pub round: RoundId,
    pub member: MemberKey,
    /// Starts at 1; a higher sequence supersedes.
    pub sequence: u64,
    /// BLAKE3 of the `adapter_model.safetensors` file.
    pub adapter: ContentHash,
    /// Bytes of that file: fixes the geometry of its transfer before the first byte.
    pub size: u64,
    /// What it counts for: the round's weight rule applied to `examples`.
    pub weight: u64,
    /// Digest of the base the adapter was trained on.
    pub base: ContentHash,
    /// Training examples.
    pub examples: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<Losses>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Privacy>,
}

/// What a private training promises for each of its examples: whether one was there changes the odds of any outcome by a
/// factor of at most e^epsilon, but for a chance of delta. The member's word: nobody else can check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    pub epsilon_millionths: u64,
    /// In units of 10^-12.
    pub delta_trillionths: u64,
    /// Largest length of one example's gradient, and the standard deviation of the noise on their sum, in such lengths.
    pub clip_millionths: u64,
    pub noise_millionths: u64,
}

/// Mean loss a token on the member's own held-out data, in millionths of a nat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Losses {
    pub before_micronats: u64,
    pub after_micronats: u64,
}

/// "My adapter counts no more."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    pub round: RoundId,
    pub member: MemberKey,
    pub sequence: u64,
}

impl Record {
    pub fn round(&self) -> RoundId {
        match self {
            Self::Announcement(announcement) => announcement.round,
            Self::Withdrawal(withdrawal) => withdrawal.round,
            Self::Standing(change) => change.round,
            Self::Verdict(verdict) => verdict.round,
        }
    }

    /// Whom the record speaks of: its author, except for a change of standing.
    pub fn member(&self) -> MemberKey {
        match self {
            Self::Announcement(announcement) => announcement.member,
            Self::Withdrawal(withdrawal) => withdrawal.member,
            Self::Standing(change) => change.subject,
            Self::Verdict(verdict) => verdict.member,
        }
    }

    /// Whose signature the record carries.
    pub fn author(&self) -> MemberKey {
        match self {
            Self::Announcement(announcement) => announcement.member,
            Self::Withdrawal(withdrawal) => withdrawal.member,
            Self::Standing(change) => change.by,
            Self::Verdict(verdict) => verdict.member,
        }
    }

    pub fn sequence(&self) -> u64 {
        match self {
            Self::Announcement(announcement) => announcement.sequence,
            Self::Withdrawal(withdrawal) => withdrawal.sequence,
            Self::Standing(change) => change.sequence,
            Self::Verdict(verdict) => verdict.sequence,
        }
    }

    /// Its place in the order in which records are of use: who belongs first, for what it admits is refused before it;
    /// then what members say for themselves, and last what they say of each other.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Standing(_) => 0,
            Self::Announcement(_) | Self::Withdrawal(_) => 1,
            Self::Verdict(_) => 2,
        }
    }
}

/// Why a record changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("record is malformed: {0}")]
    Encoding(#[from] EncodingError),
    #[error("record is for round {found}, this is round {expected}")]
    WrongRound { found: RoundId, expected: RoundId },
    #[error("member {member} is not in the round's roster")]
    NotInRoster { member: MemberKey },
    #[error("signature does not belong to member {member}")]
    Signature { member: MemberKey },
    #[error("sequence is 0, but starts at 1")]
    SequenceZero,
    #[error("sequence {found} is above {SEQUENCE_MAX}, the last there is in a round")]
    SequenceAboveMax { found: u64 },
    #[error(transparent)]
    Standing(#[from] StandingError),
    #[error(transparent)]
    Verdict(#[from] VerdictError),
    #[error("adapter was trained on base {found}, this round needs {expected}")]
    WrongBase { found: ContentHash, expected: ContentHash },
    #[error("weight is 0, but an adapter counts at least 1")]
    WeightZero,
    #[error("weight {found} is above the round's cap of {max}")]
    WeightAboveCap { found: u64, max: u64 },
    #[error("weight {found} does not follow from {examples} examples; the round's rule gives {expected}")]
    WeightNotByRule { found: u64, examples: u64, expected: u64 },
    #[error("adapter of {found} bytes is larger than the {max} this round allows")]
    AdapterTooLarge { found: u64, max: u64 },
}

/// Bytes from a stranger. Offers nothing but to be verified.
pub struct UnverifiedRecord<'a>(pub &'a [u8]);

impl UnverifiedRecord<'_> {
    /// Checks everything that needs no other record: form, round, signature, base, weight, size, founders' approvals.
    /// Whether the member belongs to the round is for the ledger to say, which knows how that changed.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn verify(&self, round: &Round) -> Result<SignedRecord, RecordError> {
        if self.0.len() > RECORD_BYTES_MAX {
            return Err(EncodingError::TooLarge { found: self.0.len(), max: RECORD_BYTES_MAX }.into());
        }
        let (signature, payload) = self.0.split_first_chunk::<SIGNATURE_BYTES>().ok_or(EncodingError::Truncated)?;
        let record: Record = from_cbor(payload, RECORD_BYTES_MAX)?;
        if to_cbor(&record)? != payload {
            return Err(EncodingError::NotCanonical.into());
        }
        if record.round() != round.id() {
            return Err(RecordError::WrongRound { found: record.round(), expected: round.id() });
        }
        // Many signatures are verified only for who may be heard at all.
        if let Record::Standing(change) = &record {
            change.check_form(round.manifest().founders.as_ref())?;
        }
        let member = record.author();
        if !member.verifies(DOMAIN, payload, signature) {
            return Err(RecordError::Signature { member });
        }
        check(&record, round)?;
        Ok(SignedRecord { id: identity(payload), record, bytes: self.0.to_vec() })
    }

    /// The identity these bytes would have, and the signature they carry: unchecked, good only for finding out whether
    /// the very same bytes were verified before.
    pub fn claims(&self) -> Option<(RecordId, [u8; SIGNATURE_BYTES])> {
        let (signature, payload) = self.0.split_first_chunk::<SIGNATURE_BYTES>()?;
        (self.0.len() <= RECORD_BYTES_MAX).then(|| (identity(payload), *signature))
    }
}

fn check(record: &Record, round: &Round) -> Result<(), RecordError> {
    if record.sequence() == 0 {
        return Err(RecordError::SequenceZero);
    }
    if record.sequence() > SEQUENCE_MAX {
        return Err(RecordError::SequenceAboveMax { found: record.sequence() });
    }
    let announcement = match record {
        Record::Announcement(announcement) => announcement,
        Record::Withdrawal(_) => return Ok(()),
        Record::Standing(change) => return Ok(change.check_approvals()?),
        Record::Verdict(verdict) => return Ok(verdict.check(round.manifest().verdicts)?),
    };
    let manifest = round.manifest();
    if announcement.base != manifest.base.digest {
        return Err(RecordError::WrongBase { found: announcement.base, expected: manifest.base.digest });
    }
    if announcement.weight == 0 {
        return Err(RecordError::WeightZero);
    }
    let max = manifest.weight.weight_max();
    if announcement.weight > max {
        return Err(RecordError::WeightAboveCap { found: announcement.weight, max });
    }
    let expected = manifest.weight.weight(announcement.examples);
    if announcement.weight != expected {
        return Err(RecordError::WeightNotByRule { found: announcement.weight, examples: announcement.examples, expected });
    }
    let max = round.adapter_bytes_max();
    if announcement.size > max {
        return Err(RecordError::AdapterTooLarge { found: announcement.size, max });
    }
    Ok(())
}

fn identity(payload: &[u8]) -> RecordId {
    RecordId(DomainHasher::new("record/1").bytes(payload).finish())
}

/// A record whose signature, round and limits were checked, with its bytes as they travelled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedRecord {
    id: RecordId,
    record: Record,
    bytes: Vec<u8>,
}

impl SignedRecord {
    /// Signs a record of one's own, under the same checks as a stranger's.
    ///
    /// # Errors
    /// What [`UnverifiedRecord::verify`] would refuse at every other peer.
    pub fn sign(record: &Record, key: &SecretKey, round: &Round) -> Result<Self, RecordError> {
        let payload = to_cbor(record)?;
        let signature = key.sign(DOMAIN, &payload);
        UnverifiedRecord(&[signature.as_slice(), &payload].concat()).verify(round)
    }

    pub fn id(&self) -> RecordId {
        self.id
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn signature(&self) -> [u8; SIGNATURE_BYTES] {
        self.bytes.first_chunk().copied().unwrap_or([0; SIGNATURE_BYTES])
    }

    pub fn announcement(&self) -> Option<&Announcement> {
        match &self.record {
            Record::Announcement(announcement) => Some(announcement),
            _ => None,
        }
    }

    /// What it changes about who belongs, if it does.
    pub fn standing(&self) -> Option<&StandingChange> {
        match &self.record {
            Record::Standing(change) => Some(change),
            _ => None,
        }
    }

    pub fn verdict(&self) -> Option<&Verdict> {
        match &self.record {
            Record::Verdict(verdict) => Some(verdict),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
