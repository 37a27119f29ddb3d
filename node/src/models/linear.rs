//! A linear module of a model: frozen, frozen with LoRA, or trained itself.

use candle_core::{Result, Tensor};

use super::kernels::linear;

#[derive(Clone)]
pub(crate) struct Linear {
    /// (outputs, inputs).
    pub weight: Tensor,
    pub lora: Option<Lora>,
    /// The weight is a variable and wants a gradient.
    pub trained: bool,
}

#[derive(Clone)]
pub(crate) struct Lora {
    /// (rank, inputs).
    pub a: Tensor,
    /// (outputs, rank).
    pub b: Tensor,
    /// alpha / rank.
    pub scale: f32,
}

impl Linear {
    /// `x (n, inputs)` to `(n, outputs)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.lora {
            Some(lora) => linear::lora(x, &self.weight, &lora.a, &lora.b, lora.scale),
            None if self.trained => linear::trained(x, &self.weight),
            None => linear::frozen(x, &self.weight),
        }
    }
}
