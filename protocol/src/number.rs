//! Every floating-point operation of the protocol, and nothing else: widening, the grid, the final division, and the
//! seeded draw of a round's common start.
//!
//! Merged bytes must not depend on the machine, so this room uses only what IEEE-754 fixes to the last bit: `+ - * /`,
//! `sqrt` and conversions, each rounded to nearest even. It refuses fused multiply-add, `exp`, `ln`, `powf` and sums of
//! floats, whose results differ between machines, libraries or orders. No value it makes from an admitted element is
//! subnormal, so a machine set to flush subnormals to zero draws and merges the same bits too; only the rule `stack`, which
//! has no grid, can make some.
//!
//! The seeded draw reads BLAKE3's extendable output. A stream cipher such as ChaCha20 would serve as well, but BLAKE3 is
//! already the hash of everything here, so this is one primitive, and one dependency, less to agree on.
#![allow(clippy::float_arithmetic, reason = "the one room of the protocol that may compute with floats")]

pub mod dispatch;
mod factor;
mod products;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::hash::DomainHasher;
pub use factor::Factor;
pub(crate) use factor::{scaling, stacked, times};
pub(crate) use products::{BLOCK, add_scaled, chosen, dot};

#[cfg(all(target_arch = "x86", not(target_feature = "sse2")))]
compile_error!("x87 arithmetic rounds twice, so this target would merge to different bytes");

/// Grid points per unit: elements are merged as whole multiples of 2^-28.
pub const GRID: f64 = 268_435_456.0;

/// The largest magnitude an adapter's element may have. At most 2^32 grid points, so that any total weight below 2^31
/// keeps a running sum inside an `i64`.
pub const MAGNITUDE_MAX: f32 = 16.0;

/// 1.5 * 2^52. Between 2^52 and 2^53 neighbouring `f64` are one apart, so adding this rounds to a whole number, half to
/// even, and leaves it in the low bits.
const ROUNDER: f64 = 6_755_399_441_055_744.0;

/// All bits of an `f32` but the sign. As integers they order like magnitudes, with infinity and then NaN on top.
const MAGNITUDE_BITS: u32 = 0x7fff_ffff;

/// How the elements of a tensor are written, always little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dtype {
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The name safetensors gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// The dtype of a safetensors name, or `None` for one that no adapter may have.
    pub fn named(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16].into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A bfloat16 as the `f32` of the same value: exact.
#[inline(always)]
pub fn widen_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// An IEEE half as the `f32` of the same value: exact, subnormals, infinities and NaN included. No branches, so that
/// the fold's loops stay vectors.
#[inline(always)]
pub fn widen_f16(bytes: [u8; 2]) -> f32 {
    const EXPONENT: u32 = 0x0f80_0000;
    // Halves are biased by 15, singles by 127.
    const REBIAS: u32 = 112 << 23;
    const SMALLEST_NORMAL: u32 = 113 << 23;
    let half = u32::from(u16::from_le_bytes(bytes));
    let sign = (half & 0x8000) << 16;
    let magnitude = (half & 0x7fff) << 13;
    let exponent = magnitude & EXPONENT;
    let normal = magnitude.wrapping_add(REBIAS);
    // Infinity and NaN keep an exponent of all ones.
    let special = normal.wrapping_add(REBIAS);
    // A subnormal's digits, set behind 2^-14 and freed of it again: both are normal singles.
    let subnormal = (f32::from_bits(magnitude.wrapping_add(SMALLEST_NORMAL)) - f32::from_bits(SMALLEST_NORMAL)).to_bits();
    let wide = if exponent == 0 { subnormal } else { normal };
    let wide = if exponent == EXPONENT { special } else { wide };
    f32::from_bits(wide | sign)
}

/// The nearest grid point, half to even. Meaningful for `|x| <= MAGNITUDE_MAX`, which the caller has checked.
#[inline(always)]
pub fn quantise(x: f32) -> i64 {
    quantise_on(x, GRID)
}

/// The nearest point of `x * grid`, half to even, for a grid of [`Factor::grid`].
#[inline(always)]
fn quantise_on(x: f32, grid: f64) -> i64 {
    // Neither the element nor the grid has more than 24 digits, so the product is exact and only the addition rounds.
    (f64::from(x) * grid + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed()
}

/// The weighted mean of a running sum of grid points: `sum / (total_weight * 2^28)`, rounded at each step.
#[inline(always)]
pub fn finalise(sum: i64, total_weight: u64) -> f32 {
    divide(sum, divisor(total_weight))
}

/// What every running sum is divided by. Exact for a total weight below 2^53.
#[inline(always)]
fn divisor(total_weight: u64) -> f64 {
    total_weight as f64 * GRID
}

#[inline(always)]
fn divide(sum: i64, divisor: f64) -> f32 {
    (sum as f64 / divisor) as f32
}

/// Why an element may not be merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unfit {
    Nan,
    Infinite,
    TooLarge(f32),
}

/// `None` for an element that may be merged, with a magnitude of at most `most`.
pub fn unfit(x: f32, most: f32) -> Option<Unfit> {
    match x {
        x if x.is_nan() => Some(Unfit::Nan),
        x if x.is_infinite() => Some(Unfit::Infinite),
        x if x.abs() > most => Some(Unfit::TooLarge(x)),
        _ => None,
    }
}

/// Elements of one tensor, all `dtype`, widened one by one. For the slow paths; the fold has its own loops.
pub fn widened(dtype: Dtype, bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(dtype.bytes()).map(move |element| match (dtype, element) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::Bf16, &[a, b]) => widen_bf16([a, b]),
        (Dtype::F16, &[a, b]) => widen_f16([a, b]),
        // `chunks_exact` has just cut chunks of this dtype's size.
        _ => f32::NAN,
    })
}

/// The inner loop of every merge: `sums = step(sums, weight * points(elements))`, where `step` adds or subtracts and points are
/// counted on `grid`, and the magnitude bits of the largest element. Unfit elements leave
/// sums without meaning; the caller looks at the largest and gives them up.
///
/// Wrapping is exact here: sums stay inside an `i64` by the bound on the total weight, and a sum that went out and came
/// back would still be right. A weight of 32 bits lets AVX2, which cannot multiply 64 by 64 bits, do with less.
#[inline(always)]
fn fold_each<const N: usize>(
    sums: &mut [i64],
    elements: &[[u8; N]],
    widen: impl Fn([u8; N]) -> f32,
    weight: u32,
    grid: f64,
    step: impl Fn(i64, i64) -> i64,
) -> u32 {
    let mut largest = 0;
    for (sum, element) in sums.iter_mut().zip(elements) {
        let bits = widen(*element).to_bits();
        largest = largest.max(bits & MAGNITUDE_BITS);
        *sum = step(*sum, quantise_on(f32::from_bits(bits), grid).wrapping_mul(i64::from(weight)));
    }
    largest
}

/// The magnitude bits of the largest element; above those of [`MAGNITUDE_MAX`] when any element is unfit.
#[inline(always)]
fn largest_of_each<const N: usize>(elements: &[[u8; N]], widen: impl Fn([u8; N]) -> f32) -> u32 {
    elements.iter().fold(0, |largest, element| largest.max(widen(*element).to_bits() & MAGNITUDE_BITS))
}

#[inline(always)]
fn finalise_each(sums: &[i64], divisor: f64, out: &mut [[u8; 4]]) {
    for (sum, element) in sums.iter().zip(out) {
        *element = divide(*sum, divisor).to_le_bytes();
    }
}

/// How widely a seeded tensor is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Up to `1 / sqrt(inputs)`, which is what PEFT draws for `lora_A` (`kaiming_uniform` with `a = sqrt(5)`).
    Inputs(u64),
    /// Up to `sqrt(3 / rank)`, so that the variance is `1 / rank` and a matrix P of `rank` rows has `E[P^T P] = I`.
    Projection { rank: u64 },
}

impl Spread {
    /// No number drawn is as far from zero as this.
    pub fn bound(self) -> f64 {
        match self {
            Self::Inputs(inputs) => 1.0 / (inputs as f64).sqrt(),
            Self::Projection { rank } => (3.0 / rank as f64).sqrt(),
        }
    }
}

/// [`seeded`] as the common start of `lora_A` of a module with so many inputs.
pub fn seeded_uniform(seed: &[u8; 32], tensor_name: &str, count: usize, inputs: u64) -> impl Iterator<Item = f32> + use<> {
    seeded(seed, tensor_name, count, Spread::Inputs(inputs))
}

/// A tensor that follows from a seed: `count` numbers, uniform in the open interval (-bound, bound).
///
/// Word k (little-endian `u32`) of the stream of `DomainHasher("seeded-tensor/1")` over the seed and the tensor's full
/// name gives `m = word >> 8` and the number `((2m + 1 - 2^24) / 2^24) * bound`, computed in `f64`, then rounded to
/// `f32`. The fraction is exact, and symmetric about zero.
pub fn seeded(seed: &[u8; 32], tensor_name: &str, count: usize, spread: Spread) -> impl Iterator<Item = f32> + use<> {
    seeded_from(seed, tensor_name, 0, count, spread)
}

/// `count` numbers of [`seeded`] from the one at `first` on.
pub fn seeded_from(seed: &[u8; 32], tensor_name: &str, first: u64, count: usize, spread: Spread) -> impl Iterator<Item = f32> + use<> {
    const WORDS: usize = 256;
    const STEPS: f64 = 16_777_216.0;
    let mut hasher = DomainHasher::new("seeded-tensor/1");
    hasher.hash(seed).string(tensor_name);
    let mut stream = hasher.finish_stream();
    stream.set_position(first.saturating_mul(4));
    let bound = spread.bound();
    let blocks = std::iter::repeat_with(move || {
        let mut words = [[0u8; 4]; WORDS];
        stream.fill(words.as_flattened_mut());
        words
    });
    let draw = move |word: [u8; 4]| {
        let step = f64::from(u32::from_le_bytes(word) >> 8);
        ((2.0 * step + 1.0 - STEPS) / STEPS * bound) as f32
    };
    blocks.flatten().map(draw).take(count)
}
