//! Stacks: their product is the weighted mean of the updates, whatever ranks they are made of; and what of them is refused.

use super::model::{Adapter, formed};
use super::*;
use crate::adapter::{AdapterKind, FullShape, Tensor, TensorList, Updates};
use crate::identity::MemberKey;
use crate::round::{Manifest, Round};

const RANK: u64 = 5;

fn round(members: u32) -> Round {
    let module = |name: &str, inputs, outputs| Module { name: name.to_owned(), inputs, outputs };
    let kind = AdapterKind::Lora(LoraShape::new(RANK as u32, 8, [7; 32], vec![module("h.2", 13, 9), module("h.10", 6, 17)]));
    let rule = MergeRule::Stack;
    Round::new(Manifest { kind, rule, member_max: members, ..crate::round::tests::manifest() }).unwrap()
}

fn of_ranks(ranks: [u64; 2]) -> TensorList {
    let pair = |name: &str, rank, inputs, outputs| {
        let tensor = |half: &str, dims: [u64; 2]| Tensor::new(format!("base_model.model.{name}.lora_{half}.weight"), dims);
        [tensor("A", [rank, inputs]), tensor("B", [outputs, rank])]
    };
    let weights = [pair("h.2", ranks[0], 13, 9), pair("h.10", ranks[1], 6, 17)].concat();
    FullShape { weights }.tensors().unwrap()
}

fn merge(round: &Round, adapters: &[(Adapter, Updates)]) -> (Vec<u8>, TensorList) {
    let plan = Plan::of(round);
    let layouts: Vec<Layout> = adapters.iter().map(|(adapter, _)| crate::adapter::check(&adapter.file, round.tensors()).unwrap()).collect();
    let members = adapters.iter().zip(&layouts).map(|((adapter, updates), layout)| Member {
        key: adapter.key,
        adapter: adapter.hash(),
        weight: adapter.weight,
        clip: Factor::ONE,
        layout,
        updates,
        data: &adapter.file,
    });
    let mut file = vec![];
    let made = plan.recompute(&members.collect::<Vec<_>>(), |piece| {
        file.extend_from_slice(piece);
        Ok::<(), MergeError>(())
    });
    (file, made.unwrap().tensors)
}

/// The update of a module that a file's tensors make.
fn update(file: &[u8], tensors: &TensorList, module: &str, scale: f64) -> Vec<f64> {
    let layout = crate::adapter::check(file, tensors).unwrap();
    let values = |half: &str| {
        let index = tensors.position(&format!("base_model.model.{module}.lora_{half}.weight")).unwrap();
        let placed = layout.place_of(index).unwrap();
        let start = placed.begin as usize;
        let bytes = &layout.data_of(file)[start..start + placed.elements * placed.dtype.bytes()];
        let values: Vec<f64> = widened(placed.dtype, bytes).map(f64::from).collect();
        (values, layout.tensors()[index].dims.clone())
    };
    let ((a, dims), (b, _)) = (values("A"), values("B"));
    formed(&b, &a, dims[0] as usize, scale)
}

fn apart(one: &[f64], other: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut one.iter().zip(other).map(|(x, y)| x - y)) / norm(&mut one.iter().copied())
}

/// Twenty random sets of up to nine members with ranks and scales of their own, against the sum in `f64`.
#[test]
fn a_stack_is_the_weighted_mean_of_the_updates() {
    let mut worst: f64 = 0.0;
    for seed in 0..20 {
        let (mut draw, round) = (Draw(seed), round(9));
        let count = 1 + draw.below(9);
        let mut adapters = vec![];
        for member in 0..count {
            let tensors = of_ranks([1 + draw.below(RANK), 1 + draw.below(RANK)]);
            let (weight, scale) = (draw.weight(), [0.25, 1.0, 1.6, 32.0][draw.below(4) as usize]);
            let adapter = Adapter::drawn(&mut draw, MemberKey([member as u8; 32]), weight, &tensors);
            adapters.push((adapter, Updates::of_pairs(round.tensors(), |_| scale), scale));
        }
        let total: u64 = adapters.iter().map(|(adapter, ..)| adapter.weight).sum();
        let given: Vec<(Adapter, Updates)> = adapters.iter().map(|(adapter, updates, _)| (adapter.clone(), updates.clone())).collect();
        let (file, tensors) = merge(&round, &given);
        for module in ["h.2", "h.10"] {
            let mut expected = vec![];
            for (adapter, _, scale) in &adapters {
                let part = update(&adapter.file, round.tensors(), module, scale * adapter.weight as f64 / total as f64);
                expected.resize(part.len(), 0.0);
                expected.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            worst = worst.max(apart(&expected, &update(&file, &tensors, module, 1.0)));
        }
    }
    println!("stack against the sum in f64: {worst:e} apart at most");
    assert!(worst <= 1e-6, "{worst:e}");
}

/// Alone, at any weight, an adapter gives its own update back.
#[test]
fn a_stack_of_one_is_that_one() {
    let round = round(3);
    for weight in [1, 3, 1000, 123_456_789] {
        let mut draw = Draw(weight);
        let adapter = Adapter::drawn(&mut draw, MemberKey([1; 32]), weight, &of_ranks([3, 5]));
        let updates = Plan::of(&round).updates().clone();
        let (file, tensors) = merge(&round, &[(adapter.clone(), updates)]);
        assert_eq!(tensors.rank(), 5);
        for module in ["h.2", "h.10"] {
            let apart = apart(&update(&adapter.file, round.tensors(), module, 1.6), &update(&file, &tensors, module, 1.0));
            assert!(apart <= 1e-6, "{apart:e} at weight {weight}");
        }
        // A stack is one rank for all, so the file is that of the rank that its size tells.
        let merged = round.merged_of_size(file.len() as u64).unwrap();
        assert_eq!(merged.tensors(), &tensors);
        assert!(file.starts_with(&crate::adapter::canonical_header(merged.tensors(), Dtype::F32)));
    }
}

#[test]
fn the_size_of_a_stack_tells_its_rank() {
    let round = round(300);
    assert_eq!(round.merged().tensors().rank(), 1500);
    let mut sizes = std::collections::BTreeSet::new();
    for rank in 1..=1500 {
        let merged = MergedFile::stack(round.tensors().clone(), rank).unwrap();
        assert_eq!(round.merged_of_size(merged.bytes()).map(|found| found.tensors().rank()), Some(rank));
        sizes.insert(merged.bytes());
    }
    assert_eq!(sizes.len(), 1500);
    for size in [0, 1, 500, u64::MAX, round.merged().bytes() + 8] {
        assert_eq!(round.merged_of_size(size), None, "{size}");
    }
    assert!((1..4000).all(|size| sizes.contains(&size) == round.merged_of_size(size).is_some()));
}

#[test]
fn ranks_that_no_member_may_have_are_refused() {
    let (round, mut draw) = (round(3), Draw(1));
    let check = |tensors: &TensorList, draw: &mut Draw| {
        let adapter = Adapter::drawn(draw, MemberKey([1; 32]), 1, tensors);
        crate::adapter::check(&adapter.file, round.tensors()).map(|layout| layout.tensors().clone())
    };
    for ranks in [[1, 5], [5, 5], [4, 2]] {
        assert_eq!(check(&of_ranks(ranks), &mut draw).unwrap(), of_ranks(ranks));
    }
    let refused = |tensors: &TensorList, draw: &mut Draw| match check(tensors, draw).unwrap_err() {
        AdapterError::Ranked { tensor, found, .. } => (tensor, found),
        other => panic!("{other}"),
    };
    assert_eq!(refused(&of_ranks([6, 2]), &mut draw).1, [6, 13]);
    // Halves of different ranks, a dimension that is no rank, a dimension too many.
    let changed = |index: usize, dims: &[u64]| {
        let mut weights = of_ranks([2, 2]).to_vec();
        weights[index].dims = dims.to_vec();
        FullShape { weights }.tensors().unwrap()
    };
    assert_eq!(of_ranks([2, 2])[0].name, "base_model.model.h.10.lora_A.weight");
    for dims in [[3, 6].as_slice(), &[2, 7], &[2, 6, 1], &[12]] {
        assert_eq!(refused(&changed(0, dims), &mut draw), ("base_model.model.h.10.lora_A.weight".into(), dims.to_vec()));
    }
    // Where ranks are not free, they are not.
    let strict = round.kind().tensors().unwrap();
    let file = Adapter::drawn(&mut draw, MemberKey([1; 32]), 1, &of_ranks([1, 5])).file;
    assert!(matches!(crate::adapter::check(&file, &strict), Err(AdapterError::Shaped { .. })));
}

/// Scales are in a stack's B, so its elements may be larger than a member's.
#[test]
fn a_stack_may_hold_what_no_adapter_may() {
    let round = round(2);
    let tensors = of_ranks([1, 1]);
    let file = crate::adapter::tests::file_of(&tensors, Dtype::F32, |_| 16.0f32.to_le_bytes().to_vec());
    let held = tensors.iter().map(|tensor| (tensor.name.clone(), (tensor.dims.clone(), Dtype::F32, vec![]))).collect();
    let adapter = Adapter { key: MemberKey([1; 32]), weight: 1, file, tensors: held };
    let (file, tensors) = merge(&round, &[(adapter, Plan::of(&round).updates().clone())]);
    crate::adapter::check(&file, &tensors).unwrap();
    let listed = FullShape { weights: tensors.to_vec() }.tensors().unwrap();
    assert!(matches!(crate::adapter::check(&file, &listed), Err(AdapterError::TooLarge { found: 25.6, .. })));
    let mut spoilt = file;
    let end = spoilt.len() - 4;
    spoilt[end..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(matches!(crate::adapter::check(&spoilt, &tensors), Err(AdapterError::Infinite { .. })));
}
