//! The safetensors header: eight bytes of length, then JSON that names each tensor with its dtype, shape and place.
//!
//! Read from hostile bytes into a flat list, and written in one canonical form: names in byte order, data in the same
//! order without gaps, metadata `{"format":"pt"}`, padded with spaces to a multiple of eight bytes. That is what the
//! safetensors library itself writes for the same tensors.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};

use super::error::AdapterError;
use super::tensors::TensorList;
use crate::number::Dtype;

/// The longest header that is read, its eight length bytes not counted. A header of ours stays below it for any shape
/// within the limits.
pub const HEADER_BYTES_MAX: u64 = 1 << 20;

const LENGTH_BYTES: usize = 8;

/// Names of strangers are cut to this many characters before they go into an error.
const SHOWN_CHARACTERS_MAX: usize = 160;

/// One tensor as the header claims it. Read with [`MapOnly`], since a derived struct would take a JSON list too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub dtype: String,
    pub shape: Vec<u64>,
    pub data_offsets: [u64; 2],
}

/// How many bytes from the start of the file hold its length field and header, read from its first bytes.
pub fn header_length(first: &[u8], file_size: u64) -> Result<usize, AdapterError> {
    let length = first.first_chunk::<LENGTH_BYTES>().ok_or(AdapterError::NoHeader { found: file_size })?;
    let found = u64::from_le_bytes(*length);
    if found > HEADER_BYTES_MAX {
        return Err(AdapterError::HeaderTooLong { found });
    }
    let expected = found.saturating_add(LENGTH_BYTES as u64);
    let truncated = AdapterError::HeaderTruncated { expected, found: file_size };
    if expected > file_size {
        return Err(truncated);
    }
    usize::try_from(expected).map_err(|_| truncated)
}

/// The entries of the header at the start of `first`, in the order they are written there, and where the data begins.
pub(super) fn read_header(first: &[u8], file_size: u64) -> Result<(Vec<(String, Entry)>, u64), AdapterError> {
    let end = header_length(first, file_size)?;
    let header = first.get(LENGTH_BYTES..end).ok_or(AdapterError::HeaderTruncated { expected: end as u64, found: first.len() as u64 })?;
    if header.first() != Some(&b'{') {
        return Err(AdapterError::HeaderSyntax { reason: "it does not begin with an opening brace".to_owned() });
    }
    // Every level is typed, so nesting ends at the first value of the wrong type.
    let Entries(entries) =
        serde_json::from_slice(header).map_err(|error| AdapterError::HeaderSyntax { reason: shown(&error.to_string()) })?;
    let mut names = BTreeSet::new();
    for (name, _) in &entries {
        if !names.insert(name) {
            return Err(AdapterError::Duplicate { name: shown(name) });
        }
    }
    Ok((entries, end as u64))
}

/// The first characters of a text that a stranger wrote.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARACTERS_MAX).collect()
}

/// All tensors of a header, duplicates kept so that they can be refused by name.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                let mut metadata_seen = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "__metadata__" {
                        entries.push((name, map.next_value::<MapOnly>()?.0));
                    } else if metadata_seen {
                        return Err(A::Error::custom("it has two entries __metadata__"));
                    } else {
                        map.next_value::<Metadata>()?;
                        metadata_seen = true;
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Header)
    }
}

struct MapOnly(Entry);

impl<'de> Deserialize<'de> for MapOnly {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = MapOnly;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map with dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MapOnly, A::Error> {
                Entry::deserialize(MapAccessDeserializer::new(map)).map(MapOnly)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// Free text about the file. Read only to see that it is text with distinct keys, then forgotten.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from strings to strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some((key, _)) = map.next_entry::<String, String>()? {
                    if !keys.insert(key) {
                        return Err(A::Error::custom("it has two metadata entries of one name"));
                    }
                }
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Strings)
    }
}

/// The canonical header of a file that holds `tensors` in their order, all of one dtype: length field, JSON, padding.
/// The data follows it directly.
pub fn canonical_header(tensors: &TensorList, dtype: Dtype) -> Vec<u8> {
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut begin: u64 = 0;
    for tensor in tensors.iter() {
        let end = begin.saturating_add(tensor.elements().saturating_mul(dtype.bytes() as u64));
        let dims: Vec<String> = tensor.dims.iter().map(u64::to_string).collect();
        // Names hold nothing that JSON would escape: the shape has checked them.
        json.push_str(&format!(r#","{}":{{"dtype":"{dtype}","shape":[{}],"data_offsets":[{begin},{end}]}}"#, tensor.name, dims.join(",")));
        begin = end;
    }
    json.push('}');
    let padded = json.len().next_multiple_of(LENGTH_BYTES);
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header.resize(padded.saturating_add(LENGTH_BYTES), b' ');
    header
}
