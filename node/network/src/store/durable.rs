//! Files that appear whole or not at all: temporary file, fsync, rename, fsync of the folder.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Result, TEMPORARY, io_error};

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    let handle = File::open(folder).map_err(io_error("open", folder))?;
    handle.sync_all().map_err(io_error("fsync", folder))
}

/// A file that disappears when dropped unless it was persisted.
pub(super) struct Temporary {
    path: PathBuf,
    pub file: File,
}

impl Temporary {
    /// A new, empty file in `folder`, readable and writable.
    pub fn create(folder: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{number}.{TEMPORARY}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).map_err(io_error("create", &path))?;
        Ok(Self { path, file })
    }

    /// Fsyncs the bytes and gives the file its name. The name is durable after the next `sync_folder`.
    pub fn rename_to(self, target: &Path) -> Result<()> {
        self.file.sync_all().map_err(io_error("fsync", &self.path))?;
        fs::rename(&self.path, target).map_err(io_error("rename to", target))
        // Dropping `self` now finds nothing under the old name.
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: what stays is removed at the next open.
        let _ = fs::remove_file(&self.path);
    }
}

/// Renames when the source exists; its absence is no error.
pub(super) fn rename_if_there(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("rename to", to)),
    }
}

/// Removes when it exists.
pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("remove", path)),
    }
}

/// The length of a file, `None` when it does not exist.
pub(super) fn length(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("look at", path)(error)),
    }
}

/// How many bytes of a file have a place on the disk; holes have none.
pub(super) fn allocated(file: &File) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    /// The unit of `st_blocks`, whatever the file system's own block size.
    const UNIT_BYTES: u64 = 512;
    Ok(file.metadata()?.blocks().saturating_mul(UNIT_BYTES))
}
