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
mod layout;
mod portable;
mod unit;

use std::ops::Range;

pub(crate) use layout::{Lines, pack, paired, panels_length};
#[cfg(test)]
pub(crate) use unit::units;
use unit::{Stretch, Target};
pub(crate) use unit::{Unit, unit};

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
        // SAFETY: the caller's promise.
        unsafe { self.compute_columns(0..self.columns, unit, to, width, add, transposed, scratch) }
    }

    /// As [`Product::compute`], of some columns alone: from the beginning of a panel to the end of one, or to the last. `to` is
    /// where the whole product would begin.
    ///
    /// # Safety
    /// `to` must be valid for these columns of all rows, which nobody else touches meanwhile.
    #[allow(clippy::too_many_arguments)] // A product has that many.
    pub unsafe fn compute_columns(
        &self,
        span: Range<usize>,
        unit: &Unit,
        to: *mut f32,
        width: usize,
        add: bool,
        transposed: bool,
        scratch: &mut Lines,
    ) {
        self.check();
        assert!(span.start.is_multiple_of(WIDTH) && span.end <= self.columns);
        assert!(span.end.is_multiple_of(WIDTH) || span.end == self.columns);
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
                for column in span.clone().step_by(WIDTH) {
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
