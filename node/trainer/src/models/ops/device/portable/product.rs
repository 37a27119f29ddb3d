//! Matrix products, sums and biases.

use candle_core::{DType, Result, Tensor};

use super::{over, plain, wide};

/// The dtype two factors meet in: the narrower one, since a trained parameter comes in f32 to narrow activations.
fn common(a: &Tensor, b: &Tensor) -> DType {
    match a.dtype() {
        DType::F32 => b.dtype(),
        narrow => narrow,
    }
}

pub(in super::super) fn product(a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32) -> Result<Tensor> {
    let dtype = common(a, b);
    let factor = |t: &Tensor, transposed: bool| -> Result<Tensor> {
        let t = plain(t).to_dtype(dtype)?;
        if transposed { t.t() } else { Ok(t) }
    };
    let y = factor(a, transpose_a)?.matmul(&factor(b, transpose_b)?)?;
    if scale == 1.0 { Ok(y) } else { y * f64::from(scale) }
}

pub(in super::super) fn product_onto(
    y: Tensor,
    a: &Tensor,
    transpose_a: bool,
    b: &Tensor,
    transpose_b: bool,
    scale: f32,
) -> Result<Tensor> {
    let product = product(a, transpose_a, b, transpose_b, scale)?.to_dtype(y.dtype())?;
    over(&y, (&y + product)?)
}

pub(in super::super) fn column_sums(g: &Tensor) -> Result<Tensor> {
    wide(g)?.sum(0)
}

pub(in super::super) fn add_bias(y: Tensor, bias: &Tensor) -> Result<Tensor> {
    over(&y, y.broadcast_add(&plain(bias).to_dtype(y.dtype())?)?)
}

pub(in super::super) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a + b
}
