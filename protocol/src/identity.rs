//! Who speaks: ed25519 member keys, and which of them a round admits.
//!
//! A member (an institution) is a public key. Keys sign a domain tag followed by the payload, and verification is
//! strict (RFC 8032 with small-order points and malleable signatures refused), so that no two peers can differ about
//! a signature.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hash::{HexError, deserialize_key, parse_hex, serialize_key, write_hex};

/// A member's public key: 32 bytes, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey(pub [u8; 32]);

impl MemberKey {
    /// The first eight hex digits, for logs and tables.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }

    /// Whether `signature` over `domain` and `payload` was made with this key.
    pub fn verifies(&self, domain: &str, payload: &[u8], signature: &[u8; 64]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else { return false };
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        key.verify_strict(&signed_bytes(domain, payload), &signature).is_ok()
    }
}

impl fmt::Display for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MemberKey {
    type Err = HexError;
    fn from_str(text: &str) -> Result<Self, HexError> {
        parse_hex(text).map(Self)
    }
}

impl Serialize for MemberKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_key(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for MemberKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_key(deserializer).map(Self)
    }
}

/// An ed25519 signature: 64 bytes, written as 128 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_key(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_key(deserializer).map(Self)
    }
}

/// A member's secret key. It is never printed and is wiped from memory when dropped.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// From 32 bytes of a cryptographic random source, which the caller owns.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn member(&self) -> MemberKey {
        MemberKey(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, domain: &str, payload: &[u8]) -> [u8; 64] {
        self.0.sign(&signed_bytes(domain, payload)).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey of {}", self.member())
    }
}

/// `"mingle/" domain 0x00 payload`. No domain contains a zero byte, so no payload can reach into another's domain.
fn signed_bytes(domain: &str, payload: &[u8]) -> Vec<u8> {
    [b"mingle/".as_slice(), domain.as_bytes(), &[0], payload].concat()
}

/// Who may announce in a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Roster {
    /// Any key, up to the round's member cap.
    Open,
    /// Exactly these keys.
    Members(BTreeSet<MemberKey>),
}

impl Roster {
    pub fn admits(&self, member: &MemberKey) -> bool {
        match self {
            Self::Open => true,
            Self::Members(members) => members.contains(member),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_domain_payload_and_key_only() {
        let key = SecretKey::from_bytes(&[7; 32]);
        let signature = key.sign("record/1", b"payload");
        assert!(key.member().verifies("record/1", b"payload", &signature));
        assert!(!key.member().verifies("record/2", b"payload", &signature));
        assert!(!key.member().verifies("record/1", b"payloae", &signature));
        assert!(!SecretKey::from_bytes(&[8; 32]).member().verifies("record/1", b"payload", &signature));
        for bit in 0..512 {
            let mut bent = signature;
            bent[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.member().verifies("record/1", b"payload", &bent), "bit {bit}");
        }
    }

    #[test]
    fn a_key_that_is_no_point_or_of_small_order_verifies_nothing() {
        for key in [
            MemberKey([0; 32]),
            MemberKey([0xff; 32]),
            MemberKey({
                let mut one = [0; 32];
                one[0] = 1;
                one
            }),
        ] {
            assert!(!key.verifies("record/1", b"", &[0; 64]));
        }
    }

    #[test]
    fn a_secret_key_is_never_printed() {
        let text = format!("{:?}", SecretKey::from_bytes(&[7; 32]));
        assert!(!text.contains("0707"), "{text}");
    }
}
