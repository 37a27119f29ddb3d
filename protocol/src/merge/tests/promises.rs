//! What docs/rules.md says of the rules, where it can be seen; and the golden vectors of all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Adapter;
use super::rules::{MEMBERS, Peer, adapter, key, rounds};
use super::*;
use crate::adapter::{AdapterKind, FullShape, Tensor};
use crate::round::{Manifest, Round, WeightRule};

#[derive(Deserialize)]
struct Vectors {
    rules: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    manifest: Manifest,
    id: crate::round::RoundId,
    adapters: Vec<Clipped>,
    left_out: Vec<usize>,
    merged: String,
    hash: ContentHash,
}

#[derive(Deserialize)]
struct Clipped {
    weight: u64,
    file: String,
    clip: u32,
}

/// Identity, clips, choice and merged file of every rule, by a second implementation in another language.
#[test]
fn every_rule_vector_agrees() {
    let vectors: Vectors = serde_json::from_str(include_str!("../../../vectors/rules.json")).unwrap();
    let mut tried = BTreeSet::new();
    let mut clipped = 0;
    for Vector { manifest, id, adapters, left_out, merged, hash } in vectors.rules {
        tried.insert((manifest.rule.name(), manifest.kind.name(), manifest.clip_millionths.is_some()));
        let round = Round::new(manifest).unwrap();
        assert_eq!(round.id(), id);
        let mut peer = Peer::new(&round);
        for (member, Clipped { weight, file, clip }) in (0..).zip(adapters) {
            let file = decode_hex(&file).unwrap();
            let adapter = Adapter { key: key(member), weight, file, tensors: BTreeMap::new() };
            assert_eq!(u32::from(peer.clip(&adapter)), clip);
            clipped += u32::from(clip < 1 << 24);
            peer.arrive(&adapter, 100);
        }
        let (file, made) = peer.recomputed(&mut Draw(id.0.0[0].into())).unwrap();
        assert_eq!(crate::hash::encode_hex(&file), merged, "{:?} of {}", round.manifest().rule, round.kind().name());
        assert_eq!(ContentHash::of(&file), hash);
        assert_eq!(made.account.left_out, left_out.iter().map(|member| key(*member as u64)).collect());
        if let Some(running) = &peer.running {
            assert_eq!(running.finalise_as(round.merged()).unwrap(), file);
        }
    }
    assert!(tried.len() == 4 * 7 + 2 && clipped > 40, "{tried:?}, {clipped} clipped");
}

/// One adapter alone, whatever it counts for, is itself on the grid; the same several times over too.
#[test]
fn copies_of_one_adapter_merge_to_it() {
    for round in rounds().iter().filter(|round| round.manifest().clip_millionths.is_none() && round.manifest().rule != MergeRule::Stack) {
        let mut draw = Draw(5);
        let one = adapter(round, &mut draw, 0);
        let alone = {
            let mut average = Accumulator::new(round.tensors());
            average.add(&one.file, 1).unwrap();
            average.finalise_as(round.merged()).unwrap()
        };
        let mut peer = Peer::new(round);
        for member in 0..MEMBERS {
            peer.arrive(&Adapter { key: key(member), ..one.clone() }, 1 << 20);
        }
        assert!(peer.check(&mut draw).unwrap() == alone, "{:?}", round.manifest().rule);
    }
}

/// The claim of docs/rules.md where it can be seen: so many liars at the end of the range do not take a coordinate out of what
/// honest members sent; one more than a trim does.
#[test]
fn bad_members_below_the_bound_cannot_move_a_coordinate_where_they_like() {
    let kind = AdapterKind::Full(FullShape { weights: vec![Tensor::new("w", [64])] });
    let merge = |rule: MergeRule, liars: u64| {
        let manifest = Manifest { kind: kind.clone(), rule, weight: WeightRule::Equal, member_max: 9, ..crate::round::tests::manifest() };
        let round = Round::new(manifest).unwrap();
        let (mut peer, mut draw) = (Peer::new(&round), Draw(2));
        for member in 0..9 {
            let value = if member < liars { 16.0 } else { draw.below(1000) as f32 / 1000.0 };
            let file = crate::adapter::tests::file_of(round.tensors(), Dtype::F32, |_| value.to_le_bytes().to_vec());
            let bytes = file[file.len() - 256..].to_vec();
            let tensors = BTreeMap::from([("w".to_owned(), (vec![64], Dtype::F32, bytes))]);
            peer.arrive(&Adapter { key: key(member), weight: 1, file, tensors }, 1 << 20);
        }
        let merged = peer.check(&mut draw).unwrap();
        let most = widened(Dtype::F32, &merged[merged.len() - 256..]).fold(0.0, f32::max);
        (most, rule.stands(9))
    };
    for rule in [MergeRule::TrimmedMean { trim: 3 }, MergeRule::Median, MergeRule::MultiKrum { faulty: 3 }] {
        let (most, stands) = merge(rule, 3);
        assert!(stands >= 3 && most <= 1.0, "{rule:?}: {most}");
    }
    assert!(merge(MergeRule::TrimmedMean { trim: 3 }, 4).0 > 2.0);
    assert!(merge(MergeRule::Median, 5).0 > 2.0);
    assert!(merge(MergeRule::Mean, 1).0 > 1.5);
}

#[test]
fn no_rule_claims_more_than_it_stands() {
    let told = |bad| [MergeRule::TrimmedMean { trim: bad }, MergeRule::MultiKrum { faulty: bad }];
    for members in 0..40 {
        assert_eq!([MergeRule::Mean, MergeRule::Stack].map(|rule| rule.stands(members)), [0, 0]);
        assert_eq!(MergeRule::Median.stands(members), if members < 3 { 0 } else { (members - 3) / 2 });
        for bad in 1..8_u32 {
            let enough = members >= 2 * u64::from(bad) + 3;
            assert_eq!(told(bad).map(|rule| rule.stands(members)), [if enough { u64::from(bad) } else { 0 }; 2]);
        }
    }
    assert_eq!(told(2).map(|rule| rule.needs()), [5, 7]);
    assert_eq!([MergeRule::Mean, MergeRule::Stack, MergeRule::Median].map(|rule| rule.needs()), [1, 1, 1]);
}
