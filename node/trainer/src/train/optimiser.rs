//! AdamW over all variables, with the gradient's global norm clipped.

use candle_core::{DType, Tensor, Var};

use super::{TrainError, TrainSettings};
use crate::models::kernels::adamw::AdamW;
use crate::models::ops;

/// First and second moment of every variable, in f32, beside it on its device.
pub struct Optimiser {
    moments: Vec<[Tensor; 2]>,
}

impl Optimiser {
    pub fn new(variables: &[(String, Var)]) -> Result<Self, TrainError> {
        let zeros = |variable: &Var| Tensor::zeros(variable.shape(), DType::F32, variable.device());
        let both = |(_, variable): &(String, Var)| Ok([zeros(variable)?, zeros(variable)?]);
        Ok(Self { moments: variables.iter().map(both).collect::<candle_core::Result<_>>()? })
    }

    /// The moments' values, for a checkpoint.
    pub fn export(&self) -> Result<Vec<(Vec<f32>, Vec<f32>)>, TrainError> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let both = |[m, v]: &[Tensor; 2]| Ok((values(m)?, values(v)?));
        Ok(self.moments.iter().map(both).collect::<candle_core::Result<_>>()?)
    }

    /// Takes back what [`Optimiser::export`] gave, variable by variable.
    pub fn import(&mut self, values: impl IntoIterator<Item = (Vec<f32>, Vec<f32>)>) -> Result<(), TrainError> {
        for (moments, (m, v)) in self.moments.iter_mut().zip(values) {
            for (moment, values) in moments.iter_mut().zip([m, v]) {
                *moment = Tensor::from_vec(values, moment.shape(), moment.device())?;
            }
        }
        Ok(())
    }

    /// One step; `step` counts from 0. Norm weights and biases (one dimension) do not decay. Returns the gradient's norm
    /// before clipping.
    pub fn step(
        &mut self,
        variables: &[(String, Var)],
        gradients: &[Tensor],
        settings: &TrainSettings,
        step: usize,
        steps: usize,
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
        for (((_, variable), [m, v]), gradient) in variables.iter().zip(&self.moments).zip(gradients) {
            let update = AdamW {
                learning_rate: settings.learning_rate_at(step, steps),
                beta1: settings.beta1,
                beta2: settings.beta2,
                epsilon: settings.epsilon,
                weight_decay: if variable.dims().len() > 1 { settings.weight_decay } else { 0.0 },
                step: step + 1,
                gradient_scale,
            };
            ops::adamw(variable, m, v, gradient, &update)?;
        }
        Ok(norm)
    }
}
