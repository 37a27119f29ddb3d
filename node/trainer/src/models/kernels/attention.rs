//! Attention with grouped key-value heads over sequences that lie one after the other, as one op. Probabilities are
//! computed again in the backward instead of being kept, and no tile is computed that no row may see.

mod past;

use std::ops::Range;

use rayon::prelude::*;

use super::product::{Into, Matrix};
use super::small::{RowProducts, multiply_small};
use super::threads_for;
use super::vector::{dot, exp_in_place, max, vectorised};
pub(crate) use past::Past;

/// What a position may look at, within its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and what came before.
    Causal,
    /// The last so many positions, itself among them (Mistral's sliding window).
    Window(usize),
    /// Everything.
    Full,
}

/// How a row of `qkv` is to be read: `heads` queries, then `kv_heads` keys, then `kv_heads` values, each of `head_dim`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are multiplied by it.
    pub scale: f32,
    pub mask: Mask,
}

/// Rows of scores computed at a time: what lies beyond a tile's mask is skipped.
const TILE: usize = 32;

impl Mask {
    /// Columns that row `i` of a sequence of `length` sees.
    pub(crate) fn columns(self, i: usize, length: usize) -> Range<usize> {
        match self {
            Self::Causal => 0..i + 1,
            Self::Window(width) => (i + 1).saturating_sub(width)..i + 1,
            Self::Full => 0..length,
        }
    }

    /// Columns that some of `rows` sees.
    fn columns_of(self, rows: &Range<usize>, length: usize) -> Range<usize> {
        self.columns(rows.start, length).start..self.columns(rows.end - 1, length).end
    }

    /// Rows that see some of `columns`.
    fn rows_of(self, columns: &Range<usize>, length: usize) -> Range<usize> {
        match self {
            Self::Causal => columns.start..length,
            Self::Window(width) => columns.start..(columns.end - 1).saturating_add(width).min(length),
            Self::Full => 0..length,
        }
    }
}

vectorised! {
    /// Each row of `p (length, length)` becomes the softmax of the scores it sees; the rest becomes 0.
    fn masked_softmax(p: &mut [f32], length: usize, scale: f32, mask: Mask) {
        for (i, row) in p.chunks_exact_mut(length).enumerate() {
            let seen = mask.columns(i, length);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            let most = max(row);
            let factor = 1.0 / exp_in_place(row, most, scale);
            for p in row.iter_mut() {
                *p *= factor;
            }
        }
    }
}

vectorised! {
    /// `dp` becomes the gradient of the unscaled scores: `p (dp - sum(p dp)) scale`, and 0 where `p` is not seen.
    fn softmax_backward(p: &[f32], dp: &mut [f32], length: usize, scale: f32, mask: Mask) {
        for (i, (p, dp)) in p.chunks_exact(length).zip(dp.chunks_exact_mut(length)).enumerate() {
            let seen = mask.columns(i, length);
            dp[..seen.start].fill(0.0);
            dp[seen.end..].fill(0.0);
            let (p, dp) = (&p[seen.clone()], &mut dp[seen]);
            let mean = dot(p, dp);
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - mean) * scale;
            }
        }
    }
}

/// A vector's memory, of which each thread writes its own heads.
struct Shared(*mut f32);
// SAFETY: the loops below hand every (sequence, head) to one thread, and their elements do not overlap.
unsafe impl Sync for Shared {}

fn tiles(length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(TILE).map(move |at| at..(at + TILE).min(length))
}

impl Heads {
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements of a row of queries, keys and values.
    pub(crate) fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of `qkv` at which the keys and the values of query head `head` begin.
    fn keys_and_values(&self, head: usize) -> (usize, usize) {
        let keys = (self.heads + head / (self.heads / self.kv_heads)) * self.head_dim;
        (keys, keys + self.kv_heads * self.head_dim)
    }

    /// Runs `body(buffers, first row, length, index)` for `count` heads of every sequence, over threads where the work is
    /// worth it.
    fn each(&self, lengths: &[usize], count: usize, body: impl Fn(&mut [Vec<f32>; 2], usize, usize, usize) + Sync) {
        let mut items = Vec::with_capacity(lengths.len() * count);
        let mut first = 0;
        for length in lengths {
            items.extend((0..count).map(|index| (first, *length, index)));
            first += length;
        }
        let squares: usize = lengths.iter().map(|length| length * length).sum();
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let fresh = || [vec![0.0; longest * longest], vec![0.0; longest * longest]];
        let one = |buffers: &mut [Vec<f32>; 2], (first, length, index): (usize, usize, usize)| body(buffers, first, length, index);
        if threads_for(squares * self.query_width()) > 1 {
            items.into_par_iter().for_each_init(fresh, one);
        } else {
            let mut buffers = fresh();
            items.into_iter().for_each(|item| one(&mut buffers, item));
        }
    }

    /// Products of the rows of `a` and `b`, `t` each, into `p (t, t)` where the mask lets them meet.
    fn scores(&self, a: Matrix, b: Matrix, t: usize, p: &mut [f32]) {
        RowProducts::of(a, b, t, self.head_dim, |products| {
            for rows in tiles(t) {
                let columns = self.mask.columns_of(&rows, t);
                products.compute(rows, columns, p);
            }
        });
    }

    /// Attended values, `(rows, heads * head_dim)`.
    pub(crate) fn forward(&self, qkv: &[f32], lengths: &[usize]) -> Vec<f32> {
        let (d, width, out_width) = (self.head_dim, self.width(), self.query_width());
        let rows: usize = lengths.iter().sum();
        assert_eq!(qkv.len(), rows * width);
        let mut out = vec![0.0; rows * out_width];
        let shared = Shared(out.as_mut_ptr());
        let shared = &shared;
        self.each(lengths, self.heads, |[p, _], first, t, head| {
            let at = |column: usize| Matrix::rows(&qkv[first * width + column..], width);
            let (k, v) = self.keys_and_values(head);
            let p = &mut p[..t * t];
            self.scores(at(head * d), at(k), t, p);
            masked_softmax(p, t, self.scale, self.mask);
            for rows in tiles(t) {
                let columns = self.mask.columns_of(&rows, t);
                let p = Matrix::rows(&p[rows.start * t + columns.start..], t);
                let to = (first + rows.start) * out_width + head * d;
                let dims = (rows.len(), d, columns.len());
                // SAFETY: rows of this head of this sequence, which lie in `out` and belong to this call alone.
                unsafe { multiply_small(dims, shared.0.add(to), out_width, Into::Overwrite, p, at(v).below(columns.start)) }
            }
        });
        out
    }

    /// Gradient of `qkv` from that of the attended values.
    pub(crate) fn backward(&self, qkv: &[f32], g: &[f32], lengths: &[usize]) -> Vec<f32> {
        let (d, width, g_width) = (self.head_dim, self.width(), self.query_width());
        let rows: usize = lengths.iter().sum();
        assert!(qkv.len() == rows * width && g.len() == rows * g_width);
        let mut out = vec![0.0; qkv.len()];
        let shared = Shared(out.as_mut_ptr());
        let shared = &shared;
        let groups = self.heads / self.kv_heads;
        // By key-value head: its query heads add to the same keys and values, in order.
        self.each(lengths, self.kv_heads, |[p, dp], first, t, kv_head| {
            let at = |column: usize| Matrix::rows(&qkv[first * width + column..], width);
            // SAFETY: columns of this key-value head and its query heads, in rows of this sequence, belong to this call.
            let add_at = |(row, column): (usize, usize), dims, into, a: Matrix<'_>, b: Matrix<'_>| unsafe {
                multiply_small(dims, shared.0.add((first + row) * width + column), width, into, a, b)
            };
            let (p, dp) = (&mut p[..t * t], &mut dp[..t * t]);
            for head in kv_head * groups..(kv_head + 1) * groups {
                let (k, v) = self.keys_and_values(head);
                let g = Matrix::rows(&g[first * g_width + head * d..], g_width);
                self.scores(at(head * d), at(k), t, p);
                self.scores(g, at(v), t, dp);
                masked_softmax(p, t, self.scale, self.mask);
                for columns in tiles(t) {
                    let rows = self.mask.rows_of(&columns, t);
                    let p = Matrix::rows(&p[rows.start * t + columns.start..], t).transposed();
                    add_at((columns.start, v), (columns.len(), d, rows.len()), Into::Add, p, g.below(rows.start));
                }
                softmax_backward(p, dp, t, self.scale, self.mask);
                for rows in tiles(t) {
                    let columns = self.mask.columns_of(&rows, t);
                    let ds = Matrix::rows(&dp[rows.start * t + columns.start..], t);
                    let dims = (rows.len(), d, columns.len());
                    add_at((rows.start, head * d), dims, Into::Overwrite, ds, at(k).below(columns.start));
                }
                for columns in tiles(t) {
                    let rows = self.mask.rows_of(&columns, t);
                    let ds = Matrix::rows(&dp[rows.start * t + columns.start..], t).transposed();
                    let dims = (columns.len(), d, rows.len());
                    add_at((columns.start, k), dims, Into::Add, ds, at(head * d).below(rows.start));
                }
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const MASKS: [Mask; 3] = [Mask::Causal, Mask::Window(2), Mask::Full];

    #[test]
    fn gradients_agree_with_finite_differences() {
        for mask in MASKS {
            let heads = Heads { heads: 4, kv_heads: 2, head_dim: 4, scale: 0.5, mask };
            let lengths = [3, 1, 4];
            let qkv = noise(1, 8 * heads.width());
            check_gradients(&[qkv], |v| heads.forward(&v[0], &lengths), |v, g| vec![heads.backward(&v[0], g, &lengths)]);
        }
    }

    /// Written out in f64, one row at a time.
    fn plainly(heads: &Heads, qkv: &[f32], lengths: &[usize]) -> Vec<f64> {
        let (d, width) = (heads.head_dim, heads.width());
        let mut out = Vec::new();
        let mut first = 0;
        for t in lengths {
            for i in 0..*t {
                for head in 0..heads.heads {
                    let (k, v) = heads.keys_and_values(head);
                    let at = |row: usize, column: usize| f64::from(qkv[(first + row) * width + column]);
                    let seen: Vec<usize> = heads.mask.columns(i, *t).collect();
                    let score = |j: &usize| (0..d).map(|e| at(i, head * d + e) * at(*j, k + e)).sum::<f64>() * f64::from(heads.scale);
                    let p: Vec<f64> = seen.iter().map(|j| score(j).exp()).collect();
                    let sum: f64 = p.iter().sum();
                    out.extend((0..d).map(|e| seen.iter().zip(&p).map(|(j, p)| p / sum * at(*j, v + e)).sum::<f64>()));
                }
            }
            first += t;
        }
        out
    }

    #[test]
    fn tiles_and_packed_sequences_agree_with_plain_arithmetic() {
        for mask in [Mask::Causal, Mask::Window(70), Mask::Window(5), Mask::Full] {
            let heads = Heads { heads: 2, kv_heads: 1, head_dim: 4, scale: 0.7, mask };
            let lengths = [150, 7, 64];
            let qkv = noise(2, 221 * heads.width());
            let (found, expected) = (heads.forward(&qkv, &lengths), plainly(&heads, &qkv, &lengths));
            for (found, expected) in found.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{mask:?}: {found} {expected}");
            }
            // A gradient of one long sequence against differences in a few places: the tiles' ranges.
            let g = noise(3, 221 * heads.query_width());
            let gradient = heads.backward(&qkv, &g, &lengths);
            let value = |qkv: &[f32]| plainly(&heads, qkv, &lengths).iter().zip(&g).map(|(y, g)| y * f64::from(*g)).sum::<f64>();
            for element in [0, 5, 9, 70 * 16 + 6, 70 * 16 + 10, 149 * 16 + 1, 149 * 16 + 13, 152 * 16 + 8, 220 * 16 + 3] {
                let at = |by: f32| {
                    let mut changed = qkv.clone();
                    changed[element] += by;
                    value(&changed)
                };
                let expected = (at(1e-3) - at(-1e-3)) / 2e-3;
                let found = f64::from(gradient[element]);
                assert!((found - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{mask:?} {element}: {found} {expected}");
            }
        }
    }
}
