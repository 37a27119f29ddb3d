//! Frozen weights of linear maps, laid out once for both of their products: `x Wᵀ` forward and `g W` backward.
//!
//! The maps of one input lie side by side: query, key and value; gate and up. Low-rank parts ride along in the same pass
//! over the output, as a few more inner indices of its tiles.

mod low;
mod split;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::RefCell;

use rayon::prelude::*;

use super::panels::{Element, Extra, Lines, Panels, Product, Right, WIDTH, pack, paired, panels_length, unit};
use super::vector::vectorised;
use super::{threads_for, threads_from};
use low::scaled_lefts;
pub(crate) use low::{Low, LowBack};

/// Most rows that one thread takes at a time: enough to use each panel of weights many times while it is in the cache.
const CHUNK_ROWS_MAX: usize = 384;
/// Rows of weights whose pairs are turned at a time: few enough to stay in the cache until they are used.
const PAIR_BLOCK: usize = 252;

/// Weights `(outputs, inputs)` in panels.
pub(crate) struct Packed {
    inputs: usize,
    outputs: usize,
    element: Element,
    /// `Wᵀ (inputs, outputs)`; of pairs, half as many rows.
    values: Lines,
}

/// Memory that a thread keeps for the factors it packs.
#[derive(Default)]
struct Scratch {
    /// The activations' pairs, by rows.
    pairs: Lines,
    /// The activations in panels.
    factor: Lines,
    /// Weights whose pairs run along the outputs.
    weights: Lines,
    low: Vec<Lines>,
    tile: Lines,
}

/// Multiply-adds from which few rows are worth several threads: what one thread does in a few tens of microseconds.
const SPLIT_WORK: usize = 1 << 19;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether this processor multiplies bf16 faster than f32.
pub fn has_bf16_products() -> bool {
    unit().has_pairs
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Packed({} outputs, {} inputs)", self.outputs, self.inputs)
    }
}

impl Packed {
    /// Packs `parts`, each `(outputs, inputs)` by rows, one beside the other.
    pub fn new(parts: &[&[f32]], inputs: usize) -> Self {
        Self::of(parts, inputs, Element::Single)
    }

    /// As [`Packed::new`], with weights rounded to bf16 (which changes nothing where they come from bf16) and activations
    /// rounded to bf16 in products. Where the processor has dot products of bf16 this is nearly twice as fast.
    pub fn new_bf16(parts: &[&[f32]], inputs: usize) -> Self {
        Self::of(parts, inputs, Element::Pair)
    }

    fn of(parts: &[&[f32]], inputs: usize, element: Element) -> Self {
        assert!(inputs > 0 && parts.iter().all(|part| part.len().is_multiple_of(inputs)), "weights of whole rows");
        let outputs = parts.iter().map(|part| part.len()).sum::<usize>() / inputs;
        let joined;
        let whole = match parts {
            [whole] => whole,
            _ => {
                joined = parts.concat();
                joined.as_slice()
            }
        };
        let mut packed = Self { inputs, outputs, element, values: Lines::default() };
        let depth = packed.depth(inputs);
        packed.values = Lines::zeros(panels_length(depth, outputs));
        match element {
            Element::Single => unit().pack_transposed(whole, inputs, outputs, inputs, packed.values.values_mut()),
            Element::Pair => {
                let mut pairs = vec![0.0; outputs * depth];
                paired(whole, outputs, inputs, &mut pairs);
                unit().pack_transposed(&pairs, depth, outputs, depth, packed.values.values_mut());
            }
        }
        packed
    }

    /// Elements of an inner index of so many numbers.
    fn depth(&self, length: usize) -> usize {
        match self.element {
            Element::Single => length,
            Element::Pair => length.div_ceil(2),
        }
    }

    /// The plain weights `(outputs, inputs)`.
    #[cfg(test)]
    pub fn unpack(&self) -> Vec<f32> {
        let depth = self.depth(self.inputs);
        let value = |output: usize, input: usize| {
            let at = |row: usize| self.values.values()[(output / WIDTH * depth + row) * WIDTH + output % WIDTH];
            match self.element {
                Element::Single => at(input),
                Element::Pair if input.is_multiple_of(2) => f32::from_bits(at(input / 2).to_bits() << 16),
                Element::Pair => f32::from_bits(at(input / 2).to_bits() & 0xffff_0000),
            }
        };
        (0..self.outputs * self.inputs).map(|at| value(at / self.inputs, at % self.inputs)).collect()
    }

    /// `onto + x Wᵀ + low-rank parts + bias` for `rows` rows of `x`.
    pub fn forward(&self, x: &[f32], rows: usize, low: &[Low], bias: Option<&[f32]>, onto: Option<Vec<f32>>) -> Vec<f32> {
        assert_eq!(x.len(), rows * self.inputs);
        // A bias is a low-rank part whose `u` is 1.
        let ones = vec![1.0; if bias.is_some() { rows } else { 0 }];
        let bias = bias.map(|b| Low { u: &ones, b, rank: 1, from: 0, count: self.outputs, scale: 1.0, laid_out: None });
        let low: Vec<Low> = low.iter().copied().chain(bias).filter(|low| low.rank > 0 && low.count > 0).collect();
        let rights: Vec<Cow<[f32]>> = low.iter().map(|low| low.right(self.outputs)).collect();
        if rows <= CHUNK_ROWS_MAX && threads_from(SPLIT_WORK, rows * self.inputs * self.outputs) > 1 {
            return self.forward_split(x, rows, &low, &rights, onto);
        }
        let unit = unit();
        let depth = self.depth(self.inputs);
        self.in_chunks(rows, self.outputs, onto, |scratch, first, count, to, add| {
            let Scratch { pairs, factor, low: lefts, tile, .. } = scratch;
            let x = self.elements(&x[first * self.inputs..], count, self.inputs, pairs);
            let left = factor.at_least(panels_length(count, depth));
            pack(x, depth, count, depth, left);
            let lefts = scaled_lefts(lefts, &low, first, count);
            let parts = low.iter().zip(lefts).zip(&rights);
            let extras: Vec<Extra> = parts.map(|((low, left), right)| low.extra(left, count, right)).collect();
            let product = Product {
                rows: count,
                columns: self.outputs,
                length: depth,
                element: self.element,
                left: Panels { values: left, rows: count },
                right: Right::Panels(Panels { values: self.values.values(), rows: depth }),
                extras: &extras,
            };
            // SAFETY: `to` holds `count` rows that belong to this chunk.
            unsafe { product.compute(unit, to, self.outputs, add, false, tile) }
        })
    }

    /// `onto + g W + low-rank parts` for `rows` rows of `g`.
    pub fn backward(&self, g: &[f32], rows: usize, low: &[LowBack], onto: Option<Vec<f32>>) -> Vec<f32> {
        assert_eq!(g.len(), rows * self.outputs);
        let low: Vec<LowBack> = low.iter().copied().filter(|low| low.rank > 0).collect();
        let lefts: Vec<Vec<f32>> = low.iter().map(|low| low.left(self.inputs)).collect();
        let unit = unit();
        let depth = self.depth(self.outputs);
        self.in_chunks(rows, self.inputs, onto, |scratch, first, count, to, add| {
            let Scratch { pairs, factor, weights, low: rights, tile } = scratch;
            let g = self.elements(&g[first * self.outputs..], count, self.outputs, pairs);
            let right = factor.at_least(panels_length(depth, count));
            unit.pack_transposed(g, depth, count, depth, right);
            rights.resize_with(low.len().max(rights.len()), Lines::default);
            for (low, right) in low.iter().zip(rights.iter_mut()) {
                let right = right.at_least(panels_length(low.rank, count));
                unit.pack_transposed(&low.du[first * low.rank..], low.rank, count, low.rank, right);
            }
            // Pairs along the inputs become pairs along the outputs, block by block; single elements serve as they are.
            let block = if self.element == Element::Single { self.inputs } else { PAIR_BLOCK };
            for begin in (0..self.inputs).step_by(block) {
                let end = self.inputs.min(begin + block);
                let parts = low.iter().zip(&lefts).zip(rights.iter());
                let extras = parts.map(|((low, left), right)| low.extra(left, self.inputs, begin, right, count));
                let extras: Vec<Extra> = extras.collect();
                let left = match self.element {
                    Element::Single => Panels { values: self.values.values(), rows: self.inputs },
                    Element::Pair => self.pairs_along_outputs(begin, end, weights),
                };
                let product = Product {
                    rows: end - begin,
                    columns: count,
                    length: depth,
                    element: self.element,
                    left,
                    right: Right::Panels(Panels { values: right, rows: depth }),
                    extras: &extras,
                };
                // SAFETY: `to` holds `count` rows that belong to this chunk, and the columns from `begin` are this block's.
                unsafe { product.compute(unit, to.add(begin), self.inputs, add, true, tile) }
            }
        })
    }

    /// `x` as elements: itself, or its pairs.
    fn elements<'a>(&self, x: &'a [f32], rows: usize, columns: usize, pairs: &'a mut Lines) -> &'a [f32] {
        match self.element {
            Element::Single => x,
            Element::Pair => {
                let pairs = pairs.at_least(rows * columns.div_ceil(2));
                paired(x, rows, columns, pairs);
                pairs
            }
        }
    }

    /// `Wᵀ`'s rows `begin..end` in panels of 32 pairs of outputs; `begin` is even.
    fn pairs_along_outputs<'a>(&self, begin: usize, end: usize, to: &'a mut Lines) -> Panels<'a> {
        let rows = (end - begin).next_multiple_of(2);
        let to = to.at_least(panels_length(rows, self.depth(self.outputs)));
        let depth = self.depth(self.inputs);
        for (index, panel) in self.values.values().chunks_exact(depth * WIDTH).enumerate() {
            let from = &panel[begin / 2 * WIDTH..][..rows / 2 * WIDTH];
            // A panel of 32 outputs is half of one of 32 pairs.
            let to = &mut to[index / 2 * rows * WIDTH + index % 2 * WIDTH / 2..];
            cross_pairs(from, to);
        }
        Panels { values: to, rows }
    }

    /// Runs `body(scratch, first row, rows, destination, add)` for chunks of rows, over threads where it is worth it. The
    /// body writes every element of its rows of `width`.
    fn in_chunks(
        &self,
        rows: usize,
        width: usize,
        onto: Option<Vec<f32>>,
        body: impl Fn(&mut Scratch, usize, usize, *mut f32, bool) + Sync,
    ) -> Vec<f32> {
        let add = onto.is_some();
        let mut y = onto.unwrap_or_else(|| Vec::with_capacity(rows * width));
        if add {
            assert_eq!(y.len(), rows * width);
        }
        let to = Shared(y.as_mut_ptr());
        let chunk_rows = rows.div_ceil(rows.div_ceil(CHUNK_ROWS_MAX).max(1)).max(1);
        let one = |first: usize| {
            let count = chunk_rows.min(rows - first);
            // SAFETY: within the capacity asked for or the length asserted above; chunks do not overlap.
            let to = unsafe { to.at(first * width) };
            SCRATCH.with_borrow_mut(|scratch| body(scratch, first, count, to, add));
        };
        if rows > chunk_rows && threads_for(rows * self.inputs * self.outputs) > 1 {
            (0..rows.div_ceil(chunk_rows)).into_par_iter().for_each(|chunk| one(chunk * chunk_rows));
        } else {
            (0..rows).step_by(chunk_rows).for_each(one);
        }
        // SAFETY: every element has been written.
        unsafe { y.set_len(rows * width) };
        y
    }
}

vectorised! {
    /// Each row of 32 pairs of inputs gives two rows of 16 pairs of outputs, 32 elements apart.
    fn cross_pairs(from: &[f32], to: &mut [f32]) {
        for (from, to) in from.as_chunks::<WIDTH>().0.iter().zip(to.chunks_mut(2 * WIDTH)) {
            let (first, second) = to.split_at_mut(WIDTH);
            for (lane, pair) in from.as_chunks::<2>().0.iter().enumerate() {
                let [a, b] = pair.map(f32::to_bits);
                first[lane] = f32::from_bits((a & 0xffff) | (b << 16));
                second[lane] = f32::from_bits((a >> 16) | (b & 0xffff_0000));
            }
        }
    }
}

/// A destination whose chunks belong to one thread each.
struct Shared(*mut f32);
// SAFETY: `in_chunks` hands every row to one call of its body.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `offset` must lie within the destination.
    unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}
