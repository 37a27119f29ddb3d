//! AdamW over all variables, with the gradient's global norm clipped.

use candle_core::{DType, Tensor, Var};

use super::{TrainError, TrainSettings};
use crate::models::kernels::adamw::AdamW;
use crate::models::ops;

/// First and second moment of every variable, in f32, beside it on its device.
pub struct Optimiser {
    pub moments: Vec<Moments>,
}

/// Of one variable.
pub struct Moments {
    pub first: Tensor,
    pub second: Tensor,
    /// Steps they have seen: early ones are corrected for having begun at zero.
    pub steps: usize,
}

impl Optimiser {
    pub fn new(variables: &[(String, Var)]) -> Result<Self, TrainError> {
        let zeros = |variable: &Var| Tensor::zeros(variable.shape(), DType::F32, variable.device());
        let both = |(_, variable): &(String, Var)| Ok(Moments { first: zeros(variable)?, second: zeros(variable)?, steps: 0 });
        Ok(Self { moments: variables.iter().map(both).collect::<candle_core::Result<_>>()? })
    }

    /// One step. Norm weights and biases (one dimension) do not decay. Returns the gradient's norm before clipping.
    pub fn step(
        &mut self,
        variables: &[(String, Var)],
        gradients: &[Tensor],
        settings: &TrainSettings,
        learning_rate: f64,
    ) -> Result<f64, TrainError> {
        let mut squares = 0.0;
        for gradient in gradients {
            squares += ops::squared_norm(gradient)?;
        }
        let norm = squares.sqrt();
        let gradient_scale = match settings.clip_norm > 0.0 && norm > settings.clip_norm {
            true => settings.clip_norm / norm,
            false => 1.0,
        };
        for (((_, variable), moments), gradient) in variables.iter().zip(&mut self.moments).zip(gradients) {
            moments.steps += 1;
            let update = AdamW {
                learning_rate,
                beta1: settings.beta1,
                beta2: settings.beta2,
                epsilon: settings.epsilon,
                weight_decay: if variable.dims().len() > 1 { settings.weight_decay } else { 0.0 },
                step: moments.steps,
                gradient_scale,
            };
            ops::adamw(variable, &moments.first, &moments.second, gradient, &update)?;
        }
        Ok(norm)
    }
}
