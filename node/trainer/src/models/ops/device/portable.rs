//! Every op by candle's tensor operations alone, forward and backward as formulas: for devices without kernels of ours,
//! and what kernels are held against. What needs precision is computed in f32 whatever the compute dtype.

mod activation;
mod attention;
mod loss;
mod norm;
mod optimiser;
mod product;
mod rope;
mod rows;

pub(super) use activation::{activate, activate_backward, dropout, tanh, tanh_backward};
pub(super) use attention::{attention, attention_backward, extend, masked_softmax, softmax_backward};
pub(super) use loss::cross_entropy;
pub(super) use norm::{norm, norm_backward, norm_backward_weight};
pub(super) use optimiser::{adamw, squared_norm};
pub(super) use product::{add, add_bias, column_sums, product, product_onto};
pub(super) use rope::rope;
pub(super) use rows::{add_rows, columns, join, put_rows, rows};

use candle_core::{DType, Result, Tensor};

/// Without a graph: variables are read as the numbers that they hold.
fn plain(tensor: &Tensor) -> Tensor {
    tensor.detach()
}

fn wide(tensor: &Tensor) -> Result<Tensor> {
    plain(tensor).to_dtype(DType::F32)
}

/// Gives `value` back; with debug assertions also writes it over `taken`, as the kernels do.
fn over(taken: &Tensor, value: Tensor) -> Result<Tensor> {
    if cfg!(debug_assertions) && taken.is_contiguous() && taken.rank() > 0 {
        taken.slice_set(&value.contiguous()?, 0, 0)?;
    }
    Ok(value)
}
