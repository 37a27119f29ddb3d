//! One AdamW update of a variable, in place and in one pass (Loshchilov and Hutter, "Decoupled weight decay
//! regularization", 2019; in the arithmetic of torch).

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var, bail};

use super::vector::vectorised;

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
    /// Moves `variable` and its moments `m` and `v` by `gradient`, all of one length.
    pub fn update(&self, variable: &Var, m: &mut [f32], v: &mut [f32], gradient: &[f32]) -> Result<()> {
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
        variable.inplace_op1(&Update { constants, gradient, moments: RefCell::new((m, v)) })
    }
}

struct Update<'a> {
    constants: Constants,
    gradient: &'a [f32],
    /// The op is borrowed while it runs, the moments change: hence the cell.
    moments: RefCell<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(all), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("AdamW needs a contiguous f32 variable")
        };
        let mut moments = self.moments.borrow_mut();
        let (m, v) = &mut *moments;
        if [m.len(), v.len(), self.gradient.len()] != [end - start; 3] {
            bail!("a variable of {} elements got a gradient of {}", end - start, self.gradient.len())
        }
        update(&mut all[start..end], m, v, self.gradient, self.constants);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// Against the published algorithm, written out in f64.
    #[test]
    fn three_steps_agree_with_the_published_algorithm() {
        let start = [0.5f32, -1.0, 2.0];
        let variable = Var::from_tensor(&Tensor::new(&start, &Device::Cpu).unwrap()).unwrap();
        let (mut m, mut v) = (vec![0.0; 3], vec![0.0; 3]);
        let (mut p64, mut m64, mut v64) = (start.map(f64::from), [0f64; 3], [0f64; 3]);
        let (rate, decay, beta1, beta2, epsilon) = (0.1, 0.01, 0.9, 0.999, 1e-8);
        for step in 1..=3 {
            let gradient = [0.1 * step as f32, -0.2, 0.3];
            let adamw = AdamW { learning_rate: rate, beta1, beta2, epsilon, weight_decay: decay, step, gradient_scale: 0.5 };
            adamw.update(&variable, &mut m, &mut v, &gradient).unwrap();
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
