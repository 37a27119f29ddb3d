//! Attention sequence by sequence, by batched products over heads. Probabilities are computed again in the backward.

use std::cell::RefCell;

use candle_core::{D, DType, Device, Result, Tensor};

use super::plain;
use crate::models::kernels::attention::{Heads, Mask};

/// Masks that stay on the device: sequences of a training have few lengths.
const KEPT: usize = 4;

thread_local! {
    static MASKS: RefCell<Vec<(usize, Mask, Tensor)>> = const { RefCell::new(Vec::new()) };
}

/// 0 where row `i` sees column `j` of a sequence, minus infinity elsewhere: (length, length); none if all see all.
fn mask(length: usize, mask: Mask, device: &Device) -> Result<Option<Tensor>> {
    if mask == Mask::Full {
        return Ok(None);
    }
    MASKS.with_borrow_mut(|masks| {
        let same = |(held, kind, tensor): &(usize, Mask, Tensor)| *held == length && *kind == mask && tensor.device().same_device(device);
        if let Some((_, _, tensor)) = masks.iter().find(|entry| same(entry)) {
            return Ok(Some(tensor.clone()));
        }
        let tensor = drawn(mask, 0..length, length, device)?;
        if masks.len() == KEPT {
            masks.remove(0);
        }
        masks.push((length, mask, tensor.clone()));
        Ok(Some(tensor))
    })
}

fn drawn(mask: Mask, rows: std::ops::Range<usize>, length: usize, device: &Device) -> Result<Tensor> {
    let count = rows.len();
    let mut values = vec![f32::NEG_INFINITY; count * length];
    for (row, values) in rows.zip(values.chunks_exact_mut(length)) {
        values[mask.columns(row, length)].fill(0.0);
    }
    Tensor::from_vec(values, (count, length), device)
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

    /// Softmax of what each row sees, `(kv_heads, heads / kv_heads * length, length)`.
    fn probabilities(&self, s: &Sequence) -> Result<Tensor> {
        let scores = s.q.matmul(&s.k.t()?)?.reshape((self.heads, s.length, s.length))?;
        let p = super::super::masked_softmax(scores, self.mask, self.scale)?;
        p.reshape((self.kv_heads, self.heads / self.kv_heads * s.length, s.length))
    }
}

pub(in super::super) fn masked_softmax(scores: Tensor, mask: Mask, scale: f32) -> Result<Tensor> {
    let (length, dtype) = (scores.dim(D::Minus1)?, scores.dtype());
    let scores = (scores.to_dtype(DType::F32)? * f64::from(scale))?;
    let scores = match self::mask(length, mask, scores.device())? {
        Some(mask) => scores.broadcast_add(&mask)?,
        None => scores,
    };
    candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(dtype)
}

pub(in super::super) fn softmax_backward(p: &Tensor, dp: Tensor, scale: f32) -> Result<Tensor> {
    let (p, dp, dtype) = (p.to_dtype(DType::F32)?, dp.to_dtype(DType::F32)?, dp.dtype());
    let mean = (&p * &dp)?.sum_keepdim(D::Minus1)?;
    ((p * dp.broadcast_sub(&mean)?)? * f64::from(scale))?.to_dtype(dtype)
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
        let p = heads.probabilities(&s)?;
        heads.merge(&p.matmul(&s.v)?, heads.heads, length)
    })
}

pub(in super::super) fn attention_backward(qkv: &Tensor, g: &Tensor, sequences: &[usize], heads: &Heads) -> Result<Tensor> {
    let qkv = plain(qkv);
    each(sequences, |from, length| {
        let s = heads.sequence(&qkv, from, length)?;
        let g = heads.split(&g.narrow(0, from, length)?.contiguous()?, heads.heads, length)?;
        let p = heads.probabilities(&s)?;
        let dv = p.t()?.matmul(&g)?;
        let ds = super::super::softmax_backward(&p, g.matmul(&s.v.t()?)?, heads.scale)?;
        let (dq, dk) = (ds.matmul(&s.k)?, ds.t()?.matmul(&s.q)?);
        let merged =
            [heads.merge(&dq, heads.heads, length)?, heads.merge(&dk, heads.kv_heads, length)?, heads.merge(&dv, heads.kv_heads, length)?];
        Tensor::cat(&merged, 1)?.contiguous()
    })
}

pub(in super::super) fn extend(q: &Tensor, k: &Tensor, v: &Tensor, heads: &Heads, past: usize) -> Result<Tensor> {
    let (count, total) = (q.dim(0)?, k.dim(0)?);
    let q = heads.split(q, heads.heads, count)?;
    let (k, v) = (heads.split(k, heads.kv_heads, total)?, heads.split(v, heads.kv_heads, total)?);
    let scores = (q.matmul(&k.t()?)?.to_dtype(DType::F32)? * f64::from(heads.scale))?;
    let mask = drawn(heads.mask, past..past + count, total, q.device())?;
    let scores = scores.reshape((heads.heads, count, total))?.broadcast_add(&mask)?;
    let p = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
    heads.merge(&p.reshape((heads.kv_heads, heads.heads / heads.kv_heads * count, total))?.matmul(&v)?, heads.heads, count)
}
