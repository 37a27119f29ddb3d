//! Matrix products of operands laid out in panels, for operands that serve many products: frozen weights above all.
//!
//! A matrix lies in panels of [`WIDTH`] columns: element (row, column) at `column / 32 * panel + row * 32 + column % 32`. That
//! one layout serves both sides of a product. As the left factor its elements are broadcast: a tile's rows lie 32 apart
//! and its inner index runs along the panel. As the right factor its columns are a tile's lanes. So one copy of `Wᵀ` gives
//! `x Wᵀ` (as the right factor) and `(g W)ᵀ = Wᵀ gᵀ` (as the left one), and no product packs weights again.
//!
//! An element is an f32, or a pair of bf16 that neighbour along the inner index: half the memory, and on processors with dot
//! products of bf16 twice the speed. All else is the same for both.
//!
//! Tiles are chosen at run time: AVX-512, AVX2 with FMA, or plain Rust. Every element is one chain of multiply-adds along
//! the inner index, cut at fixed places, so its bits depend neither on tiles nor on threads nor on the other rows.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::vector::vectorised;

/// Columns of a panel.
pub(crate) const WIDTH: usize = 32;
/// Longest inner length that one visit of a tile takes: long enough that results are seldom read back.
const DEPTH_MAX: usize = 1408;
/// The left factor's part that should stay in the processor's second-level cache.
const BLOCK_BYTES: usize = 512 << 10;

/// What the 32 bits of an element are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    /// An f32.
    Single,
    /// Two bf16 of neighbouring inner indices, the first in the low half. Products are summed in f32.
    Pair,
}

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

/// What one kind of vector unit offers.
pub(crate) struct Unit {
    /// Most rows of a tile.
    rows: usize,
    /// Whether pairs of bf16 are faster than single elements.
    pub has_pairs: bool,
    /// `rows` rows of 32 lanes: the sum over all stretches.
    tile: unsafe fn(rows: usize, stretches: &[Stretch], target: Target),
    /// `to[column * 32 + row] = from[row * width + column]` for up to 32 rows; lanes beyond them become 0.
    transpose: unsafe fn(from: *const f32, width: usize, rows: usize, columns: usize, to: *mut f32),
    /// `to[lane * width + row] = or += from[row * 32 + lane]`. `from` must hold a multiple of 16 rows.
    transpose_back: unsafe fn(from: *const f32, rows: usize, lanes: usize, target: Target),
    /// The products of each of 3 rows with each of 8, of `count` elements.
    dots: unsafe fn(x: [*const f32; 3], a: [*const f32; 8], count: usize, sums: &mut [[f32; 8]; 3]),
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

/// A cache line: panels begin on one, so that no lane vector crosses two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; 16]);

/// Memory of whole cache lines.
#[derive(Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    pub fn zeros(length: usize) -> Self {
        Self(vec![Line([0.0; 16]); length.div_ceil(16)])
    }

    /// At least `length` elements, of whatever values.
    pub fn at_least(&mut self, length: usize) -> &mut [f32] {
        let lines = length.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        &mut self.values_mut()[..length]
    }

    pub fn values(&self) -> &[f32] {
        // SAFETY: a line is 16 floats without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// Two neighbours, rounded to bf16, as one element.
#[inline(always)]
fn pair(first: f32, second: f32) -> f32 {
    // To the nearest, ties to even. A value that is no number stays none: its low bits may not carry it away.
    let round = |value: f32| match value.is_nan() {
        true => (value.to_bits() >> 16) | 0x40,
        false => (value.to_bits() + 0x7fff + ((value.to_bits() >> 16) & 1)) >> 16,
    };
    f32::from_bits(round(first) | (round(second) << 16))
}

vectorised! {
    fn pair_up(from: &[[f32; 2]], to: &mut [f32]) {
        for (to, [first, second]) in to.iter_mut().zip(from) {
            *to = pair(*first, *second);
        }
    }
}

/// Rounds `rows` rows of `columns` elements to bf16 and pairs neighbours: rows of `columns / 2`, rounded up; 0 follows an odd
/// end.
pub(crate) fn paired(from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    assert!(from.len() >= rows * columns && to.len() >= rows * columns.div_ceil(2));
    if columns.is_multiple_of(2) {
        pair_up(from[..rows * columns].as_chunks::<2>().0, to);
        return;
    }
    for (from, to) in from.chunks_exact(columns).zip(to.chunks_exact_mut(columns.div_ceil(2))).take(rows) {
        let (whole, rest) = from.as_chunks::<2>();
        pair_up(whole, to);
        to[whole.len()] = pair(rest[0], 0.0);
    }
}

/// Elements of a matrix in panels.
pub(crate) fn panels_length(rows: usize, columns: usize) -> usize {
    rows * columns.next_multiple_of(WIDTH)
}

/// Lays `rows` rows of `columns` elements, `width` apart, in panels. What lies beyond the last column keeps its values.
pub(crate) fn pack(from: &[f32], width: usize, rows: usize, columns: usize, to: &mut [f32]) {
    for (panel, first) in to.chunks_exact_mut((rows * WIDTH).max(1)).zip((0..columns).step_by(WIDTH)) {
        let count = WIDTH.min(columns - first);
        for (row, to) in panel.chunks_exact_mut(WIDTH).enumerate() {
            let from = &from[row * width + first..][..count];
            match <&[f32; WIDTH]>::try_from(from) {
                // Of known length it is two vector moves.
                Ok(whole) => to.copy_from_slice(whole),
                Err(_) => to[..count].copy_from_slice(from),
            }
        }
    }
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

/// A factor in panels.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub values: &'a [f32],
    /// Rows of each panel.
    pub rows: usize,
}

impl Panels<'_> {
    /// Whether it has the first `rows` of each panel that `columns` columns need.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows <= self.rows && (columns.div_ceil(WIDTH).saturating_sub(1) * self.rows + rows) * WIDTH <= self.values.len()
    }
}

/// The right factor of a product.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    Panels(Panels<'a>),
    /// Plain rows, `width` apart.
    Rows {
        values: &'a [f32],
        width: usize,
    },
}

/// A term of a product that reaches only columns `first..last` of it, with a short inner length: a low-rank part.
#[derive(Clone, Copy)]
pub(crate) struct Extra<'a> {
    pub length: usize,
    pub left: Panels<'a>,
    /// Panels of the product's columns from `first / 32` on, `length` rows each.
    pub right: &'a [f32],
    pub first: usize,
    pub last: usize,
}

/// One product: `(rows, columns)` with inner length `length`, plus the extras.
pub(crate) struct Product<'a> {
    pub rows: usize,
    pub columns: usize,
    /// Elements of the inner index.
    pub length: usize,
    pub element: Element,
    pub left: Panels<'a>,
    pub right: Right<'a>,
    pub extras: &'a [Extra<'a>],
}

impl Product<'_> {
    fn check(&self) {
        assert!(self.left.holds(self.rows, self.length));
        assert!(self.rows > 0 && self.columns > 0 && self.length > 0);
        match self.right {
            Right::Panels(right) => {
                assert!(self.length <= right.rows && panels_length(right.rows, self.columns) <= right.values.len());
            }
            Right::Rows { values, width } => assert!((self.length - 1) * width + self.columns <= values.len()),
        }
        for extra in self.extras {
            assert!(extra.first < extra.last && extra.last <= self.columns && extra.left.holds(self.rows, extra.length));
            let panels = extra.last.div_ceil(WIDTH) - extra.first / WIDTH;
            assert!(panels * extra.length * WIDTH <= extra.right.len());
        }
    }

    /// Computes the product to rows of `width` elements at `to`; or its transpose, the product's columns being rows there.
    ///
    /// # Safety
    /// `to` must be valid for all of these elements, which nobody else touches meanwhile.
    pub unsafe fn compute(&self, unit: &Unit, to: *mut f32, width: usize, add: bool, transposed: bool, scratch: &mut Lines) {
        self.check();
        let depth = self.length.div_ceil(self.length.div_ceil(DEPTH_MAX)).next_multiple_of(WIDTH);
        let tiles = (BLOCK_BYTES / (depth * 4) / unit.rows).max(1);
        // As even as they go: a short last tile would leave the unit idle.
        let blocks = self.rows.div_ceil(tiles * unit.rows);
        let block_rows = self.rows.div_ceil(blocks);
        let spare = block_rows.next_multiple_of(16).max(WIDTH) * WIDTH;
        let scratch = scratch.at_least(spare + depth * WIDTH);
        let (tile_scratch, tail_scratch) = scratch.split_at_mut(spare);
        let mut stretches = Vec::with_capacity(1 + self.extras.len());
        for begin in (0..self.length).step_by(depth) {
            let length = depth.min(self.length - begin);
            let is_last = begin + length == self.length;
            let add = add || begin > 0;
            for first in (0..self.rows).step_by(block_rows) {
                let rows = block_rows.min(self.rows - first);
                for column in (0..self.columns).step_by(WIDTH) {
                    let lanes = WIDTH.min(self.columns - column);
                    let (right, right_step) = self.right_at(begin, length, column, lanes, tail_scratch);
                    let through = transposed || lanes < WIDTH;
                    let tiles = rows.div_ceil(unit.rows);
                    // The right factor's next panel, spread over this one's tiles: it may be seen for the first time.
                    let (mut soon, soon_lines) = match self.right {
                        Right::Panels(panels) => (right.wrapping_add(panels.rows * WIDTH), (WIDTH * 2).div_ceil(tiles)),
                        Right::Rows { .. } => (right, 0),
                    };
                    let mut row = 0;
                    for tile in 0..tiles {
                        let end = rows * (tile + 1) / tiles;
                        stretches.clear();
                        let left_panel = self.left.rows * WIDTH;
                        // SAFETY: `check` has seen that the factors hold all rows, columns and inner indices; the caller
                        // answers for `to`, and the scratch holds every row of a block.
                        unsafe {
                            let left = self.left.values.as_ptr().add(begin / WIDTH * left_panel + (first + row) * WIDTH);
                            stretches.push(Stretch {
                                length,
                                element: self.element,
                                left,
                                left_panel,
                                right,
                                right_step,
                                soon,
                                soon_lines,
                            });
                            soon = soon.wrapping_add(length.div_ceil(WIDTH) * soon_lines * 16);
                            for extra in self.extras.iter().filter(|extra| is_last && extra.meets(column, lanes)) {
                                stretches.push(extra.stretch(first + row, column));
                            }
                            let target = match through {
                                true => Target { to: tile_scratch.as_mut_ptr().add(row * WIDTH), width: WIDTH, add: false },
                                false => Target { to: to.add((first + row) * width + column), width, add },
                            };
                            (unit.tile)(end - row, &stretches, target);
                        }
                        row = end;
                    }
                    // SAFETY: as above.
                    unsafe {
                        if transposed {
                            let target = Target { to: to.add(column * width + first), width, add };
                            (unit.transpose_back)(tile_scratch.as_ptr(), rows, lanes, target);
                        } else if through {
                            let target = Target { to: to.add(first * width + column), width, add };
                            copy_lanes(tile_scratch, rows, lanes, target);
                        }
                    }
                }
            }
        }
    }

    /// The right factor's lanes at `column` for inner indices from `begin`, and the step between them.
    fn right_at(&self, begin: usize, length: usize, column: usize, lanes: usize, scratch: &mut [f32]) -> (*const f32, usize) {
        match self.right {
            Right::Panels(right) => (right.values[column / WIDTH * right.rows * WIDTH + begin * WIDTH..].as_ptr(), WIDTH),
            Right::Rows { values, width } if lanes == WIDTH => (values[begin * width + column..].as_ptr(), width),
            // The last columns have no 32 lanes: they are copied to where there is room.
            Right::Rows { values, width } => {
                pack(&values[begin * width + column..], width, length, lanes, &mut scratch[..length * WIDTH]);
                (scratch.as_ptr(), WIDTH)
            }
        }
    }
}

impl Extra<'_> {
    fn meets(&self, column: usize, lanes: usize) -> bool {
        self.first < column + lanes && column < self.last
    }

    fn stretch(&self, row: usize, column: usize) -> Stretch {
        let right = &self.right[(column / WIDTH - self.first / WIDTH) * self.length * WIDTH..];
        let left = &self.left.values[row * WIDTH..];
        let left_panel = self.left.rows * WIDTH;
        let right = right.as_ptr();
        Stretch {
            length: self.length,
            element: Element::Single,
            left: left.as_ptr(),
            left_panel,
            right,
            right_step: WIDTH,
            soon: right,
            soon_lines: 0,
        }
    }
}

/// Copies or adds the first `lanes` of each row of 32.
///
/// # Safety
/// The target must be valid for `rows` rows of `lanes` elements.
unsafe fn copy_lanes(from: &[f32], rows: usize, lanes: usize, target: Target) {
    for (row, from) in from.chunks_exact(WIDTH).take(rows).enumerate() {
        for (lane, from) in from[..lanes].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let to = target.to.add(row * target.width + lane);
                // The target may hold no value yet: it is read only where it is added to.
                to.write(if target.add { *to + from } else { *from });
            }
        }
    }
}
