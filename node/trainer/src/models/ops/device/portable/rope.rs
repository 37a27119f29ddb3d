//! Rotary positions of the leading columns; `kernels/rope.rs` has the formula.

use candle_core::{D, Result, Tensor};

use super::super::upload::upload;
use super::{over, wide};
use crate::models::kernels::rope::RopeTable;

pub(in super::super) fn rope(qkv: Tensor, table: &RopeTable, positions: &[u32], width: usize, direction: f32) -> Result<Tensor> {
    let (rows, total) = qkv.dims2()?;
    let (cos, sin) = table.on(qkv.device())?;
    let pairs = cos.dim(1)?;
    let positions = upload(positions, qkv.device())?;
    let at_rows = |angles: &Tensor| angles.index_select(&positions, 0)?.unsqueeze(1);
    let (cos, sin) = (at_rows(&cos)?, (at_rows(&sin)? * f64::from(direction))?);
    let turned = wide(&qkv.narrow(1, 0, width)?)?.reshape((rows, width / (2 * pairs), 2 * pairs))?;
    let (a, b) = (turned.narrow(D::Minus1, 0, pairs)?, turned.narrow(D::Minus1, pairs, pairs)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = Tensor::cat(&[first, second], D::Minus1)?.reshape((rows, width))?.to_dtype(qkv.dtype())?;
    let whole = match width == total {
        true => turned,
        false => Tensor::cat(&[turned, qkv.narrow(1, width, total - width)?], 1)?.contiguous()?,
    };
    over(&qkv, whole)
}
