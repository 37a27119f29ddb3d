//! CBOR from strangers: size, depth and length are checked before anything is decoded.
//!
//! Everything the network carries is a fixed schema in CBOR (RFC 8949). Before serde sees a byte, [`scan`] walks the
//! input without recursion or allocation and refuses what is too large, too deep, indefinite, truncated, longer than
//! its declared lengths, or followed by anything. Signed bytes are kept and verified as they arrived; they are never
//! decoded and encoded again.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// No message of ours nests deeper.
pub const DEPTH_MAX: usize = 8;

/// Why bytes are not one well-formed message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    #[error("message of {found} bytes is larger than the {max} allowed")]
    TooLarge { found: usize, max: usize },
    #[error("message nests deeper than {DEPTH_MAX} levels")]
    TooDeep,
    #[error("message ends in the middle of a value")]
    Truncated,
    #[error("message is followed by {extra} bytes that do not belong to it")]
    TrailingBytes { extra: usize },
    #[error("message uses a form of CBOR that is not allowed here (byte 0x{byte:02x})")]
    Unsupported { byte: u8 },
    #[error("message is not written in the one form that is allowed")]
    NotCanonical,
    #[error("message does not have the expected fields: {why}")]
    Schema { why: String },
}

/// The CBOR form of one of our own messages.
///
/// # Errors
/// Only for a value CBOR cannot hold, which none of our message types is.
pub fn to_cbor<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodingError> {
    serde_cbor::to_vec(value).map_err(|error| EncodingError::Schema { why: error.to_string() })
}

/// Decodes exactly one message of at most `size_max` bytes.
///
/// # Errors
/// Every way in which `bytes` is not exactly one such message.
pub fn from_cbor<T: DeserializeOwned>(bytes: &[u8], size_max: usize) -> Result<T, EncodingError> {
    if bytes.len() > size_max {
        return Err(EncodingError::TooLarge { found: bytes.len(), max: size_max });
    }
    scan(bytes)?;
    serde_cbor::from_slice(bytes).map_err(|error| EncodingError::Schema { why: error.to_string() })
}

/// Walks one CBOR item. Containers on the way down are counted on a fixed stack, so neither a long input nor a
/// five-byte "array of four billion" can cost memory.
fn scan(bytes: &[u8]) -> Result<(), EncodingError> {
    let mut rest = bytes;
    // `open[level]` counts the items still owed to the container at that level.
    let mut open = [0u64; DEPTH_MAX];
    let mut depth = 0usize;
    loop {
        let (&first, after) = rest.split_first().ok_or(EncodingError::Truncated)?;
        rest = after;
        let items = match first >> 5 {
            0 | 1 => {
                argument(first, &mut rest)?;
                0
            }
            2 | 3 => {
                let length = argument(first, &mut rest)?;
                let length = usize::try_from(length).map_err(|_| EncodingError::Truncated)?;
                rest = rest.get(length..).ok_or(EncodingError::Truncated)?;
                0
            }
            4 => bounded(argument(first, &mut rest)?, 1, rest)?,
            5 => bounded(argument(first, &mut rest)?, 2, rest)?,
            // Of tags, floats and simple values only false, true and null are part of any schema.
            _ if matches!(first, 0xf4..=0xf6) => 0,
            _ => return Err(EncodingError::Unsupported { byte: first }),
        };
        if items > 0 {
            let slot = open.get_mut(depth).ok_or(EncodingError::TooDeep)?;
            *slot = items;
            depth = depth.saturating_add(1);
            continue;
        }
        // A value is complete: so is every container that was waiting for just this one.
        loop {
            let Some(level) = depth.checked_sub(1) else {
                return if rest.is_empty() { Ok(()) } else { Err(EncodingError::TrailingBytes { extra: rest.len() }) };
            };
            let slot = open.get_mut(level).ok_or(EncodingError::TooDeep)?;
            *slot = slot.saturating_sub(1);
            if *slot > 0 {
                break;
            }
            depth = level;
        }
    }
}

/// The argument of an item's head: in the head itself or in the next 1, 2, 4 or 8 bytes. Indefinite lengths (31)
/// are refused.
fn argument(first: u8, rest: &mut &[u8]) -> Result<u64, EncodingError> {
    let width = match first & 0x1f {
        small @ 0..=23 => return Ok(u64::from(small)),
        24 => 1,
        25 => 2,
        26 => 4,
        27 => 8,
        _ => return Err(EncodingError::Unsupported { byte: first }),
    };
    let (digits, after) = rest.split_at_checked(width).ok_or(EncodingError::Truncated)?;
    *rest = after;
    Ok(digits.iter().fold(0u64, |value, digit| (value << 8) | u64::from(*digit)))
}

/// Items a container may claim: every item takes at least one byte of what is left.
fn bounded(count: u64, items_each: u64, rest: &[u8]) -> Result<u64, EncodingError> {
    let items = count.checked_mul(items_each).ok_or(EncodingError::Truncated)?;
    if items > rest.len() as u64 { Err(EncodingError::Truncated) } else { Ok(items) }
}

/// A byte string in CBOR, hex in JSON, for `#[serde(with = "encoding::byte_string")]`.
pub mod byte_string {
    use serde::{Deserializer, Serializer};
    use std::fmt;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        crate::hash::serialize_key(bytes, serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(bytes.to_vec())
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                crate::hash::decode_hex(text).ok_or_else(|| E::custom("expected an even number of hex digits"))
            }
        }
        if deserializer.is_human_readable() { deserializer.deserialize_str(Visitor) } else { deserializer.deserialize_bytes(Visitor) }
    }
}

#[cfg(test)]
#[allow(clippy::all, clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Note {
        number: u64,
        words: Vec<String>,
    }

    fn note() -> Note {
        Note { number: 70_000, words: vec!["one".into(), "two".into()] }
    }

    #[test]
    fn a_message_comes_back_as_it_went() {
        let bytes = to_cbor(&note()).unwrap();
        assert_eq!(from_cbor::<Note>(&bytes, 100).unwrap(), note());
    }

    #[test]
    fn an_oversized_message_is_refused_before_it_is_read() {
        let bytes = to_cbor(&note()).unwrap();
        let refused = from_cbor::<Note>(&bytes, bytes.len() - 1).unwrap_err();
        assert_eq!(refused, EncodingError::TooLarge { found: bytes.len(), max: bytes.len() - 1 });
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = to_cbor(&note()).unwrap();
        for length in 0..bytes.len() {
            assert_eq!(from_cbor::<Note>(&bytes[..length], 100), Err(EncodingError::Truncated), "cut at {length}");
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = to_cbor(&note()).unwrap();
        bytes.push(0);
        assert_eq!(from_cbor::<Note>(&bytes, 100), Err(EncodingError::TrailingBytes { extra: 1 }));
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        let mut bytes = vec![0x81; 1_000_000];
        bytes.push(0);
        assert_eq!(scan(&bytes), Err(EncodingError::TooDeep));
        let mut allowed = vec![0x81; DEPTH_MAX];
        allowed.push(0);
        assert_eq!(scan(&allowed), Ok(()));
    }

    #[test]
    fn a_giant_array_in_five_bytes_is_refused() {
        assert_eq!(scan(&[0x9a, 0xff, 0xff, 0xff, 0xff]), Err(EncodingError::Truncated));
        assert_eq!(scan(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Err(EncodingError::Truncated));
        assert_eq!(scan(&[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Err(EncodingError::Truncated));
    }

    #[test]
    fn indefinite_lengths_tags_and_floats_are_refused() {
        for bytes in [&[0x9f, 0xff][..], &[0xc0, 0x00], &[0xfb, 0, 0, 0, 0, 0, 0, 0, 0], &[0xff], &[0x5f, 0xff]] {
            assert!(matches!(scan(bytes), Err(EncodingError::Unsupported { .. })), "{bytes:?}");
        }
    }

    #[test]
    fn unknown_and_missing_fields_are_refused() {
        #[derive(serde::Serialize)]
        struct Wider {
            number: u64,
            words: Vec<String>,
            more: bool,
        }
        let bytes = to_cbor(&Wider { number: 1, words: vec![], more: true }).unwrap();
        assert!(matches!(from_cbor::<Note>(&bytes, 100), Err(EncodingError::Schema { .. })));
        assert!(matches!(from_cbor::<Note>(&[0xa0], 100), Err(EncodingError::Schema { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = from_cbor::<Note>(&bytes, 150);
        }
    }
}
