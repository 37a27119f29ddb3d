//! Finding a round's base on this machine: by its name in the places where people keep models, and by its digest.
//!
//! A name only says where to look: what is found is the round's base when its digest is, and no other is taken. What is
//! nowhere here and has a hub's name is fetched from there, and checked alike.

mod digests;
pub mod hub;

use std::fmt;
use std::path::{Component, Path, PathBuf};

use mingle_protocol::hash::ContentHash;
use mingle_protocol::round::BaseModel;

pub use digests::Digests;
use hub::{Fetching, Hub, HubError};

use crate::models::ModelError;

/// Snapshots of one model that are looked at: more are kept by nobody, and each may have to be read whole.
const SNAPSHOTS_MAX: usize = 16;

/// Where bases are looked for.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Folders that hold bases under their names: that of the round file, the current one, those of `MINGLE_BASES`.
    pub folders: Vec<PathBuf>,
    /// Caches laid out as the Hugging Face hub does.
    pub hubs: Vec<PathBuf>,
}

impl Places {
    /// Beside the round file, in the current folder, and where this process's environment says.
    pub fn of_process(round_file: Option<&Path>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let beside = round_file.and_then(Path::parent).map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        let named = variable("MINGLE_BASES").map(|list| std::env::split_paths(&list).collect::<Vec<_>>()).unwrap_or_default();
        let mut folders: Vec<PathBuf> = beside.map(Path::to_owned).into_iter().chain([PathBuf::from(".")]).chain(named).collect();
        let mut seen = Vec::new();
        folders.retain(|folder| {
            let real = folder.canonicalize().unwrap_or_else(|_| folder.clone());
            let new = !seen.contains(&real);
            seen.push(real);
            new
        });
        let cache = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache")));
        let hugging_face = variable("HF_HOME").map(PathBuf::from).or_else(|| Some(cache?.join("huggingface")));
        let hub = variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(hugging_face?.join("hub")));
        Self { folders, hubs: hub.into_iter().collect() }
    }

    /// Directories that may hold the base of this name, in the order in which they are looked at.
    fn candidates(&self, name: &str) -> Vec<PathBuf> {
        let Some(names) = spellings(name) else { return Vec::new() };
        let named = self.folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        let mut found: Vec<PathBuf> = named.collect();
        for hub in &self.hubs {
            found.extend(snapshots(hub, name));
        }
        found
    }
}

/// A name as a path below a folder, whole and its last part; none for one that leads out of it. The name comes from a
/// stranger's file.
fn spellings(name: &str) -> Option<Vec<PathBuf>> {
    let path = Path::new(name);
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let last = path.file_name().map(PathBuf::from);
    let mut names = vec![path.to_owned()];
    names.extend(last.filter(|last| last != path));
    Some(names)
}

/// The snapshots that a hub's cache has of `owner/name`, or of `name` of any owner; where it has none, the place where they
/// would be.
fn snapshots(hub: &Path, name: &str) -> Vec<PathBuf> {
    let folder = match name.contains('/') {
        true => format!("models--{}", name.replace('/', "--")),
        false => format!("models--*--{name}"),
    };
    let listed = |folder: &Path| {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries
    };
    let matches = |path: &PathBuf| {
        let Some(found) = path.file_name().and_then(|found| found.to_str()) else { return false };
        found == folder || (!name.contains('/') && found.starts_with("models--") && found.ends_with(&format!("--{name}")))
    };
    let newest_first = |model: &PathBuf| {
        // What a download was asked for by a branch's name; other snapshots are older or were asked for by number.
        let main = std::fs::read_to_string(model.join("refs/main")).unwrap_or_default();
        let mut found = listed(&model.join("snapshots"));
        found.sort_by_key(|snapshot| snapshot.file_name().is_none_or(|name| name != main.trim()));
        found.truncate(SNAPSHOTS_MAX);
        found
    };
    let models: Vec<PathBuf> = listed(hub).into_iter().filter(matches).collect();
    let found: Vec<PathBuf> = models.iter().flat_map(newest_first).collect();
    if found.is_empty() { vec![hub.join(folder).join("snapshots")] } else { found }
}

/// A base as people name one on a command line: a directory, or the name of a model such as `org/model`, which is in the
/// Hugging Face cache or is fetched into it. What is neither is given back as it is, to be named by whoever reads it.
///
/// # Errors
/// Why the hub does not give it.
pub fn named(given: &Path, tell: &mut dyn FnMut(Fetching<'_>)) -> Result<PathBuf, HubError> {
    let places = Places::of_process(None);
    let name = given.to_str().unwrap_or_default();
    if given.exists() {
        return Ok(given.to_owned());
    }
    let found = places.candidates(name).into_iter().find(|place| place.join("config.json").is_file());
    match (found, places.hubs.first()) {
        (Some(found), _) => Ok(found),
        (None, Some(cache)) if hub::is_name(name) => Hub::of_process(cache, name)?.fetch(name, tell),
        _ => Ok(given.to_owned()),
    }
}

/// What people call the base in a directory: of a hub's snapshot the model's name, else the directory's own.
pub fn name_of(directory: &Path) -> Option<String> {
    let text = |path: &Path| Some(path.file_name()?.to_string_lossy().into_owned());
    let whole = std::path::absolute(directory).ok()?;
    let model = whole.parent().filter(|parent| parent.ends_with("snapshots")).and_then(Path::parent).and_then(text);
    model.and_then(|model| Some(model.strip_prefix("models--")?.replacen("--", "/", 1))).or_else(|| text(&whole))
}

/// Why a place does not have the base.
#[derive(Debug)]
pub enum Absent {
    Nothing,
    /// Something that is no base.
    Unreadable(ModelError),
    Other(ContentHash),
    /// A hub that did not give it.
    Hub(HubError),
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing there"),
            Self::Unreadable(error) => error.fmt(f),
            Self::Other(digest) => write!(f, "another base, of digest {}", digest.short()),
            Self::Hub(error) => error.fmt(f),
        }
    }
}

/// No place had the base.
#[derive(Debug, thiserror::Error)]
#[error("the base \"{name}\" (digest {}) was not found{}", digest.short(), list(looked))]
pub struct NotFound {
    pub name: String,
    pub digest: ContentHash,
    pub looked: Vec<(PathBuf, Absent)>,
}

fn list(looked: &[(PathBuf, Absent)]) -> String {
    looked.iter().map(|(path, why)| format!("\n  {}: {why}", path.display())).collect()
}

/// The directory of a round's base.
///
/// # Errors
/// Every place that was looked at, and what is there instead.
pub fn find(base: &BaseModel, places: &Places, digests: &Digests) -> Result<PathBuf, NotFound> {
    let mut looked = Vec::new();
    for candidate in places.candidates(&base.name) {
        let absent = match candidate.is_dir() {
            false => Absent::Nothing,
            // Where a hub would keep snapshots of a model it does not have.
            true if candidate.ends_with("snapshots") => Absent::Nothing,
            true => match digests.digest(&candidate) {
                Ok(digest) if digest == base.digest => return Ok(candidate),
                Ok(digest) => Absent::Other(digest),
                Err(error) => Absent::Unreadable(error),
            },
        };
        looked.push((candidate, absent));
    }
    Err(NotFound { name: base.name.clone(), digest: base.digest, looked })
}

/// As [`find`]; a base that is nowhere here is fetched from the hub, where its name is one of a hub.
///
/// # Errors
/// Every place that was looked at, the hub among them.
pub fn find_or_fetch(
    base: &BaseModel,
    places: &Places,
    digests: &Digests,
    tell: &mut dyn FnMut(Fetching<'_>),
) -> Result<PathBuf, NotFound> {
    let (mut missing, cache) = match (find(base, places, digests), places.hubs.first()) {
        (Err(missing), Some(cache)) if hub::is_name(&base.name) => (missing, cache),
        (found, _) => return found,
    };
    let fetched = Hub::of_process(cache, &base.name).and_then(|hub| hub.fetch(&base.name, tell));
    let (place, absent) = match fetched {
        Err(error) => (PathBuf::from(format!("the hub's {}", base.name)), Absent::Hub(error)),
        Ok(folder) => match digests.digest(&folder) {
            Ok(digest) if digest == base.digest => return Ok(folder),
            Ok(digest) => (folder, Absent::Other(digest)),
            Err(error) => (folder, Absent::Unreadable(error)),
        },
    };
    missing.looked.retain(|(looked, _)| *looked != place);
    missing.looked.push((place, absent));
    Err(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(folder: &Path, found: Vec<PathBuf>) -> Vec<String> {
        found.iter().map(|path| path.strip_prefix(folder).expect("inside").to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_name_is_looked_for_beside_in_folders_and_in_the_hub() {
        let folder = tempfile::tempdir().expect("a folder");
        let hub = folder.path().join("hub");
        for model in ["models--org--small", "models--me--small", "models--org--smaller", "datasets--org--small"] {
            std::fs::create_dir_all(hub.join(model).join("snapshots").join("1a")).expect("a snapshot");
        }
        let places = Places { folders: vec![folder.path().join("a"), folder.path().join("b")], hubs: vec![hub] };
        assert_eq!(
            paths(folder.path(), places.candidates("org/small")),
            ["a/org/small", "a/small", "b/org/small", "b/small", "hub/models--org--small/snapshots/1a"]
        );
        assert_eq!(
            paths(folder.path(), places.candidates("small")),
            ["a/small", "b/small", "hub/models--me--small/snapshots/1a", "hub/models--org--small/snapshots/1a"]
        );
        assert_eq!(paths(folder.path(), places.candidates("new"))[2..], ["hub/models--*--new/snapshots"]);
    }

    #[test]
    fn of_a_hubs_snapshots_the_one_of_main_comes_first_and_has_the_models_name() {
        let hub = tempfile::tempdir().expect("a folder");
        let model = hub.path().join("models--org--small");
        for snapshot in ["1a", "2b", "3c"] {
            std::fs::create_dir_all(model.join("snapshots").join(snapshot)).expect("a snapshot");
        }
        std::fs::create_dir_all(model.join("refs")).expect("refs");
        std::fs::write(model.join("refs/main"), "2b\n").expect("a ref");
        let found = snapshots(hub.path(), "org/small");
        assert_eq!(paths(&model, found.clone()), ["snapshots/2b", "snapshots/1a", "snapshots/3c"]);
        assert_eq!(name_of(&found[0]).as_deref(), Some("org/small"));
        assert_eq!(name_of(Path::new("/models/small")).as_deref(), Some("small"));
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_places() {
        let places = Places { folders: vec!["/a".into()], hubs: vec![] };
        for name in ["../b", "/etc", "x/../../b", "./x", ".."] {
            assert_eq!(places.candidates(name), Vec::<PathBuf>::new(), "{name}");
        }
    }
}
