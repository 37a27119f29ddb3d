//! The round's identity: every field that means something, in the order of docs/protocol.md, section "Round".

use super::{AdapterKind, Manifest, WeightRule};
use crate::adapter::{LoraShape, Tensor};
use crate::hash::{ContentHash, DomainHasher};
use crate::identity::{MemberKey, Roster};
use crate::standing::Readers;

pub(super) fn identity(manifest: &Manifest) -> ContentHash {
    let mut hasher = DomainHasher::new("round/1");
    hasher.u64(u64::from(manifest.version)).string(&manifest.name);
    hasher.string(&manifest.base.name).hash(&manifest.base.digest.0);
    kind_fields(&mut hasher, &manifest.kind);
    hasher.string(manifest.rule.name());
    if let Some(told) = manifest.rule.told() {
        hasher.u64(u64::from(told));
    }
    match manifest.weight {
        WeightRule::Equal => hasher.string("equal").u64(1),
        WeightRule::Examples { cap } => hasher.string("examples").u64(cap),
    };
    hasher.u64(u64::from(manifest.member_max));
    match &manifest.roster {
        Roster::Open => hasher.string("open").count(0),
        Roster::Members(members) => {
            hasher.string("members").count(members.len());
            members.iter().fold(&mut hasher, |hasher, MemberKey(key)| hasher.hash(key))
        }
    };
    match &manifest.parent {
        None => hasher.u64(0),
        Some(parent) => hasher.u64(1).hash(&parent.round.0.0).hash(&parent.merged.0),
    };
    // What later fields say nothing of leaves the identity as it was.
    if let Some(founders) = &manifest.founders {
        hasher.string("founders").u64(u64::from(founders.threshold)).count(founders.keys.len());
        founders.keys.iter().fold(&mut hasher, |hasher, MemberKey(key)| hasher.hash(key));
    }
    match &manifest.readers {
        None => &mut hasher,
        Some(Readers::Open) => hasher.string("readers").string("open").count(0),
        Some(Readers::Listed(readers)) => {
            hasher.string("readers").string("listed").count(readers.len());
            readers.iter().fold(&mut hasher, |hasher, MemberKey(key)| hasher.hash(key))
        }
    };
    if let Some(millionths) = manifest.clip_millionths {
        hasher.string("clip").u64(millionths);
    }
    if let Some(rule) = &manifest.verdicts {
        hasher.string("verdicts").u64(u64::from(rule.approvals));
    }
    hasher.finish()
}

/// The low-rank fields of version 1, then, unless the shape says no more than those, scaling and saved tensors; then what
/// only one kind has.
fn kind_fields(hasher: &mut DomainHasher, kind: &AdapterKind) {
    let named = match kind {
        AdapterKind::Lora(shape) if !shape.is_plain() => "lora/2",
        other => other.name(),
    };
    hasher.string(named);
    match kind {
        AdapterKind::Lora(shape) => {
            low_rank_fields(hasher, shape);
            if !shape.is_plain() {
                further_fields(hasher, shape);
            }
        }
        AdapterKind::FrozenA(shape) => {
            low_rank_fields(hasher, shape);
            further_fields(hasher, shape);
        }
        AdapterKind::Subspace(shape) => {
            low_rank_fields(hasher, &shape.lora);
            further_fields(hasher, &shape.lora);
            hasher.u64(u64::from(shape.seeds)).u64(u64::from(shape.interval));
        }
        AdapterKind::Full(shape) => tensor_fields(hasher, &shape.weights),
    }
}

fn low_rank_fields(hasher: &mut DomainHasher, shape: &LoraShape) {
    hasher.u64(u64::from(shape.rank)).u64(u64::from(shape.alpha)).hash(&shape.seed);
    hasher.count(shape.modules.len());
    for module in &shape.modules {
        hasher.string(&module.name).u64(module.inputs).u64(module.outputs);
    }
}

fn further_fields(hasher: &mut DomainHasher, shape: &LoraShape) {
    hasher.string(shape.scaling.name());
    tensor_fields(hasher, &shape.saved);
}

fn tensor_fields(hasher: &mut DomainHasher, tensors: &[Tensor]) {
    hasher.count(tensors.len());
    for tensor in tensors {
        hasher.string(&tensor.name).count(tensor.dims.len());
        for dimension in &tensor.dims {
            hasher.u64(*dimension);
        }
    }
}
