//! Tiles of up to 14 rows and 32 lanes in AVX-512: 28 sums in registers, one multiply-add a cycle.

use std::arch::x86_64::*;

use super::unit::{Stretch, Target};
use super::{Element, WIDTH};

/// Brings a cache line nearer. It may lie anywhere: an address that is none is passed over.
#[inline(always)]
fn fetch<const HINT: i32>(at: *const f32) {
    #[allow(unused_unsafe)] // Newer compilers know that it is safe.
    // SAFETY: it reads nothing.
    unsafe {
        _mm_prefetch::<HINT>(at.cast())
    }
}

/// One tile. Every sum is a variable of its own: the compiler keeps an array of them in memory.
macro_rules! tile_of {
    ($features:literal, $pairs:ident, $name:ident, $rows:literal: $($row:literal $low:ident $high:ident),*) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(stretches: &[Stretch], target: Target) {
            $(let (mut $low, mut $high) = (_mm512_setzero_ps(), _mm512_setzero_ps());)*
            for stretch in stretches {
                let (mut left, mut right) = (stretch.left, stretch.right);
                let (step, mut remaining, mut soon) = (stretch.right_step, stretch.length, stretch.soon);
                while remaining > 0 {
                    let count = remaining.min(WIDTH);
                    for _ in 0..stretch.soon_lines {
                        fetch::<_MM_HINT_T1>(soon);
                        soon = soon.wrapping_add(16);
                    }
                    for index in 0..count {
                        // The next tile's rows.
                        fetch::<_MM_HINT_T0>(left.wrapping_add($rows * WIDTH + index * 16));
                        // SAFETY: the caller's promise: the stretch holds all inner indices of these rows and lanes.
                        unsafe {
                            let (right_low, right_high) = (_mm512_loadu_ps(right), _mm512_loadu_ps(right.add(16)));
                            match stretch.element {
                                Element::Single => {$(
                                    let value = _mm512_set1_ps(*left.add($row * WIDTH + index));
                                    $low = _mm512_fmadd_ps(value, right_low, $low);
                                    $high = _mm512_fmadd_ps(value, right_high, $high);
                                )*}
                                Element::Pair => {$(
                                    let value = _mm512_set1_ps(*left.add($row * WIDTH + index));
                                    $low = $pairs(value, right_low, $low);
                                    $high = $pairs(value, right_high, $high);
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
            unsafe { $(store(target, $row, $low, $high);)* }
        }
    };
}

/// Tiles of every height, for a processor with the given features.
macro_rules! tiles {
    ($module:ident, $features:literal, $pairs:ident) => {
        pub(super) mod $module {
            use super::*;

            /// # Safety
            /// As `Unit::tile`: at most 14 rows, pointers valid for them, and a processor with these features.
            pub(in super::super) unsafe fn tile(rows: usize, stretches: &[Stretch], target: Target) {
                // SAFETY: the caller's promise.
                unsafe {
                    match rows {
                        1 => tile_1(stretches, target),
                        2 => tile_2(stretches, target),
                        3 => tile_3(stretches, target),
                        4 => tile_4(stretches, target),
                        5 => tile_5(stretches, target),
                        6 => tile_6(stretches, target),
                        7 => tile_7(stretches, target),
                        8 => tile_8(stretches, target),
                        9 => tile_9(stretches, target),
                        10 => tile_10(stretches, target),
                        11 => tile_11(stretches, target),
                        12 => tile_12(stretches, target),
                        13 => tile_13(stretches, target),
                        14 => tile_14(stretches, target),
                        _ => unreachable!("a tile of {rows} rows"),
                    }
                }
            }

            tile_of!($features, $pairs, tile_1, 1: 0 a0 b0);
            tile_of!($features, $pairs, tile_2, 2: 0 a0 b0, 1 a1 b1);
            tile_of!($features, $pairs, tile_3, 3: 0 a0 b0, 1 a1 b1, 2 a2 b2);
            tile_of!($features, $pairs, tile_4, 4: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3);
            tile_of!($features, $pairs, tile_5, 5: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4);
            tile_of!($features, $pairs, tile_6, 6: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5);
            tile_of!($features, $pairs, tile_7, 7: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6);
            tile_of!($features, $pairs, tile_8, 8: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7);
            tile_of!($features, $pairs, tile_9, 9: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8);
            tile_of!($features, $pairs, tile_10, 10: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9);
            tile_of!($features, $pairs, tile_11, 11: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9, 10 a10 b10);
            tile_of!($features, $pairs, tile_12, 12: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9, 10 a10 b10, 11 a11 b11);
            tile_of!($features, $pairs, tile_13, 13: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9, 10 a10 b10, 11 a11 b11, 12 a12 b12);
            tile_of!($features, $pairs, tile_14, 14: 0 a0 b0, 1 a1 b1, 2 a2 b2, 3 a3 b3, 4 a4 b4, 5 a5 b5, 6 a6 b6, 7 a7 b7, 8 a8 b8, 9 a9 b9, 10 a10 b10, 11 a11 b11, 12 a12 b12, 13 a13 b13);
        }
    };
}

tiles!(widening, "avx512f,avx512vl", widened);
tiles!(dotting, "avx512f,avx512vl,avx512bf16", dotted);

/// `sum + left right` for pairs of bf16, where the processor has no instruction for it.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn widened(left: __m512, right: __m512, sum: __m512) -> __m512 {
    let (left, right) = (_mm512_castps_si512(left), _mm512_castps_si512(right));
    let low = |pair| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair));
    let high = |pair| _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(0xffff_0000u32 as i32)));
    _mm512_fmadd_ps(high(left), high(right), _mm512_fmadd_ps(low(left), low(right), sum))
}

/// The same in one instruction, which does it twice as fast as single elements.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
fn dotted(left: __m512, right: __m512, sum: __m512) -> __m512 {
    // SAFETY: both types are 512 bits without meaning of their own.
    unsafe { _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512, __m512bh>(left), std::mem::transmute::<__m512, __m512bh>(right)) }
}

/// # Safety
/// The target must be valid for 32 lanes of this row.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn store(target: Target, row: usize, low: __m512, high: __m512) {
    // SAFETY: the caller's promise.
    unsafe {
        let to = target.to.add(row * target.width);
        let (low, high) = match target.add {
            true => (_mm512_add_ps(low, _mm512_loadu_ps(to)), _mm512_add_ps(high, _mm512_loadu_ps(to.add(16)))),
            false => (low, high),
        };
        _mm512_storeu_ps(to, low);
        _mm512_storeu_ps(to.add(16), high);
    }
}

fn first(lanes: usize) -> __mmask16 {
    if lanes >= 16 { u16::MAX } else { (1 << lanes) - 1 }
}

/// A block of 16 rows and columns, transposed in place.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn transpose_block(block: &mut [__m512; 16]) {
    let mut other = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        other[2 * i] = _mm512_unpacklo_ps(block[2 * i], block[2 * i + 1]);
        other[2 * i + 1] = _mm512_unpackhi_ps(block[2 * i], block[2 * i + 1]);
    }
    for i in 0..4 {
        let (a, b, c, d) = (other[4 * i], other[4 * i + 1], other[4 * i + 2], other[4 * i + 3]);
        block[4 * i] = _mm512_shuffle_ps::<0x44>(a, c);
        block[4 * i + 1] = _mm512_shuffle_ps::<0xee>(a, c);
        block[4 * i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
        block[4 * i + 3] = _mm512_shuffle_ps::<0xee>(b, d);
    }
    for i in 0..4 {
        let (a, b, c, d) = (block[i], block[4 + i], block[8 + i], block[12 + i]);
        other[i] = _mm512_shuffle_f32x4::<0x88>(a, b);
        other[4 + i] = _mm512_shuffle_f32x4::<0xdd>(a, b);
        other[8 + i] = _mm512_shuffle_f32x4::<0x88>(c, d);
        other[12 + i] = _mm512_shuffle_f32x4::<0xdd>(c, d);
    }
    for i in 0..4 {
        block[i] = _mm512_shuffle_f32x4::<0x88>(other[i], other[8 + i]);
        block[8 + i] = _mm512_shuffle_f32x4::<0xdd>(other[i], other[8 + i]);
        block[4 + i] = _mm512_shuffle_f32x4::<0x88>(other[4 + i], other[12 + i]);
        block[12 + i] = _mm512_shuffle_f32x4::<0xdd>(other[4 + i], other[12 + i]);
    }
}

/// # Safety
/// As `Unit::transpose`, on a processor with AVX-512.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn transpose(from: *const f32, width: usize, rows: usize, columns: usize, to: *mut f32) {
    for half in [0, 16] {
        let rows = rows.saturating_sub(half);
        for column in (0..columns).step_by(16) {
            let count = columns - column;
            let mut block = [_mm512_setzero_ps(); 16];
            for (row, block) in block.iter_mut().enumerate() {
                if row < rows {
                    // SAFETY: the caller's promise: masked lanes are not read.
                    *block = unsafe { _mm512_maskz_loadu_ps(first(count), from.add((half + row) * width + column)) };
                }
            }
            transpose_block(&mut block);
            for (index, block) in block.iter().enumerate() {
                if index < count {
                    // SAFETY: the caller's promise: `to` holds 32 elements for each column.
                    unsafe { _mm512_storeu_ps(to.add((column + index) * WIDTH + half), *block) }
                }
            }
        }
    }
}

/// # Safety
/// As `Unit::transpose_back`, on a processor with AVX-512.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn transpose_back(from: *const f32, rows: usize, lanes: usize, target: Target) {
    for half in [0, 16] {
        let lanes = lanes.saturating_sub(half);
        for row in (0..rows).step_by(16) {
            let mask = first(rows - row);
            let mut block = [_mm512_setzero_ps(); 16];
            for (index, block) in block.iter_mut().enumerate() {
                // SAFETY: the caller's promise: `from` holds a multiple of 16 rows.
                *block = unsafe { _mm512_loadu_ps(from.add((row + index) * WIDTH + half)) };
            }
            transpose_block(&mut block);
            for (lane, block) in block.iter().enumerate() {
                if lane < lanes {
                    // SAFETY: the caller's promise: masked elements are neither read nor written.
                    unsafe {
                        let to = target.to.add((half + lane) * target.width + row);
                        let value = match target.add {
                            true => _mm512_add_ps(*block, _mm512_maskz_loadu_ps(mask, to)),
                            false => *block,
                        };
                        _mm512_mask_storeu_ps(to, mask, value);
                    }
                }
            }
        }
    }
}

/// The sum of each vector's lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn lane_sums(mut block: [__m512; 16]) -> __m512 {
    transpose_block(&mut block);
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            block[i] = _mm512_add_ps(block[i], block[i + half]);
        }
    }
    block[0]
}

/// # Safety
/// As `Unit::dots`, on a processor with AVX-512.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn dots(x: [*const f32; 3], a: [*const f32; 8], count: usize, sums: &mut [[f32; 8]; 3]) {
    macro_rules! accumulate {
        ($($index:literal $s0:ident $s1:ident $s2:ident),*) => {{
            $(let (mut $s0, mut $s1, mut $s2) = (_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps());)*
            let mut at = 0;
            while at < count {
                let mask = first(count - at);
                // SAFETY: the caller's promise: masked lanes are not read.
                unsafe {
                    let x0 = _mm512_maskz_loadu_ps(mask, x[0].add(at));
                    let x1 = _mm512_maskz_loadu_ps(mask, x[1].add(at));
                    let x2 = _mm512_maskz_loadu_ps(mask, x[2].add(at));
                    $(
                        let factor = _mm512_maskz_loadu_ps(mask, a[$index].add(at));
                        $s0 = _mm512_fmadd_ps(x0, factor, $s0);
                        $s1 = _mm512_fmadd_ps(x1, factor, $s1);
                        $s2 = _mm512_fmadd_ps(x2, factor, $s2);
                    )*
                }
                at += 16;
            }
            let none = _mm512_setzero_ps();
            let both = lane_sums([$($s0,)* $($s1,)*]);
            let last = lane_sums([$($s2,)* none, none, none, none, none, none, none, none]);
            // SAFETY: 24 floats one after the other.
            unsafe {
                _mm512_storeu_ps(sums.as_mut_ptr().cast(), both);
                _mm256_storeu_ps(sums[2].as_mut_ptr(), _mm512_castps512_ps256(last));
            }
        }};
    }
    accumulate!(0 a0 b0 c0, 1 a1 b1 c1, 2 a2 b2 c2, 3 a3 b3 c3, 4 a4 b4 c4, 5 a5 b5 c5, 6 a6 b6 c6, 7 a7 b7 c7);
}
