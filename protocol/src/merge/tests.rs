#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::float_arithmetic)]

mod histories;
mod model;
mod promises;
mod reference;
mod rules;
mod stacks;

use serde::Deserialize;

use super::*;
use crate::adapter::tests::{file_of, small_shape, small_tensors};
use crate::adapter::{AdapterError, Dtype, Layout, LoraShape, MergedFile, Module};
use crate::hash::{ContentHash, decode_hex};
use crate::number::{MAGNITUDE_MAX, quantise, seeded_uniform, unfit, widened};

/// Numbers from a seed (splitmix64), the same in every run.
pub(super) struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Weights of every magnitude; seven of the largest still fit.
    pub fn weight(&mut self) -> u64 {
        let bits = self.below(29);
        1 + self.below(1 << bits)
    }
}

/// A fit element of any kind: any bit pattern, and for `f32` also exact ties between grid points, subnormals, the ends
/// of the range and signed zeros, which random patterns would hardly ever hit.
pub(super) fn any_element(draw: &mut Draw, dtype: Dtype) -> Vec<u8> {
    loop {
        let bytes = draw.next().to_le_bytes()[..dtype.bytes()].to_vec();
        let tie = (draw.below(1 << 23) as f32 - (1 << 22) as f32 + 0.5) / (1 << 28) as f32;
        let small = f32::from_bits(draw.below(1 << 23) as u32 | (draw.below(2) as u32) << 31);
        let end = if draw.below(2) == 0 { 16.0 } else { -16.0f32 };
        let bytes = match (dtype, draw.below(8)) {
            (Dtype::F32, 0 | 1) => tie.to_le_bytes().to_vec(),
            (Dtype::F32, 2) => small.to_le_bytes().to_vec(),
            (Dtype::F32, 3) => end.to_le_bytes().to_vec(),
            (Dtype::F32, 4) => (end * 0.0).to_le_bytes().to_vec(),
            _ => bytes,
        };
        if widened(dtype, &bytes).all(|value| unfit(value, MAGNITUDE_MAX).is_none()) {
            return bytes;
        }
    }
}

pub(super) fn any_file(seed: u64, dtype: Dtype) -> Vec<u8> {
    let mut draw = Draw(seed);
    file_of(&small_tensors(), dtype, |_| any_element(&mut draw, dtype))
}

pub(super) const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

#[derive(Deserialize)]
struct Vectors {
    shape: LoraShape,
    merges: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    adapters: Vec<Weighted>,
    merged: String,
    hash: ContentHash,
}

#[derive(Deserialize)]
struct Weighted {
    weight: u64,
    file: String,
}

#[test]
fn every_merge_vector_agrees() {
    let vectors: Vectors = serde_json::from_str(include_str!("../../vectors/merge.json")).unwrap();
    assert!(vectors.merges.len() >= 4);
    for Vector { adapters, merged, hash } in vectors.merges {
        let mut accumulator = Accumulator::new(&vectors.shape.tensors().unwrap());
        for Weighted { weight, file } in adapters {
            accumulator.add(&decode_hex(&file).unwrap(), weight).unwrap();
        }
        let file = accumulator.finalise().unwrap();
        assert_eq!(file, decode_hex(&merged).unwrap());
        assert_eq!(ContentHash::of(&file), hash);
    }
}

/// One constant for debug and release, for every machine and every compiler: 300,000 elements, five adapters.
#[test]
fn a_larger_merge_has_the_golden_hash() {
    let module = |name: &str, inputs, outputs| Module { name: name.to_owned(), inputs, outputs };
    let shape = LoraShape::new(8, 16, [5; 32], vec![module("q", 16_384, 8_192), module("v", 10_000, 2_925)]);
    let tensors = shape.tensors().unwrap();
    let mut accumulator = Accumulator::new(&tensors);
    for (member, dtype) in [Dtype::F32, Dtype::Bf16, Dtype::F32, Dtype::F16, Dtype::F32].into_iter().enumerate() {
        let count = tensors.elements() as usize;
        let mut values = seeded_uniform(&[member as u8; 32], "golden", count, 1);
        let file = file_of(&tensors, dtype, |_| {
            let value = values.next().unwrap() * 15.0;
            match dtype {
                Dtype::F32 => value.to_le_bytes().to_vec(),
                Dtype::Bf16 => value.to_le_bytes()[2..].to_vec(),
                // Any pattern of sixteen bits with an exponent of at most 2^3.
                Dtype::F16 => ((value.to_bits() >> 7) as u16 & 0xcbff).to_le_bytes().to_vec(),
            }
        });
        accumulator.add(&file, 1 + 1000 * member as u64).unwrap();
    }
    let merged = ContentHash::of(&accumulator.finalise().unwrap());
    assert_eq!(merged.to_string(), GOLDEN);
}

const GOLDEN: &str = "8f27e39a37f6dc61456ce286b8cbe02607d683047adefcebb8be86654570aec7";

#[test]
fn one_adapter_at_any_weight_is_its_values_on_the_grid() {
    for weight in [1, 2, 3, 7, 999, 1 << 20, 123_456_789, (1 << 31) - 1] {
        for dtype in DTYPES {
            let file = any_file(weight, dtype);
            let mut accumulator = Accumulator::new(&small_tensors());
            accumulator.add(&file, weight).unwrap();
            let data = file.len() - 42 * dtype.bytes();
            let on_grid = widened(dtype, &file[data..]).map(|x| ((quantise(x) as f64) / (1 << 28) as f64) as f32);
            let merged = accumulator.finalise().unwrap();
            let merged: Vec<u32> = widened(Dtype::F32, &merged[merged.len() - 168..]).map(f32::to_bits).collect();
            assert_eq!(merged, on_grid.map(f32::to_bits).collect::<Vec<_>>(), "{dtype} at weight {weight}");
        }
    }
}

#[test]
fn a_merged_adapter_is_an_adapter_of_the_same_shape() {
    let mut accumulator = Accumulator::new(&small_tensors());
    accumulator.add(&any_file(1, Dtype::F32), 3).unwrap();
    accumulator.add(&any_file(2, Dtype::F16), 4).unwrap();
    let merged = accumulator.finalise().unwrap();
    let mut again = Accumulator::new(&small_tensors());
    again.add(&merged, 77).unwrap();
    assert_eq!(again.members(), 1);
    // The pieces of the stream are the file.
    let mut pieces = Vec::new();
    accumulator
        .finalise_to(&MergedFile::of_means(small_tensors()), |piece| {
            pieces.push(piece.to_vec());
            Ok::<(), MergeError>(())
        })
        .unwrap();
    assert_eq!(pieces.concat(), merged);
    // A sink's error stops the stream and comes back.
    let mut calls = 0;
    let stopped = accumulator.finalise_to(&MergedFile::of_means(small_tensors()), |_| {
        calls += 1;
        Err(MergeError::ZeroWeight)
    });
    assert_eq!((stopped, calls), (Err(MergeError::ZeroWeight), 1));
}

/// An error and its sentence.
fn refused<T>(outcome: Result<T, MergeError>) -> (MergeError, String) {
    let error = outcome.map(|_| ()).unwrap_err();
    (error.clone(), error.to_string())
}

#[test]
fn every_refusal_says_why_and_changes_nothing() {
    let mut accumulator = Accumulator::new(&small_tensors());
    let [one, two] = [any_file(1, Dtype::F32), any_file(2, Dtype::Bf16)];
    assert_eq!(refused(accumulator.finalise()), (MergeError::Empty, "there is no adapter to merge".into()));
    accumulator.add(&one, 5).unwrap();
    let before = accumulator.clone();
    let merged = before.finalise().unwrap();

    let sentence = "an adapter cannot be merged with weight 0";
    assert_eq!(refused(accumulator.add(&two, 0)), (MergeError::ZeroWeight, sentence.into()));
    for adding in [TOTAL_WEIGHT_LIMIT - 5, TOTAL_WEIGHT_LIMIT, u64::MAX] {
        let sentence = format!("adding weight {adding} to a total of 5 reaches the limit of 2147483648");
        assert_eq!(refused(accumulator.add(&two, adding)), (MergeError::TotalWeight { total: 5, adding }, sentence));
    }
    for weight in [4, 6, u64::MAX] {
        let sentence = format!("an adapter of weight {weight} cannot be retracted from 1 adapters of total weight 5");
        let error = MergeError::NotAdded { weight, members: 1, total: 5 };
        assert_eq!(refused(accumulator.retract(&one, weight)), (error, sentence));
    }
    let mut poisoned = two.clone();
    poisoned[two.len() - 2..].copy_from_slice(&[0xc0, 0x7f]);
    let tensor = "base_model.model.b.2.lora_B.weight".to_owned();
    assert_eq!(accumulator.add(&poisoned, 1), Err(MergeError::Adapter(AdapterError::Nan { tensor, index: 9 })));
    let (expected, found) = (two.len() as u64, two.len() as u64 - 1);
    assert_eq!(accumulator.add(&two[..two.len() - 1], 1), Err(MergeError::Adapter(AdapterError::Size { expected, found })));
    let mut wider = small_shape();
    wider.rank = 3;
    let wider = wider.tensors().unwrap();
    let other = crate::adapter::check(&file_of(&wider, Dtype::F32, |_| vec![0; 4]), &wider).unwrap();
    let sentence = "the adapter was checked against another shape than that of this merge";
    assert_eq!(refused(accumulator.begin(&other, 1, Direction::Add)), (MergeError::OtherShape, sentence.into()));

    assert_eq!(accumulator.finalise().unwrap(), merged);
    assert_eq!((accumulator.members(), accumulator.total_weight()), (1, 5));
    accumulator.retract(&one, 5).unwrap();
    assert!(accumulator.sums.iter().flatten().all(|sum| *sum == 0));
    assert_eq!(accumulator.retract(&one, 5), Err(MergeError::NotAdded { weight: 5, members: 0, total: 0 }));
    accumulator.add(&one, TOTAL_WEIGHT_LIMIT - 1).unwrap();

    // An unscanned file that turns out unfit half-way, or stops early, tears the merge, which then refuses all.
    for torn in [&poisoned[..], &two[..two.len() - 3]] {
        let mut accumulator = before.clone();
        let layout = Layout::parse(&poisoned, poisoned.len() as u64, &small_tensors()).unwrap();
        let data = layout.data_start() as usize;
        let mut fold = accumulator.begin(&layout, 1, Direction::Add).unwrap();
        let pushed = fold.push(&torn[data..]);
        assert!(pushed.is_err() || fold.finish().is_err());
        let sentence = "an adapter was only half folded in, so this merge must be started anew";
        assert_eq!(refused(accumulator.finalise()), (MergeError::Torn, sentence.into()));
        assert_eq!(accumulator.add(&one, 1), Err(MergeError::Torn));
    }
    // One that was begun and never fed does not.
    let mut accumulator = before.clone();
    let layout = crate::adapter::check(&two, &small_tensors()).unwrap();
    drop(accumulator.begin(&layout, 1, Direction::Add).unwrap());
    assert_eq!(accumulator.finalise().unwrap(), merged);
}

#[test]
fn weights_fit_below_the_limit_only() {
    assert!(weights_fit(1 << 20, (1 << 11) - 1) && weights_fit((1 << 31) - 1, 1) && weights_fit(0, u64::MAX));
    assert!(!weights_fit(1 << 20, 1 << 11) && !weights_fit(1 << 31, 1) && !weights_fit(u64::MAX, 2));
}

/// The bound is tight: the largest weight of the largest elements fills an `i64` to the last bit but few, and still
/// comes back exactly.
#[test]
fn the_largest_sums_do_not_overflow() {
    let half = (TOTAL_WEIGHT_LIMIT - 1) / 2;
    for end in [16.0f32, -16.0] {
        let file = file_of(&small_tensors(), Dtype::F32, |_| end.to_le_bytes().to_vec());
        let mut accumulator = Accumulator::new(&small_tensors());
        accumulator.add(&file, half).unwrap();
        accumulator.add(&file, half + 1).unwrap();
        let expected = i128::from(quantise(end)) * i128::from(TOTAL_WEIGHT_LIMIT - 1);
        assert!(accumulator.sums.iter().flatten().all(|sum| i128::from(*sum) == expected));
        let merged = accumulator.finalise().unwrap();
        assert!(widened(Dtype::F32, &merged[merged.len() - 168..]).all(|x| x == end));
    }
}
