//! Rounds and PEFT directories made of drawn numbers: as wide as a test needs, without any training.

use std::collections::BTreeSet;
use std::path::Path;

use mingle::merger::{Source, merge_files};
use mingle::{merged, peft};
use mingle_protocol::adapter::{Dtype, LoraShape, Module, canonical_header};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::{MemberKey, Roster, SecretKey};
use mingle_protocol::merge::{MergeError, Plan};
use mingle_protocol::round::{AdapterKind, BaseModel, Manifest, MergeRule, Round, VERSION, WeightRule};

use crate::Dice;

/// A member's key, by a number.
pub fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32])
}

/// Most examples that count for a member of [`round`].
pub const WEIGHT_CAP: u64 = 5_000;

/// A round over `modules` square modules of the given width at rank 4. `members` makes the roster; none opens it.
pub fn round(name: &str, modules: usize, width: u64, members: impl IntoIterator<Item = MemberKey>) -> Round {
    let members: BTreeSet<MemberKey> = members.into_iter().collect();
    let module = |index| Module { name: format!("model.layers.{index}.self_attn.q_proj"), inputs: width, outputs: width };
    Round::new(Manifest {
        version: VERSION,
        name: name.into(),
        base: BaseModel { name: "drawn".into(), digest: ContentHash::of(b"the drawn base") },
        kind: AdapterKind::Lora(LoraShape::new(4, 8, [3; 32], (0..modules).map(module).collect())),
        rule: MergeRule::Mean,
        weight: WeightRule::Examples { cap: WEIGHT_CAP },
        member_max: 64,
        roster: if members.is_empty() { Roster::Open } else { Roster::Members(members) },
        parent: None,
        founders: None,
        readers: None,
        clip_millionths: None,
        verdicts: None,
    })
    .expect("a round within its bounds")
}

/// A whole adapter file of the round's shape, every element drawn from `seed`.
pub fn adapter_file(round: &Round, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed, "adapter");
    file_of(round, |_| dice.value())
}

/// A whole adapter file of the round's shape, f32, its elements in the order of the file.
pub fn file_of(round: &Round, mut element: impl FnMut(u64) -> f32) -> Vec<u8> {
    let mut file = canonical_header(round.tensors(), Dtype::F32);
    for index in 0..round.tensors().elements() {
        file.extend_from_slice(&element(index).to_le_bytes());
    }
    file
}

/// The hash of what a round's rule makes of these adapters, in the order in which they are given.
pub fn merged_hash(plan: &Plan, sources: &[Source]) -> ContentHash {
    let mut merged = Vec::new();
    merge_files(plan, sources, |piece| {
        merged.extend_from_slice(piece);
        Ok::<(), MergeError>(())
    })
    .expect("a merge");
    ContentHash::of(&merged)
}

/// Writes a PEFT directory with this adapter file.
pub fn write_peft(folder: &Path, round: &Round, file: &[u8]) {
    let config = merged::config_of(round).expect("an adapter of two matrices a module");
    std::fs::create_dir_all(folder).expect("a folder for the adapter");
    std::fs::write(folder.join(peft::CONFIG), config.to_json().to_string()).expect("an adapter configuration");
    std::fs::write(folder.join(peft::WEIGHTS), file).expect("an adapter file");
}
