//! Causal attention with grouped key-value heads, as one op. Probabilities are computed again in the backward instead of
//! being kept, and no row looks at the columns it may not see.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::product::{Into, Matrix, multiply_raw};
use super::vector::{dot, exp_in_place, max, vectorised};
use super::{PARALLEL_WORK, Values, values};

/// How `q`, `k` and `v` are to be read: rows are tokens, sequence after sequence.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub sequences: usize,
    /// Tokens of each sequence, padding (at the end) included.
    pub length: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// `q (sequences * length, heads * head_dim)`, `k` and `v (sequences * length, kv_heads * head_dim)`, all turned to their
/// positions already; the result has the shape of `q`.
pub fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
    q.apply_op3(k, v, Attention(heads))
}

struct Attention(Heads);

/// Rows of scores computed at a time: what lies right of a tile's diagonal is skipped.
const TILE: usize = 64;

vectorised! {
    /// Row `i` of `p (length, length)` becomes the softmax of its first `i + 1` scores; the rest becomes 0.
    fn causal_softmax(p: &mut [f32], length: usize, scale: f32) {
        for (i, row) in p.chunks_exact_mut(length).enumerate() {
            let (seen, unseen) = row.split_at_mut(i + 1);
            let most = max(seen);
            let factor = 1.0 / exp_in_place(seen, most, scale);
            for p in seen.iter_mut() {
                *p *= factor;
            }
            unseen.fill(0.0);
        }
    }
}

vectorised! {
    /// `dp` becomes the gradient of the unscaled scores: `p (dp - sum(p dp)) scale`, and 0 where `p` is not seen.
    fn softmax_backward(p: &[f32], dp: &mut [f32], length: usize, scale: f32) {
        for (i, (p, dp)) in p.chunks_exact(length).zip(dp.chunks_exact_mut(length)).enumerate() {
            let (seen, unseen) = dp.split_at_mut(i + 1);
            let p = &p[..i + 1];
            let mean = dot(p, seen);
            for (dp, p) in seen.iter_mut().zip(p) {
                *dp = p * (*dp - mean) * scale;
            }
            unseen.fill(0.0);
        }
    }
}

/// A vector's memory, of which each thread writes its own heads.
struct Shared(*mut f32);
// SAFETY: the loops below hand every (sequence, head) to one thread, and their elements do not overlap.
unsafe impl Sync for Shared {}

impl Heads {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn groups(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Runs `body(sequence, head)` for all pairs, over threads where the work is worth it. `buffers` are per thread.
    fn each(&self, heads: usize, body: impl Fn(&mut [Vec<f32>; 2], usize, usize) + Sync) {
        let square = self.length * self.length;
        let fresh = || [vec![0.0; square], vec![0.0; square]];
        let count = self.sequences * heads;
        let one = |buffers: &mut [Vec<f32>; 2], i: usize| body(buffers, i / heads, i % heads);
        if self.sequences * self.heads * square * self.head_dim >= PARALLEL_WORK {
            (0..count).into_par_iter().for_each_init(fresh, one);
        } else {
            let mut buffers = fresh();
            (0..count).for_each(|i| one(&mut buffers, i));
        }
    }

    pub(crate) fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (t, d) = (self.length, self.head_dim);
        let (q_width, kv_width) = (self.heads * d, self.kv_heads * d);
        assert!(q.len() == self.sequences * t * q_width && k.len() == self.sequences * t * kv_width && v.len() == k.len());
        let mut out = vec![0.0; q.len()];
        let shared = Shared(out.as_mut_ptr());
        let shared = &shared;
        self.each(self.heads, |[p, _], sequence, head| {
            let q_at = sequence * t * q_width + head * d;
            let kv_at = sequence * t * kv_width + head / self.groups() * d;
            self.scores(&q[q_at..], q_width, &k[kv_at..], kv_width, p);
            causal_softmax(p, t, self.scale());
            for i in (0..t).step_by(TILE) {
                let n = TILE.min(t - i);
                let (p, v) = (Matrix::rows(&p[i * t..], t), Matrix::rows(&v[kv_at..], kv_width));
                // SAFETY: rows i..i+n of this head, which lie in `out` and belong to this call alone.
                unsafe { multiply_raw((n, d, i + n), shared.0.add(q_at + i * q_width), q_width, Into::Overwrite, p, v, 1.0) }
            }
        });
        out
    }

    /// Scores of one head, tile by tile: `p (length, length)` up to the diagonal's tile.
    fn scores(&self, q: &[f32], q_width: usize, k: &[f32], kv_width: usize, p: &mut [f32]) {
        let (t, d) = (self.length, self.head_dim);
        for i in (0..t).step_by(TILE) {
            let n = TILE.min(t - i);
            let (q, k) = (Matrix::rows(&q[i * q_width..], q_width), Matrix::rows(k, kv_width).transposed());
            super::product::multiply((n, i + n, d), &mut p[i * t..], t, Into::Overwrite, q, k, 1.0);
        }
    }

    pub(crate) fn backward(&self, q: &[f32], k: &[f32], v: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (t, d) = (self.length, self.head_dim);
        let (q_width, kv_width) = (self.heads * d, self.kv_heads * d);
        assert!(g.len() == q.len() && q.len() == self.sequences * t * q_width && k.len() == self.sequences * t * kv_width);
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let shared = [Shared(dq.as_mut_ptr()), Shared(dk.as_mut_ptr()), Shared(dv.as_mut_ptr())];
        let [dq_to, dk_to, dv_to] = &shared;
        // One key-value head with all its query heads is one piece of work: they add to the same dk and dv.
        self.each(self.kv_heads, |[p, dp], sequence, kv_head| {
            let kv_at = sequence * t * kv_width + kv_head * d;
            let (k, v) = (&k[kv_at..], &v[kv_at..]);
            for head in kv_head * self.groups()..(kv_head + 1) * self.groups() {
                let q_at = sequence * t * q_width + head * d;
                let (q, g) = (&q[q_at..], &g[q_at..]);
                self.scores(q, q_width, k, kv_width, p);
                causal_softmax(p, t, self.scale());
                self.scores(g, q_width, v, kv_width, dp);
                // SAFETY (three times): rows of this head of this sequence, written by this call alone.
                for j in (0..t).step_by(TILE) {
                    let n = TILE.min(t - j);
                    let (p, g) = (Matrix::rows(&p[j * t + j..], t).transposed(), Matrix::rows(&g[j * q_width..], q_width));
                    unsafe { multiply_raw((n, d, t - j), dv_to.0.add(kv_at + j * kv_width), kv_width, Into::Add, p, g, 1.0) }
                }
                softmax_backward(p, dp, t, self.scale());
                for i in (0..t).step_by(TILE) {
                    let n = TILE.min(t - i);
                    let (ds, k) = (Matrix::rows(&dp[i * t..], t), Matrix::rows(k, kv_width));
                    unsafe { multiply_raw((n, d, i + n), dq_to.0.add(q_at + i * q_width), q_width, Into::Overwrite, ds, k, 1.0) }
                }
                for j in (0..t).step_by(TILE) {
                    let n = TILE.min(t - j);
                    let (ds, q) = (Matrix::rows(&dp[j * t + j..], t).transposed(), Matrix::rows(&q[j * q_width..], q_width));
                    unsafe { multiply_raw((n, d, t - j), dk_to.0.add(kv_at + j * kv_width), kv_width, Into::Add, ds, q, 1.0) }
                }
            }
        });
        (dq, dk, dv)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.0.forward(values(q, q_layout)?, values(k, k_layout)?, values(v, v_layout)?);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (dq, dk, dv) = self.0.backward(&Values::of(q)?, &Values::of(k)?, &Values::of(v)?, &Values::of(&gradient)?);
        let device = q.device();
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), device)?),
            Some(Tensor::from_vec(dk, k.shape(), device)?),
            Some(Tensor::from_vec(dv, v.shape(), device)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let heads = Heads { sequences: 2, length: 3, heads: 4, kv_heads: 2, head_dim: 4 };
        let inputs = [noise_var(1, &[6, 16]), noise_var(2, &[6, 8]), noise_var(3, &[6, 8])];
        check_gradients(&inputs, |v| causal_attention(&v[0], &v[1], &v[2], heads));
    }

    /// Longer than a tile, against candle's own differentiable ops.
    #[test]
    fn tiles_agree_with_plain_operations() {
        let (t, d) = (150, 4);
        let heads = Heads { sequences: 1, length: t, heads: 2, kv_heads: 1, head_dim: d };
        let inputs = [noise_var(1, &[t, 2 * d]), noise_var(2, &[t, d]), noise_var(3, &[t, d])];
        let fused = causal_attention(&inputs[0], &inputs[1], &inputs[2], heads).unwrap();
        let plain = || -> Result<Tensor> {
            let q = inputs[0].reshape((t, 2, d))?.transpose(0, 1)?.contiguous()?;
            let (k, v) = (inputs[1].unsqueeze(0)?.repeat((2, 1, 1))?, inputs[2].unsqueeze(0)?.repeat((2, 1, 1))?);
            let mask: Vec<f32> = (0..t * t).map(|at| if at % t > at / t { f32::NEG_INFINITY } else { 0.0 }).collect();
            let mask = Tensor::from_vec(mask, (t, t), q.device())?;
            let scores = (q.matmul(&k.t()?.contiguous()?)? * f64::from(heads.scale()))?.broadcast_add(&mask)?;
            let p = candle_nn::ops::softmax(&scores, 2)?;
            p.matmul(&v.contiguous()?)?.transpose(0, 1)?.reshape((t, 2 * d))
        };
        let plain = plain().unwrap();
        let difference = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference(&fused, &plain) < 1e-5);
        let weights = noise_var(4, &[t, 2 * d]);
        let gradients = |y: &Tensor| (y * weights.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (fused, plain) = (gradients(&fused), gradients(&plain));
        for input in &inputs {
            assert!(difference(fused.get(input).unwrap(), plain.get(input).unwrap()) < 1e-5);
        }
    }
}
