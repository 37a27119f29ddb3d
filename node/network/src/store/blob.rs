//! Complete blobs: putting them in, serving verified ranges of them, and taking damaged ones out.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use bao_tree::blake3;
use bao_tree::io::EncodeError;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use mingle_protocol::hash::ContentHash;

use super::durable::{self, Temporary};
use super::nodes::Paged;
use super::outboard::build_outboard;
use super::scan::scan_all;
use super::{
    BLOB, BLOB_BYTES_MAX, ChunkRanges, OUTBOARD, PART, PART_OUTBOARD, PART_RANGES, Result, Store, StoreError, TEMPORARY, all_chunks,
    io_error, tree_of,
};

/// 256 KiB: large sequential reads while a file is copied and hashed.
const COPY_BUFFER_BYTES: usize = 256 * 1024;

impl Store {
    /// Copies a file into the store; returns its hash and its size in bytes. Durable on return.
    pub fn put_blob_from_file(&self, path: impl AsRef<Path>) -> Result<(ContentHash, u64)> {
        let path = path.as_ref();
        let file = File::open(path).map_err(io_error("open", path))?;
        let size = file.metadata().map_err(io_error("look at", path))?.len();
        let mut reader = BufReader::with_capacity(COPY_BUFFER_BYTES, file);
        let hash = self.put(&mut reader, size, path)?;
        let mut beyond = [0; 1];
        match reader.read(&mut beyond).map_err(io_error("read", path))? {
            0 => Ok((hash, size)),
            _ => Err(StoreError::SourceChanged { path: path.to_path_buf() }),
        }
    }

    /// Puts bytes into the store; returns their hash and their number. Durable on return.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<(ContentHash, u64)> {
        let size = bytes.len() as u64;
        let folder = self.0.blobs.clone();
        Ok((self.put(bytes, size, &folder)?, size))
    }

    /// Copies `data`, then hashes the copy with all cores: what is hashed is what was written.
    fn put(&self, data: impl Read, size: u64, source: &Path) -> Result<ContentHash> {
        check_size(size)?;
        let copy = Temporary::create(&self.0.blobs)?;
        let nodes = Temporary::create(&self.0.blobs)?;
        let mut buffered = BufReader::with_capacity(COPY_BUFFER_BYTES, data.take(size));
        let copied = {
            let mut to = io::BufWriter::with_capacity(COPY_BUFFER_BYTES, &copy.file);
            let copied = io::copy(&mut buffered, &mut to);
            copied.and_then(|copied| to.flush().map(|()| copied)).map_err(io_error("copy", source))?
        };
        if copied != size {
            return Err(StoreError::SourceChanged { path: source.to_path_buf() });
        }
        let hash = build_outboard(&copy.file, size, &nodes.file).map_err(io_error("read a copy of", source))?;
        if self.blob_size(hash)?.is_some() {
            return Ok(hash); // The same bytes are here already; the temporaries go.
        }
        nodes.rename_to(&self.0.path(hash, OUTBOARD))?;
        copy.rename_to(&self.0.path(hash, BLOB))?;
        durable::sync_folder(&self.0.blobs)?;
        self.0.index.put_blob(&hash, size)?;
        Ok(hash)
    }

    /// Opens a complete blob for reading or serving.
    ///
    /// # Errors
    /// `NotFound` when the index does not have it; `Io` when its files cannot be opened.
    pub fn open_blob(&self, hash: ContentHash) -> Result<StoredBlob> {
        let size = self.blob_size(hash)?.ok_or(StoreError::NotFound { hash })?;
        let (path, outboard) = (self.0.path(hash, BLOB), self.0.path(hash, OUTBOARD));
        Ok(StoredBlob {
            hash,
            size,
            data: File::open(&path).map_err(io_error("open", &path))?,
            outboard: File::open(&outboard).map_err(io_error("open", &outboard))?,
        })
    }

    /// Reads a complete blob once and checks every group against the hash (the scrub).
    ///
    /// # Errors
    /// `Damaged` when a byte of the blob or of its outboard is wrong: the blob is then out of the index, and the next
    /// download fetches only what is wrong.
    pub fn verify_blob(&self, hash: ContentHash) -> Result<()> {
        let blob = self.open_blob(hash)?;
        let valid = blob.valid().map_err(io_error("read", &self.blob_path(hash)))?;
        if valid == all_chunks(blob.size) {
            return Ok(());
        }
        self.demote_blob(hash)?;
        Err(StoreError::Damaged { hash })
    }

    /// Takes a damaged blob out of the index and makes it a partial download, to be scanned and repaired.
    ///
    /// Does nothing and says `false` when the index does not have it: several servers may find the same damage.
    pub fn demote_blob(&self, hash: ContentHash) -> Result<bool> {
        if !self.has_blob(hash)? {
            return Ok(false);
        }
        self.0.index.remove_blob(&hash)?;
        self.make_partial(hash)?;
        durable::sync_folder(&self.0.blobs)?;
        Ok(true)
    }

    /// Forgets a blob and deletes its files, partial ones too. Absent blobs are no error.
    pub fn remove_blob(&self, hash: ContentHash) -> Result<()> {
        self.0.index.remove_blob(&hash)?;
        for kind in [BLOB, OUTBOARD, PART, PART_OUTBOARD, PART_RANGES] {
            durable::remove_if_there(&self.0.path(hash, kind))?;
        }
        durable::sync_folder(&self.0.blobs)
    }

    /// Blobs of which a part is on disk, under way or left behind.
    pub fn partials(&self) -> Result<Vec<ContentHash>> {
        let entries = std::fs::read_dir(&self.0.blobs).map_err(io_error("cannot list", &self.0.blobs))?;
        let hash = |path: &Path| {
            let part = path.extension().is_some_and(|ending| ending == PART);
            path.file_stem().filter(|_| part).and_then(|stem| stem.to_str()?.parse().ok())
        };
        Ok(entries.flatten().filter_map(|entry| hash(&entry.path())).collect())
    }

    /// The journal goes first: without it the partial is scanned, never believed.
    fn make_partial(&self, hash: ContentHash) -> Result<()> {
        durable::remove_if_there(&self.0.path(hash, PART_RANGES))?;
        durable::rename_if_there(&self.0.path(hash, OUTBOARD), &self.0.path(hash, PART_OUTBOARD))?;
        durable::rename_if_there(&self.0.path(hash, BLOB), &self.0.path(hash, PART))
    }

    /// What `open` repairs after an unclean stop.
    pub(super) fn recover(&self) -> Result<()> {
        for (hash, size) in self.blobs()? {
            let whole = durable::length(&self.0.path(hash, BLOB))? == Some(size)
                && durable::length(&self.0.path(hash, OUTBOARD))? == Some(tree_of(size).outboard_size());
            if !whole {
                tracing::warn!(%hash, size, "blob is missing or has the wrong size on disk and must be fetched again");
                self.0.index.remove_blob(&hash)?;
            }
        }
        let folder = &self.0.blobs;
        for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
            let path = entry.map_err(io_error("list", folder))?.path();
            let kind = path.extension().and_then(|kind| kind.to_str());
            let hash = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            match (kind, hash) {
                (Some(TEMPORARY), _) => durable::remove_if_there(&path)?,
                // Renamed into place, but the crash came before the index: verified again by the next download.
                (Some(BLOB | OUTBOARD), Some(hash)) if self.blob_size(hash)?.is_none() => self.make_partial(hash)?,
                _ => {}
            }
        }
        durable::sync_folder(folder)
    }
}

pub(super) fn check_size(size: u64) -> Result<()> {
    match size {
        1..=BLOB_BYTES_MAX => Ok(()),
        _ => Err(StoreError::BlobSize { size, max: BLOB_BYTES_MAX }),
    }
}

/// A blob's files, open: complete, or (for [`Shared`](super::Shared)) complete in what is offered of it.
pub struct StoredBlob {
    pub hash: ContentHash,
    /// In bytes.
    pub size: u64,
    /// The plain bytes, positioned at the start.
    pub data: File,
    outboard: File,
}

/// Why a range could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Our disk is at fault: not one wrong byte was written. The caller demotes the blob.
    #[error("blob {hash} is damaged on disk: {what}")]
    Damaged { hash: ContentHash, what: String },
    /// The other side is at fault.
    #[error("the receiver stopped reading: {source}")]
    Receiver { source: io::Error },
}

impl StoredBlob {
    pub(super) fn over(hash: ContentHash, size: u64, data: File, outboard: File) -> Self {
        Self { hash, size, data, outboard }
    }

    /// Writes `ranges` with their proofs, each group verified before its first byte is written.
    pub fn encode(&self, ranges: &ChunkRanges, to: impl Write) -> Result<(), ServeError> {
        let root = blake3::Hash::from(self.hash.0);
        let outboard = PreOrderOutboard { root, tree: tree_of(self.size), data: Paged::new(&self.outboard) };
        let mut to = Receiver { to, failed: None };
        let outcome =
            encode_ranges_validated(&self.data, outboard, ranges, &mut to).map_err(|error: EncodeError| io::Error::from(error).to_string());
        match (outcome, to.failed) {
            (_, Some(source)) => Err(ServeError::Receiver { source }),
            (Err(what), None) => Err(ServeError::Damaged { hash: self.hash, what }),
            (Ok(()), None) => Ok(()),
        }
    }

    fn valid(&self) -> io::Result<ChunkRanges> {
        scan_all(self.hash, self.size, &self.data, &self.outboard)
    }
}

/// Remembers that the writer failed, because bao-tree reports both sides' failures alike.
struct Receiver<W> {
    to: W,
    failed: Option<io::Error>,
}

impl<W: Write> Write for Receiver<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
