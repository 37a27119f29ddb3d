//! Some bytes of a blob, taken out of it, and what proves them: all else of the bao encoding of their groups.
//!
//! Who has the bytes and the proof puts the encoding together again and decodes it against the blob's hash. So a proof
//! costs 64 bytes a group and what of the first and last group of each range was not taken, and the bytes are kept once.

use std::io::{self, Read, Write};
use std::ops::Range;

use bao_tree::io::sync::{DecodeResponseIter, truncate_ranges};
use bao_tree::iter::{BaoChunk, ResponseIterRef};
use bao_tree::{ChunkNum, blake3};
use mingle_protocol::hash::ContentHash;

use super::absorb::AbsorbError;
use super::{ChunkRanges, ServeError, StoredBlob, all_chunks, tree_of};

const GROUP_BYTES: u64 = 16 << 10;
const GROUP_CHUNKS: u64 = 16;
const PARENT_BYTES: u64 = 64;

/// The whole groups of a blob of `size` bytes in which these bytes lie. What is beyond its end is left out.
pub fn groups_of(bytes: &[Range<u64>], size: u64) -> ChunkRanges {
    let mut groups = ChunkRanges::empty();
    for range in bytes.iter().filter(|range| range.start < range.end.min(size)) {
        let (first, end) = (range.start / GROUP_BYTES, range.end.min(size).div_ceil(GROUP_BYTES));
        groups |= ChunkRanges::from(ChunkNum(first * GROUP_CHUNKS)..ChunkNum(end * GROUP_CHUNKS));
    }
    &groups & &all_chunks(size)
}

impl StoredBlob {
    /// Writes the bytes at `places` (ascending, disjoint) to `bytes`, and to `proof` what proves them. Every group is
    /// verified before any of it is written.
    ///
    /// # Errors
    /// `Damaged` when the disk changed them, or when they are not here; `Receiver` when they cannot be written.
    pub fn prove(&self, places: &[Range<u64>], bytes: impl Write, proof: impl Write) -> Result<(), ServeError> {
        let groups = groups_of(places, self.size);
        let mut split = Split { runs: Runs::new(self.size, &groups, places), run: (false, 0), bytes, proof };
        self.encode(&groups, &mut split)?;
        split.bytes.flush().and_then(|()| split.proof.flush()).map_err(|source| ServeError::Receiver { source })
    }
}

/// Proves that `bytes` are those at `places` of the blob of this hash and size. Memory is one group.
///
/// # Errors
/// See [`AbsorbError`]; bytes or a proof that are too long do not belong to the blob either.
pub fn check_proof(hash: ContentHash, size: u64, places: &[Range<u64>], bytes: impl Read, proof: impl Read) -> Result<(), AbsorbError> {
    let groups = groups_of(places, size);
    let mut join = Join { runs: Runs::new(size, &groups, places), run: (false, 0), bytes, proof };
    for item in DecodeResponseIter::new(blake3::Hash::from(hash.0), tree_of(size), &mut join, &groups) {
        item?;
    }
    let mut beyond = [0; 1];
    for source in [&mut join.bytes as &mut dyn Read, &mut join.proof] {
        if source.read(&mut beyond).map_err(|source| AbsorbError::Stream { source })? > 0 {
            return Err(AbsorbError::Mismatch { offset: size });
        }
    }
    Ok(())
}

/// An encoding as runs of bytes that were taken out, and of others.
struct Runs<'a> {
    chunks: ResponseIterRef<'a>,
    places: &'a [Range<u64>],
    /// What is left of the group that the encoding is at.
    group: Range<u64>,
}

impl<'a> Runs<'a> {
    fn new(size: u64, groups: &'a ChunkRanges, places: &'a [Range<u64>]) -> Self {
        Self { chunks: ResponseIterRef::new(tree_of(size), truncate_ranges(groups, size)), places, group: 0..0 }
    }
}

impl Iterator for Runs<'_> {
    /// Whether they were taken out, and how many.
    type Item = (bool, u64);

    fn next(&mut self) -> Option<(bool, u64)> {
        if self.group.is_empty() {
            match self.chunks.next()? {
                BaoChunk::Parent { .. } => return Some((false, PARENT_BYTES)),
                BaoChunk::Leaf { start_chunk, size, .. } => {
                    self.group = start_chunk.to_bytes()..start_chunk.to_bytes() + size as u64;
                }
            }
        }
        let Range { start, end } = self.group.clone();
        while let Some((_, rest)) = self.places.split_first().filter(|(place, _)| place.end <= start) {
            self.places = rest;
        }
        let (taken, to) = match self.places.first() {
            Some(place) if place.start <= start => (true, place.end.min(end)),
            Some(place) => (false, place.start.min(end)),
            None => (false, end),
        };
        self.group.start = to;
        Some((taken, to - start))
    }
}

/// Parts what is written to it.
struct Split<'a, B, P> {
    runs: Runs<'a>,
    run: (bool, u64),
    bytes: B,
    proof: P,
}

impl<B: Write, P: Write> Write for Split<'_, B, P> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        while self.run.1 == 0 {
            self.run = self.runs.next().ok_or_else(|| io::Error::other("more was encoded than its places tell"))?;
        }
        let (taken, left) = self.run;
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let part = buffer.get(..count).unwrap_or_default();
        if taken {
            self.bytes.write_all(part)?
        } else {
            self.proof.write_all(part)?
        }
        self.run.1 = left - count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.bytes.flush()?;
        self.proof.flush()
    }
}

/// Puts together again what was parted.
struct Join<'a, B, P> {
    runs: Runs<'a>,
    run: (bool, u64),
    bytes: B,
    proof: P,
}

impl<B: Read, P: Read> Read for Join<'_, B, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.run.1 == 0 {
            match self.runs.next() {
                Some(run) => self.run = run,
                None => return Ok(0),
            }
        }
        let (taken, left) = self.run;
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..count).unwrap_or_default();
        let read = if taken { self.bytes.read(part)? } else { self.proof.read(part)? };
        self.run.1 = left - read as u64;
        Ok(read)
    }
}

// One range is a list of places as well.
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::store::Store;

    fn content(size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Bytes at the places, and their proof.
    fn proved(content: &[u8], places: &[Range<u64>]) -> (ContentHash, Vec<u8>, Vec<u8>) {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (hash, _) = store.put_blob(content).unwrap();
        let (mut bytes, mut proof) = (Vec::new(), Vec::new());
        store.open_blob(hash).unwrap().prove(places, &mut bytes, &mut proof).unwrap();
        (hash, bytes, proof)
    }

    fn at(content: &[u8], places: &[Range<u64>]) -> Vec<u8> {
        places.iter().flat_map(|place| content[place.start as usize..place.end as usize].to_vec()).collect()
    }

    #[test]
    fn a_proof_is_small_and_every_changed_byte_is_found() {
        let content = content(1_000_000);
        let places = [0..700, 20_000..400_000, 999_000..1_000_000];
        let (hash, bytes, proof) = proved(&content, &places);
        assert_eq!(bytes, at(&content, &places));
        // Twenty-six groups have so many parents; three of them are cut.
        assert!(proof.len() < 26 * 2 * 64 + 4 * (16 << 10), "{}", proof.len());
        let check = |bytes: &[u8], proof: &[u8]| check_proof(hash, 1_000_000, &places, bytes, proof);
        check(&bytes, &proof).unwrap();
        for flip in (0..bytes.len()).step_by(9_973).chain([bytes.len() - 1]) {
            let mut bent = bytes.clone();
            bent[flip] ^= 1;
            assert!(matches!(check(&bent, &proof), Err(AbsorbError::Mismatch { .. })), "byte {flip}");
        }
        for flip in (0..proof.len()).step_by(577).chain([proof.len() - 1]) {
            let mut bent = proof.clone();
            bent[flip] ^= 1;
            assert!(matches!(check(&bytes, &bent), Err(AbsorbError::Mismatch { .. })), "byte {flip} of the proof");
        }
        for (bytes, proof) in [(&bytes[1..], &proof[..]), (&bytes, &proof[..proof.len() - 1]), (&[bytes.clone(), vec![0]].concat(), &proof)]
        {
            assert!(check(bytes, proof).is_err());
        }
        assert!(matches!(check(&bytes, &[&proof[..], &[0]].concat()), Err(AbsorbError::Mismatch { offset: 1_000_000 })));
        // The same bytes are no proof of other places.
        assert!(check_proof(hash, 1_000_000, &[0..700, 20_001..400_001, 999_000..1_000_000], &bytes[..], &proof[..]).is_err());
    }

    #[test]
    fn what_is_not_there_or_was_changed_is_not_proved() {
        let content = content(200_000);
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (hash, size) = store.put_blob(&content).unwrap();
        let mut encoded = Vec::new();
        let groups = groups_of(std::slice::from_ref(&(0..40_000)), size);
        store.open_blob(hash).unwrap().encode(&groups, &mut encoded).unwrap();
        let elsewhere = TempDir::new().unwrap();
        let other = Store::open(elsewhere.path()).unwrap();
        let partial = other.begin_download(hash, size).unwrap();
        partial.absorb(&encoded[..], &groups).unwrap();
        let shared = other.share(hash).unwrap();
        let (mut bytes, mut proof) = (Vec::new(), Vec::new());
        shared.blob.prove(&[10..40_000], &mut bytes, &mut proof).unwrap();
        assert_eq!(bytes, content[10..40_000]);
        check_proof(hash, size, &[10..40_000], &bytes[..], &proof[..]).unwrap();
        let beyond = shared.blob.prove(&[10..50_000], &mut Vec::new(), &mut Vec::new());
        assert!(matches!(beyond, Err(ServeError::Damaged { .. })), "{beyond:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_places_are_proved(size in 1..300_000_usize, cuts in proptest::collection::btree_set(0..300_000_u64, 0..8)) {
            let content = content(size);
            let cuts: Vec<u64> = cuts.into_iter().filter(|cut| *cut <= size as u64).collect();
            let places: Vec<Range<u64>> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let (hash, bytes, proof) = proved(&content, &places);
            prop_assert_eq!(&bytes, &at(&content, &places));
            prop_assert!(check_proof(hash, size as u64, &places, &bytes[..], &proof[..]).is_ok());
        }
    }
}
