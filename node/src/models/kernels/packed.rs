//! Frozen weights of linear maps, laid out once for both of their products: `x Wᵀ` forward and `g W` backward.
//!
//! The maps of one input lie side by side: query, key and value; gate and up. Low-rank parts ride along in the same pass
//! over the output, as a few more inner indices of its tiles.

use std::cell::RefCell;

use rayon::prelude::*;

use super::panels::{Extra, Lines, Panels, Product, Right, WIDTH, pack, panels_length, unit};

/// Rows that one thread takes at a time: enough to use each panel of weights many times while it is in the cache.
const CHUNK_ROWS: usize = 256;
/// Multiply-adds above which a call is split over threads.
const PARALLEL_WORK: usize = 1 << 30;

/// Weights `(outputs, inputs)` in panels.
pub(crate) struct Packed {
    inputs: usize,
    outputs: usize,
    /// `Wᵀ (inputs, outputs)`.
    values: Lines,
}

/// A low-rank part of the output: `scale * u bᵀ` on the columns `from..from + count`.
#[derive(Clone, Copy)]
pub(crate) struct Low<'a> {
    /// (rows, rank).
    pub u: &'a [f32],
    /// (count, rank).
    pub b: &'a [f32],
    pub rank: usize,
    pub from: usize,
    pub count: usize,
    pub scale: f32,
}

/// A low-rank part of the input's gradient: `scale * du a`.
#[derive(Clone, Copy)]
pub(crate) struct LowBack<'a> {
    /// (rows, rank).
    pub du: &'a [f32],
    /// (rank, inputs).
    pub a: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

/// Memory that a thread keeps for the factors it packs.
#[derive(Default)]
struct Scratch {
    factor: Lines,
    low: Vec<Lines>,
    tile: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Packed {
    /// Packs `parts`, each `(outputs, inputs)` by rows, one beside the other.
    pub fn new(parts: &[&[f32]], inputs: usize) -> Self {
        assert!(inputs > 0 && parts.iter().all(|part| part.len().is_multiple_of(inputs)), "weights of whole rows");
        let outputs = parts.iter().map(|part| part.len()).sum::<usize>() / inputs;
        let mut values = Lines::zeros(panels_length(inputs, outputs));
        match parts {
            [whole] => unit().pack_transposed(whole, inputs, outputs, inputs, values.values_mut()),
            _ => unit().pack_transposed(&parts.concat(), inputs, outputs, inputs, values.values_mut()),
        }
        Self { inputs, outputs, values }
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Memory it holds.
    pub fn bytes(&self) -> usize {
        self.values.values().len() * size_of::<f32>()
    }

    /// The weights of output `output`, by input.
    pub fn row(&self, output: usize) -> impl Iterator<Item = f32> {
        let panel = &self.values.values()[output / WIDTH * self.inputs * WIDTH..][..self.inputs * WIDTH];
        panel.iter().skip(output % WIDTH).step_by(WIDTH).copied()
    }

    /// The plain weights `(outputs, inputs)`.
    pub fn unpack(&self) -> Vec<f32> {
        (0..self.outputs).flat_map(|output| self.row(output)).collect()
    }

    /// `onto + x Wᵀ + low-rank parts + bias` for `rows` rows of `x`.
    pub fn forward(&self, x: &[f32], rows: usize, low: &[Low], bias: Option<&[f32]>, onto: Option<Vec<f32>>) -> Vec<f32> {
        assert_eq!(x.len(), rows * self.inputs);
        // A bias is a low-rank part whose `u` is 1.
        let ones = vec![1.0; if bias.is_some() { rows } else { 0 }];
        let bias = bias.map(|b| Low { u: &ones, b, rank: 1, from: 0, count: self.outputs, scale: 1.0 });
        let low: Vec<Low> = low.iter().copied().chain(bias).filter(|low| low.rank > 0 && low.count > 0).collect();
        let rights: Vec<Vec<f32>> = low.iter().map(|low| low.right(self.outputs)).collect();
        let unit = unit();
        self.in_chunks(rows, self.outputs, onto, |scratch, first, count, to, add| {
            let Scratch { factor, low: lefts, tile } = scratch;
            let left = factor.at_least(panels_length(count, self.inputs));
            pack(&x[first * self.inputs..], self.inputs, count, self.inputs, left);
            let lefts = scaled_lefts(lefts, low.iter().map(|low| (&low.u[first * low.rank..], low.rank, low.scale)), count);
            let parts = low.iter().zip(lefts).zip(&rights);
            let extras: Vec<Extra> = parts.map(|((low, left), right)| low.extra(left, count, right)).collect();
            let product = Product {
                rows: count,
                columns: self.outputs,
                length: self.inputs,
                left: Panels { values: left, rows: count },
                right: Right::Panels(Panels { values: self.values.values(), rows: self.inputs }),
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
        self.in_chunks(rows, self.inputs, onto, |scratch, first, count, to, add| {
            let Scratch { factor, low: rights, tile } = scratch;
            let right = factor.at_least(panels_length(self.outputs, count));
            unit.pack_transposed(&g[first * self.outputs..], self.outputs, count, self.outputs, right);
            rights.resize_with(low.len().max(rights.len()), Lines::default);
            for (low, right) in low.iter().zip(rights.iter_mut()) {
                let right = right.at_least(panels_length(low.rank, count));
                unit.pack_transposed(&low.du[first * low.rank..], low.rank, count, low.rank, right);
            }
            let parts = low.iter().zip(&lefts).zip(rights.iter());
            let extras: Vec<Extra> = parts.map(|((low, left), right)| low.extra(left, self.inputs, right.values(), count)).collect();
            let product = Product {
                rows: self.inputs,
                columns: count,
                length: self.outputs,
                left: Panels { values: self.values.values(), rows: self.inputs },
                right: Right::Panels(Panels { values: right, rows: self.outputs }),
                extras: &extras,
            };
            // SAFETY: `to` holds `count` rows that belong to this chunk.
            unsafe { product.compute(unit, to, self.inputs, add, true, tile) }
        })
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
        let one = |first: usize| {
            let count = CHUNK_ROWS.min(rows - first);
            // SAFETY: within the capacity asked for or the length asserted above; chunks do not overlap.
            let to = unsafe { to.at(first * width) };
            SCRATCH.with_borrow_mut(|scratch| body(scratch, first, count, to, add));
        };
        let work = rows * self.inputs * self.outputs;
        if rows > CHUNK_ROWS && work >= PARALLEL_WORK && rayon::current_num_threads() > 1 {
            (0..rows.div_ceil(CHUNK_ROWS)).into_par_iter().for_each(|chunk| one(chunk * CHUNK_ROWS));
        } else {
            (0..rows).step_by(CHUNK_ROWS).for_each(one);
        }
        // SAFETY: every element has been written.
        unsafe { y.set_len(rows * width) };
        y
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

impl Low<'_> {
    /// `bᵀ` in panels of the output's columns: those that the part touches.
    fn right(&self, outputs: usize) -> Vec<f32> {
        let last = self.from + self.count;
        assert!(last <= outputs && self.b.len() == self.count * self.rank, "the low-rank part does not fit the weights");
        let begin = self.from / WIDTH * WIDTH;
        let mut right = vec![0.0; (last - begin).next_multiple_of(WIDTH) * self.rank];
        for (output, b) in self.b.chunks_exact(self.rank).enumerate() {
            let column = self.from + output - begin;
            for (index, b) in b.iter().enumerate() {
                right[(column / WIDTH * self.rank + index) * WIDTH + column % WIDTH] = *b;
            }
        }
        right
    }

    fn extra<'a>(&self, left: &'a [f32], rows: usize, right: &'a [f32]) -> Extra<'a> {
        Extra { length: self.rank, left: Panels { values: left, rows }, right, first: self.from, last: self.from + self.count }
    }
}

impl LowBack<'_> {
    /// `scale * aᵀ (inputs, rank)` in panels.
    fn left(&self, inputs: usize) -> Vec<f32> {
        assert_eq!(self.a.len(), inputs * self.rank, "the low-rank part does not fit the weights");
        let mut left = vec![0.0; panels_length(inputs, self.rank)];
        for (index, a) in self.a.chunks_exact(inputs).enumerate() {
            let panel = &mut left[index / WIDTH * inputs * WIDTH + index % WIDTH..];
            for (to, a) in panel.iter_mut().step_by(WIDTH).zip(a) {
                *to = a * self.scale;
            }
        }
        left
    }

    fn extra<'a>(&self, left: &'a [f32], inputs: usize, right: &'a [f32], rows: usize) -> Extra<'a> {
        Extra { length: self.rank, left: Panels { values: left, rows: inputs }, right, first: 0, last: rows }
    }
}

/// Packs `scale * u` of each part; returns them in order.
fn scaled_lefts<'a, 'u>(
    into: &'a mut Vec<Lines>,
    parts: impl ExactSizeIterator<Item = (&'u [f32], usize, f32)>,
    rows: usize,
) -> impl Iterator<Item = &'a [f32]> {
    let count = parts.len();
    into.resize_with(count.max(into.len()), Lines::default);
    for ((u, rank, scale), lines) in parts.zip(into.iter_mut()) {
        let left = lines.at_least(panels_length(rows, rank));
        pack(u, rank, rows, rank, left);
        left.iter_mut().for_each(|value| *value *= scale);
    }
    into.iter().map(Lines::values).take(count)
}

#[cfg(test)]
mod tests {
    use super::super::panels::units;
    use super::super::testing::noise;
    use super::*;

    /// `a (m, k) b (k, n)` in f64, with `b` given by a function.
    fn plain(m: usize, n: usize, k: usize, a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32) -> Vec<f64> {
        let one = |i: usize, j: usize| (0..k).map(|l| f64::from(a(i, l)) * f64::from(b(l, j))).sum();
        (0..m * n).map(|at| one(at / n, at % n)).collect()
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{at}: {found}, expected {expected}");
        }
    }

    /// Sizes with and without tails in every direction; one longer than a visit of a tile, one with more than one chunk.
    const SIZES: [(usize, usize, usize); 7] =
        [(1, 32, 32), (3, 5, 7), (17, 40, 33), (64, 64, 96), (15, 1500, 70), (5, 40, 1450), (300, 31, 65)];

    #[test]
    fn both_products_agree_with_plain_loops() {
        for (rows, inputs, outputs) in SIZES {
            let (w, x, g) = (noise(1, outputs * inputs), noise(2, rows * inputs), noise(3, rows * outputs));
            let packed = Packed::new(&[&w], inputs);
            assert_eq!(packed.unpack(), w);
            let y = plain(rows, outputs, inputs, |i, l| x[i * inputs + l], |l, j| w[j * inputs + l]);
            let dx = plain(rows, inputs, outputs, |i, l| g[i * outputs + l], |l, j| w[l * inputs + j]);
            close(&packed.forward(&x, rows, &[], None, None), &y);
            close(&packed.backward(&g, rows, &[], None), &dx);
            let plus = |sum: &[f64], onto: &[f32]| sum.iter().zip(onto).map(|(a, b)| a + f64::from(*b)).collect::<Vec<_>>();
            close(&packed.forward(&x, rows, &[], None, Some(g.clone())), &plus(&y, &g));
            close(&packed.backward(&g, rows, &[], Some(x.clone())), &plus(&dx, &x));
        }
    }

    #[test]
    fn low_rank_parts_and_bias_ride_along() {
        // Three maps of one input; the second begins within a panel. One rank is more than a panel wide.
        let (rows, inputs, counts, ranks) = (37, 70, [48, 20, 65], [8, 40, 3]);
        let outputs = counts.iter().sum();
        let weights: Vec<Vec<f32>> = counts.iter().enumerate().map(|(i, count)| noise(i as u64, count * inputs)).collect();
        let packed = Packed::new(&weights.iter().map(Vec::as_slice).collect::<Vec<_>>(), inputs);
        let (x, g, bias) = (noise(4, rows * inputs), noise(5, rows * outputs), noise(6, outputs));
        let mut w = weights.concat();
        let mut froms = Vec::new();
        let mut from = 0;
        let (mut us, mut bs, mut dus, mut a_s) = (vec![], vec![], vec![], vec![]);
        for (index, (count, rank)) in counts.into_iter().zip(ranks).enumerate() {
            let seed = 10 * (index as u64 + 1);
            froms.push(from);
            us.push(noise(seed, rows * rank));
            bs.push(noise(seed + 1, count * rank));
            dus.push(noise(seed + 2, rows * rank));
            a_s.push(noise(seed + 3, rank * inputs));
            from += count;
        }
        let low: Vec<Low> =
            (0..3).map(|i| Low { u: &us[i], b: &bs[i], rank: ranks[i], from: froms[i], count: counts[i], scale: 0.5 }).collect();
        let back: Vec<LowBack> = (0..3).map(|i| LowBack { du: &dus[i], a: &a_s[i], rank: ranks[i], scale: 0.25 }).collect();
        let mut y = plain(rows, outputs, inputs, |i, l| x[i * inputs + l], |l, j| w[j * inputs + l]);
        let mut dx = plain(rows, inputs, outputs, |i, l| g[i * outputs + l], |l, j| w[l * inputs + j]);
        for i in 0..3 {
            let part = plain(rows, counts[i], ranks[i], |m, l| us[i][m * ranks[i] + l], |l, j| bs[i][j * ranks[i] + l]);
            for (at, part) in part.iter().enumerate() {
                y[at / counts[i] * outputs + froms[i] + at % counts[i]] += 0.5 * part;
            }
            let part = plain(rows, inputs, ranks[i], |m, l| dus[i][m * ranks[i] + l], |l, j| a_s[i][l * inputs + j]);
            dx.iter_mut().zip(part).for_each(|(dx, part)| *dx += 0.25 * part);
        }
        y.iter_mut().enumerate().for_each(|(at, y)| *y += f64::from(bias[at % outputs]));
        close(&packed.forward(&x, rows, &low, Some(&bias), None), &y);
        close(&packed.backward(&g, rows, &back, None), &dx);
        w.clear();
    }

    /// A row's result depends on nothing but the row: not on its neighbours, nor on threads.
    #[test]
    fn bits_do_not_depend_on_rows_or_threads() {
        let (rows, inputs, outputs) = (700, 1440, 1100);
        let (w, x, g) = (noise(1, outputs * inputs), noise(2, rows * inputs), noise(3, rows * outputs));
        let packed = Packed::new(&[&w], inputs);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (packed.forward(&x, rows, &[], None, None), packed.backward(&g, rows, &[], None)))
        };
        let (y, dx) = run(1);
        assert!((y.clone(), dx.clone()) == run(3));
        let row = 613;
        assert!(packed.forward(&x[row * inputs..][..inputs], 1, &[], None, None) == y[row * outputs..][..outputs]);
        assert!(packed.backward(&g[row * outputs..][..outputs], 1, &[], None) == dx[row * inputs..][..inputs]);
    }

    #[test]
    fn every_unit_computes_the_same() {
        let (rows, inputs, outputs) = (29, 75, 50);
        let (w, x) = (noise(1, outputs * inputs), noise(2, rows * inputs));
        let mut left = Lines::zeros(panels_length(rows, inputs));
        pack(&x, inputs, rows, inputs, left.values_mut());
        let expected = plain(rows, outputs, inputs, |i, l| x[i * inputs + l], |l, j| w[j * inputs + l]);
        for unit in units() {
            let mut right = Lines::zeros(panels_length(inputs, outputs));
            unit.pack_transposed(&w, inputs, outputs, inputs, right.values_mut());
            let product = Product {
                rows,
                columns: outputs,
                length: inputs,
                left: Panels { values: left.values(), rows },
                right: Right::Panels(Panels { values: right.values(), rows: inputs }),
                extras: &[],
            };
            let (mut y, mut across) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
            // SAFETY: both hold the whole product.
            unsafe {
                product.compute(unit, y.as_mut_ptr(), outputs, false, false, &mut Lines::default());
                product.compute(unit, across.as_mut_ptr(), rows, true, true, &mut Lines::default());
            }
            close(&y, &expected);
            assert!((0..rows * outputs).all(|at| across[at % outputs * rows + at / outputs] == y[at]));
        }
    }
}
