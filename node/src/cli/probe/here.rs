//! What this machine has: data, base, memory, disk, GPU.

use std::path::{Path, PathBuf};

use mingle_protocol::identity::{Roster, SecretKey};
use mingle_protocol::round::{Round, RoundFile};
use mingle_protocol::standing::Standing;

use super::super::training::TrainingArgs;
use super::{Check, Level};
use crate::bases::{self, Digests, Places};
use crate::contribution::check_base;
use crate::data::{self, FieldMap};
use crate::models::device::DeviceChoice;
use crate::train::estimate::size;

/// A file being written exists twice for a moment: what is kept, and what replaces it.
const COPIES: u64 = 2;
/// A busy process is not scheduled for milliseconds; what a fast line brings meanwhile must have a place.
const UDP_BUFFER: u64 = 4 << 20;

/// Whether the founders have signed.
pub fn round(file: &RoundFile) -> Check {
    let name = &file.round.manifest().name;
    let threshold = file.round.manifest().founders.as_ref().map_or(0, |founders| founders.threshold);
    match file.is_signed() {
        true if threshold == 0 => Check::ok("round", format!("\"{name}\" has no founders to sign it")),
        true => Check::ok("round", format!("\"{name}\" is signed by its founders")),
        false => {
            let fact = format!("\"{name}\" has {} of {threshold} signatures of its founders", file.signers().count());
            Check::fail("round", fact, "ask a founder for the signed file (`mingle round sign` makes it)")
        }
    }
}

/// What this key may do.
pub fn key(round: &Round, key: &SecretKey, contributes: bool) -> Check {
    let (member, manifest) = (key.member(), round.manifest());
    let remedy = "ask the round's founders to admit this key";
    match manifest.standing(&member) {
        Some(Standing::Member) => Check::ok("key", format!("{member} may announce")),
        // Only a peer knows what the founders changed since.
        found if manifest.founders.is_some() => {
            let fact = match found {
                Some(_) => format!("{member} may read and not announce, unless the founders have changed that since"),
                None => format!("{member} is not named in the round file; the founders may have admitted it since"),
            };
            Check::warn("key", fact, remedy)
        }
        None if round.is_private() => Check::fail("key", format!("{member} is a stranger to this private round"), remedy),
        _ if contributes => Check::fail("key", format!("{member} is not in the roster"), remedy),
        _ => Check::ok("key", format!("{member} may read")),
    }
}

/// The data, the base, and whether a training on them fits into memory.
pub fn training(
    round: &Round,
    places: &Places,
    base: Option<&Path>,
    digests: &Digests,
    data: &[PathBuf],
    training: &TrainingArgs,
) -> Vec<Check> {
    let records = read(data, &FieldMap(training.map.clone()));
    let name = round.manifest().base.name.as_str();
    let found = match base {
        Some(base) => check_base(base, round, digests).map(|()| base.to_owned()),
        None => bases::find(&round.manifest().base, places, digests).map_err(Into::into),
    };
    let (right, memory) = match found {
        Ok(base) => {
            let right = Check::ok("base", format!("{} has the round's digest", base.display()));
            let memory = match records.level {
                Level::Ok => fits(round, &base, data, training),
                _ => Check::skip("memory", "needs readable --data"),
            };
            (right, memory)
        }
        // Only a training needs it.
        Err(_) if base.is_none() && data.is_empty() => {
            (Check::skip("base", "no --base was given"), Check::skip("memory", "needs --data and the base"))
        }
        Err(_) if base.is_none() && bases::hub::is_name(name) => {
            let fact = format!("{name} is not on this machine; `mingle run` fetches it from the Hugging Face hub");
            let absent = Check::warn("base", fact, format!("fetch it now, such as by `mingle preview --base {name} --data FILE`"));
            (absent, Check::skip("memory", "needs the round's base"))
        }
        Err(error) => {
            let wrong = Check::error("base", &error, "give the Hugging Face directory of the round's base as --base");
            (wrong, Check::skip("memory", "needs the round's base"))
        }
    };
    vec![records, right, memory]
}

fn read(paths: &[PathBuf], fields: &FieldMap) -> Check {
    if paths.is_empty() {
        return Check::skip("data", "no --data was given");
    }
    let mut records = 0;
    for path in paths {
        match data::read_records(path, fields) {
            Ok(found) => records += found.len(),
            Err(error) => return Check::error("data", &error.into(), "see whether this account may read the file"),
        }
    }
    match records {
        0 => Check::fail("data", "the files hold no example", "give files with at least one line"),
        _ => Check::ok("data", format!("{records} examples in {} files", paths.len())),
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
    let Some(free) = crate::disk::free_bytes(home) else { return Check::skip("disk", "the system does not tell how much is free") };
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

/// QUIC's sockets have the system's default buffer: what does not fit is dropped and sent again.
pub fn udp() -> Check {
    const SETTING: &str = "/proc/sys/net/core/rmem_default";
    let found = std::fs::read_to_string(SETTING).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let fact = |bytes| format!("UDP sockets receive into {}", size(bytes));
    match found {
        None => Check::skip("udp", "the system does not tell how large a UDP socket's buffer is"),
        Some(bytes) if bytes < UDP_BUFFER => {
            let remedy =
                format!("fast lines lose packets over QUIC: sysctl -w net.core.rmem_default={UDP_BUFFER} net.core.rmem_max={UDP_BUFFER}");
            Check::warn("udp", fact(bytes), remedy)
        }
        Some(bytes) => Check::ok("udp", fact(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_folder_to_be_made_is_on_the_disk_of_its_parent() {
        let there = crate::disk::free_bytes(&std::env::temp_dir()).unwrap();
        let missing = crate::disk::free_bytes(&std::env::temp_dir().join("mingle-probe/not/there")).unwrap();
        assert!(there > 0 && missing > 0);
        assert!(read(&[], &FieldMap::default()).level == Level::Skip);
        let gone = read(&["not/there.jsonl".into()], &FieldMap::default());
        assert_eq!(gone.level, Level::Fail);
        assert!(gone.remedy.is_some());
    }
}
