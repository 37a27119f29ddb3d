//! Digests of bases, computed once and remembered.
//!
//! A base of many gigabytes takes a minute to digest and never changes, so its digest is kept with what the file system says
//! of its files: their sizes, places and times of change. Files that changed a moment ago are not remembered, since they
//! could change once more within the same tick of the file system's clock.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mingle_protocol::hash::{ContentHash, DomainHasher};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::models::{ModelError, base_digest};

/// Bases that are remembered; of more, those with the last paths are forgotten.
const REMEMBERED_MAX: usize = 64;
/// Larger than any file of so many entries.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Coarser than the clock of any file system in use.
const SETTLED: Duration = Duration::from_secs(3);

/// The digests that a home remembers.
#[derive(Clone, Debug)]
pub struct Digests {
    path: PathBuf,
    /// Files that changed later than so long ago are not remembered.
    settled: Duration,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    /// Of what the file system says about the weights.
    files: ContentHash,
    digest: ContentHash,
}

impl Digests {
    /// Those kept in this file.
    pub fn new(path: PathBuf) -> Self {
        Self { path, settled: SETTLED }
    }

    /// The digest of a directory's weights: remembered where they are as they were, else computed.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn digest(&self, folder: &Path) -> Result<ContentHash, ModelError> {
        let place = folder.canonicalize().ok();
        let before = files_of(folder);
        if let (Some(place), Some(stamp)) = (&place, &before)
            && let Some(known) = self.read().get(place)
            && known.files == stamp.hash
        {
            return Ok(known.digest);
        }
        let digest = base_digest(folder)?;
        if let (Some(place), Some(stamp)) = (place, before)
            && stamp.age >= self.settled
            && files_of(folder).is_some_and(|after| after.hash == stamp.hash)
        {
            self.remember(place, Known { files: stamp.hash, digest });
        }
        Ok(digest)
    }

    fn read(&self) -> BTreeMap<PathBuf, Known> {
        let small = std::fs::metadata(&self.path).is_ok_and(|data| data.len() <= FILE_BYTES_MAX);
        let text = if small { std::fs::read(&self.path).unwrap_or_default() } else { Vec::new() };
        // Only a help: what cannot be read is computed again.
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn remember(&self, folder: PathBuf, known: Known) {
        let mut all = self.read();
        all.insert(folder, known);
        while all.len() > REMEMBERED_MAX {
            all.pop_last();
        }
        let written = self.path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(anyhow::Error::from);
        let written = written.and_then(|()| files::write(&self.path, &serde_json::to_vec_pretty(&all)?));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot remember the digest of a base");
        }
    }
}

/// What the file system says of a directory's weights.
struct Stamp {
    hash: ContentHash,
    /// How long ago the last of them changed.
    age: Duration,
}

/// `None` where something cannot be looked at.
fn files_of(folder: &Path) -> Option<Stamp> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let name = entry.file_name().into_string().ok()?;
        if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
            // What a link leads to, as in the caches of hubs.
            files.insert(name, std::fs::metadata(entry.path()).ok()?);
        }
    }
    let mut hasher = DomainHasher::new("base-files/1");
    hasher.count(files.len());
    let (mut age, now) = (Duration::MAX, SystemTime::now());
    for (name, data) in &files {
        let changed = [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()];
        hasher.string(name).u64(data.len()).u64(data.dev()).u64(data.ino());
        changed.iter().for_each(|number| _ = hasher.u64(number.cast_unsigned()));
        for seconds in [data.mtime(), data.ctime()] {
            let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            age = age.min(now.duration_since(changed).unwrap_or_default());
        }
    }
    Some(Stamp { hash: hasher.finish(), age })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One tensor of one number.
    fn write_base(folder: &Path, number: f32) {
        let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &number.to_le_bytes()].concat();
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(folder.join("model.safetensors"), file).expect("a file");
    }

    #[test]
    fn a_digest_is_remembered_once_the_files_are_settled_and_forgotten_when_they_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, careful) = (folder.path().join("base"), Digests::new(folder.path().join("home/bases.json")));
        write_base(&base, 1.0);
        let digest = careful.digest(&base).expect("a digest");
        assert!(careful.read().is_empty(), "the file has just been written");
        let digests = Digests { settled: Duration::ZERO, ..careful };
        assert_eq!(digests.digest(&base).expect("a digest"), digest);
        let known = *digests.read().values().next().expect("remembered");
        assert_eq!(known.digest, digest);
        // It is what is remembered that is given, as long as the files are as they were.
        let place = base.canonicalize().expect("a path");
        let planted = ContentHash::of(b"planted");
        digests.remember(place, Known { digest: planted, ..known });
        assert_eq!(digests.digest(&base).expect("a digest"), planted);
        // The same size at another time is another file.
        write_base(&base, 2.0);
        let changed = digests.digest(&base).expect("a digest");
        assert!(changed != planted && changed != digest);
        std::fs::write(&digests.path, "no json").expect("a file");
        assert_eq!(digests.digest(&base).expect("a digest"), changed);
    }
}
