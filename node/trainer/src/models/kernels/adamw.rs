//! One AdamW update of a variable, in place and in one pass (Loshchilov and Hutter, "Decoupled weight decay
//! regularization", 2019; in the arithmetic of torch).

use candle_core::{Result, Tensor, bail};

use super::vector::vectorised;
use super::{Values, mutate};

/// What is common to all elements of one step. `step` counts from 1.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub step: usize,
    /// Every gradient is multiplied by this first (clipping).
    pub gradient_scale: f64,
}

#[derive(Clone, Copy)]
struct Constants {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    keep: f32,
    rate: f32,
    root_correction: f32,
    gradient_scale: f32,
}

vectorised! {
    fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], c: Constants) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * c.gradient_scale;
            *m = *m * c.beta1 + g * (1.0 - c.beta1);
            *v = *v * c.beta2 + g * g * (1.0 - c.beta2);
            *p = *p * c.keep - c.rate * *m / (v.sqrt() / c.root_correction + c.epsilon);
        }
    }
}

impl AdamW {
    /// Moves `variable` and its moments `m` and `v` by `gradient`, all contiguous f32 of one length on the CPU.
    pub(crate) fn update(&self, variable: &Tensor, m: &Tensor, v: &Tensor, gradient: &Tensor) -> Result<()> {
        let power = |beta: f64| 1.0 - beta.powi(i32::try_from(self.step).unwrap_or(i32::MAX));
        let constants = Constants {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            epsilon: self.epsilon as f32,
            keep: (1.0 - self.learning_rate * self.weight_decay) as f32,
            rate: (self.learning_rate / power(self.beta1)) as f32,
            root_correction: power(self.beta2).sqrt() as f32,
            gradient_scale: self.gradient_scale as f32,
        };
        let gradient = Values::of(gradient)?;
        mutate(variable, |p| {
            mutate(m, |m| {
                mutate(v, |v| {
                    if [m.len(), v.len(), gradient.len()] != [p.len(); 3] {
                        bail!("a variable of {} elements got a gradient of {}", p.len(), gradient.len())
                    }
                    update(p, m, v, &gradient, constants);
                    Ok(())
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Against the published algorithm, written out in f64.
    #[test]
    fn three_steps_agree_with_the_published_algorithm() {
        let start = [0.5f32, -1.0, 2.0];
        let variable = Var::from_tensor(&Tensor::new(&start, &Device::Cpu).unwrap()).unwrap();
        let zeros = || Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        let (m, v) = (zeros(), zeros());
        let (mut p64, mut m64, mut v64) = (start.map(f64::from), [0f64; 3], [0f64; 3]);
        let (rate, decay, beta1, beta2, epsilon) = (0.1, 0.01, 0.9, 0.999, 1e-8);
        for step in 1..=3 {
            let gradient = [0.1 * step as f32, -0.2, 0.3];
            let adamw = AdamW { learning_rate: rate, beta1, beta2, epsilon, weight_decay: decay, step, gradient_scale: 0.5 };
            adamw.update(&variable, &m, &v, &Tensor::new(&gradient, &Device::Cpu).unwrap()).unwrap();
            for i in 0..3 {
                let g = f64::from(gradient[i]) * 0.5;
                p64[i] -= rate * decay * p64[i];
                m64[i] = beta1 * m64[i] + (1.0 - beta1) * g;
                v64[i] = beta2 * v64[i] + (1.0 - beta2) * g * g;
                let (m_hat, v_hat) = (m64[i] / (1.0 - beta1.powi(step as i32)), v64[i] / (1.0 - beta2.powi(step as i32)));
                p64[i] -= rate * m_hat / (v_hat.sqrt() + epsilon);
            }
        }
        let found = variable.to_vec1::<f32>().unwrap();
        for (found, expected) in found.iter().zip(p64) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}
