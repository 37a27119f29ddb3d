//! The ops on tensors of any device and dtype. Each has a portable form of plain tensor operations ([`portable`]); on CUDA
//! those with a kernel of ours take that instead.
//!
//! A tensor handed over by value may be overwritten: on CUDA the result is written over `y`, `qkv`, `logits` and `sum`.
//! Builds with debug assertions overwrite it in the portable form too, so that a test without a GPU catches a caller who
//! goes on using a clone.

mod portable;
#[cfg(test)]
mod tests;
mod upload;

use candle_core::{Result, Tensor, Var};

use super::{Activation, Heads, Norm};
use crate::models::kernels::adamw::AdamW;
use crate::models::kernels::rope::RopeTable;

/// Declares the door of each op: the kernel on CUDA where there is one, and the portable form elsewhere.
macro_rules! doors {
    ($($(#[$meta:meta])* fn $name:ident($first:ident: $first_type:ty $(, $arg:ident: $type:ty)*) -> $result:ty;)*) => {
        $($(#[$meta])*
        pub(crate) fn $name($first: $first_type $(, $arg: $type)*) -> Result<$result> {
            portable::$name($first $(, $arg)*)
        })*
    };
}

doors! {
    /// Rows of `table` by their indices.
    fn rows(table: &Tensor, indices: &[u32]) -> Tensor;
    /// `sum` (f32) with the rows of `g` added at their indices, in place.
    fn add_rows(sum: &Tensor, indices: &[u32], g: &Tensor) -> Tensor;
    /// `rows` rows, those at `indices` (all different) from `g`, the others zero.
    fn put_rows(g: &Tensor, indices: &[u32], rows: usize) -> Tensor;
    fn norm(x: &Tensor, norm: &Norm) -> Tensor;
    /// Gradient of the norm's input.
    fn norm_backward(x: &Tensor, norm: &Norm, g: &Tensor) -> Tensor;
    /// Gradients of the norm's weight and bias, f32.
    fn norm_backward_weight(x: &Tensor, norm: &Norm, g: &Tensor) -> (Tensor, Option<Tensor>);
    /// `scale * op(a) op(b)`, where `op` transposes if asked to, in the compute dtype.
    fn product(a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32) -> Tensor;
    /// `y + scale * op(a) op(b)` in the dtype of `y`, over `y`.
    fn product_onto(y: Tensor, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32) -> Tensor;
    /// Sum of the rows, f32.
    fn column_sums(g: &Tensor) -> Tensor;
    /// `bias` added to each row, over `y`.
    fn add_bias(y: Tensor, bias: &Tensor) -> Tensor;
    fn add(a: &Tensor, b: &Tensor) -> Tensor;
    fn columns(x: &Tensor, from: usize, width: usize) -> Tensor;
    /// Columns side by side.
    fn join(parts: &[Tensor]) -> Tensor;
    /// Turns the first `width` columns, heads of twice the table's pairs, to their rows' positions, over `qkv`.
    fn rope(qkv: Tensor, table: &RopeTable, positions: &[u32], width: usize, direction: f32) -> Tensor;
    /// Rows of `qkv` are the query heads, then the key heads, then the value heads of a token; `sequences` are lengths.
    fn attention(qkv: &Tensor, sequences: &[usize], heads: &Heads) -> Tensor;
    fn attention_backward(qkv: &Tensor, g: &Tensor, sequences: &[usize], heads: &Heads) -> Tensor;
    fn activate(x: &Tensor, activation: Activation, gated: bool) -> Tensor;
    fn activate_backward(x: &Tensor, g: &Tensor, activation: Activation, gated: bool) -> Tensor;
    fn tanh(x: &Tensor) -> Tensor;
    /// `y` is what [`tanh`] gave.
    fn tanh_backward(y: &Tensor, g: &Tensor) -> Tensor;
    fn dropout(x: &Tensor, p: f32, seed: u64) -> Tensor;
    /// Loss and the gradient of the logits, both divided by `denominator`, over `logits`.
    fn cross_entropy(logits: Tensor, labels: &[u32], denominator: f64) -> (f64, Tensor);
    fn squared_norm(g: &Tensor) -> f64;
    /// Moves `variable` and its moments, in place.
    fn adamw(variable: &Var, m: &Tensor, v: &Tensor, g: &Tensor, step: &AdamW) -> ();
}
