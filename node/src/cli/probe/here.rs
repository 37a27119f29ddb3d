//! What this machine has: data, base, memory, disk, GPU.

use std::path::{Path, PathBuf};

use mingle_protocol::identity::{Roster, SecretKey};
use mingle_protocol::round::Round;

use super::super::training::TrainingArgs;
use super::Check;
use crate::bases::Digests;
use crate::contribution::check_base;
use crate::data;
use crate::models::device::DeviceChoice;
use crate::train::estimate::size;

/// A file being written exists twice for a moment: what is kept, and what replaces it.
const COPIES: u64 = 2;

/// Whether this key may contribute.
pub fn key(round: &Round, key: &SecretKey) -> Check {
    let (member, name) = (key.member(), &round.manifest().name);
    match round.manifest().roster.admits(&member) {
        true => Check::ok("key", format!("{member} may announce in round \"{name}\"")),
        false => Check::fail(
            "key",
            format!("{member} is not in the roster of round \"{name}\""),
            "ask the round's founders to list this key; without it, only reading is possible",
        ),
    }
}

/// The data, the base, and whether a training on them fits into memory.
pub fn training(round: &Round, base: Option<&Path>, data: &[PathBuf], training: &TrainingArgs, digests: &Digests) -> Vec<Check> {
    let (records, right) = (read(data), base.map(|base| base_is_right(round, base, digests)));
    let usable = records.level == super::Level::Ok && right.as_ref().is_some_and(|check| check.level == super::Level::Ok);
    let memory = match base {
        Some(base) if usable => fits(round, base, data, training),
        _ => Check::skip("memory", "needs readable --data and the right --base"),
    };
    vec![records, right.unwrap_or_else(|| Check::skip("base", "no --base was given")), memory]
}

fn read(paths: &[PathBuf]) -> Check {
    if paths.is_empty() {
        return Check::skip("data", "no --data was given");
    }
    let mut records = 0;
    for path in paths {
        match data::read_records(path) {
            Ok(found) => records += found.len(),
            Err(error) => return Check::error("data", &error.into(), "see whether this account may read the file"),
        }
    }
    match records {
        0 => Check::fail("data", "the files hold no example", "give files with at least one line"),
        _ => Check::ok("data", format!("{records} examples in {} files", paths.len())),
    }
}

fn base_is_right(round: &Round, base: &Path, digests: &Digests) -> Check {
    match check_base(base, round, digests) {
        Ok(()) => Check::ok("base", format!("{} has the round's digest", base.display())),
        Err(error) => Check::error("base", &error, "give the Hugging Face directory of the round's base"),
    }
}

fn fits(round: &Round, base: &Path, data: &[PathBuf], training: &TrainingArgs) -> Check {
    let plan = training.plan(base.to_owned(), data.to_vec(), None).for_round(round);
    let found = plan.examples().and_then(|examples| plan.estimate(&examples));
    let estimate = match found {
        Ok(estimate) => estimate,
        Err(error) => return Check::error("memory", &error, "see what `mingle train --dry-run` says"),
    };
    let needed = size(estimate.needed_bytes);
    match (estimate.check(), estimate.available_bytes) {
        (Err(error), _) => Check::error("memory", &error.into(), "train on a machine with more memory"),
        (Ok(()), Some(free)) => Check::ok("memory", format!("training needs about {needed}, {} are free", size(free))),
        (Ok(()), None) => Check::ok("memory", format!("training needs about {needed}; the system does not tell what is free")),
    }
}

/// Whether the round's adapters and the merge have room.
pub fn disk(round: &Round, home: &Path) -> Check {
    let adapter = round.adapter_bytes_max();
    let members = match &round.manifest().roster {
        Roster::Members(members) => members.len() as u64,
        Roster::Open => u64::from(round.manifest().member_max),
    };
    // Our own and the merged one are files of their own beside the store.
    let least = adapter.saturating_mul(1 + COPIES);
    let most = adapter.saturating_mul(members.saturating_add(1 + COPIES));
    let Some(free) = free_bytes(home) else { return Check::skip("disk", "the system does not tell how much is free") };
    let fact = format!(
        "{} free at {}; an adapter takes up to {}, all {members} members' and the merge {}",
        size(free),
        home.display(),
        size(adapter),
        size(most)
    );
    match free {
        free if free < least => Check::fail("disk", fact, "make room, or give a --home on another disk"),
        free if free < most => Check::warn("disk", fact, "if all members announce, it does not do: make room, or give another --home"),
        _ => Check::ok("disk", fact),
    }
}

/// Bytes this account may still write to the file system that the folder is, or will be, on.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// What a training would compute on.
pub fn gpu(choice: DeviceChoice) -> Check {
    match choice.open() {
        Err(error) => Check::error("gpu", &error.into(), "use --device auto or cpu"),
        Ok(device) => match device.fallback.as_ref().filter(|_| cfg!(any(feature = "cuda", feature = "metal"))) {
            Some(why) => {
                Check::warn("gpu", format!("{}, because {why}", device.line()), "see whether the GPU and its driver answer (`nvidia-smi`)")
            }
            None => Check::ok("gpu", device.line()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_folder_to_be_made_is_on_the_disk_of_its_parent() {
        let there = free_bytes(&std::env::temp_dir()).unwrap();
        let missing = free_bytes(&std::env::temp_dir().join("mingle-probe/not/there")).unwrap();
        assert!(there > 0 && missing > 0);
        assert!(read(&[]).level == super::super::Level::Skip);
        let gone = read(&["not/there.jsonl".into()]);
        assert_eq!(gone.level, super::super::Level::Fail);
        assert!(gone.remedy.is_some());
    }
}
