//! A download under way: verified groups go to their place in the file at once, and survive a crash.
//!
//! No unverified byte can be written: the only way in is [`PartialBlob::absorb`], which decodes and checks the
//! encoded stream group by group. Several streams may be absorbed at once, over different ranges.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bao_tree::blake3;
use bao_tree::io::sync::DecodeResponseIter;
use bao_tree::io::{BaoContentItem, DecodeError};
use bao_tree::{BaoTree, ChunkNum};
use mingle_protocol::hash::ContentHash;

use super::blob::{build_outboard, check_size, scan};
use super::durable;
use super::journal::Journal;
use super::{
    BLOB, ChunkRanges, Inner, OUTBOARD, PART, PART_OUTBOARD, PART_RANGES, Result, Store, StoreError, all_chunks, io_error, tree_of,
};

/// 8 MiB: what a crash may cost of a download; small against any adapter, large against the price of an fsync.
const COMMIT_BYTES: u64 = 8 << 20;

/// Two hashes of 32 bytes: one node of the outboard.
const NODE_BYTES: u64 = 64;

/// Why a stream could not be absorbed. What was verified before the failure is kept.
#[derive(Debug, thiserror::Error)]
pub enum AbsorbError {
    /// The sender is at fault: bytes that do not belong to this hash.
    #[error("bytes near offset {offset} do not belong to the blob")]
    Mismatch { offset: u64 },
    /// The stream ended before the ranges were complete.
    #[error("the stream ended early near offset {offset}")]
    Truncated { offset: u64 },
    /// The connection is at fault.
    #[error("the stream failed: {source}")]
    Stream { source: io::Error },
    /// Our disk is at fault.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One download. Dropping it keeps what is verified; the blob can be taken up again with `begin_download`.
pub struct PartialBlob {
    hash: ContentHash,
    size: u64,
    tree: BaoTree,
    data: File,
    outboard: File,
    state: Mutex<State>,
    /// Locked for as long as an fsync takes, and always before `state`, which never is.
    journal: Mutex<Journal>,
    store: Arc<Inner>,
}

struct State {
    /// Verified and written.
    have: ChunkRanges,
    /// The part of `have` that the journal does not know yet.
    uncommitted: ChunkRanges,
    uncommitted_bytes: u64,
}

impl Store {
    /// Begins or takes up the download of a blob whose hash and size were announced.
    ///
    /// Reads the journal of verified ranges; scans the files only when there is doubt about it.
    ///
    /// # Errors
    /// `BlobSize` for a size out of bounds, `DownloadRunning` while another `PartialBlob` of this hash lives.
    pub fn begin_download(&self, hash: ContentHash, size: u64) -> Result<PartialBlob> {
        check_size(size)?;
        if !self.0.downloading().insert(hash) {
            return Err(StoreError::DownloadRunning { hash });
        }
        PartialBlob::open(self.0.clone(), hash, size).inspect_err(|_| {
            self.0.downloading().remove(&hash);
        })
    }
}

impl PartialBlob {
    fn open(store: Arc<Inner>, hash: ContentHash, size: u64) -> Result<Self> {
        let tree = tree_of(size);
        let (part, nodes, ranges) = (store.path(hash, PART), store.path(hash, PART_OUTBOARD), store.path(hash, PART_RANGES));
        let lengths = (durable::length(&part)?, durable::length(&nodes)?);
        let resumed = lengths == (Some(size), Some(tree.outboard_size()));

        let open = |path: &std::path::Path, length: u64| {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            // Sparse: the length takes no room until bytes arrive.
            file.set_len(length)?;
            Ok(file)
        };
        let data = open(&part, size).map_err(io_error("open", &part))?;
        let outboard = open(&nodes, tree.outboard_size()).map_err(io_error("open", &nodes))?;

        let known = if resumed { Journal::load(&ranges, hash, size, tree.chunks()).map_err(io_error("read", &ranges))? } else { None };
        let (journal, have) = match known {
            Some(known) => known,
            None => {
                let have = match lengths {
                    (None, _) => ChunkRanges::empty(),
                    _ => rescan(&store, hash, size, &data, &outboard)?,
                };
                for file in [&data, &outboard] {
                    file.sync_all().map_err(io_error("fsync", &part))?;
                }
                let journal = Journal::create(&ranges, hash, size, &have).map_err(io_error("write", &ranges))?;
                durable::sync_folder(&store.blobs)?;
                (journal, have)
            }
        };
        let state = State { have, uncommitted: ChunkRanges::empty(), uncommitted_bytes: 0 };
        Ok(Self { hash, size, tree, data, outboard, state: Mutex::new(state), journal: Mutex::new(journal), store })
    }

    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// In bytes, as announced.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is still to be fetched, in chunks of 1024 bytes, in whole groups.
    pub fn missing_ranges(&self) -> ChunkRanges {
        all_chunks(self.size) - self.state().have.clone()
    }

    /// How many bytes are verified and written.
    pub fn have_bytes(&self) -> u64 {
        self.size - byte_count(&self.missing_ranges(), self.size)
    }

    /// Decodes `encoded` (the proofs and data of exactly `ranges`), checks each group and writes it.
    ///
    /// `on_bytes` is told the number of bytes after each group. Blocks; memory is one group.
    ///
    /// # Errors
    /// See [`AbsorbError`]. Groups verified before the error are kept and journalled.
    pub fn absorb(&self, encoded: impl Read, ranges: &ChunkRanges, mut on_bytes: impl FnMut(u64)) -> Result<(), AbsorbError> {
        let root = blake3::Hash::from(self.hash.0);
        let mut outcome = Ok(());
        for item in DecodeResponseIter::new(root, self.tree, encoded, ranges) {
            outcome = match item {
                Ok(item) => self.write(item, &mut on_bytes).map_err(AbsorbError::from),
                Err(error) => Err(absorb_error(error)),
            };
            if outcome.is_err() {
                break;
            }
        }
        self.commit()?;
        outcome
    }

    fn write(&self, item: BaoContentItem, on_bytes: &mut impl FnMut(u64)) -> Result<()> {
        let failed = |kind| io_error("write", &self.store.path(self.hash, kind));
        match item {
            BaoContentItem::Parent(parent) => {
                // Nodes inside a group have no place in the outboard.
                let Some(place) = self.tree.pre_order_offset(parent.node) else { return Ok(()) };
                let pair = [parent.pair.0.as_bytes().as_slice(), parent.pair.1.as_bytes()].concat();
                self.outboard.write_all_at(&pair, place * NODE_BYTES).map_err(failed(PART_OUTBOARD))
            }
            BaoContentItem::Leaf(leaf) => {
                self.data.write_all_at(&leaf.data, leaf.offset).map_err(failed(PART))?;
                let bytes = leaf.data.len() as u64;
                let written = ChunkNum::full_chunks(leaf.offset)..ChunkNum::chunks(leaf.offset + bytes);
                let due = {
                    let mut state = self.state();
                    state.have |= ChunkRanges::from(written.clone());
                    state.uncommitted |= ChunkRanges::from(written);
                    state.uncommitted_bytes += bytes;
                    state.uncommitted_bytes >= COMMIT_BYTES
                };
                on_bytes(bytes);
                if due { self.commit() } else { Ok(()) }
            }
        }
    }

    /// Bytes first, then the journal that speaks of them.
    fn commit(&self) -> Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = {
            let mut state = self.state();
            state.uncommitted_bytes = 0;
            std::mem::replace(&mut state.uncommitted, ChunkRanges::empty())
        };
        if ranges.is_empty() {
            return Ok(());
        }
        let committed = self
            .sync_bytes()
            .and_then(|()| journal.append(&ranges).map_err(io_error("append to", &self.store.path(self.hash, PART_RANGES))));
        if committed.is_err() {
            self.state().uncommitted |= ranges;
        }
        committed
    }

    fn sync_bytes(&self) -> Result<()> {
        for (file, kind) in [(&self.data, PART), (&self.outboard, PART_OUTBOARD)] {
            file.sync_data().map_err(io_error("fsync", &self.store.path(self.hash, kind)))?;
        }
        Ok(())
    }

    /// Proves the whole file against the hash once more, gives it its name, and tells the index. Durable on return.
    ///
    /// # Errors
    /// `Incomplete` when ranges are missing, or when the disk changed bytes since they were written: those ranges are
    /// missing again in the next `begin_download`.
    pub fn finish(&self) -> Result<()> {
        self.commit()?;
        let path = |kind| self.store.path(self.hash, kind);
        let incomplete =
            |missing: &ChunkRanges| StoreError::Incomplete { hash: self.hash, missing: byte_count(missing, self.size), size: self.size };
        let missing = self.missing_ranges();
        if !missing.is_empty() {
            return Err(incomplete(&missing));
        }
        let valid = scan(self.hash, self.size, &self.data, &self.outboard).map_err(io_error("read", &path(PART)))?;
        let damaged = all_chunks(self.size) - valid.clone();
        if !damaged.is_empty() {
            let journal =
                Journal::create(&path(PART_RANGES), self.hash, self.size, &valid).map_err(io_error("write", &path(PART_RANGES)))?;
            *self.journal.lock().unwrap_or_else(PoisonError::into_inner) = journal;
            self.state().have = valid;
            return Err(incomplete(&damaged));
        }
        for (file, kind) in [(&self.data, PART), (&self.outboard, PART_OUTBOARD)] {
            file.sync_all().map_err(io_error("fsync", &path(kind)))?;
        }
        for (from, to) in [(PART_OUTBOARD, OUTBOARD), (PART, BLOB)] {
            std::fs::rename(path(from), path(to)).map_err(io_error("rename to", &path(to)))?;
        }
        durable::sync_folder(&self.store.blobs)?;
        self.store.index.put_blob(&self.hash, self.size)?;
        durable::remove_if_there(&path(PART_RANGES))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        self.store.downloading().remove(&self.hash);
    }
}

/// What of the files on disk verifies. A file that is all there but lost its outboard gets a new one.
fn rescan(store: &Inner, hash: ContentHash, size: u64, data: &File, outboard: &File) -> Result<ChunkRanges> {
    let failed = || io_error("scan", &store.path(hash, PART));
    let valid = scan(hash, size, data, outboard).map_err(failed())?;
    let sparse = durable::allocated(data).map_err(failed())? < size;
    if !valid.is_empty() || sparse {
        return Ok(valid);
    }
    let reader = BufReader::new(data.try_clone().map_err(failed())?);
    // A wrong outboard does no harm: none of its nodes verify, and the download writes them anew.
    let root = build_outboard(reader, size, outboard).map_err(failed())?;
    Ok(if root == hash { all_chunks(size) } else { ChunkRanges::empty() })
}

fn absorb_error(error: DecodeError) -> AbsorbError {
    match error {
        DecodeError::ParentNotFound(node) => AbsorbError::Truncated { offset: node.mid().to_bytes() },
        DecodeError::LeafNotFound(chunk) => AbsorbError::Truncated { offset: chunk.to_bytes() },
        DecodeError::ParentHashMismatch(node) => AbsorbError::Mismatch { offset: node.mid().to_bytes() },
        DecodeError::LeafHashMismatch(chunk) => AbsorbError::Mismatch { offset: chunk.to_bytes() },
        DecodeError::Io(source) => AbsorbError::Stream { source },
    }
}

/// How many bytes of a blob of `size` bytes lie in `ranges`.
pub fn byte_count(ranges: &ChunkRanges, size: u64) -> u64 {
    let bytes = |chunk: &ChunkNum| chunk.to_bytes().min(size);
    ranges
        .boundaries()
        .chunks(2)
        .map(|bounds| match bounds {
            [start, end] => bytes(end) - bytes(start),
            [start] => size - bytes(start),
            _ => 0,
        })
        .sum()
}
