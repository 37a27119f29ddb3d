//! Files that are either the old or the new one, whenever the power goes.
//!
//! A file is written beside its target, synced, renamed over it, and the folder is synced: after that, and only after
//! that, it is there. A folder is replaced the same way.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Mode of files that others on the machine may read.
pub const PUBLIC: u32 = 0o644;
/// Ending of what is being written and not yet there.
const UNFINISHED: &str = "unfinished";

/// Replaces `path` by `bytes`, durably.
///
/// # Errors
/// What the file system says, with the path.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with_mode(path, bytes, PUBLIC)
}

/// As [`write`], readable by the owner alone.
///
/// # Errors
/// What the file system says, with the path.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with_mode(path, bytes, 0o600)
}

fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    replace(path, bytes, mode).with_context(|| format!("cannot write {}", path.display()))
}

/// As [`write`], for rooms with errors of their own. One writer a file: the temporary name is fixed, so that what a killed
/// process left is overwritten.
///
/// # Errors
/// What the file system says.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_by(path, mode, |file| file.write_all(bytes))
}

/// As [`replace`], for what is too large to lie in memory as one piece: `write` writes it, piece by piece.
///
/// # Errors
/// What the file system says, or `write`; the old file is then still there.
pub fn replace_by(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let unfinished = beside(path);
    let mut file = create(&unfinished, mode)?;
    write(&mut file)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    sync_folder(folder_of(path))
}

#[cfg(unix)]
fn create(path: &Path, mode: u32) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)
}

#[cfg(not(unix))]
fn create(path: &Path, _mode: u32) -> io::Result<File> {
    File::create(path)
}

/// Replaces a file that is only looked at (a status), without waiting for the disk.
///
/// # Errors
/// What the file system says, with the path.
pub fn write_volatile(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = beside(path);
    fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path)).with_context(|| format!("cannot write {}", path.display()))
}

/// An empty folder beside `target`, to be filled and then given to [`replace_folder`].
///
/// # Errors
/// What the file system says, with the path.
pub fn unfinished_folder(target: &Path) -> Result<PathBuf> {
    let folder = beside(target);
    let made = match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(&folder),
    };
    made.with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Makes `filled` (whose files are synced) the folder `target`. An older folder of that name is gone afterwards.
///
/// # Errors
/// What the file system says, with the path.
pub fn replace_folder(filled: &Path, target: &Path) -> Result<()> {
    let replaced = (|| {
        sync_folder(filled)?;
        if target.exists() {
            let old = with_ending(target, "old");
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            fs::rename(target, &old)?;
            fs::rename(filled, target)?;
            fs::remove_dir_all(&old)?;
        } else {
            fs::rename(filled, target)?;
        }
        sync_folder(folder_of(target))
    })();
    replaced.with_context(|| format!("cannot write {}", target.display()))
}

/// Copies the files of one folder as the folder `to`: whole or not at all.
///
/// # Errors
/// What the file system says, with the path.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let copy = unfinished_folder(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = copy.join(entry.file_name());
        fs::copy(entry.path(), &target).with_context(|| format!("cannot write {}", target.display()))?;
        File::open(&target)?.sync_all()?;
    }
    replace_folder(&copy, to)
}

/// Points the symbolic link `link` at `target` (a name in the same folder) in one step.
///
/// # Errors
/// What the file system says, with the path.
#[cfg(unix)]
pub fn point(link: &Path, target: &str) -> Result<()> {
    let unfinished = beside(link);
    let pointed = (|| {
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(target, &unfinished)?;
        fs::rename(&unfinished, link)?;
        sync_folder(folder_of(link))
    })();
    pointed.with_context(|| format!("cannot write {}", link.display()))
}

/// Makes a folder's names durable.
///
/// # Errors
/// What the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn beside(path: &Path) -> PathBuf {
    with_ending(path, UNFINISHED)
}

/// `path` with one more ending, so that no two files share a temporary name.
fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_folder_are_replaced_whole() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("status.json");
        write(&file, b"one").unwrap();
        write(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        let target = home.path().join("merged");
        for text in ["one", "two"] {
            let folder = unfinished_folder(&target).unwrap();
            fs::write(folder.join(text), text).unwrap();
            replace_folder(&folder, &target).unwrap();
        }
        assert!(target.join("two").exists() && !target.join("one").exists());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing unfinished is left");
    }

    #[test]
    #[cfg(unix)]
    fn a_secret_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("key");
        write_secret(&file, b"secret").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_error_names_the_path() {
        let error = write(Path::new("/nowhere/at/all"), b"").unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nowhere/at/all");
    }
}
