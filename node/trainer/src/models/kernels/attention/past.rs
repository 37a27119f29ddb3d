//! Attention to what a sequence said before: its keys and values are kept, new rows look at them. Without gradients.
//!
//! Keys and values lie by key-value head, one token's after the other: then one product serves all query heads of a group.

use super::super::panels::unit;
use super::super::product::{Into, Matrix};
use super::super::small::multiply_small;
use super::super::vector::{exp_in_place, max, vectorised};
use super::Heads;

/// Keys and values of one sequence in one block.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    /// By key-value head: keys and values, rows of `head_dim`.
    heads: Vec<[Vec<f32>; 2]>,
}

vectorised! {
    fn softmax(row: &mut [f32], scale: f32) {
        let most = max(row);
        let factor = 1.0 / exp_in_place(row, most, scale);
        for p in row.iter_mut() {
            *p *= factor;
        }
    }
}

impl Past {
    /// Keeps the keys and values of further rows of `qkv`, and returns what these rows attend to: `(rows, heads * head_dim)`.
    pub fn attend(&mut self, heads: &Heads, qkv: &[f32]) -> Vec<f32> {
        let (d, width) = (heads.head_dim, heads.width());
        self.heads.resize_with(heads.kv_heads, Default::default);
        let past = self.heads[0][0].len() / d;
        for row in qkv.chunks_exact(width) {
            let (keys, values) = row[heads.query_width()..].split_at(heads.kv_heads * d);
            for (head, [k, v]) in self.heads.iter_mut().enumerate() {
                k.extend_from_slice(&keys[head * d..][..d]);
                v.extend_from_slice(&values[head * d..][..d]);
            }
        }
        match qkv.len() / width {
            1 => self.attend_one(heads, qkv, past),
            count if past == 0 => heads.forward(qkv, &[count]),
            count => self.attend_several(heads, qkv, past, count),
        }
    }

    /// One new token: all query heads of a key-value head at once.
    fn attend_one(&self, heads: &Heads, qkv: &[f32], past: usize) -> Vec<f32> {
        let (d, groups) = (heads.head_dim, heads.heads / heads.kv_heads);
        let mut out = vec![0.0; heads.query_width()];
        let seen = heads.mask.columns(past, past + 1);
        let count = seen.len();
        let seen = seen.start * d..seen.end * d;
        let mut p = vec![0.0; groups * count];
        for ((kept, q), out) in self.heads.iter().zip(qkv.chunks_exact(groups * d)).zip(out.chunks_exact_mut(groups * d)) {
            let [k, v] = kept;
            unit().narrow(q, d, groups, d, &k[seen.clone()], count, 1.0, &mut p);
            p.chunks_exact_mut(count).for_each(|row| softmax(row, heads.scale));
            let (p, v) = (Matrix::rows(&p, count), Matrix::rows(&v[seen.clone()], d));
            // SAFETY: `out` is this head's part: `groups` rows of `d`.
            unsafe { multiply_small((groups, d, count), out.as_mut_ptr(), d, Into::Overwrite, p, v) }
        }
        out
    }

    /// Several new tokens behind others: a further part of a prompt.
    fn attend_several(&self, heads: &Heads, qkv: &[f32], past: usize, count: usize) -> Vec<f32> {
        let (d, width, out_width) = (heads.head_dim, heads.width(), heads.query_width());
        let total = past + count;
        let mut out = vec![0.0; count * out_width];
        let mut p = vec![0.0; count * total];
        for head in 0..heads.heads {
            let [k, v] = &self.heads[head / (heads.heads / heads.kv_heads)];
            let (q, k) = (Matrix::rows(&qkv[head * d..], width), Matrix::rows(k, d).transposed());
            // SAFETY: `p` has `count` rows of `total`.
            unsafe { multiply_small((count, total, d), p.as_mut_ptr(), total, Into::Overwrite, q, k) }
            for (i, row) in p.chunks_exact_mut(total).enumerate() {
                let seen = heads.mask.columns(past + i, total);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                softmax(&mut row[seen], heads.scale);
            }
            let (p, to) = (Matrix::rows(&p, total), &mut out[head * d..]);
            // SAFETY: `to` has this head's columns of `count` rows.
            unsafe { multiply_small((count, d, total), to.as_mut_ptr(), out_width, Into::Overwrite, p, Matrix::rows(v, d)) }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::noise;
    use super::super::Mask;
    use super::*;

    /// However a sequence is cut, each row attends to what it attends to in the whole.
    #[test]
    fn parts_attend_to_what_the_whole_does() {
        for mask in [Mask::Causal, Mask::Window(3), Mask::Window(40)] {
            for kv_heads in [1, 2, 6] {
                let heads = Heads { heads: 6, kv_heads, head_dim: 5, scale: 0.4, mask };
                let qkv = noise(1, 70 * heads.width());
                let expected = heads.forward(&qkv, &[70]);
                for parts in [vec![70], vec![1; 70], vec![33, 1, 1, 35], vec![1, 69]] {
                    let (mut past, mut found, mut from) = (Past::default(), Vec::new(), 0);
                    for count in parts {
                        found.extend(past.attend(&heads, &qkv[from * heads.width()..][..count * heads.width()]));
                        from += count;
                    }
                    let worst = found.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
                    assert!(found.len() == expected.len() && worst < 1e-5, "{mask:?} {kv_heads}: {worst}");
                }
            }
        }
    }
}
