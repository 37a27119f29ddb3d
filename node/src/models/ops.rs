//! The model's operations, for the processor or for a device.
#![allow(dead_code)]

mod device;

use candle_core::Tensor;

pub use super::kernels::activation::Activation;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    Rms,
    Layer,
}

#[derive(Debug, Clone)]
pub(crate) struct Norm {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub kind: NormKind,
    pub offset: f32,
    pub eps: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mask {
    Causal,
    Window(usize),
    Full,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub mask: Mask,
}
