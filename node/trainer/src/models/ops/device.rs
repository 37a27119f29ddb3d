//! The ops on devices other than the CPU.

use candle_core::{Result, Tensor, Var, bail};

use super::Norm;
use crate::models::kernels::activation::Activation;
use crate::models::kernels::adamw::AdamW;
use crate::models::kernels::attention::Heads;
use crate::models::kernels::rope::RopeTable;

macro_rules! refused {
    ($($name:ident($($type:ty),*) -> $result:ty;)*) => {
        $(pub(crate) fn $name($(_: $type),*) -> Result<$result> {
            bail!("models run on the CPU only")
        })*
    };
}

refused! {
    rows(&Tensor, &[u32]) -> Tensor;
    add_rows(&Tensor, &[u32], &Tensor) -> Tensor;
    put_rows(&Tensor, &[u32], usize) -> Tensor;
    norm(&Tensor, &Norm) -> Tensor;
    norm_backward(&Tensor, &Norm, &Tensor) -> Tensor;
    norm_backward_weight(&Tensor, &Norm, &Tensor) -> (Tensor, Option<Tensor>);
    product(&Tensor, bool, &Tensor, bool, f32) -> Tensor;
    product_onto(Tensor, &Tensor, bool, &Tensor, bool, f32) -> Tensor;
    column_sums(&Tensor) -> Tensor;
    add_bias(Tensor, &Tensor) -> Tensor;
    add(&Tensor, &Tensor) -> Tensor;
    columns(&Tensor, usize, usize) -> Tensor;
    join(&[Tensor]) -> Tensor;
    rope(Tensor, &RopeTable, &[u32], usize, f32) -> Tensor;
    attention(&Tensor, &[usize], &Heads) -> Tensor;
    attention_backward(&Tensor, &Tensor, &[usize], &Heads) -> Tensor;
    extend(&Tensor, &Tensor, &Tensor, &Heads, usize) -> Tensor;
    activate(&Tensor, Activation, bool) -> Tensor;
    activate_backward(&Tensor, &Tensor, Activation, bool) -> Tensor;
    tanh(&Tensor) -> Tensor;
    tanh_backward(&Tensor, &Tensor) -> Tensor;
    dropout(&Tensor, f32, u64) -> Tensor;
    cross_entropy(Tensor, &[u32], f64) -> (f64, Tensor);
    squared_norm(&Tensor) -> f64;
    adamw(&Var, &Tensor, &Tensor, &Tensor, &AdamW) -> ();
}
