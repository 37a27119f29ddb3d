//! The record of verified ranges of a partial download: append only, checksummed, read back after any crash.
//!
//! A range is recorded as durable only after its bytes are on disk, so believing it needs no scan. Before the first byte
//! of a piece is written, a note says that it was begun: what was begun and is not durable is all that has to be scanned
//! after a kill, and nothing that reached the files is fetched twice. Notes are not waited for; a power failure may take
//! them along with the bytes they speak of. A torn or foreign record ends the reading: what came before it holds, what
//! comes after is forgotten.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use bao_tree::ChunkNum;
use mingle_protocol::hash::ContentHash;

use super::ChunkRanges;

const MAGIC: [u8; 16] = *b"mingle ranges 2\n";
const SUM_BYTES: usize = 16;
/// magic, hash, size, checksum.
const HEADER_BYTES: usize = 16 + 32 + 8 + SUM_BYTES;
/// start and end in chunks, checksum (which covers the kind as well).
const RECORD_BYTES: usize = 8 + 8 + SUM_BYTES;

/// 16 MiB: half a million records, more than any download writes. A longer journal is not read: the files are scanned
/// and a short one replaces it.
const JOURNAL_BYTES_MAX: u64 = 16 << 20;

/// What a record says of its range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Verified and on disk.
    Durable = 0,
    /// Bytes may have been written.
    Begun = 1,
}

/// What a journal knew.
pub(super) struct Known {
    pub journal: Journal,
    pub durable: ChunkRanges,
    pub begun: ChunkRanges,
}

pub(super) struct Journal {
    file: Arc<File>,
    /// Chained over header and records, so that a record cannot be believed at another place.
    chain: [u8; SUM_BYTES],
}

impl Journal {
    /// Reads the journal at `path`. `None` when it is absent, foreign or unreadable: the caller must scan.
    ///
    /// What is read back is only what the tree of `end` chunks can hold.
    pub fn load(path: &Path, hash: ContentHash, size: u64, end: ChunkNum) -> io::Result<Option<Known>> {
        let mut file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() > JOURNAL_BYTES_MAX {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (header, mut chain) = header(hash, size);
        let Some(records) = bytes.strip_prefix(header.as_slice()) else { return Ok(None) };

        let (mut durable, mut begun) = (ChunkRanges::empty(), ChunkRanges::empty());
        let mut believed = HEADER_BYTES;
        for record in records.as_chunks::<RECORD_BYTES>().0 {
            let Some((kind, range, next)) = read_record(record, &chain, end) else { break };
            match kind {
                Kind::Durable => durable |= range,
                Kind::Begun => begun |= range,
            }
            chain = next;
            believed += RECORD_BYTES;
        }
        // A torn tail must not precede the next record.
        file.set_len(believed as u64)?;
        Ok(Some(Known { journal: Self { file: Arc::new(file), chain }, durable, begun }))
    }

    /// A fresh journal at `path` that holds `ranges`, durable on return (its name after a sync of the folder).
    pub fn create(path: &Path, hash: ContentHash, size: u64, ranges: &ChunkRanges) -> io::Result<Self> {
        // Emptied before the first byte is written: an old journal must never be believed in part.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let (header, chain) = header(hash, size);
        file.write_all(&header)?;
        let mut journal = Self { file: Arc::new(file), chain };
        journal.append(Kind::Durable, ranges)?;
        journal.file.sync_all()?;
        Ok(journal)
    }

    /// Appends `ranges` and does not wait for the disk. What is called durable has been synced by the caller.
    pub fn append(&mut self, kind: Kind, ranges: &ChunkRanges) -> io::Result<()> {
        let mut records = Vec::new();
        let mut chain = self.chain;
        for bounds in ranges.boundaries().chunks(2) {
            let [start, end] = bounds else { continue };
            let range = [start.0.to_le_bytes(), end.0.to_le_bytes()].concat();
            chain = checksum(&chain, kind, &range);
            records.extend_from_slice(&range);
            records.extend_from_slice(&chain);
        }
        if records.is_empty() {
            return Ok(());
        }
        (&*self.file).write_all(&records)?;
        self.chain = chain;
        Ok(())
    }

    /// The file, to be synced without holding the journal.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }
}

fn header(hash: ContentHash, size: u64) -> (Vec<u8>, [u8; SUM_BYTES]) {
    let fields = [MAGIC.as_slice(), &hash.0, &size.to_le_bytes()].concat();
    let sum = checksum(&[0; SUM_BYTES], Kind::Durable, &fields);
    ([fields.as_slice(), &sum].concat(), sum)
}

fn read_record(record: &[u8; RECORD_BYTES], chain: &[u8], end: ChunkNum) -> Option<(Kind, ChunkRanges, [u8; SUM_BYTES])> {
    let (range, found) = record.split_at_checked(16)?;
    let sums = [Kind::Durable, Kind::Begun].map(|kind| (kind, checksum(chain, kind, range)));
    let (kind, sum) = sums.into_iter().find(|(_, sum)| found == sum)?;
    let (start, stop) = range.split_at_checked(8)?;
    let start = ChunkNum(u64::from_le_bytes(start.try_into().ok()?));
    let stop = ChunkNum(u64::from_le_bytes(stop.try_into().ok()?));
    (start < stop && stop <= end).then(|| (kind, ChunkRanges::from(start..stop), sum))
}

fn checksum(chain: &[u8], kind: Kind, bytes: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain).update(&[kind as u8]).update(bytes);
    let mut sum = [0; SUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}
