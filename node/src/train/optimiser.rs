//! AdamW over all variables, with the gradient's global norm clipped.

use candle_core::Var;

use super::{TrainError, TrainSettings};
use crate::models::kernels::adamw::AdamW;

/// Moments of every variable, in f32.
pub struct Optimiser {
    pub moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Optimiser {
    pub fn new(variables: &[(String, Var)]) -> Self {
        let zeros = |variable: &Var| vec![0.0; variable.elem_count()];
        Self { moments: variables.iter().map(|(_, variable)| (zeros(variable), zeros(variable))).collect() }
    }

    /// One step; `step` counts from 0. Norm weights and biases (one dimension) do not decay.
    pub fn step(
        &mut self,
        variables: &[(String, Var)],
        gradients: &[Vec<f32>],
        settings: &TrainSettings,
        step: usize,
        steps: usize,
    ) -> Result<(), TrainError> {
        let squares = |gradient: &Vec<f32>| gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        let norm = gradients.iter().map(squares).sum::<f64>().sqrt();
        let gradient_scale = match settings.clip_norm > 0.0 && norm > settings.clip_norm {
            true => settings.clip_norm / norm,
            false => 1.0,
        };
        for (((_, variable), (m, v)), gradient) in variables.iter().zip(&mut self.moments).zip(gradients) {
            let update = AdamW {
                learning_rate: settings.learning_rate_at(step, steps),
                beta1: settings.beta1,
                beta2: settings.beta2,
                epsilon: settings.epsilon,
                weight_decay: if variable.dims().len() > 1 { settings.weight_decay } else { 0.0 },
                step: step + 1,
                gradient_scale,
            };
            update.update(variable, m, v, gradient)?;
        }
        Ok(())
    }
}
