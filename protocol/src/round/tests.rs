#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;

use super::*;
use crate::adapter::{FullShape, LoraShape, Module, Scaling, SubspaceShape, Tensor};
use crate::hash::{decode_hex, encode_hex};
use crate::merge::Accumulator;

fn small() -> LoraShape {
    LoraShape::new(2, 4, [9; 32], vec![Module { name: "model.layers.0.self_attn.q_proj".into(), inputs: 4, outputs: 6 }])
}

fn subspace() -> SubspaceShape {
    SubspaceShape { seeds: 3, interval: 5, lora: small() }
}

fn full() -> FullShape {
    FullShape { weights: vec![Tensor::new("norm.weight", [4]), Tensor::new("q.weight", [6, 4])] }
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        version: VERSION,
        name: "ward notes".into(),
        base: BaseModel { name: "tiny".into(), digest: ContentHash::of(b"weights") },
        kind: AdapterKind::Lora(small()),
        rule: MergeRule::Mean,
        weight: WeightRule::Examples { cap: 1_000 },
        member_max: 4,
        roster: Roster::Open,
        parent: None,
        founders: None,
        readers: None,
        clip_millionths: None,
        verdicts: None,
    }
}

fn keys(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<MemberKey> {
    numbers.into_iter().map(|number| MemberKey([number; 32])).collect()
}

fn founders(numbers: impl IntoIterator<Item = u8>, threshold: u32) -> Option<Founders> {
    Some(Founders { keys: keys(numbers), threshold })
}

#[test]
fn a_round_file_comes_back_with_the_same_identity() {
    let round = Round::new(manifest()).unwrap();
    let again = Round::from_json(round.to_json().as_bytes()).unwrap();
    assert_eq!(again, round);
}

#[test]
fn every_field_is_part_of_the_identity() {
    let changes: [fn(&mut Manifest); 46] = [
        |m| m.name.push('x'),
        |m| m.base.name.push('x'),
        |m| m.base.digest = ContentHash::of(b"other"),
        |m| lora(m).rank = 3,
        |m| lora(m).alpha = 5,
        |m| lora(m).seed[0] = 0,
        |m| lora(m).modules[0].name.push('x'),
        |m| lora(m).modules[0].inputs = 5,
        |m| lora(m).modules[0].outputs = 5,
        |m| lora(m).scaling = Scaling::Rslora,
        |m| lora(m).saved = vec![Tensor::new("head.weight", [2, 4])],
        |m| lora(m).saved = vec![Tensor::new("head.weight", [4, 2])],
        |m| lora(m).saved = vec![Tensor::new("head.weight", [8])],
        |m| m.kind = AdapterKind::FrozenA(small()),
        |m| m.kind = AdapterKind::FrozenA(LoraShape { scaling: Scaling::Rslora, ..small() }),
        |m| m.kind = AdapterKind::Subspace(subspace()),
        |m| m.kind = AdapterKind::Subspace(SubspaceShape { seeds: 4, ..subspace() }),
        |m| m.kind = AdapterKind::Subspace(SubspaceShape { interval: 6, ..subspace() }),
        |m| m.kind = AdapterKind::Full(full()),
        |m| m.kind = AdapterKind::Full(FullShape { weights: full().weights[..1].to_vec() }),
        |m| m.kind = AdapterKind::Full(FullShape { weights: full().weights.into_iter().rev().collect() }),
        |m| m.weight = WeightRule::Examples { cap: 999 },
        |m| m.weight = WeightRule::Equal,
        |m| m.member_max = 5,
        |m| m.roster = Roster::Members(BTreeSet::from([MemberKey([1; 32])])),
        |m| m.parent = Some(Parent { round: RoundId(ContentHash::of(b"r")), merged: ContentHash::of(b"m") }),
        |m| m.founders = founders([1], 1),
        |m| m.founders = founders([1, 2], 1),
        |m| m.founders = founders([1, 2], 2),
        |m| m.readers = Some(Readers::Open),
        |m| (m.roster, m.readers) = (Roster::Members(keys([1])), Some(Readers::Open)),
        |m| (m.roster, m.readers) = (Roster::Members(keys([1])), Some(Readers::Listed(keys([])))),
        |m| (m.roster, m.readers) = (Roster::Members(keys([1])), Some(Readers::Listed(keys([2])))),
        |m| m.clip_millionths = Some(1),
        |m| m.clip_millionths = Some(2),
        |m| m.rule = MergeRule::Stack,
        |m| (m.rule, m.clip_millionths) = (MergeRule::Stack, Some(2)),
        |m| by(m, MergeRule::Median),
        |m| by(m, MergeRule::TrimmedMean { trim: 1 }),
        |m| by(m, MergeRule::TrimmedMean { trim: 2 }),
        |m| by(m, MergeRule::MultiKrum { faulty: 1 }),
        |m| by(m, MergeRule::MultiKrum { faulty: 2 }),
        |m| (by(m, MergeRule::MultiKrum { faulty: 2 }), m.clip_millionths = Some(2)).1,
        |m| (by(m, MergeRule::MultiKrum { faulty: 2 }), m.readers = Some(Readers::Open)).1,
        |m| (m.roster, m.verdicts) = (Roster::Members(keys([1, 2])), Some(VerdictRule { approvals: 0 })),
        |m| (m.roster, m.verdicts) = (Roster::Members(keys([1, 2])), Some(VerdictRule { approvals: 1 })),
    ];
    let mut ids = BTreeSet::from([Round::new(manifest()).unwrap().id()]);
    for change in changes {
        let mut changed = manifest();
        change(&mut changed);
        assert!(ids.insert(Round::new(changed).unwrap().id()));
    }
}

/// A robust rule, with weights and places as it needs them.
fn by(manifest: &mut Manifest, rule: MergeRule) {
    (manifest.rule, manifest.weight, manifest.member_max) = (rule, WeightRule::Equal, 7);
}

fn lora(manifest: &mut Manifest) -> &mut LoraShape {
    match &mut manifest.kind {
        AdapterKind::Lora(shape) => shape,
        _ => unreachable!("the manifest here is of plain LoRA"),
    }
}

#[test]
fn a_manifest_outside_its_bounds_is_refused() {
    let changes: [fn(&mut Manifest); 29] = [
        |m| m.version = 2,
        |m| m.name.clear(),
        |m| m.name = "line\nbreak".into(),
        |m| m.base.name = "x".repeat(NAME_BYTES_MAX + 1),
        |m| m.member_max = 0,
        |m| m.weight = WeightRule::Examples { cap: 0 },
        |m| m.weight = WeightRule::Examples { cap: 1 << 30 },
        |m| m.roster = Roster::Members(BTreeSet::new()),
        |m| m.founders = founders([], 1),
        |m| m.founders = founders([1, 2], 0),
        |m| m.founders = founders([1, 2], 3),
        |m| m.founders = founders(0..17, 1),
        |m| m.readers = Some(Readers::Listed(keys([1]))),
        |m| lora(m).saved = vec![Tensor::new("head.weight", [])],
        |m| lora(m).saved = vec![Tensor::new("head.weight", [1, 1, 1, 1, 1])],
        |m| lora(m).saved = vec![Tensor::new("head.weight", [1, 0])],
        |m| lora(m).saved = vec![Tensor::new("head weight", [1])],
        |m| lora(m).saved = vec![Tensor::new("model.layers.0.self_attn.q_proj.lora_A.weight", [1])],
        |m| m.kind = AdapterKind::Subspace(SubspaceShape { seeds: 0, ..subspace() }),
        |m| m.kind = AdapterKind::Subspace(SubspaceShape { seeds: 513, ..subspace() }),
        |m| m.kind = AdapterKind::Subspace(SubspaceShape { interval: 0, ..subspace() }),
        |m| m.kind = AdapterKind::Subspace(SubspaceShape { lora: LoraShape { scaling: Scaling::Rslora, ..small() }, ..subspace() }),
        |m| m.kind = AdapterKind::Full(FullShape { weights: Vec::new() }),
        |m| m.kind = AdapterKind::Full(FullShape { weights: vec![Tensor::new("w", [1 << 20, 1 << 12])] }),
        |m| lora(m).rank = 0,
        |m| lora(m).rank = 1_025,
        |m| lora(m).alpha = 0,
        |m| lora(m).modules.clear(),
        |m| lora(m).modules[0].inputs = 0,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut changed = manifest();
        change(&mut changed);
        assert!(Round::new(changed).is_err(), "change {index} was accepted");
    }
    assert!(matches!(Round::from_json(b"{\"version\":1}"), Err(RoundError::Syntax(_))));
}

/// A manifest and the sentence that refuses it, or nothing.
fn refusal(change: fn(&mut Manifest)) -> Option<String> {
    let mut changed = manifest();
    change(&mut changed);
    Round::new(changed).err().map(|error| error.to_string())
}

#[test]
fn a_rule_that_could_not_keep_its_word_is_refused() {
    let weights = "needs equal weights: who says how many examples it has could outweigh the rest";
    let refused = |change: fn(&mut Manifest), why: &str| assert_eq!(refusal(change).as_deref(), Some(why));
    refused(|m| m.rule = MergeRule::Median, &format!("the rule median {weights}"));
    refused(|m| m.rule = MergeRule::TrimmedMean { trim: 1 }, &format!("the rule trimmed-mean {weights}"));
    refused(|m| m.rule = MergeRule::MultiKrum { faulty: 1 }, &format!("the rule multi-krum {weights}"));
    refused(|m| by(m, MergeRule::TrimmedMean { trim: 0 }), "the rule trimmed-mean needs to be told of at least 1 bad member");
    refused(|m| by(m, MergeRule::MultiKrum { faulty: 0 }), "the rule multi-krum needs to be told of at least 1 bad member");
    refused(
        |m| by(m, MergeRule::MultiKrum { faulty: 3 }),
        "the rule multi-krum stands 3 bad members among 9 or more, but the round allows 7",
    );
    refused(
        |m| by(m, MergeRule::TrimmedMean { trim: u32::MAX }),
        "the rule trimmed-mean stands 4294967295 bad members among 8589934593 or more, but the round allows 7",
    );
    refused(|m| (by(m, MergeRule::Median), m.member_max = 1025).1, "the rule median takes at most 1024 members, but the round allows 1025");
    refused(
        |m| (by(m, MergeRule::MultiKrum { faulty: 1 }), m.member_max = 257).1,
        "the rule multi-krum takes at most 256 members, but the round allows 257",
    );
    let stack = "the rule stack needs adapters of kind lora that send no tensor whole: there is nothing else to stack";
    refused(|m| (m.rule, m.kind) = (MergeRule::Stack, AdapterKind::FrozenA(small())), stack);
    refused(|m| (m.rule, m.kind) = (MergeRule::Stack, AdapterKind::Full(full())), stack);
    refused(|m| (m.rule = MergeRule::Stack, lora(m).saved = vec![Tensor::new("head.weight", [2, 4])]).1, stack);
    assert!(refusal(|m| (m.rule, m.member_max, m.weight) = (MergeRule::Stack, 16_384, WeightRule::Equal)).is_none());
    let wide = |m: &mut Manifest| (m.rule = MergeRule::Stack, lora(m).modules[0].inputs = 1 << 20, m.member_max = 2_000).2;
    assert!(refusal(wide).unwrap().contains("elements in all"));
    let bound = "the largest norm is 0, but must be 1 to 1000000000000000 millionths";
    refused(|m| m.clip_millionths = Some(0), bound);
    assert!(refusal(|m| m.clip_millionths = Some(1_000_000_000_000_001)).is_some());
    assert!(refusal(|m| m.clip_millionths = Some(1_000_000_000_000_000)).is_none());
    refused(
        |m| (m.clip_millionths = Some(5), lora(m).saved = vec![Tensor::new("head.weight", [2, 4])]).1,
        "the largest norm is given, but must be left out where tensors are sent whole: how far they moved cannot be seen without the base",
    );
}

#[test]
fn a_rule_reads_as_it_is_written() {
    for (rule, text) in [
        (MergeRule::Mean, "\"mean\""),
        (MergeRule::Stack, "\"stack\""),
        (MergeRule::TrimmedMean { trim: 2 }, "{\"trimmed_mean\":{\"trim\":2}}"),
        (MergeRule::Median, "\"median\""),
        (MergeRule::MultiKrum { faulty: 2 }, "{\"multi_krum\":{\"faulty\":2}}"),
    ] {
        assert_eq!(serde_json::to_string(&rule).unwrap(), text);
        let mut manifest = manifest();
        by(&mut manifest, rule);
        manifest.clip_millionths = Some(2_500_000);
        let round = Round::new(manifest).unwrap();
        assert_eq!(Round::from_json(round.to_json().as_bytes()).unwrap(), round);
    }
    assert!(serde_json::from_str::<MergeRule>("{\"trimmed_mean\":{\"trim\":2,\"more\":1}}").is_err());
}

#[test]
fn a_round_is_private_when_members_and_readers_are_listed() {
    let listed = Roster::Members(keys([1]));
    for (roster, readers, private) in [
        (Roster::Open, None, false),
        (Roster::Open, Some(Readers::Open), false),
        (listed.clone(), None, false),
        (listed.clone(), Some(Readers::Open), false),
        (listed.clone(), Some(Readers::Listed(keys([]))), true),
        (listed, Some(Readers::Listed(keys([2]))), true),
    ] {
        let round = Round::new(Manifest { roster, readers, founders: founders([3], 1), ..manifest() }).unwrap();
        assert_eq!(round.is_private(), private, "{:?}", round.manifest());
    }
}

#[test]
fn the_manifest_says_what_a_key_is_before_any_change() {
    let manifest = Manifest {
        roster: Roster::Members(keys([1])),
        readers: Some(Readers::Listed(keys([1, 2]))),
        founders: founders([1, 3], 1),
        ..manifest()
    };
    let standing = |number| manifest.standing(&MemberKey([number; 32]));
    assert_eq!([1, 2, 3, 4].map(standing), [Some(Standing::Member), Some(Standing::Reader), Some(Standing::Reader), None]);
    assert_eq!(manifest.named(), keys([1, 2, 3]));
}

#[derive(Deserialize)]
struct Vectors {
    rounds: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    manifest: Manifest,
    id: RoundId,
    adapters: Vec<Weighted>,
    merged: String,
    hash: ContentHash,
}

#[derive(Deserialize)]
struct Weighted {
    weight: u64,
    file: String,
}

/// Identity, what travels and the merged file of every kind, by a second implementation.
#[test]
fn every_round_vector_agrees() {
    let vectors: Vectors = serde_json::from_str(include_str!("../../vectors/rounds.json")).unwrap();
    let mut kinds = BTreeSet::new();
    for Vector { manifest, id, adapters, merged, hash } in vectors.rounds {
        kinds.insert(manifest.kind.name());
        let round = Round::new(manifest).unwrap();
        assert_eq!(round.id(), id);
        let mut average = Accumulator::new(round.tensors());
        for Weighted { weight, file } in adapters {
            average.add(&decode_hex(&file).unwrap(), weight).unwrap();
        }
        let file = average.finalise_as(round.merged()).unwrap();
        assert_eq!(encode_hex(&file), merged, "{}", round.kind().name());
        assert_eq!(ContentHash::of(&file), hash);
        crate::adapter::check(&file, round.merged().tensors()).unwrap();
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["frozen-a", "full", "lora", "subspace"]);
}

/// B of 10 outputs at 3 subspaces of rank 2, beside 7 inputs nobody sends; a list of tensors of another round is no sum of
/// this one.
#[test]
fn only_what_is_trained_travels() {
    let lora = LoraShape::new(2, 2, [1; 32], vec![Module { name: "q".into(), inputs: 7, outputs: 10 }]);
    let dims = |kind: &AdapterKind| kind.tensors().unwrap().iter().map(|tensor| tensor.dims.clone()).collect::<Vec<_>>();
    let subspace = AdapterKind::Subspace(SubspaceShape { seeds: 3, interval: 1, lora: lora.clone() });
    assert_eq!(dims(&AdapterKind::Lora(lora.clone())), [[2, 7], [10, 2]]);
    assert_eq!(dims(&AdapterKind::FrozenA(lora.clone())), [[10, 2]]);
    assert_eq!(dims(&subspace), [[10, 6]]);
    let merged: Vec<Vec<u64>> = subspace.merged().unwrap().tensors().iter().map(|tensor| tensor.dims.clone()).collect();
    assert_eq!(merged, [[6, 7], [10, 6]]);
    let mut average = Accumulator::new(&AdapterKind::FrozenA(lora).tensors().unwrap());
    let file = crate::adapter::tests::file_of(average.tensors(), crate::adapter::Dtype::F32, |_| vec![0; 4]);
    average.add(&file, 1).unwrap();
    assert!(average.finalise_as(&subspace.merged().unwrap()).is_err());
}
