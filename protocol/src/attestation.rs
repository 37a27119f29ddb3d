//! Attestations: a member's signed word that merging a set of adapters gave it these bytes.
//!
//! Equal set roots must go with equal merged hashes. So attestations prove convergence, let a reader take the merged file
//! alone when enough members vouch for it, and two that contradict each other are evidence that somebody's machine or
//! word is wrong.

use serde::{Deserialize, Serialize};

use crate::encoding::{EncodingError, byte_string, from_cbor, to_cbor};
use crate::hash::{ContentHash, DomainHasher};
use crate::identity::{MemberKey, SecretKey};
use crate::record::RecordId;
use crate::round::{Round, RoundId};

/// Adapters a member may leave out and still attest.
pub const EXCLUDED_MAX: usize = 16;
/// With sixteen exclusions an attestation takes less.
pub const ATTESTATION_BYTES_MAX: usize = 1_024;
const DOMAIN: &str = "attestation/1";
const SIGNATURE_BYTES: usize = 64;

/// "I merged this set, and these are the bytes."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    pub round: RoundId,
    pub member: MemberKey,
    /// Of the set that was merged: what the ledger admits less what is excluded.
    pub set_root: ContentHash,
    /// BLAKE3 of the merged file.
    pub merged: ContentHash,
    /// Bytes of the merged file.
    pub size: u64,
    /// Announcements that count but were left out, because their adapters do not fit the round or nobody hands them over;
    /// in ascending order.
    pub excluded: Vec<RecordId>,
}

/// Why an attestation is worth nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    #[error("attestation is malformed: {0}")]
    Encoding(#[from] EncodingError),
    #[error("attestation is for round {found}, this is round {expected}")]
    WrongRound { found: RoundId, expected: RoundId },
    #[error("attestation leaves out {found} adapters, but at most {EXCLUDED_MAX}, each once and in order, are allowed")]
    Excluded { found: usize },
    #[error("attested file of {found} bytes is larger than the {max} a merge of this round can have")]
    Size { found: u64, max: u64 },
    #[error("signature of the attestation does not belong to member {member}")]
    Signature { member: MemberKey },
}

/// An attestation as bytes, not yet verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RawAttestation(#[serde(with = "byte_string")] pub Vec<u8>);

impl RawAttestation {
    /// Checks all that needs no ledger; whether the member's word counts is for the ledger to say.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn verify(&self, round: &Round) -> Result<SignedAttestation, AttestationError> {
        let found = self.0.len();
        if found > ATTESTATION_BYTES_MAX {
            return Err(EncodingError::TooLarge { found, max: ATTESTATION_BYTES_MAX }.into());
        }
        let (signature, payload) = self.0.split_first_chunk::<SIGNATURE_BYTES>().ok_or(EncodingError::Truncated)?;
        let attestation: Attestation = from_cbor(payload, ATTESTATION_BYTES_MAX)?;
        if to_cbor(&attestation)? != payload {
            return Err(EncodingError::NotCanonical.into());
        }
        let Attestation { round: of, member, size, ref excluded, .. } = attestation;
        if of != round.id() {
            return Err(AttestationError::WrongRound { found: of, expected: round.id() });
        }
        if excluded.len() > EXCLUDED_MAX || !excluded.is_sorted_by(|left, right| left < right) {
            return Err(AttestationError::Excluded { found: excluded.len() });
        }
        let max = round.merged().tensors().file_bytes_max();
        if size == 0 || size > max {
            return Err(AttestationError::Size { found: size, max });
        }
        if !member.verifies(DOMAIN, payload, signature) {
            return Err(AttestationError::Signature { member });
        }
        Ok(SignedAttestation { attestation, raw: self.clone() })
    }
}

/// An attestation whose signature and form were checked, with its bytes as they travelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedAttestation {
    attestation: Attestation,
    raw: RawAttestation,
}

impl SignedAttestation {
    /// # Errors
    /// What [`RawAttestation::verify`] would refuse at every other peer.
    pub fn sign(attestation: &Attestation, key: &SecretKey, round: &Round) -> Result<Self, AttestationError> {
        let payload = to_cbor(attestation)?;
        let signature = key.sign(DOMAIN, &payload);
        RawAttestation([signature.as_slice(), &payload].concat()).verify(round)
    }

    pub fn attestation(&self) -> &Attestation {
        &self.attestation
    }

    pub fn raw(&self) -> &RawAttestation {
        &self.raw
    }

    /// A name for these very bytes.
    pub fn id(&self) -> ContentHash {
        DomainHasher::new(DOMAIN).bytes(&self.raw.0).finish()
    }
}

/// Two attestations that cannot both be right: one set, two merges. Anyone with the round can check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub one: SignedAttestation,
    pub other: SignedAttestation,
}

impl Fault {
    /// `None` when the two do not contradict each other.
    pub fn between(one: &SignedAttestation, other: &SignedAttestation) -> Option<Self> {
        let (left, right) = (one.attestation(), other.attestation());
        let same_set = (left.round, left.set_root) == (right.round, right.set_root);
        (same_set && (left.merged, left.size) != (right.merged, right.size)).then(|| Self { one: one.clone(), other: other.clone() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::record::tests::{key, round};

    fn attestation() -> Attestation {
        Attestation {
            round: round().id(),
            member: key(1).member(),
            set_root: ContentHash::of(b"set"),
            merged: ContentHash::of(b"merged"),
            size: 900,
            excluded: vec![],
        }
    }

    fn refused(change: impl Fn(&mut Attestation)) -> AttestationError {
        let mut attestation = attestation();
        change(&mut attestation);
        SignedAttestation::sign(&attestation, &key(1), &round()).unwrap_err()
    }

    fn left_out(count: usize) -> Vec<RecordId> {
        let mut ids: Vec<RecordId> = (0..count).map(|number| RecordId(ContentHash::of(&number.to_le_bytes()))).collect();
        ids.sort();
        ids
    }

    #[test]
    fn an_attestation_comes_back_as_it_was_signed_and_no_flipped_bit_is_accepted() {
        let full = Attestation { excluded: left_out(EXCLUDED_MAX), ..attestation() };
        assert!(SignedAttestation::sign(&full, &key(1), &round()).is_ok());
        let sent = SignedAttestation::sign(&attestation(), &key(1), &round()).unwrap();
        assert_eq!(sent.raw().verify(&round()), Ok(sent.clone()));
        assert!(sent.raw().0.len() < 300, "{} bytes", sent.raw().0.len());
        for bit in 0..sent.raw().0.len() * 8 {
            let mut bytes = sent.raw().0.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(RawAttestation(bytes).verify(&round()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_breaks_a_bound_is_refused() {
        let other = RoundId(ContentHash::of(b"another round"));
        assert_eq!(refused(|a| a.round = other), AttestationError::WrongRound { found: other, expected: round().id() });
        assert_eq!(refused(|a| a.excluded = left_out(17)), AttestationError::Excluded { found: 17 });
        assert_eq!(refused(|a| a.excluded = left_out(3).into_iter().rev().collect()), AttestationError::Excluded { found: 3 });
        assert_eq!(refused(|a| a.member = key(2).member()), AttestationError::Signature { member: key(2).member() });
        assert!(matches!(refused(|a| a.size = 0), AttestationError::Size { found: 0, .. }));
        assert!(matches!(refused(|a| a.size = u64::MAX), AttestationError::Size { .. }));
        let long = RawAttestation(vec![0; ATTESTATION_BYTES_MAX + 1]).verify(&round()).unwrap_err();
        assert!(matches!(long, AttestationError::Encoding(EncodingError::TooLarge { .. })));
    }

    #[test]
    fn only_two_merges_of_one_set_are_a_fault() {
        let sign = |attestation: &Attestation| SignedAttestation::sign(attestation, &key(1), &round()).unwrap();
        let one = sign(&attestation());
        assert_eq!(Fault::between(&one, &one), None);
        let elsewhere = sign(&Attestation { set_root: ContentHash::of(b"more"), merged: ContentHash::of(b"x"), ..attestation() });
        assert_eq!(Fault::between(&one, &elsewhere), None);
        let lie = sign(&Attestation { merged: ContentHash::of(b"x"), ..attestation() });
        assert!(Fault::between(&one, &lie).is_some());
    }
}
