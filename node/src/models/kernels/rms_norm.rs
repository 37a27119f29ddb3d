//! Root-mean-square normalisation: `y = w x / sqrt(mean(x²) + eps)` over the last dimension.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::vector::{dot, dot_of_three, vectorised};
use super::{Values, values};

/// `x (n, width)`, `weight (width)`. With `train_weight` the weight gets a gradient too.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, train_weight: bool) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps: eps as f32, train_weight })
}

struct RmsNorm {
    eps: f32,
    train_weight: bool,
}

vectorised! {
    pub(crate) fn forward(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let r = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * r * w;
            }
        }
    }
}

vectorised! {
    /// `dx += r (w g) - x r³ mean(w g x)`.
    pub(crate) fn backward(x: &[f32], weight: &[f32], g: &[f32], eps: f32, dx: &mut [f32]) {
        let width = weight.len();
        for ((x, g), dx) in x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let r = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            let c = dot_of_three(weight, g, x) * r * r * r / width as f32;
            for (((dx, g), w), x) in dx.iter_mut().zip(g).zip(weight).zip(x) {
                *dx += g * w * r - x * c;
            }
        }
    }
}

vectorised! {
    /// `dw += sum over rows of r x g`.
    pub(crate) fn backward_weight(x: &[f32], g: &[f32], eps: f32, dw: &mut [f32]) {
        let width = dw.len();
        for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
            let r = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            for ((dw, x), g) in dw.iter_mut().zip(x).zip(g) {
                *dw += x * r * g;
            }
        }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, w: &CpuStorage, w_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, x_layout)?, values(w, w_layout)?);
        let mut y = vec![0.0; x.len()];
        forward(x, w, self.eps, &mut y);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (x_values, w, g) = (Values::of(x)?, Values::of(weight)?, Values::of(&gradient)?);
        let mut dx = vec![0.0; x_values.len()];
        backward(&x_values, &w, &g, self.eps, &mut dx);
        let dw = match self.train_weight {
            true => {
                let mut dw = vec![0.0; w.len()];
                backward_weight(&x_values, &g, self.eps, &mut dw);
                Some(Tensor::from_vec(dw, weight.shape(), x.device())?)
            }
            false => None,
        };
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), dw))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        check_gradients(&[noise_var(1, &[3, 20]), noise_var(2, &[20])], |v| rms_norm(&v[0], &v[1], 1e-5, true));
        let weight = noise_var(2, &[20]);
        check_gradients(&[noise_var(1, &[3, 20])], |v| rms_norm(&v[0], &weight, 1e-5, false));
    }
}
