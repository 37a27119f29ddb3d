//! What a kind of vector unit offers to products in panels, and which one this processor has.

use super::{Element, WIDTH, panels_length, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// A stretch of a product's inner index.
#[derive(Clone, Copy)]
pub(crate) struct Stretch {
    pub length: usize,
    pub element: Element,
    /// The left factor in panels, from the tile's first row.
    pub left: *const f32,
    /// Elements from one of its panels to the next.
    pub left_panel: usize,
    /// The right factor: 32 lanes for each inner index, ...
    pub right: *const f32,
    /// ... so many elements apart.
    pub right_step: usize,
    /// What will be needed soon and may still lie in main memory: so many cache lines are fetched for 32 inner indices.
    pub soon: *const f32,
    pub soon_lines: usize,
}

/// Where a tile of 32 lanes goes.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub to: *mut f32,
    /// Elements from row to row.
    pub width: usize,
    /// Onto what is there, instead of over it.
    pub add: bool,
}

/// Adds the products of each of 3 rows `x` with each of 8 rows `a`, of `count` elements, into `sums`.
type Dots = unsafe fn(x: [*const f32; 3], a: [*const f32; 8], count: usize, sums: &mut [[f32; 8]; 3]);

/// What one kind of vector unit offers.
pub(crate) struct Unit {
    /// Most rows of a tile.
    pub(super) rows: usize,
    /// Whether pairs of bf16 are faster than single elements.
    pub has_pairs: bool,
    /// `rows` rows of 32 lanes: the sum over all stretches.
    pub(super) tile: unsafe fn(rows: usize, stretches: &[Stretch], target: Target),
    /// `to[column * 32 + row] = from[row * width + column]` for up to 32 rows; lanes beyond them become 0.
    transpose: unsafe fn(from: *const f32, width: usize, rows: usize, columns: usize, to: *mut f32),
    /// `to[lane * width + row] = or += from[row * 32 + lane]`. `from` must hold a multiple of 16 rows.
    pub(super) transpose_back: unsafe fn(from: *const f32, rows: usize, lanes: usize, target: Target),
    /// The products of each of 3 rows with each of 8, of `count` elements.
    dots: Dots,
}

#[cfg(target_arch = "x86_64")]
const AVX512: Unit = Unit {
    rows: 14,
    has_pairs: false,
    tile: avx512::widening::tile,
    transpose: avx512::transpose,
    transpose_back: avx512::transpose_back,
    dots: avx512::dots,
};
#[cfg(target_arch = "x86_64")]
const AVX512_BF16: Unit = Unit { has_pairs: true, tile: avx512::dotting::tile, ..AVX512 };
#[cfg(target_arch = "x86_64")]
const AVX2: Unit = Unit { rows: 6, tile: avx2::tile, dots: avx2::dots, ..PORTABLE };
const PORTABLE: Unit = Unit {
    rows: 4,
    has_pairs: false,
    tile: portable::tile,
    transpose: portable::transpose,
    transpose_back: portable::transpose_back,
    dots: portable::dots,
};

/// The best unit of this processor.
pub(crate) fn unit() -> &'static Unit {
    units()[0]
}

/// Every unit of this processor, the best one first.
pub(crate) fn units() -> Vec<&'static Unit> {
    let mut found: Vec<&'static Unit> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
        let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if wide && fma && is_x86_feature_detected!("avx512bf16") {
            found.push(&AVX512_BF16);
        }
        if wide && fma {
            found.push(&AVX512);
        }
        if fma {
            found.push(&AVX2);
        }
    }
    found.push(&PORTABLE);
    found
}
impl Unit {
    /// Lays the transpose of `rows` rows of `columns` elements, `width` apart, in panels of 32 rows each.
    pub fn pack_transposed(&self, from: &[f32], width: usize, rows: usize, columns: usize, to: &mut [f32]) {
        assert!(rows == 0 || columns == 0 || (rows - 1) * width + columns <= from.len());
        assert!(panels_length(columns, rows) <= to.len());
        for first in (0..rows).step_by(WIDTH) {
            // SAFETY: the assertions above, and the caller of `units` knows that the processor has this unit.
            unsafe {
                let (from, to) = (from.as_ptr().add(first * width), to.as_mut_ptr().add(first * columns));
                (self.transpose)(from, width, WIDTH.min(rows - first), columns, to);
            }
        }
    }

    /// `u (rows, rank) = scale * x aᵀ`: `x` has rows of `count` elements, `width` apart; `a` is `(rank, count)`.
    #[allow(clippy::too_many_arguments)] // A product has that many.
    pub fn narrow(&self, x: &[f32], width: usize, rows: usize, count: usize, a: &[f32], rank: usize, scale: f32, u: &mut [f32]) {
        assert!(rows == 0 || (rows - 1) * width + count <= x.len());
        assert!(a.len() == rank * count && u.len() == rows * rank);
        let mut sums = [[0.0; 8]; 3];
        for row in (0..rows).step_by(3) {
            // Beyond the last row or rank the last one stands in; its sums go nowhere.
            let x = std::array::from_fn(|i| x[(row + i).min(rows - 1) * width..].as_ptr());
            for index in (0..rank).step_by(8) {
                let a = std::array::from_fn(|i| a[(index + i).min(rank - 1) * count..].as_ptr());
                // SAFETY: the assertions above: each pointer has `count` elements behind it.
                unsafe { (self.dots)(x, a, count, &mut sums) };
                for (i, sums) in sums.iter().enumerate().take(rows - row) {
                    for (j, sum) in sums.iter().enumerate().take(rank - index) {
                        u[(row + i) * rank + index + j] = scale * sum;
                    }
                }
            }
        }
    }
}
