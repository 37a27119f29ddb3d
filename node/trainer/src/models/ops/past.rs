//! What generation keeps of a sequence, on any device.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::{Array, device, elsewhere};
use crate::models::kernels::attention::{self, Heads};
use crate::models::kernels::threads_from;

/// Multiply-adds of attention from which sequences are worth several threads.
const SPLIT_WORK: usize = 1 << 19;

/// Keys and values that one block has of one sequence.
pub(crate) enum Past {
    Host(attention::Past),
    /// Rows of keys and of values, where there are any yet.
    Device(Option<[Tensor; 2]>),
}

impl Past {
    /// Of nothing; `host` says where the model's activations live.
    pub fn new(host: bool) -> Self {
        if host { Self::Host(attention::Past::default()) } else { Self::Device(None) }
    }
}

/// Attended values of new rows of several sequences. Their rows of `qkv`, `counts` of each, lie one after the other, and what
/// they keep comes into `pasts`. `tokens` are all tokens looked at.
pub(crate) fn attend(qkv: &Array, counts: &[usize], pasts: Vec<&mut Past>, heads: &Heads, tokens: usize) -> Result<Array> {
    match qkv {
        Array::Host(qkv) => attend_host(qkv, counts, pasts, heads, tokens).map(Array::Host),
        Array::Device(qkv) => attend_device(qkv, counts, pasts, heads).map(Array::Device),
    }
}

fn attend_host(qkv: &[f32], counts: &[usize], pasts: Vec<&mut Past>, heads: &Heads, tokens: usize) -> Result<Vec<f32>> {
    let mut rest = qkv;
    let mut parts = Vec::with_capacity(counts.len());
    for (count, past) in counts.iter().zip(pasts) {
        let (part, behind) = rest.split_at(count * heads.width());
        rest = behind;
        let Past::Host(past) = past else { return elsewhere() };
        parts.push((past, part));
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    let one = |(past, part): (&mut attention::Past, &[f32])| past.attend(heads, part);
    let parts: Vec<Vec<f32>> = match threads_from(SPLIT_WORK, most * tokens * heads.query_width()) {
        1 => parts.into_iter().map(one).collect(),
        _ => parts.into_par_iter().with_max_len(1).map(one).collect(),
    };
    Ok(parts.concat())
}

fn attend_device(qkv: &Tensor, counts: &[usize], pasts: Vec<&mut Past>, heads: &Heads) -> Result<Tensor> {
    let (q_width, kv_width) = (heads.query_width(), heads.kv_heads * heads.head_dim);
    let mut from = 0;
    let mut parts = Vec::with_capacity(counts.len());
    for (count, past) in counts.iter().zip(pasts) {
        let rows = qkv.narrow(0, from, *count)?;
        from += count;
        let Past::Device(kept) = past else { return elsewhere() };
        let [q, k, v] =
            [(0, q_width), (q_width, kv_width), (q_width + kv_width, kv_width)].map(|(at, width)| device::columns(&rows, at, width));
        let new = [k?, v?];
        let [k, v] = match kept.take() {
            Some([k, v]) => [Tensor::cat(&[&k, &new[0]], 0)?, Tensor::cat(&[&v, &new[1]], 0)?],
            None => new,
        };
        parts.push(device::extend(&q?, &k, &v, heads, k.dim(0)? - count)?);
        *kept = Some([k, v]);
    }
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 0) }
}
