//! Rows and columns: gathered, scattered, cut and joined.

use candle_core::{D, DType, Result, Tensor};

use super::super::upload::upload;
use super::{over, plain};

pub(in super::super) fn rows(table: &Tensor, indices: &[u32]) -> Result<Tensor> {
    plain(table).index_select(&upload(indices, table.device())?, 0)
}

pub(in super::super) fn add_rows(sum: &Tensor, indices: &[u32], g: &Tensor) -> Result<Tensor> {
    over(sum, sum.index_add(&upload(indices, sum.device())?, &g.to_dtype(DType::F32)?, 0)?)
}

pub(in super::super) fn put_rows(g: &Tensor, indices: &[u32], rows: usize) -> Result<Tensor> {
    Tensor::zeros((rows, g.dim(1)?), g.dtype(), g.device())?.index_add(&upload(indices, g.device())?, g, 0)
}

pub(in super::super) fn columns(x: &Tensor, from: usize, width: usize) -> Result<Tensor> {
    x.narrow(D::Minus1, from, width)?.contiguous()
}

pub(in super::super) fn join(parts: &[Tensor]) -> Result<Tensor> {
    Tensor::cat(parts, D::Minus1)?.contiguous()
}
