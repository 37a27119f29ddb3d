//! One file from the hub into the cache: what is there of it stays, a broken connection goes on where it was, and only what
//! has the promised size and hash gets its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::{StatusCode, header};

use super::{Fetching, Hub, HubError, Remote};

/// Connections one after another that bring nothing; each is waited for twice as long as the one before.
const TRIES_MAX: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Bytes between two words about it.
const TELL_EVERY: u64 = 1 << 20;

/// Where a model lies in the cache.
pub struct Place<'a> {
    pub model: PathBuf,
    pub locks: PathBuf,
    pub commit: &'a str,
}

impl Place<'_> {
    pub fn folder(&self) -> PathBuf {
        self.model.join("snapshots").join(self.commit)
    }

    pub fn file(&self, file: &str) -> PathBuf {
        self.folder().join(file)
    }

    fn blob(&self, remote: &Remote) -> PathBuf {
        self.model.join("blobs").join(&remote.etag)
    }

    /// Writes down that a revision of this name is this commit.
    pub fn name(&self, revision: &str) -> Result<(), HubError> {
        let path = self.model.join("refs").join(revision);
        folder_of(&path)?;
        crate::files::replace(&path, self.commit.as_bytes(), 0o644).map_err(|why| written(&path, why))
    }

    /// Puts a blob under its file's name.
    fn link(&self, remote: &Remote) -> Result<(), HubError> {
        let path = self.file(&remote.file);
        folder_of(&path)?;
        match link(&self.blob(remote), &Path::new("../../blobs").join(&remote.etag), &path) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(written(&path, why)),
            _ => Ok(()),
        }
    }
}

#[cfg(unix)]
fn link(_blob: &Path, relative: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Symbolic links are not everybody's to make elsewhere.
#[cfg(not(unix))]
fn link(blob: &Path, _relative: &Path, path: &Path) -> io::Result<()> {
    std::fs::hard_link(blob, path)
}

fn written(path: &Path, why: io::Error) -> HubError {
    HubError::Write { path: path.display().to_string(), why }
}

fn folder_of(path: &Path) -> Result<(), HubError> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|why| written(folder, why))
}

/// A file as far as it came.
struct Part {
    path: PathBuf,
    file: File,
    have: u64,
    hash: Sha256,
}

impl Part {
    /// What an earlier run left of it counts.
    fn open(path: PathBuf) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let (mut hash, mut have, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(Self { path, file, have, hash }),
                count => {
                    hash.update(buffer.get(..count).unwrap_or_default());
                    have += count as u64;
                }
            }
        }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.have, self.hash) = (0, Sha256::new());
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Whether it is what was promised; what is not goes.
    fn check(&self, remote: &Remote) -> Result<(), HubError> {
        let found: String = self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        // Large files are known by their SHA-256, small ones by git's hash, of which only the size is compared.
        let why = match remote.etag.len() {
            _ if self.have != remote.bytes => format!("it has {} bytes instead of {}", self.have, remote.bytes),
            64 if !remote.etag.eq_ignore_ascii_case(&found) => format!("its SHA-256 is {found} instead of {}", remote.etag),
            _ => return self.file.sync_all().map_err(|why| written(&self.path, why)),
        };
        // Nothing of it is of use, and the next run must not go on from it.
        let _ = std::fs::remove_file(&self.path);
        Err(HubError::Damaged { file: remote.file.clone(), why })
    }
}

impl Hub {
    /// Has a file in its place. `before` are bytes of other files, for the telling.
    pub(super) fn bring(
        &self,
        name: &str,
        place: &Place<'_>,
        remote: &Remote,
        tell: &mut dyn FnMut(Fetching<'_>),
        before: u64,
    ) -> Result<(), HubError> {
        let (blob, lock) = (place.blob(remote), place.locks.join(format!("{}.lock", remote.etag)));
        for path in [&blob, &lock] {
            folder_of(path)?;
        }
        let held = File::create(&lock).map_err(|why| written(&lock, why))?;
        if held.try_lock().is_err() {
            tell(Fetching::Waits { file: &remote.file });
            held.lock().map_err(|why| written(&lock, why))?;
        }
        if !blob.exists() {
            let path = blob.with_extension("incomplete");
            let mut part = Part::open(path.clone()).map_err(|why| written(&path, why))?;
            let url = self.url(name, place.commit, &remote.file);
            let (mut tries, mut wait) = (0, FIRST_WAIT);
            loop {
                let had = part.have;
                let Some(why) = self
                    .go_on(&url, name, remote, &mut part, &mut |bytes| tell(Fetching::Has { file: &remote.file, bytes: before + bytes }))?
                else {
                    break;
                };
                if part.have > had {
                    (tries, wait) = (0, FIRST_WAIT);
                }
                tries += 1;
                if tries == TRIES_MAX {
                    return Err(HubError::Unreached { url, why });
                }
                tell(Fetching::Again { file: &remote.file, why: &why });
                std::thread::sleep(wait);
                wait *= 2;
            }
            part.check(remote)?;
            std::fs::rename(&path, &blob).map_err(|why| written(&blob, why))?;
        }
        place.link(remote)
    }

    /// Takes what a file lacks over one connection; why it broke, if it did.
    fn go_on(
        &self,
        url: &str,
        name: &str,
        remote: &Remote,
        part: &mut Part,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Option<String>, HubError> {
        let unwritten = |why: io::Error, part: &Part| written(&part.path, why);
        if part.have > remote.bytes {
            part.restart().map_err(|why| unwritten(why, part))?;
        }
        tell(part.have);
        if part.have == remote.bytes {
            return Ok(None);
        }
        let request = self.agent.get(url).header(header::ACCEPT_ENCODING, "identity");
        let request = if part.have == 0 { request } else { request.header(header::RANGE, format!("bytes={}-", part.have)) };
        let answer = match self.ask(url, name, request) {
            Ok(answer) => answer,
            Err(HubError::Unreached { why, .. } | HubError::Busy { why, .. }) => return Ok(Some(why)),
            Err(error) => return Err(error),
        };
        let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if range.starts_with(&format!("bytes {}-", part.have)) => {}
            // It gives all of it.
            StatusCode::OK => part.restart().map_err(|why| unwritten(why, part))?,
            status => return Err(HubError::Answer { url: url.to_owned(), why: format!("{status} with the range \"{range}\"") }),
        }
        let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let (mut buffer, mut told) = (vec![0; 1 << 16], part.have);
        // One byte more than was promised is enough to know.
        while part.have <= remote.bytes {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => part.add(buffer.get(..count).unwrap_or_default()).map_err(|why| unwritten(why, part))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Some(error.to_string())),
            }
            if part.have - told >= TELL_EVERY {
                told = part.have;
                tell(told);
            }
        }
        tell(part.have);
        Ok((part.have < remote.bytes).then(|| "the connection ended early".to_owned()))
    }
}
