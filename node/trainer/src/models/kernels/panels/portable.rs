//! Tiles in plain Rust, which the compiler vectorises for the processor family at hand.

use super::unit::{Stretch, Target};
use super::{Element, WIDTH};

/// Lanes of a part of a tile: few enough for 4 rows to stay in registers.
const LANES: usize = 8;

/// Fused where the processor family always has it; elsewhere the fused form would be a slow call.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// The first bf16 of a pair.
#[inline(always)]
fn low(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() << 16)
}

/// The second one.
#[inline(always)]
fn high(pair: f32) -> f32 {
    f32::from_bits(pair.to_bits() & 0xffff_0000)
}

/// # Safety
/// As `Unit::tile`: at most 4 rows, and pointers valid for them.
pub(super) unsafe fn tile(rows: usize, stretches: &[Stretch], target: Target) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile_of::<1>(stretches, target),
            2 => tile_of::<2>(stretches, target),
            3 => tile_of::<3>(stretches, target),
            4 => tile_of::<4>(stretches, target),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

/// # Safety
/// As above.
unsafe fn tile_of<const ROWS: usize>(stretches: &[Stretch], target: Target) {
    for part in (0..WIDTH).step_by(LANES) {
        let mut sums = [[0f32; LANES]; ROWS];
        for stretch in stretches {
            for index in 0..stretch.length {
                // SAFETY: the caller's promise: the stretch holds all inner indices of these rows and lanes.
                unsafe {
                    let right = &*stretch.right.add(index * stretch.right_step + part).cast::<[f32; LANES]>();
                    let left = stretch.left.add(index / WIDTH * stretch.left_panel + index % WIDTH);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let left = *left.add(row * WIDTH);
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum = match stretch.element {
                                Element::Single => multiply_add(left, *right, *sum),
                                Element::Pair => multiply_add(high(left), high(*right), multiply_add(low(left), low(*right), *sum)),
                            };
                        }
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (lane, sum) in sums.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe {
                    let to = target.to.add(row * target.width + part + lane);
                    to.write(if target.add { *to + sum } else { *sum });
                }
            }
        }
    }
}

/// # Safety
/// As `Unit::transpose`.
pub(super) unsafe fn transpose(from: *const f32, width: usize, rows: usize, columns: usize, to: *mut f32) {
    for column in 0..columns {
        for row in 0..WIDTH {
            // SAFETY: the caller's promise.
            unsafe { *to.add(column * WIDTH + row) = if row < rows { *from.add(row * width + column) } else { 0.0 } }
        }
    }
}

/// # Safety
/// As `Unit::transpose_back`.
pub(super) unsafe fn transpose_back(from: *const f32, rows: usize, lanes: usize, target: Target) {
    for lane in 0..lanes {
        for row in 0..rows {
            // SAFETY: the caller's promise.
            unsafe {
                let (to, value) = (target.to.add(lane * target.width + row), *from.add(row * WIDTH + lane));
                to.write(if target.add { *to + value } else { value });
            }
        }
    }
}

/// # Safety
/// As `Unit::dots`.
pub(super) unsafe fn dots(x: [*const f32; 3], a: [*const f32; 8], count: usize, sums: &mut [[f32; 8]; 3]) {
    for (x, sums) in x.iter().zip(sums) {
        for (a, sum) in a.iter().zip(sums) {
            // SAFETY: the caller's promise.
            let (x, a) = unsafe { (std::slice::from_raw_parts(*x, count), std::slice::from_raw_parts(*a, count)) };
            let mut lanes = [0f32; 16];
            let (x_whole, x_rest) = x.as_chunks::<16>();
            let (a_whole, a_rest) = a.as_chunks::<16>();
            for (x, a) in x_whole.iter().zip(a_whole) {
                for ((sum, x), a) in lanes.iter_mut().zip(x).zip(a) {
                    *sum = multiply_add(*x, *a, *sum);
                }
            }
            *sum = lanes.iter().sum::<f32>() + x_rest.iter().zip(a_rest).fold(0.0, |sum, (x, a)| multiply_add(*x, *a, sum));
        }
    }
}
