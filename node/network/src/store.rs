//! What a peer keeps on disk: content-addressed blobs, partial downloads, signed records, and a small index.
//!
//! A blob is on disk, verified and durable, before the index speaks of it; a record is durable when `put_record`
//! returns. Nothing is ever written over: files appear by temporary file, fsync, rename, fsync of the folder.
//! The room knows nothing of rounds, members or sockets, never decodes a record, and refuses to hand out a byte of a
//! blob to the network that does not verify against its hash.
//!
//! Layout of the folder:
//!
//! ```text
//! index.redb                   records, sizes of complete blobs, small values (two-phase commits)
//! blobs/<hash>.blob            a complete blob
//! blobs/<hash>.outboard        its BLAKE3 tree over 16 KiB groups, pre-order, 64 bytes a node
//! blobs/<hash>.part            a download under way (sparse, full length)
//! blobs/<hash>.part-outboard   the nodes received so far
//! blobs/<hash>.part-ranges     which ranges are verified and durable (checksummed, append only)
//! blobs/*.tmp                  leftovers of a crash, removed at the next open
//! ```

mod absorb;
mod blob;
mod durable;
mod index;
mod journal;
mod nodes;
mod outboard;
mod partial;
mod proof;
mod scan;
mod share;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bao_tree::{BaoTree, BlockSize, ChunkNum};
use mingle_protocol::hash::ContentHash;

pub use absorb::AbsorbError;
pub use bao_tree::ChunkRanges;
pub use blob::{ServeError, StoredBlob};
pub use partial::{PartialBlob, byte_count};
pub use proof::{check_proof, groups_of};
pub use share::Shared;

use index::Index;

/// Groups of 16 chunks of 1 KiB: the smallest piece that is verified, stored and resumed, and part of the wire
/// protocol's name.
pub const GROUP: BlockSize = BlockSize::from_chunk_log(4);

/// 1 TiB: more than any adapter or model in sight, small enough that no sum of offsets can overflow.
pub const BLOB_BYTES_MAX: u64 = 1 << 40;

/// 64 KiB: a signed record is a few KiB; a larger one is a mistake of the caller.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// What can go wrong between a peer and its disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process (or another `Store` of this one) has the folder open.
    #[error("the store at {} is held by another process", dir.display())]
    Held { dir: PathBuf },
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the index at {} failed: {source}", path.display())]
    Index { path: PathBuf, source: Box<redb::Error> },
    #[error("blob {hash} is not in the store")]
    NotFound { hash: ContentHash },
    #[error("blob {hash} has {found} bytes, but {asked} were announced")]
    SizeMismatch { hash: ContentHash, found: u64, asked: u64 },
    #[error("a blob of {size} bytes is refused: between 1 and {max} bytes are allowed")]
    BlobSize { size: u64, max: u64 },
    #[error("a record of {size} bytes is refused: at most {max} bytes are allowed")]
    RecordSize { size: usize, max: usize },
    #[error("blob {hash} is already being downloaded")]
    DownloadRunning { hash: ContentHash },
    #[error("blob {hash} is incomplete: {missing} of {size} bytes are missing")]
    Incomplete { hash: ContentHash, missing: u64, size: u64 },
    /// The disk changed the bytes; the blob was dropped from the index and must be fetched again.
    #[error("blob {hash} was damaged on disk and is no longer in the store")]
    Damaged { hash: ContentHash },
    #[error("{} grew or shrank while it was read", path.display())]
    SourceChanged { path: PathBuf },
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Names the action and the path of a failed system call.
pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_path_buf();
    move |source| StoreError::Io { what, path, source }
}

/// The tree of a blob of `size` bytes.
pub fn tree_of(size: u64) -> BaoTree {
    BaoTree::new(size, GROUP)
}

/// All chunks of a blob of `size` bytes.
pub fn all_chunks(size: u64) -> ChunkRanges {
    ChunkRanges::from(ChunkNum(0)..tree_of(size).chunks())
}

/// One peer's store. Clones share it; the folder is released when the last clone (or download) is dropped.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

pub(crate) struct Inner {
    blobs: PathBuf,
    index: Index,
    /// Hashes with a live `PartialBlob`: two writers to one partial file would lie to each other.
    downloading: Mutex<HashSet<ContentHash>>,
    /// Of these, what others may be served.
    sharing: Mutex<HashMap<ContentHash, Shared>>,
}

impl Inner {
    fn path(&self, hash: ContentHash, kind: &str) -> PathBuf {
        self.blobs.join(format!("{hash}.{kind}"))
    }

    fn downloading(&self) -> MutexGuard<'_, HashSet<ContentHash>> {
        self.downloading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sharing(&self) -> MutexGuard<'_, HashMap<ContentHash, Shared>> {
        self.sharing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens the store in `dir`, creating it when absent, for this process alone.
    ///
    /// Temporary files are removed, index entries without their complete files are dropped (those blobs must be
    /// fetched again), and files the index does not know become partial downloads.
    ///
    /// # Errors
    /// `Held` when another process has it open; `Io` and `Index` with the path that failed.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let blobs = dir.join("blobs");
        std::fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
        durable::sync_folder(dir)?;
        // The index holds the lock, so it is opened before anything is cleaned away.
        let index = Index::open(dir)?;
        let store = Self(Arc::new(Inner { blobs, index, downloading: Mutex::default(), sharing: Mutex::default() }));
        store.recover()?;
        Ok(store)
    }

    /// Makes `record` durable under `id`; replaces what was there.
    pub fn put_record(&self, id: [u8; 32], record: &[u8]) -> Result<()> {
        self.put_records(&[(id, record)])
    }

    /// Makes many records durable in one commit: all of them or none.
    pub fn put_records(&self, records: &[([u8; 32], &[u8])]) -> Result<()> {
        if let Some((_, record)) = records.iter().find(|(_, record)| record.len() > RECORD_BYTES_MAX) {
            return Err(StoreError::RecordSize { size: record.len(), max: RECORD_BYTES_MAX });
        }
        self.0.index.put_records(records)
    }

    /// Forgets records in one commit, durably. Absent records are no error.
    pub fn remove_records(&self, ids: &[[u8; 32]]) -> Result<()> {
        self.0.index.remove_records(ids)
    }

    /// Every record, in order of its id.
    pub fn records(&self) -> Result<Vec<([u8; 32], Vec<u8>)>> {
        self.0.index.records()
    }

    /// A small value kept under `key`, such as the member's last sequence number.
    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.0.index.meta_get(key)
    }

    /// Keeps a small value under `key`, durably.
    pub fn meta_put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.0.index.meta_put(key, value)
    }

    /// Whether the blob is complete, verified and durable here.
    pub fn has_blob(&self, hash: ContentHash) -> Result<bool> {
        Ok(self.blob_size(hash)?.is_some())
    }

    /// The size in bytes of a complete blob.
    pub fn blob_size(&self, hash: ContentHash) -> Result<Option<u64>> {
        self.0.index.blob_size(&hash)
    }

    /// Every complete blob with its size in bytes.
    pub fn blobs(&self) -> Result<Vec<(ContentHash, u64)>> {
        self.0.index.blobs()
    }

    /// Where a complete blob lies (whether or not it does yet).
    pub fn blob_path(&self, hash: ContentHash) -> PathBuf {
        self.0.path(hash, BLOB)
    }
}

/// File name endings, in one place because recovery and the writers must agree.
const BLOB: &str = "blob";
const OUTBOARD: &str = "outboard";
const PART: &str = "part";
const PART_OUTBOARD: &str = "part-outboard";
const PART_RANGES: &str = "part-ranges";
const TEMPORARY: &str = "tmp";
