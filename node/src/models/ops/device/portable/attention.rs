//! Attention sequence by sequence, by batched products over heads. Probabilities are computed again in the backward.

use std::cell::RefCell;

use candle_core::{D, DType, Device, Result, Tensor};

use super::super::super::{Heads, Mask};
use super::plain;

/// Masks that stay on the device: sequences of a training have few lengths.
const KEPT: usize = 4;

thread_local! {
    static MASKS: RefCell<Vec<(usize, Mask, Tensor)>> = const { RefCell::new(Vec::new()) };
}

/// 0 where row `i` sees column `j`, minus infinity elsewhere: (length, length); none if all see all.
fn mask(length: usize, mask: Mask, device: &Device) -> Result<Option<Tensor>> {
    let seen = |i: usize, j: usize| match mask {
        Mask::Full => true,
        Mask::Causal => j <= i,
        Mask::Window(window) => j <= i && i - j < window,
    };
    if mask == Mask::Full {
        return Ok(None);
    }
    MASKS.with_borrow_mut(|masks| {
        let same = |(held, kind, tensor): &(usize, Mask, Tensor)| *held == length && *kind == mask && tensor.device().same_device(device);
        if let Some((_, _, tensor)) = masks.iter().find(|entry| same(entry)) {
            return Ok(Some(tensor.clone()));
        }
        let value = |at: usize| if seen(at / length, at % length) { 0.0 } else { f32::NEG_INFINITY };
        let tensor = Tensor::from_vec((0..length * length).map(value).collect(), (length, length), device)?;
        if masks.len() == KEPT {
            masks.remove(0);
        }
        masks.push((length, mask, tensor.clone()));
        Ok(Some(tensor))
    })
}

/// One sequence's part, laid out for the products: all query heads of a key-value head are rows of one matrix.
struct Sequence {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: usize,
}

impl Heads {
    /// `(length, heads * head_dim)` as `(kv_heads, heads / kv_heads * length, head_dim)`.
    fn split(&self, x: &Tensor, heads: usize, length: usize) -> Result<Tensor> {
        let by_head = x.reshape((length, heads, self.head_dim))?.transpose(0, 1)?.contiguous()?;
        by_head.reshape((self.kv_heads, heads / self.kv_heads * length, self.head_dim))
    }

    /// The way back.
    fn merge(&self, x: &Tensor, heads: usize, length: usize) -> Result<Tensor> {
        let rows = x.reshape((heads, length, self.head_dim))?.transpose(0, 1)?.contiguous()?;
        rows.reshape((length, heads * self.head_dim))
    }

    fn sequence(&self, qkv: &Tensor, from: usize, length: usize) -> Result<Sequence> {
        let rows = qkv.narrow(0, from, length)?;
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let part = |at: usize, width: usize, heads: usize| self.split(&rows.narrow(1, at, width)?.contiguous()?, heads, length);
        Ok(Sequence {
            q: part(0, q_width, self.heads)?,
            k: part(q_width, kv_width, self.kv_heads)?,
            v: part(q_width + kv_width, kv_width, self.kv_heads)?,
            length,
        })
    }

    /// Softmax of the masked scores in f32, `(kv_heads, heads / kv_heads * length, length)`.
    fn probabilities(&self, s: &Sequence) -> Result<Tensor> {
        let scores = (s.q.matmul(&s.k.t()?)?.to_dtype(DType::F32)? * f64::from(self.scale))?;
        let scores = match mask(s.length, self.mask, s.q.device())? {
            Some(mask) => scores.reshape((self.heads, s.length, s.length))?.broadcast_add(&mask)?,
            None => scores,
        };
        let p = candle_nn::ops::softmax_last_dim(&scores.contiguous()?)?;
        p.reshape((self.kv_heads, self.heads / self.kv_heads * s.length, s.length))
    }
}

/// Runs `one(from, length)` for each sequence and lays the results one below the other.
fn each(sequences: &[usize], mut one: impl FnMut(usize, usize) -> Result<Tensor>) -> Result<Tensor> {
    let mut from = 0;
    let mut parts = Vec::with_capacity(sequences.len());
    for length in sequences.iter().filter(|length| **length > 0) {
        parts.push(one(from, *length)?);
        from += length;
    }
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 0) }
}

pub(in super::super) fn attention(qkv: &Tensor, sequences: &[usize], heads: &Heads) -> Result<Tensor> {
    let qkv = plain(qkv);
    each(sequences, |from, length| {
        let s = heads.sequence(&qkv, from, length)?;
        let p = heads.probabilities(&s)?.to_dtype(qkv.dtype())?;
        heads.merge(&p.matmul(&s.v)?, heads.heads, length)
    })
}

pub(in super::super) fn attention_backward(qkv: &Tensor, g: &Tensor, sequences: &[usize], heads: &Heads) -> Result<Tensor> {
    let (qkv, dtype) = (plain(qkv), qkv.dtype());
    each(sequences, |from, length| {
        let s = heads.sequence(&qkv, from, length)?;
        let g = heads.split(&g.narrow(0, from, length)?.contiguous()?, heads.heads, length)?;
        let p = heads.probabilities(&s)?;
        let dv = p.to_dtype(dtype)?.t()?.matmul(&g)?;
        let dp = g.matmul(&s.v.t()?)?.to_dtype(DType::F32)?;
        let mean = (&p * &dp)?.sum_keepdim(D::Minus1)?;
        let ds = ((p * dp.broadcast_sub(&mean)?)? * f64::from(heads.scale))?.to_dtype(dtype)?;
        let (dq, dk) = (ds.matmul(&s.k)?, ds.t()?.matmul(&s.q)?);
        let merged =
            [heads.merge(&dq, heads.heads, length)?, heads.merge(&dk, heads.kv_heads, length)?, heads.merge(&dv, heads.kv_heads, length)?];
        Tensor::cat(&merged, 1)?.contiguous()
    })
}
