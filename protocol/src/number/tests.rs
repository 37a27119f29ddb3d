#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::float_arithmetic)]

use std::collections::BTreeSet;

use serde::Deserialize;

use super::dispatch::{Lanes, finalise, fold, largest, unfold};
use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    quantise: Vec<Quantised>,
    finalise: Vec<Finalised>,
    seeded: Vec<Seeded>,
    projection: Vec<Projected>,
}

#[derive(Deserialize)]
struct Quantised {
    bits: u32,
    points: i64,
}

#[derive(Deserialize)]
struct Finalised {
    sum: i64,
    weight: u64,
    bits: u32,
}

#[derive(Deserialize)]
struct Projected {
    seed: [u8; 32],
    tensor: String,
    rank: u64,
    bits: Vec<u32>,
}

#[derive(Deserialize)]
struct Seeded {
    seed: [u8; 32],
    tensor: String,
    inputs: u64,
    bits: Vec<u32>,
}

#[test]
fn every_number_vector_agrees() {
    let vectors: Vectors = serde_json::from_str(include_str!("../../vectors/number.json")).unwrap();
    assert!(vectors.quantise.len() >= 30 && vectors.finalise.len() >= 10 && vectors.seeded.len() >= 3);
    for Quantised { bits, points } in vectors.quantise {
        assert_eq!(quantise(f32::from_bits(bits)), points, "{bits:#x}");
    }
    for Finalised { sum, weight, bits } in vectors.finalise {
        assert_eq!(super::finalise(sum, weight).to_bits(), bits, "{sum} / {weight}");
    }
    for Seeded { seed, tensor, inputs, bits } in vectors.seeded {
        let drawn: Vec<u32> = seeded_uniform(&seed, &tensor, bits.len(), inputs).map(f32::to_bits).collect();
        assert_eq!(drawn, bits, "{tensor} with {inputs} inputs");
    }
    assert!(vectors.projection.len() >= 2);
    for Projected { seed, tensor, rank, bits } in vectors.projection {
        let drawn: Vec<u32> = seeded(&seed, &tensor, bits.len(), Spread::Projection { rank }).map(f32::to_bits).collect();
        assert_eq!(drawn, bits, "{tensor} of rank {rank}");
    }
}

/// A vector file that no test reads proves nothing: name each here and read it with `include_str!`.
#[test]
fn every_vector_file_is_read() {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors")).unwrap();
    let names: BTreeSet<String> = folder.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let mut unread: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| name.ends_with(".json")).collect();
    let numbers = [include_str!("tests.rs"), include_str!("../merge/tests.rs"), include_str!("../merge/tests/promises.rs")];
    let others = [include_str!("../round/tests.rs"), include_str!("../standing/tests.rs"), include_str!("../verdict/tests.rs")];
    let sources = [numbers.concat(), others.concat(), include_str!("../link.rs").to_owned()].concat();
    unread.retain(|name| !sources.contains(&format!("vectors/{name}\"))")));
    assert!(unread.is_empty(), "vectors that no test reads: {unread:?}");
}

/// The value of a binary float from its fields alone, in exact arithmetic; `None` for infinity and NaN.
fn by_fields(bits: u16, exponent_bits: u32, digit_bits: u32, bias: i32) -> Option<f64> {
    let digits = u32::from(bits) & ((1 << digit_bits) - 1);
    let exponent = (u32::from(bits) >> digit_bits) & ((1 << exponent_bits) - 1);
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    // A power of two by its fields: every one needed here is a normal `f64`.
    let unit = |exponent: i32| f64::from_bits(((exponent - bias - digit_bits as i32 + 1023) as u64) << 52);
    match exponent {
        0 => Some(sign * f64::from(digits) * unit(1)),
        e if e == (1 << exponent_bits) - 1 => None,
        e => Some(sign * f64::from(digits + (1 << digit_bits)) * unit(e as i32)),
    }
}

#[test]
fn every_16_bit_pattern_widens_exactly() {
    for bits in 0..=u16::MAX {
        let [half, brain] = [widen_f16(bits.to_le_bytes()), widen_bf16(bits.to_le_bytes())];
        for (name, wide, expected, digits) in
            [("f16", half, by_fields(bits, 5, 10, 15), 0x3ff), ("bf16", brain, by_fields(bits, 8, 7, 127), 0x7f)]
        {
            match expected {
                Some(value) => assert_eq!(f64::from(wide).to_bits(), value.to_bits(), "{name} {bits:#x}"),
                None if bits & digits == 0 => assert_eq!(wide, if bits >> 15 == 1 { f32::NEG_INFINITY } else { f32::INFINITY }),
                None => assert!(wide.is_nan(), "{name} {bits:#x}"),
            }
        }
    }
}

#[test]
fn dispatched_loops_agree_bit_for_bit() {
    assert!(Lanes::all().contains(&Lanes::widest()));
    // All 16-bit patterns, and as f32 the same bytes in pairs plus every exponent: fit or not, long and odd in length.
    let mut bytes: Vec<u8> = (0..=u16::MAX).flat_map(|bits| bits.to_le_bytes()).collect();
    bytes.extend((0..=u32::MAX).step_by(0x10_0001).flat_map(|bits| bits.to_le_bytes()));
    bytes.truncate(bytes.len() / 12 * 12 - 4);
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let fit: Vec<u8> = {
            let elements = bytes.chunks_exact(dtype.bytes()).zip(widened(dtype, &bytes));
            elements.filter(|(_, value)| unfit(*value, MAGNITUDE_MAX).is_none()).flat_map(|(element, _)| element.to_vec()).collect()
        };
        let count = fit.len() / dtype.bytes();
        assert!(count > 1000);
        let start: Vec<i64> = (0..count as i64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a) - (1 << 40)).collect();
        let outcomes: Vec<_> = Lanes::all()
            .into_iter()
            .map(|lanes| {
                let mut sums = start.clone();
                let seen = fold(lanes, dtype, &mut sums, &fit, (1 << 31) - 1, GRID);
                assert_eq!(seen, unfold(lanes, dtype, &mut sums, &fit, 77, GRID));
                assert_eq!(seen, largest(lanes, dtype, &fit));
                let mut spoilt = vec![0; bytes.len() / dtype.bytes()];
                assert_eq!(fold(lanes, dtype, &mut spoilt, &bytes, 1, GRID), largest(lanes, dtype, &bytes));
                let mut out = vec![0u8; 4 * count];
                finalise(lanes, &sums, 1_000_003, &mut out);
                (sums, out, largest(lanes, dtype, &fit), largest(lanes, dtype, &bytes))
            })
            .collect();
        for outcome in &outcomes {
            assert!(*outcome == outcomes[0], "{dtype}: lanes disagree");
        }
        // One by one, without the loops.
        let one_by_one = start.iter().zip(widened(dtype, &fit)).map(|(sum, x)| sum.wrapping_add(quantise(x) * ((1 << 31) - 1 - 77)));
        assert_eq!(outcomes[0].0, one_by_one.collect::<Vec<i64>>(), "{dtype}");
        assert!(outcomes[0].2 <= MAGNITUDE_MAX.to_bits() && outcomes[0].3 > f32::INFINITY.to_bits());
    }
}

#[test]
fn one_unfit_element_anywhere_is_seen() {
    for lanes in Lanes::all() {
        for place in 0..67 {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 16.000_002, -16.000_002, f32::MAX] {
                let mut values = [16.0f32; 67];
                assert_eq!(largest(lanes, Dtype::F32, values.map(f32::to_le_bytes).as_flattened()), MAGNITUDE_MAX.to_bits());
                values[place] = bad;
                assert!(largest(lanes, Dtype::F32, values.map(f32::to_le_bytes).as_flattened()) > MAGNITUDE_MAX.to_bits());
            }
        }
    }
}

#[test]
fn the_common_start_is_uniform_and_inside_its_bound() {
    let drawn: Vec<f32> = seeded_uniform(&[3; 32], "t", 100_000, 16).collect();
    assert!(drawn.iter().all(|x| x.abs() < 0.25 && *x != 0.0));
    let mean = drawn.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
    let square = drawn.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1e5;
    assert!(mean.abs() < 2e-3 && (square - 0.0625 / 3.0).abs() < 2e-4, "mean {mean}, mean square {square}");
    let other: Vec<f32> = seeded_uniform(&[3; 32], "u", 100_000, 16).collect();
    assert!(drawn.iter().zip(&other).filter(|(a, b)| a == b).count() < 10);
    // Asking for fewer gives the beginning of the same numbers.
    assert!(seeded_uniform(&[3; 32], "t", 301, 16).eq(drawn.into_iter().take(301)));
}

/// `E[P^T P] = I` for a matrix of `rank` rows.
#[test]
fn a_projection_has_the_variance_of_its_rank() {
    let drawn: Vec<f32> = seeded(&[3; 32], "t", 100_000, Spread::Projection { rank: 8 }).collect();
    assert!(drawn.iter().all(|x| f64::from(x.abs()) <= Spread::Projection { rank: 8 }.bound()));
    let square = drawn.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1e5;
    assert!((square - 0.125).abs() < 1e-3, "mean square {square}");
}
