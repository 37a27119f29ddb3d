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

use super::Norm;
use crate::models::kernels::activation::Activation;
use crate::models::kernels::adamw::AdamW;
use crate::models::kernels::attention::{Heads, Mask};
#[cfg(any(feature = "cuda", test))]
use crate::models::kernels::cuda;
use crate::models::kernels::rope::RopeTable;
#[cfg(any(feature = "cuda", test))]
pub(crate) use upload::upload;

/// Declares the door of each op: the portable form, and before it, where one is named, the kernel on CUDA.
macro_rules! doors {
    (@try portable $($rest:tt)*) => {};
    (@try kernel $name:ident($first:ident $(, $arg:ident)*)) => {
        #[cfg(any(feature = "cuda", test))]
        if cuda::takes(&$first) {
            return cuda::$name($first $(, $arg)*);
        }
    };
    // Where the kernels do not take every shape.
    (@try some_kernel $name:ident($first:ident $(, $arg:ident)*)) => {
        #[cfg(any(feature = "cuda", test))]
        if cuda::takes(&$first) && let Some(result) = cuda::$name($first $(, $arg)*)? {
            return Ok(result);
        }
    };
    (@try library $name:ident($first:ident $(, $arg:ident)*)) => {
        #[cfg(feature = "cuda")]
        if $first.device().is_cuda() {
            return cuda::$name($first $(, $arg)*);
        }
    };
    ($($(#[$meta:meta])* $way:ident fn $name:ident($first:ident: $first_type:ty $(, $arg:ident: $type:ty)*) -> $result:ty;)*) => {
        $($(#[$meta])*
        pub(crate) fn $name($first: $first_type $(, $arg: $type)*) -> Result<$result> {
            doors!(@try $way $name($first $(, $arg)*));
            portable::$name($first $(, $arg)*)
        })*
    };
}

doors! {
    /// Rows of `table` by their indices.
    portable fn rows(table: &Tensor, indices: &[u32]) -> Tensor;
    /// `sum` (f32) with the rows of `g` added at their indices, in place.
    portable fn add_rows(sum: &Tensor, indices: &[u32], g: &Tensor) -> Tensor;
    /// `rows` rows, those at `indices` (all different) from `g`, the others zero.
    portable fn put_rows(g: &Tensor, indices: &[u32], rows: usize) -> Tensor;
    kernel fn norm(x: &Tensor, norm: &Norm) -> Tensor;
    /// Gradient of the norm's input.
    kernel fn norm_backward(x: &Tensor, norm: &Norm, g: &Tensor) -> Tensor;
    /// Gradients of the norm's weight and bias, f32.
    kernel fn norm_backward_weight(x: &Tensor, norm: &Norm, g: &Tensor) -> (Tensor, Option<Tensor>);
    /// `scale * op(a) op(b)`, where `op` transposes if asked to, in the compute dtype.
    library fn product(a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32) -> Tensor;
    /// `y + scale * op(a) op(b)` in the dtype of `y`, over `y`.
    library fn product_onto(y: Tensor, a: &Tensor, transpose_a: bool, b: &Tensor, transpose_b: bool, scale: f32) -> Tensor;
    /// Sum of the rows, f32.
    kernel fn column_sums(g: &Tensor) -> Tensor;
    /// `bias` added to each row, over `y`.
    portable fn add_bias(y: Tensor, bias: &Tensor) -> Tensor;
    portable fn add(a: &Tensor, b: &Tensor) -> Tensor;
    portable fn columns(x: &Tensor, from: usize, width: usize) -> Tensor;
    /// Columns side by side.
    portable fn join(parts: &[Tensor]) -> Tensor;
    /// Turns the first `width` columns, heads of twice the table's pairs, to their rows' positions, over `qkv`.
    kernel fn rope(qkv: Tensor, table: &RopeTable, positions: &[u32], width: usize, direction: f32) -> Tensor;
    /// Rows of `qkv` are the query heads, then the key heads, then the value heads of a token; `sequences` are lengths.
    some_kernel fn attention(qkv: &Tensor, sequences: &[usize], heads: &Heads) -> Tensor;
    some_kernel fn attention_backward(qkv: &Tensor, g: &Tensor, sequences: &[usize], heads: &Heads) -> Tensor;
    /// Attention of new rows of one sequence, whose keys and values, `past` others before them, are all there.
    portable fn extend(q: &Tensor, k: &Tensor, v: &Tensor, heads: &Heads, past: usize) -> Tensor;
    kernel fn activate(x: &Tensor, activation: Activation, gated: bool) -> Tensor;
    kernel fn activate_backward(x: &Tensor, g: &Tensor, activation: Activation, gated: bool) -> Tensor;
    /// Over `scores (heads, length, length)`: the softmax, after `scale`, of what each row sees.
    kernel fn masked_softmax(scores: Tensor, mask: Mask, scale: f32) -> Tensor;
    /// Over `dp`: the gradient of the scores before `scale`.
    kernel fn softmax_backward(p: &Tensor, dp: Tensor, scale: f32) -> Tensor;
    portable fn tanh(x: &Tensor) -> Tensor;
    /// `y` is what [`tanh`] gave.
    portable fn tanh_backward(y: &Tensor, g: &Tensor) -> Tensor;
    kernel fn dropout(x: &Tensor, p: f32, seed: u64) -> Tensor;
    /// Loss and the gradient of the logits, both divided by `denominator`, over `logits`.
    kernel fn cross_entropy(logits: Tensor, labels: &[u32], denominator: f64) -> (f64, Tensor);
    kernel fn squared_norm(g: &Tensor) -> f64;
    /// Moves `variable` and its moments, in place.
    kernel fn adamw(variable: &Var, m: &Tensor, v: &Tensor, g: &Tensor, step: &AdamW) -> ();
}
