//! Tiles of up to 6 rows in AVX2 with FMA: 16 lanes at a time, 12 sums in registers.

use std::arch::x86_64::*;

use super::unit::{Stretch, Target};
use super::{Element, WIDTH};

/// # Safety
/// As `Unit::tile`: at most 6 rows, pointers valid for them, and a processor with AVX2 and FMA.
pub(super) unsafe fn tile(rows: usize, stretches: &[Stretch], target: Target) {
    // Few rows leave registers for all lanes: the right factor, whose reading then counts, is gone through once.
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => return whole_1(stretches, target),
            2 => return whole_2(stretches, target),
            3 => return whole_3(stretches, target),
            _ => {}
        }
    }
    for part in [0, 16] {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                4 => tile_4(stretches, target, part),
                5 => tile_5(stretches, target, part),
                6 => tile_6(stretches, target, part),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}

/// Half of a tile: 16 lanes from `part`. Every sum is a variable of its own: the compiler keeps an array in memory.
macro_rules! tile_of {
    ($name:ident: $($row:literal $low:ident $high:ident),*) => {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $name(stretches: &[Stretch], target: Target, part: usize) {
            $(let (mut $low, mut $high) = (_mm256_setzero_ps(), _mm256_setzero_ps());)*
            for stretch in stretches {
                let (mut left, mut right) = (stretch.left, stretch.right.wrapping_add(part));
                let (step, mut remaining) = (stretch.right_step, stretch.length);
                while remaining > 0 {
                    let count = remaining.min(WIDTH);
                    for index in 0..count {
                        // SAFETY: the caller's promise: the stretch holds all inner indices of these rows and lanes.
                        unsafe {
                            let (right_low, right_high) = (_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8)));
                            match stretch.element {
                                Element::Single => {$(
                                    let value = _mm256_set1_ps(*left.add($row * WIDTH + index));
                                    $low = _mm256_fmadd_ps(value, right_low, $low);
                                    $high = _mm256_fmadd_ps(value, right_high, $high);
                                )*}
                                Element::Pair => {$(
                                    let value = _mm256_set1_ps(*left.add($row * WIDTH + index));
                                    $low = widened(value, right_low, $low);
                                    $high = widened(value, right_high, $high);
                                )*}
                            }
                        }
                        right = right.wrapping_add(step);
                    }
                    left = left.wrapping_add(stretch.left_panel);
                    remaining -= count;
                }
            }
            // SAFETY: the caller's promise.
            unsafe { $(store(target, $row, part, $low, $high);)* }
        }
    };
}

tile_of!(tile_4: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3);
tile_of!(tile_5: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4);
tile_of!(tile_6: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5);

/// A whole tile of few rows: all 32 lanes.
macro_rules! whole_of {
    ($name:ident: $($row:literal $a:ident $b:ident $c:ident $d:ident),*) => {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $name(stretches: &[Stretch], target: Target) {
            $(
                let (mut $a, mut $b) = (_mm256_setzero_ps(), _mm256_setzero_ps());
                let (mut $c, mut $d) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            )*
            for stretch in stretches {
                let (mut left, mut right) = (stretch.left, stretch.right);
                let (step, mut remaining) = (stretch.right_step, stretch.length);
                while remaining > 0 {
                    let count = remaining.min(WIDTH);
                    for index in 0..count {
                        // SAFETY: the caller's promise: the stretch holds all inner indices of these rows and lanes.
                        unsafe {
                            let (first, second) = (_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8)));
                            let (third, fourth) = (_mm256_loadu_ps(right.add(16)), _mm256_loadu_ps(right.add(24)));
                            match stretch.element {
                                Element::Single => {$(
                                    let value = _mm256_set1_ps(*left.add($row * WIDTH + index));
                                    $a = _mm256_fmadd_ps(value, first, $a);
                                    $b = _mm256_fmadd_ps(value, second, $b);
                                    $c = _mm256_fmadd_ps(value, third, $c);
                                    $d = _mm256_fmadd_ps(value, fourth, $d);
                                )*}
                                Element::Pair => {$(
                                    let value = _mm256_set1_ps(*left.add($row * WIDTH + index));
                                    $a = widened(value, first, $a);
                                    $b = widened(value, second, $b);
                                    $c = widened(value, third, $c);
                                    $d = widened(value, fourth, $d);
                                )*}
                            }
                        }
                        right = right.wrapping_add(step);
                    }
                    left = left.wrapping_add(stretch.left_panel);
                    remaining -= count;
                }
            }
            // SAFETY: the caller's promise.
            unsafe {$(
                store(target, $row, 0, $a, $b);
                store(target, $row, 16, $c, $d);
            )*}
        }
    };
}

whole_of!(whole_1: 0 a0 b0 c0 d0);
whole_of!(whole_2: 0 a0 b0 c0 d0, 1 a1 b1 c1 d1);
whole_of!(whole_3: 0 a0 b0 c0 d0, 1 a1 b1 c1 d1, 2 a2 b2 c2 d2);

/// `sum + left right` for pairs of bf16.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn widened(left: __m256, right: __m256, sum: __m256) -> __m256 {
    let (left, right) = (_mm256_castps_si256(left), _mm256_castps_si256(right));
    let low = |pair| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
    let high = |pair| _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(0xffff_0000u32 as i32)));
    _mm256_fmadd_ps(high(left), high(right), _mm256_fmadd_ps(low(left), low(right), sum))
}

/// # Safety
/// The target must be valid for 32 lanes of this row.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store(target: Target, row: usize, part: usize, low: __m256, high: __m256) {
    // SAFETY: the caller's promise.
    unsafe {
        let to = target.to.add(row * target.width + part);
        let (low, high) = match target.add {
            true => (_mm256_add_ps(low, _mm256_loadu_ps(to)), _mm256_add_ps(high, _mm256_loadu_ps(to.add(8)))),
            false => (low, high),
        };
        _mm256_storeu_ps(to, low);
        _mm256_storeu_ps(to.add(8), high);
    }
}

/// # Safety
/// As `Unit::dots`, on a processor with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dots(x: [*const f32; 3], a: [*const f32; 8], count: usize, sums: &mut [[f32; 8]; 3]) {
    for part in [0, 4] {
        macro_rules! accumulate {
            ($($index:literal $s0:ident $s1:ident $s2:ident),*) => {{
                $(let (mut $s0, mut $s1, mut $s2) = (_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps());)*
                let whole = count / 8 * 8;
                for at in (0..whole).step_by(8) {
                    // SAFETY: the caller's promise: each pointer is valid for `count` elements.
                    unsafe {
                        let x0 = _mm256_loadu_ps(x[0].add(at));
                        let x1 = _mm256_loadu_ps(x[1].add(at));
                        let x2 = _mm256_loadu_ps(x[2].add(at));
                        $(
                            let factor = _mm256_loadu_ps(a[part + $index].add(at));
                            $s0 = _mm256_fmadd_ps(x0, factor, $s0);
                            $s1 = _mm256_fmadd_ps(x1, factor, $s1);
                            $s2 = _mm256_fmadd_ps(x2, factor, $s2);
                        )*
                    }
                }
                for (row, vectors) in [[$($s0),*], [$($s1),*], [$($s2),*]].into_iter().enumerate() {
                    for (index, vector) in vectors.into_iter().enumerate() {
                        let mut lanes = [0f32; 8];
                        // SAFETY: the caller's promise, and an array of 8 lanes.
                        sums[row][part + index] = unsafe {
                            _mm256_storeu_ps(lanes.as_mut_ptr(), vector);
                            let rest = |sum: f32, at: usize| (*x[row].add(at)).mul_add(*a[part + index].add(at), sum);
                            (whole..count).fold(lanes.iter().sum::<f32>(), rest)
                        };
                    }
                }
            }};
        }
        accumulate!(0 a0 b0 c0, 1 a1 b1 c1, 2 a2 b2 c2, 3 a3 b3 c3);
    }
}
