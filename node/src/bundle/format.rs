//! The bytes of a bundle: a head whose every byte is covered by a hash, then the adapters with their proofs.
//!
//! ```text
//! magic 16 | index length u64 | index hash 32 | index | round file | records | adapters ... | receipt | merged file
//! ```

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};

use mingle_protocol::encoding::{from_cbor, to_cbor};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::record::RECORD_BYTES_MAX;
use mingle_protocol::round::{MANIFEST_BYTES_MAX, RoundId};
use serde::{Deserialize, Serialize};

use super::BundleError;
use crate::merged::PROOF_BYTES_MAX;
use crate::store::{BLOB_BYTES_MAX, tree_of};

const MAGIC: [u8; 16] = *b"mingle bundle 1\n";
/// What the magic of every version begins with.
const NAME: &[u8] = b"mingle bundle ";
/// magic, length and hash of the index.
const START_BYTES: u64 = 16 + 8 + 32;
/// 16,384 members' adapters take less than half of it.
const INDEX_BYTES_MAX: u64 = 2 << 20;
/// Records are read one by one: the bound is for time, not for memory.
const RECORDS_BYTES_MAX: u64 = 256 << 20;
/// A round file with signatures and addresses.
const ROUND_BYTES_MAX: u64 = MANIFEST_BYTES_MAX as u64;
const READ_BYTES: usize = 256 * 1024;

/// What of a bundle has a hash of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub hash: ContentHash,
    /// Of the plain bytes.
    pub size: u64,
}

impl Part {
    pub fn of(bytes: &[u8]) -> Self {
        Self { hash: ContentHash::of(bytes), size: bytes.len() as u64 }
    }

    /// Bytes that an adapter takes in a bundle: its own, and the proofs of its groups.
    pub fn encoded(&self) -> u64 {
        self.size.saturating_add(tree_of(self.size).outboard_size())
    }
}

/// A merged adapter that travels along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergedParts {
    pub receipt: Part,
    pub file: Part,
}

/// What is in a bundle, in the order in which it lies there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    pub round: RoundId,
    pub round_file: Part,
    pub records: Part,
    pub adapters: Vec<Part>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<MergedParts>,
}

/// Where each part begins and ends.
struct Places {
    round_file: (u64, u64),
    records: (u64, u64),
    adapters: Vec<(u64, u64)>,
    merged: Option<[(u64, u64); 2]>,
    end: u64,
}

impl Index {
    /// Sizes within their bounds, one after another from `start`.
    fn places(&self, start: u64) -> Result<Places, BundleError> {
        let mut end = start;
        let mut place = |what, part: &Part, bytes: u64, max: u64| {
            if part.size > max {
                return Err(BundleError::TooLarge { what, size: part.size, max });
            }
            let begin = end;
            // No sum of so many bounded sizes comes near the end of u64, but a proof costs nothing.
            end = end.checked_add(bytes).ok_or(BundleError::TooLarge { what, size: bytes, max })?;
            Ok((begin, end))
        };
        let round_file = place("its round file", &self.round_file, self.round_file.size, ROUND_BYTES_MAX)?;
        let records = place("its list of records", &self.records, self.records.size, RECORDS_BYTES_MAX)?;
        let adapters: Result<Vec<_>, _> =
            self.adapters.iter().map(|part| place("an adapter", part, part.encoded(), BLOB_BYTES_MAX)).collect();
        let adapters = adapters?;
        let merged = match &self.merged {
            None => None,
            Some(MergedParts { receipt, file }) => Some([
                place("its receipt", receipt, receipt.size, PROOF_BYTES_MAX)?,
                place("its merged adapter", file, file.size, BLOB_BYTES_MAX)?,
            ]),
        };
        Ok(Places { round_file, records, adapters, merged, end })
    }
}

/// Writes all that precedes the adapters.
pub fn write_head(to: &mut impl Write, index: &Index, round_file: &[u8], records: &[u8]) -> Result<(), BundleError> {
    let bytes = to_cbor(index).map_err(|error| BundleError::index(&error))?;
    let length = bytes.len() as u64;
    if length > INDEX_BYTES_MAX {
        return Err(BundleError::TooLarge { what: "its index", size: length, max: INDEX_BYTES_MAX });
    }
    index.places(0)?;
    for piece in [MAGIC.as_slice(), &length.to_le_bytes(), &ContentHash::of(&bytes).0, &bytes, round_file, records] {
        to.write_all(piece)?;
    }
    Ok(())
}

/// Records as they lie in a bundle: each after its length.
pub fn frame<'a>(records: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut framed = Vec::new();
    for record in records {
        // The protocol's bound on a record is far below.
        let length = u16::try_from(record.len()).unwrap_or(0);
        framed.extend_from_slice(&length.to_le_bytes());
        framed.extend_from_slice(record);
    }
    framed
}

/// A bundle whose index was checked.
pub struct Bundle {
    file: File,
    length: u64,
    places: Places,
    pub index: Index,
}

impl Bundle {
    /// Reads and checks the index. A file that ends early is taken as far as it goes.
    ///
    /// # Errors
    /// Anything that is not exactly an index of this version.
    pub fn open(mut file: File) -> Result<Self, BundleError> {
        let length = file.metadata()?.len();
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic).map_err(|_| BundleError::NotABundle)?;
        if magic != MAGIC {
            return Err(if magic.starts_with(NAME) { BundleError::Version } else { BundleError::NotABundle });
        }
        let what = "its index";
        let short = |_| BundleError::Truncated { what };
        let (mut size, mut hash) = ([0; 8], [0; 32]);
        file.read_exact(&mut size).map_err(short)?;
        file.read_exact(&mut hash).map_err(short)?;
        let size = u64::from_le_bytes(size);
        if size > INDEX_BYTES_MAX {
            return Err(BundleError::TooLarge { what, size, max: INDEX_BYTES_MAX });
        }
        let mut bytes = Vec::new();
        (&mut file).take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(BundleError::Truncated { what });
        }
        if ContentHash::of(&bytes).0 != hash {
            return Err(BundleError::Damaged { what });
        }
        let index: Index = from_cbor(&bytes, bytes.len()).map_err(|error| BundleError::index(&error))?;
        let places = index.places(START_BYTES + size)?;
        match length.checked_sub(places.end) {
            None | Some(0) => Ok(Self { file, length, places, index }),
            Some(extra) => Err(BundleError::Extra { extra }),
        }
    }

    /// Bytes that are missing at the end.
    pub fn missing(&self) -> u64 {
        self.places.end.saturating_sub(self.length)
    }

    /// The round file, checked against its hash.
    ///
    /// # Errors
    /// Another text than the one that was put in.
    pub fn round_file(&self) -> Result<Vec<u8>, BundleError> {
        self.whole("its round file", self.places.round_file, &self.index.round_file)
    }

    /// The receipt of the merged adapter that travels along, checked against its hash.
    ///
    /// # Errors
    /// Another receipt than the one that was put in.
    pub fn receipt(&self) -> Result<Option<Vec<u8>>, BundleError> {
        let (Some(parts), Some([place, _])) = (&self.index.merged, self.places.merged) else { return Ok(None) };
        self.whole("its receipt", place, &parts.receipt).map(Some)
    }

    /// The merged adapter that travels along, not yet checked against its hash.
    ///
    /// # Errors
    /// What the file system says.
    pub fn merged(&self) -> Result<Option<impl Read>, BundleError> {
        self.places.merged.map(|[_, place]| self.reader(place)).transpose()
    }

    /// Gives every record to `each`, after the list as a whole was found to have its hash.
    ///
    /// # Errors
    /// A list that was changed, of which nothing is given, or that is not made of records.
    pub fn records<E: From<BundleError>>(&self, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let what = "its list of records";
        let mut hasher = blake3::Hasher::new();
        let mut reader = self.reader(self.places.records)?;
        let read = std::io::copy(&mut reader, &mut hasher).map_err(BundleError::from)?;
        check(what, read, hasher.finalize(), &self.index.records)?;
        let malformed = |why: &str| BundleError::Malformed { what, why: why.into() };
        let mut reader = self.reader(self.places.records)?;
        let mut left = self.index.records.size;
        while left > 0 {
            let mut length = [0; 2];
            reader.read_exact(&mut length).map_err(|_| malformed("it ends within a length"))?;
            let length = usize::from(u16::from_le_bytes(length));
            if length > RECORD_BYTES_MAX {
                return Err(malformed("a record is longer than any record may be").into());
            }
            let mut record = vec![0; length];
            reader.read_exact(&mut record).map_err(|_| malformed("it ends within a record"))?;
            left = left.saturating_sub(2 + length as u64);
            each(&record)?;
        }
        Ok(())
    }

    /// The proofs and groups of an adapter, not yet checked against its hash.
    ///
    /// # Errors
    /// What the file system says.
    pub fn adapter(&self, number: usize) -> Result<impl Read, BundleError> {
        self.reader(self.places.adapters.get(number).copied().unwrap_or_default())
    }

    fn whole(&self, what: &'static str, place: (u64, u64), part: &Part) -> Result<Vec<u8>, BundleError> {
        let mut bytes = Vec::new();
        self.reader(place)?.read_to_end(&mut bytes)?;
        check(what, bytes.len() as u64, blake3::hash(&bytes), part)?;
        Ok(bytes)
    }

    fn reader(&self, (start, end): (u64, u64)) -> Result<impl Read + use<>, BundleError> {
        // One reader at a time is used, so that sharing the file's position does no harm.
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::with_capacity(READ_BYTES, file).take(end - start))
    }
}

fn check(what: &'static str, read: u64, hash: blake3::Hash, part: &Part) -> Result<(), BundleError> {
    if read < part.size {
        return Err(BundleError::Truncated { what });
    }
    if hash != part.hash.0 { Err(BundleError::Damaged { what }) } else { Ok(()) }
}
