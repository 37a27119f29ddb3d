//! Signed records: what members say. An announcement names a member's one adapter; a withdrawal takes it back.
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

/// Records travel by gossip, so they stay small.
pub const RECORD_BYTES_MAX: usize = 4_096;
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
        }
    }

    pub fn member(&self) -> MemberKey {
        match self {
            Self::Announcement(announcement) => announcement.member,
            Self::Withdrawal(withdrawal) => withdrawal.member,
        }
    }

    pub fn sequence(&self) -> u64 {
        match self {
            Self::Announcement(announcement) => announcement.sequence,
            Self::Withdrawal(withdrawal) => withdrawal.sequence,
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
    /// Checks everything that needs no other record: form, round, roster, signature, base, weight, size.
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
        let member = record.member();
        if !round.manifest().roster.admits(&member) {
            return Err(RecordError::NotInRoster { member });
        }
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
    let Record::Announcement(announcement) = record else { return Ok(()) };
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
            Record::Withdrawal(_) => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
pub(crate) mod tests {
    use super::*;
    use crate::identity::Roster;
    use crate::round::tests::manifest;
    use crate::round::{Manifest, WeightRule};
    use std::collections::BTreeSet;

    pub(crate) fn key(number: u8) -> SecretKey {
        SecretKey::from_bytes(&[number; 32])
    }

    pub(crate) fn round() -> Round {
        Round::new(manifest()).unwrap()
    }

    pub(crate) fn announcement(member: u8, sequence: u64, adapter: &[u8]) -> Announcement {
        let round = round();
        Announcement {
            round: round.id(),
            member: key(member).member(),
            sequence,
            adapter: ContentHash::of(adapter),
            size: 900,
            weight: 10,
            base: round.manifest().base.digest,
            examples: 10,
            losses: Some(Losses { before_micronats: 3_000_000, after_micronats: 2_000_000 }),
        }
    }

    pub(crate) fn announce(member: u8, sequence: u64, adapter: &[u8]) -> SignedRecord {
        SignedRecord::sign(&Record::Announcement(announcement(member, sequence, adapter)), &key(member), &round()).unwrap()
    }

    pub(crate) fn withdraw(member: u8, sequence: u64) -> SignedRecord {
        let record = Record::Withdrawal(Withdrawal { round: round().id(), member: key(member).member(), sequence });
        SignedRecord::sign(&record, &key(member), &round()).unwrap()
    }

    /// What `change` makes of an announcement, refused.
    fn refused(change: impl Fn(&mut Announcement), manifest_change: impl Fn(&mut Manifest)) -> RecordError {
        let mut manifest = manifest();
        manifest_change(&mut manifest);
        let round = Round::new(manifest).unwrap();
        let mut announcement = announcement(1, 1, b"adapter");
        announcement.round = round.id();
        change(&mut announcement);
        SignedRecord::sign(&Record::Announcement(announcement), &key(1), &round).unwrap_err()
    }

    #[test]
    fn a_record_comes_back_as_it_was_signed() {
        let sent = announce(1, 1, b"adapter");
        let received = UnverifiedRecord(sent.bytes()).verify(&round()).unwrap();
        assert_eq!(received, sent);
        assert!(sent.bytes().len() < 600, "{} bytes", sent.bytes().len());
    }

    #[test]
    fn a_wrong_signature_is_refused() {
        let sent = announce(1, 1, b"adapter");
        for byte in 0..64 {
            let mut bytes = sent.bytes().to_vec();
            bytes[byte] ^= 1;
            assert_eq!(UnverifiedRecord(&bytes).verify(&round()), Err(RecordError::Signature { member: key(1).member() }));
        }
        // Signed by another member's key.
        let error = SignedRecord::sign(&Record::Announcement(announcement(1, 1, b"a")), &key(2), &round()).unwrap_err();
        assert_eq!(error.to_string(), format!("signature does not belong to member {}", key(1).member()));
    }

    #[test]
    fn no_flipped_bit_anywhere_is_accepted() {
        let sent = announce(1, 1, b"adapter");
        for bit in 0..sent.bytes().len() * 8 {
            let mut bytes = sent.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(UnverifiedRecord(&bytes).verify(&round()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_member_outside_the_roster_is_refused() {
        let only_two = |m: &mut Manifest| m.roster = Roster::Members(BTreeSet::from([key(2).member()]));
        assert_eq!(refused(|_| {}, only_two), RecordError::NotInRoster { member: key(1).member() });
    }

    #[test]
    fn another_round_is_refused() {
        let other = RoundId(ContentHash::of(b"another round"));
        assert_eq!(refused(|a| a.round = other, |_| {}), RecordError::WrongRound { found: other, expected: round().id() });
    }

    #[test]
    fn another_base_is_refused() {
        let found = ContentHash::of(b"other weights");
        let expected = manifest().base.digest;
        assert_eq!(refused(|a| a.base = found, |_| {}), RecordError::WrongBase { found, expected });
    }

    #[test]
    fn weights_outside_the_rule_are_refused() {
        assert_eq!(refused(|a| (a.weight, a.examples) = (0, 0), |_| {}), RecordError::WeightZero);
        assert_eq!(refused(|a| (a.weight, a.examples) = (1_001, 1_001), |_| {}), RecordError::WeightAboveCap { found: 1_001, max: 1_000 });
        assert_eq!(refused(|a| a.weight = 11, |_| {}), RecordError::WeightNotByRule { found: 11, examples: 10, expected: 10 });
        assert_eq!(refused(|a| a.weight = 2, |m| m.weight = WeightRule::Equal), RecordError::WeightAboveCap { found: 2, max: 1 });
        // Above the cap a member's examples count as the cap.
        let capped = Announcement { weight: 1_000, examples: 70_000, ..announcement(1, 1, b"a") };
        assert!(SignedRecord::sign(&Record::Announcement(capped), &key(1), &round()).is_ok());
    }

    #[test]
    fn sequence_zero_and_giant_adapters_are_refused() {
        assert_eq!(refused(|a| a.sequence = 0, |_| {}), RecordError::SequenceZero);
        let max = round().adapter_bytes_max();
        assert_eq!(refused(|a| a.size = max + 1, |_| {}), RecordError::AdapterTooLarge { found: max + 1, max });
    }

    #[test]
    fn malformed_bytes_are_refused() {
        let sent = announce(1, 1, b"adapter");
        let verify = |bytes: &[u8]| UnverifiedRecord(bytes).verify(&round()).unwrap_err();
        assert_eq!(verify(&[0; 63]), RecordError::Encoding(EncodingError::Truncated));
        assert_eq!(verify(&[0; RECORD_BYTES_MAX + 1]), RecordError::Encoding(EncodingError::TooLarge { found: 4_097, max: 4_096 }));
        let trailing = [sent.bytes(), &[0]].concat();
        assert_eq!(verify(&trailing), RecordError::Encoding(EncodingError::TrailingBytes { extra: 1 }));
        let deep = [&[0u8; 64][..], &[0x81; 100], &[0]].concat();
        assert_eq!(verify(&deep), RecordError::Encoding(EncodingError::TooDeep));
        for length in 0..sent.bytes().len() {
            assert!(UnverifiedRecord(&sent.bytes()[..length]).verify(&round()).is_err(), "cut at {length}");
        }
    }
}
