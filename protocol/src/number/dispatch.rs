//! The fold's loops, compiled for AVX-512, for AVX2 and for the baseline, and chosen at run time.
//!
//! The only file of the protocol with `unsafe`: a function compiled for instructions that the machine may lack can only
//! be called that way. It contains no loop and no arithmetic of its own. Every variant is the same scalar Rust, which
//! the compiler turns into vectors; none allows a fused multiply-add, so all give the same bits.
#![allow(unsafe_code, reason = "calling a function compiled for a feature this machine was seen to have")]

use super::products::gram_each;
use super::{Dtype, divisor, finalise_each, fold_each, largest_of_each, widen_bf16, widen_f16};

/// A set of vector instructions that this machine was seen to have. No other constructor exists, which is what makes
/// the calls below sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Lanes {
    /// The widest that this machine has.
    pub fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                return Self(Kind::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Self(Kind::Avx2);
            }
        }
        Self(Kind::Baseline)
    }

    /// All that this machine has, the baseline first: for tests and benches that compare them.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self(Kind::Baseline)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                all.push(Self(Kind::Avx2));
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                all.push(Self(Kind::Avx512));
            }
        }
        all
    }
}

/// Writes one function that runs `$body` as compiled for the given [`Lanes`].
macro_rules! compiled_for_lanes {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name(lanes: Lanes, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn anywhere($($arg: $type),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $type),*) $(-> $out)? {
                anywhere($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq")]
            fn avx512($($arg: $type),*) $(-> $out)? {
                anywhere($($arg),*)
            }

            match lanes.0 {
                Kind::Baseline => anywhere($($arg),*),
                // SAFETY: only `Lanes` makes this value, after detecting AVX2.
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: only `Lanes` makes this value, after detecting AVX-512 F and DQ.
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}

compiled_for_lanes! {
    /// `sums += weight * points(elements)`, counted on a grid ([`Factor::grid`](super::Factor::grid)), element by element up to
    /// the shorter of the two. Returns what [`largest`] returns: above the limit, the sums have lost their meaning.
    fn fold(dtype: Dtype, sums: &mut [i64], elements: &[u8], weight: u32, grid: f64) -> u32 {
        match dtype {
            Dtype::F32 => fold_each(sums, elements.as_chunks().0, f32::from_le_bytes, weight, grid, i64::wrapping_add),
            Dtype::Bf16 => fold_each(sums, elements.as_chunks().0, widen_bf16, weight, grid, i64::wrapping_add),
            Dtype::F16 => fold_each(sums, elements.as_chunks().0, widen_f16, weight, grid, i64::wrapping_add),
        }
    }
}

compiled_for_lanes! {
    /// The exact inverse of [`fold`], for elements that are fit.
    fn unfold(dtype: Dtype, sums: &mut [i64], elements: &[u8], weight: u32, grid: f64) -> u32 {
        match dtype {
            Dtype::F32 => fold_each(sums, elements.as_chunks().0, f32::from_le_bytes, weight, grid, i64::wrapping_sub),
            Dtype::Bf16 => fold_each(sums, elements.as_chunks().0, widen_bf16, weight, grid, i64::wrapping_sub),
            Dtype::F16 => fold_each(sums, elements.as_chunks().0, widen_f16, weight, grid, i64::wrapping_sub),
        }
    }
}

compiled_for_lanes! {
    /// The magnitude of the largest element as the bits of an `f32`; above `MAGNITUDE_MAX.to_bits()` exactly when an
    /// element is NaN, infinite or too large.
    fn largest(dtype: Dtype, elements: &[u8]) -> u32 {
        match dtype {
            Dtype::F32 => largest_of_each(elements.as_chunks().0, f32::from_le_bytes),
            Dtype::Bf16 => largest_of_each(elements.as_chunks().0, widen_bf16),
            Dtype::F16 => largest_of_each(elements.as_chunks().0, widen_f16),
        }
    }
}

compiled_for_lanes! {
    /// The weighted means of `sums` as little-endian `f32`, four bytes of `out` for each sum.
    fn finalise(sums: &[i64], total_weight: u64, out: &mut [u8]) {
        finalise_each(sums, divisor(total_weight), out.as_chunks_mut().0);
    }
}

compiled_for_lanes! {
    /// Adds to `out` the dot product of every row of `left` with every row of `right`, one row of `out` for each of `left`;
    /// rows have `width` numbers, at most [`BLOCK`](super::BLOCK).
    fn gram(left: &[f64], right: &[f64], width: usize, out: &mut [f64]) {
        gram_each(left, right, width, out);
    }
}
