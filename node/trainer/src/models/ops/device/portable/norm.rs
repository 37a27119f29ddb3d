//! Normalisation of rows; the formulas are those of `kernels/norm.rs`.

use candle_core::{Result, Tensor};

use super::super::super::{Norm, NormKind};
use super::wide;

/// The rows in f32 with their mean taken off (layer norm), and the factor of each.
fn centred(x: &Tensor, norm: &Norm) -> Result<(Tensor, Tensor)> {
    let x = wide(x)?;
    let x = match norm.kind {
        NormKind::Rms => x,
        NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(1)?)?,
    };
    let r = (x.sqr()?.mean_keepdim(1)? + f64::from(norm.eps))?.sqrt()?.recip()?;
    Ok((x, r))
}

fn weight(norm: &Norm) -> Result<Tensor> {
    wide(&norm.weight)? + f64::from(norm.offset)
}

pub(in super::super) fn norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let (centred, r) = centred(x, norm)?;
    let y = centred.broadcast_mul(&r)?.broadcast_mul(&weight(norm)?)?;
    let y = match &norm.bias {
        Some(bias) => y.broadcast_add(&wide(bias)?)?,
        None => y,
    };
    y.to_dtype(x.dtype())
}

pub(in super::super) fn norm_backward(x: &Tensor, norm: &Norm, g: &Tensor) -> Result<Tensor> {
    let (centred, r) = centred(x, norm)?;
    let n = centred.broadcast_mul(&r)?;
    let d = wide(g)?.broadcast_mul(&weight(norm)?)?;
    let along_n = (&d * &n)?.mean_keepdim(1)?;
    let d = match norm.kind {
        NormKind::Rms => d,
        NormKind::Layer => d.broadcast_sub(&d.mean_keepdim(1)?)?,
    };
    (d - n.broadcast_mul(&along_n)?)?.broadcast_mul(&r)?.to_dtype(x.dtype())
}

pub(in super::super) fn norm_backward_weight(x: &Tensor, norm: &Norm, g: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
    let (centred, r) = centred(x, norm)?;
    let g = wide(g)?;
    let dw = (centred.broadcast_mul(&r)? * &g)?.sum(0)?;
    let db = norm.bias.as_ref().map(|_| g.sum(0)).transpose()?;
    Ok((dw, db))
}
