//! A download under way: verified groups go to their place in the file at once, and survive a crash.
//!
//! No unverified byte can be written: the only way in is [`PartialBlob::absorb`], which decodes and checks the
//! encoded stream group by group. Several streams may be absorbed at once, over different ranges. What is complete of it
//! is served to others meanwhile (`share.rs`).

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bao_tree::blake3;
use bao_tree::io::BaoContentItem;
use bao_tree::io::sync::DecodeResponseIter;
use bao_tree::{BaoTree, ChunkNum};
use mingle_protocol::hash::ContentHash;
use tokio::sync::watch;

use super::absorb::AbsorbError;
use super::blob::check_size;
use super::durable;
use super::journal::{Journal, Kind, Known};
use super::nodes::Nodes;
use super::outboard::build_outboard;
use super::scan::{scan, scan_all};
use super::{
    BLOB, ChunkRanges, Inner, OUTBOARD, PART, PART_OUTBOARD, PART_RANGES, Result, Store, StoreError, all_chunks, io_error, tree_of,
};
use crate::pieces::{Holds, Pieces};

/// 32 MiB: what a power failure may cost of a download; small against what a link moves in a minute, large against the
/// price of an fsync. A kill costs nothing that was written: the journal's notes say where to look.
const COMMIT_BYTES: u64 = 32 << 20;

/// One download. Dropping it keeps what is verified; the blob can be taken up again with `begin_download`.
pub struct PartialBlob {
    hash: ContentHash,
    size: u64,
    tree: BaoTree,
    pieces: Pieces,
    data: File,
    outboard: File,
    state: Mutex<State>,
    /// Never locked for as long as an fsync takes.
    journal: Mutex<Journal>,
    /// Held by who syncs and records; always taken before the two above.
    committing: Mutex<()>,
    /// What others may be told of it.
    holds: watch::Sender<Holds>,
    store: Arc<Inner>,
}

struct State {
    /// Verified and written.
    have: ChunkRanges,
    /// The part of `have` that was read from the journal: another process wrote it, before a crash perhaps.
    believed: ChunkRanges,
    /// The part of `have` that the journal does not know yet.
    uncommitted: ChunkRanges,
    uncommitted_bytes: u64,
    /// What the journal knows to be begun.
    begun: ChunkRanges,
}

impl Store {
    /// Begins or takes up the download of a blob whose hash and size were announced.
    ///
    /// Reads the journal of verified ranges and scans what it knows to be begun only; everything when there is doubt
    /// about the journal itself.
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
        let known = match known {
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
                Known { journal, durable: have, begun: ChunkRanges::empty() }
            }
        };
        let Known { journal, durable, begun } = known;
        let doubtful = &begun - &durable;
        let found = scan(hash, size, &data, &outboard, &doubtful).map_err(io_error("scan", &part))?;
        let have = &durable | &found;
        let pieces = Pieces::of(size);
        let holds = watch::Sender::new(Holds::Some(pieces.complete(&have)));
        let state = State { have, believed: durable, uncommitted_bytes: byte_count(&found, size), uncommitted: found, begun };
        let partial = Self {
            hash,
            size,
            tree,
            pieces,
            data,
            outboard,
            state: Mutex::new(state),
            journal: Mutex::new(journal),
            committing: Mutex::default(),
            holds,
            store,
        };
        partial.offer()?;
        Ok(partial)
    }

    /// Lets others be served from here on.
    fn offer(&self) -> Result<()> {
        let clone = |file: &File, kind| file.try_clone().map_err(io_error("open", &self.store.path(self.hash, kind)));
        let blob = super::StoredBlob::over(self.hash, self.size, clone(&self.data, PART)?, clone(&self.outboard, PART_OUTBOARD)?);
        self.store.sharing().insert(self.hash, super::share::Shared { blob: Arc::new(blob), holds: self.holds.subscribe() });
        Ok(())
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

    /// What of `ranges` is still to be fetched.
    pub fn missing_of(&self, ranges: &ChunkRanges) -> ChunkRanges {
        ranges - &self.state().have
    }

    /// The first bytes, which must not be missing.
    pub fn head(&self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length.min(self.size)).unwrap_or_default()];
        self.data.read_exact_at(&mut bytes, 0).map_err(io_error("read", &self.store.path(self.hash, PART)))?;
        Ok(bytes)
    }

    /// How many bytes are verified and written.
    pub fn have_bytes(&self) -> u64 {
        self.size - byte_count(&self.missing_ranges(), self.size)
    }

    /// Decodes `encoded` (the proofs and data of exactly `ranges`), checks each group and writes it unless it is here
    /// already. Returns how many bytes are new.
    ///
    /// Blocks; memory is one group.
    ///
    /// # Errors
    /// See [`AbsorbError`]. Groups verified before the error are kept.
    pub fn absorb(&self, encoded: impl Read, ranges: &ChunkRanges) -> Result<u64, AbsorbError> {
        self.note(ranges)?;
        let had = &self.state().have & ranges;
        let mut written = ChunkRanges::empty();
        let mut nodes = Nodes::default();
        let mut outcome = Ok(());
        for item in DecodeResponseIter::new(blake3::Hash::from(self.hash.0), self.tree, encoded, ranges) {
            outcome = match item {
                Ok(item) => self.write(item, &had, &mut nodes, &mut written).map_err(AbsorbError::from),
                Err(error) => Err(error.into()),
            };
            if outcome.is_err() {
                break;
            }
        }
        // Before the groups count as here: whoever is told of them must find their proofs.
        nodes.write_to(&self.outboard).map_err(io_error("write", &self.store.path(self.hash, PART_OUTBOARD)))?;
        let new = self.wrote(&written);
        outcome.map(|()| new)
    }

    /// Says in the journal where bytes may be from now on.
    fn note(&self, ranges: &ChunkRanges) -> Result<()> {
        let touched = self.pieces.touched(ranges).into_iter().fold(ChunkRanges::empty(), |all, piece| &all | &self.pieces.chunks_of(piece));
        let fresh = {
            let mut state = self.state();
            let fresh = &touched - &state.begun;
            state.begun |= touched;
            fresh
        };
        let noted = self.journal().append(Kind::Begun, &fresh);
        noted.map_err(io_error("append to", &self.store.path(self.hash, PART_RANGES)))
    }

    fn write(&self, item: BaoContentItem, had: &ChunkRanges, nodes: &mut Nodes, written: &mut ChunkRanges) -> Result<()> {
        match item {
            BaoContentItem::Parent(parent) => {
                // Nodes inside a group have no place in the outboard.
                if let Some(place) = self.tree.pre_order_offset(parent.node) {
                    nodes.push(place, [parent.pair.0.as_bytes(), parent.pair.1.as_bytes()]);
                }
                Ok(())
            }
            BaoContentItem::Leaf(leaf) => {
                let bytes = leaf.data.len() as u64;
                let range = ChunkRanges::from(ChunkNum::full_chunks(leaf.offset)..ChunkNum::chunks(leaf.offset + bytes));
                if !had.is_superset(&range) {
                    self.data.write_all_at(&leaf.data, leaf.offset).map_err(io_error("write", &self.store.path(self.hash, PART)))?;
                    *written |= range;
                }
                Ok(())
            }
        }
    }

    /// Counts what was written: how many bytes are new.
    fn wrote(&self, written: &ChunkRanges) -> u64 {
        let mut state = self.state();
        let new = written - &state.have;
        let bytes = byte_count(&new, self.size);
        state.have |= new.clone();
        state.uncommitted |= new.clone();
        state.uncommitted_bytes += bytes;
        let complete: Vec<u32> =
            self.pieces.touched(&new).into_iter().filter(|piece| state.have.is_superset(&self.pieces.chunks_of(*piece))).collect();
        drop(state);
        if !complete.is_empty() {
            self.holds.send_if_modified(|holds| match holds {
                Holds::All => false,
                Holds::Some(bits) => complete.into_iter().fold(false, |news, piece| bits.set(piece) | news),
            });
        }
        bytes
    }

    /// Whether so much was absorbed since the last commit that it is time for one. Absorbing goes on beside it.
    pub fn commit_is_due(&self) -> bool {
        self.state().uncommitted_bytes >= COMMIT_BYTES
    }

    /// Makes what was absorbed durable, and says so in the journal.
    pub fn commit(&self) -> Result<()> {
        self.commit_held(&self.committing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes first, then the journal that speaks of them.
    fn commit_held(&self, _: &MutexGuard<'_, ()>) -> Result<()> {
        let ranges = {
            let mut state = self.state();
            state.uncommitted_bytes = 0;
            std::mem::replace(&mut state.uncommitted, ChunkRanges::empty())
        };
        if ranges.is_empty() {
            return Ok(());
        }
        let committed = self.sync_bytes().and_then(|()| {
            let recorded = self.journal().append(Kind::Durable, &ranges);
            let file = self.journal().file();
            recorded.and_then(|()| file.sync_data()).map_err(io_error("append to", &self.store.path(self.hash, PART_RANGES)))
        });
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

    /// Makes the blob durable, gives it its name, and tells the index.
    ///
    /// What this process verified and wrote is not read again: the kernel would answer from the memory it was written to,
    /// so nothing would be learned, and whoever reads it later verifies it. What another process left is proved once
    /// more, on all cores: it did come from the disk.
    ///
    /// # Errors
    /// `Incomplete` when ranges are missing, or when the disk changed what was there before: those ranges are missing
    /// again.
    pub fn finish(&self) -> Result<()> {
        let committing = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = |kind| self.store.path(self.hash, kind);
        let incomplete =
            |missing: &ChunkRanges| StoreError::Incomplete { hash: self.hash, missing: byte_count(missing, self.size), size: self.size };
        let missing = self.missing_ranges();
        if !missing.is_empty() {
            self.commit_held(&committing)?;
            return Err(incomplete(&missing));
        }
        let believed = self.state().believed.clone();
        let valid = scan(self.hash, self.size, &self.data, &self.outboard, &believed).map_err(io_error("read", &path(PART)))?;
        let damaged = &believed - &valid;
        if !damaged.is_empty() {
            let have = &all_chunks(self.size) - &damaged;
            self.sync_bytes()?;
            let journal =
                Journal::create(&path(PART_RANGES), self.hash, self.size, &have).map_err(io_error("write", &path(PART_RANGES)))?;
            *self.journal() = journal;
            let mut state = self.state();
            (state.have, state.believed) = (have, valid);
            (state.uncommitted, state.uncommitted_bytes) = (ChunkRanges::empty(), 0);
            self.holds.send_replace(Holds::Some(self.pieces.complete(&state.have)));
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
        self.holds.send_replace(Holds::All);
        durable::remove_if_there(&path(PART_RANGES))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        self.store.sharing().remove(&self.hash);
        self.store.downloading().remove(&self.hash);
    }
}

/// What of the files on disk verifies. A file that is all there but lost its outboard gets a new one.
fn rescan(store: &Inner, hash: ContentHash, size: u64, data: &File, outboard: &File) -> Result<ChunkRanges> {
    let failed = || io_error("scan", &store.path(hash, PART));
    let valid = scan_all(hash, size, data, outboard).map_err(failed())?;
    let sparse = durable::allocated(data).map_err(failed())? < size;
    if !valid.is_empty() || sparse {
        return Ok(valid);
    }
    // A wrong outboard does no harm: none of its nodes verify, and the download writes them anew.
    let root = build_outboard(data, size, outboard).map_err(failed())?;
    Ok(if root == hash { all_chunks(size) } else { ChunkRanges::empty() })
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
