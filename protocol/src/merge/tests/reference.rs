//! A second, slow merge from the definition, in whole numbers of 128 bits: no float is ever computed with.

use super::*;
use crate::number::dispatch::Lanes;
use proptest::prelude::*;

/// `digits / 2^shift`, half to even.
fn shift_right_half_even(digits: u128, shift: u32) -> u128 {
    match shift {
        0 => digits,
        1..=127 => {
            let (quotient, rest, half) = (digits >> shift, digits & ((1 << shift) - 1), 1 << (shift - 1));
            quotient + u128::from(rest > half || (rest == half && quotient & 1 == 1))
        }
        _ => 0,
    }
}

/// Grid points of a float given as `digits * 2^exponent`, times so many 2^-24.
fn grid_points(negative: bool, digits: u32, exponent: i32, factor: u32) -> i128 {
    let (digits, places) = (u128::from(digits) * u128::from(factor), exponent + 28 - 24);
    let points = if places >= 0 { digits << places } else { shift_right_half_even(digits, -places as u32) };
    if negative { -(points as i128) } else { points as i128 }
}

/// Grid points of an element from its fields.
fn points_of(dtype: Dtype, bytes: &[u8]) -> i128 {
    clipped_points_of(dtype, bytes, 1 << 24)
}

/// Grid points of so many 2^-24 of an element.
pub(super) fn clipped_points_of(dtype: Dtype, bytes: &[u8], factor: u32) -> i128 {
    let mut padded = [0; 4];
    padded[..bytes.len()].copy_from_slice(bytes);
    let bits = u32::from_le_bytes(padded);
    let (width, exponent_bits) = match dtype {
        Dtype::F32 => (32, 8),
        Dtype::Bf16 => (16, 8),
        Dtype::F16 => (16, 5),
    };
    let digit_bits = width - 1 - exponent_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let digits = bits & ((1 << digit_bits) - 1);
    let exponent = ((bits >> digit_bits) & ((1 << exponent_bits) - 1)) as i32;
    let negative = bits >> (width - 1) == 1;
    match exponent {
        0 => grid_points(negative, digits, 1 - bias - digit_bits, factor),
        _ => grid_points(negative, digits | 1 << digit_bits, exponent - bias - digit_bits, factor),
    }
}

/// The most significant `kept` bits of a number, half to even, and how many places they stand above its last.
fn rounded_to(kept: u32, digits: u128) -> (u128, i32) {
    let surplus = (128 - digits.leading_zeros()).saturating_sub(kept);
    (shift_right_half_even(digits, surplus), surplus as i32)
}

/// The bits of `sum / (weight * 2^28)` as `f32`, rounded where the definition rounds: the sum to 53 bits, the quotient
/// to 53 bits, the result to 24 bits.
pub(super) fn mean_bits(sum: i128, weight: u64) -> u32 {
    if sum == 0 {
        return 0;
    }
    let (digits, raised) = rounded_to(53, sum.unsigned_abs());
    // At least 64 bits of quotient, then one more that says whether anything was left over.
    let widened = digits << (127 - (128 - digits.leading_zeros()));
    let lowered = 127 - (128 - digits.leading_zeros()) as i32;
    let divisor = u128::from(weight);
    let quotient = (widened / divisor) << 1 | u128::from(!widened.is_multiple_of(divisor));
    let (digits, lost) = rounded_to(53, quotient);
    let exponent = raised - lowered - 1 + lost - 28;
    let (digits, lost) = rounded_to(24, digits);
    let exponent = exponent + lost;
    // `digits * 2^exponent`, with the digits moved up to 24 bits.
    let length = 128 - digits.leading_zeros() as i32;
    let fraction = if length > 24 { digits >> (length - 24) } else { digits << (24 - length) } as u32 & 0x007f_ffff;
    let biased = (exponent + length - 1 + 127) as u32;
    u32::from(sum < 0) << 31 | biased << 23 | fraction
}

/// The merged data of files that are all in the canonical order of one shape.
fn slow_merge(adapters: &[(Dtype, Vec<u8>, u64)], elements: usize) -> Vec<u32> {
    let mut sums = vec![0i128; elements];
    let mut total = 0;
    for (dtype, file, weight) in adapters {
        let data = &file[file.len() - elements * dtype.bytes()..];
        for (sum, element) in sums.iter_mut().zip(data.chunks(dtype.bytes())) {
            *sum += i128::from(*weight) * points_of(*dtype, element);
        }
        total += weight;
    }
    sums.into_iter().map(|sum| mean_bits(sum, total)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_fold_is_the_definition(seed in any::<u64>(), members in 1usize..9) {
        let mut draw = Draw(seed);
        let adapters: Vec<(Dtype, Vec<u8>, u64)> = (0..members)
            .map(|_| {
                let dtype = DTYPES[draw.below(3) as usize];
                (dtype, any_file(draw.next(), dtype), draw.weight())
            })
            .filter({
                let mut total = 0;
                move |(_, _, weight)| { total += weight; total < TOTAL_WEIGHT_LIMIT }
            })
            .collect();
        let expected = slow_merge(&adapters, 42);
        for lanes in Lanes::all() {
            let mut accumulator = Accumulator::with_lanes(small_tensors(), lanes);
            for (_, file, weight) in &adapters {
                accumulator.add(file, *weight).unwrap();
            }
            let merged = accumulator.finalise().unwrap();
            let merged: Vec<u32> = widened(Dtype::F32, &merged[merged.len() - 168..]).map(f32::to_bits).collect();
            prop_assert_eq!(&merged, &expected);
        }
    }
}

/// The reference itself, against numbers worked out by hand.
#[test]
fn the_reference_is_right_where_it_can_be_seen() {
    let points = |x: f32| points_of(Dtype::F32, &x.to_le_bytes());
    assert_eq!([points(1.0), points(-16.0), points(f32::from_bits(1)), points(0.1)], [1 << 28, -(1 << 32), 0, 26_843_546]);
    let grid = 1.0 / (1 << 28) as f32;
    assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5, 0.500_001].map(|x: f32| points(x * grid)), [0, 2, 2, 0, -2, 1]);
    assert_eq!(mean_bits(1 << 28, 1), 1.0f32.to_bits());
    assert_eq!(mean_bits(-(1 << 28), 2), (-0.5f32).to_bits());
    assert_eq!(mean_bits(1 << 28, 3), (1.0f32 / 3.0).to_bits());
    assert_eq!(mean_bits((1 << 63) - (1 << 32), (1 << 31) - 1), 16.0f32.to_bits());
}
