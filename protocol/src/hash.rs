//! Content hashes (BLAKE3) and domain-separated hashing of structured values.
//!
//! A blob's hash is plain BLAKE3 of its bytes, so that any tool can check it. Everything else that is hashed goes
//! through [`DomainHasher`], which spells out every field: nothing is hashed by accident of a derive.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A BLAKE3 hash: 32 bytes, written as 64 lower-case hex digits for people and as a byte string in CBOR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The plain BLAKE3 hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The first eight hex digits, for logs and tables.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hex digits, found \"{found}\"")]
pub struct HexError {
    pub expected: usize,
    pub found: String,
}

impl FromStr for ContentHash {
    type Err = HexError;
    fn from_str(text: &str) -> Result<Self, HexError> {
        parse_hex(text).map(Self)
    }
}

pub(crate) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Parses exactly `N` bytes of hex, either case.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let refuse = || HexError { expected: N.saturating_mul(2), found: text.chars().take(80).collect() };
    let bytes = decode_hex(text).ok_or_else(refuse)?;
    bytes.try_into().map_err(|_| refuse())
}

/// Bytes of a hex text of even length, or `None`.
pub fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| (high << 4) | low).collect())
}

/// Lower-case hex of `bytes`.
pub fn encode_hex(bytes: &[u8]) -> String {
    struct Hex<'a>(&'a [u8]);
    impl fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_hex(self.0, f)
        }
    }
    Hex(bytes).to_string()
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_key(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_key(deserializer).map(Self)
    }
}

/// Fixed-size bytes: hex in human-readable formats, a byte string in CBOR.
pub(crate) fn serialize_key<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() { serializer.serialize_str(&encode_hex(bytes)) } else { serializer.serialize_bytes(bytes) }
}

pub(crate) fn deserialize_key<'de, const N: usize, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; N], D::Error> {
    struct Visitor<const N: usize>;
    impl<const N: usize> serde::de::Visitor<'_> for Visitor<N> {
        type Value = [u8; N];
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "{N} bytes")
        }
        fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            parse_hex(text).map_err(E::custom)
        }
    }
    if deserializer.is_human_readable() { deserializer.deserialize_str(Visitor::<N>) } else { deserializer.deserialize_bytes(Visitor::<N>) }
}

/// Hashes a structured value field by field. Integers are little-endian `u64`; strings, byte strings and lists are
/// preceded by their length as `u64`, so that no two different values feed the hasher the same bytes.
pub struct DomainHasher(blake3::Hasher);

impl DomainHasher {
    /// `domain` separates one use from every other, for example `"set-root/1"`.
    pub fn new(domain: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("mingle 2026-11 domain-separated hash");
        hasher.update(&length(domain.len())).update(domain.as_bytes());
        Self(hasher)
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.update(&value.to_le_bytes());
        self
    }

    /// A list's length, before its elements.
    pub fn count(&mut self, items: usize) -> &mut Self {
        self.0.update(&length(items));
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&length(bytes.len())).update(bytes);
        self
    }

    pub fn string(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A hash or key of fixed length: no length prefix.
    pub fn hash(&mut self, fixed: &[u8; 32]) -> &mut Self {
        self.0.update(fixed);
        self
    }

    pub fn finish(&self) -> ContentHash {
        ContentHash(*self.0.finalize().as_bytes())
    }

    /// An endless stream of bytes instead of 32 (BLAKE3's extendable output), for seeded draws.
    pub fn finish_stream(&self) -> blake3::OutputReader {
        self.0.finalize_xof()
    }
}

fn length(items: usize) -> [u8; 8] {
    (items as u64).to_le_bytes()
}
