//! Addition of two tensors of one shape. candle's own hands every addition to a pool of waiting threads, which for small
//! models, and several processes on one machine, costs more than the addition.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::values;

/// `x + y`, of one shape.
pub fn sum(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    x.apply_op2(y, Sum)
}

/// `x += y`.
pub(crate) fn add_to(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

struct Sum;

impl CustomOp2 for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut sum = values(x, x_layout)?.to_vec();
        add_to(&mut sum, values(y, y_layout)?);
        Ok((CpuStorage::F32(sum), x_layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.clone()), Some(gradient.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        check_gradients(&[noise_var(1, &[3, 5]), noise_var(2, &[3, 5])], |v| sum(&v[0], &v[1]));
    }
}
