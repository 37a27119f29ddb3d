//! Linear maps `y = x Wᵀ` without bias: frozen, frozen with LoRA, or trained. W is (outputs, inputs).
//!
//! A frozen W is captured by the op instead of being its argument, so that no gradient of it is ever computed or kept.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::product::{Into, Matrix, multiply, product};
use super::{Values, values};

/// `x (n, inputs)` to `(n, outputs)`.
pub fn frozen(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op1(Frozen { weight: weight.clone() })
}

/// `y = x Wᵀ + scale (x Aᵀ) Bᵀ` with `a (rank, inputs)` and `b (outputs, rank)`.
pub fn lora(x: &Tensor, weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    x.apply_op3(a, b, Lora { weight: weight.clone(), scale })
}

/// `y = x Wᵀ` with a gradient for W too.
pub fn trained(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.apply_op2(weight, Trained)
}

fn output(x: &Layout, values: Vec<f32>, width: usize) -> Result<(CpuStorage, Shape)> {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = width;
    }
    Ok((CpuStorage::F32(values), dims.into()))
}

struct Frozen {
    weight: Tensor,
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (values(x, x_layout)?, Values::of(&self.weight)?);
        let (outputs, inputs) = self.weight.dims2()?;
        let rows = x.len() / inputs;
        let y = product((rows, outputs, inputs), Matrix::rows(x, inputs), Matrix::rows(&weight, inputs).transposed(), 1.0);
        output(x_layout, y, outputs)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let (g, weight) = (Values::of(&gradient)?, Values::of(&self.weight)?);
        let (outputs, inputs) = self.weight.dims2()?;
        let rows = g.len() / outputs;
        let dx = product((rows, inputs, outputs), Matrix::rows(&g, outputs), Matrix::rows(&weight, inputs), 1.0);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct Lora {
    weight: Tensor,
    scale: f32,
}

impl CustomOp3 for Lora {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, a, b) = (values(x, x_layout)?, values(a, a_layout)?, values(b, b_layout)?);
        let weight = Values::of(&self.weight)?;
        let (outputs, inputs) = self.weight.dims2()?;
        let rank = a.len() / inputs;
        let rows = x.len() / inputs;
        let x = Matrix::rows(x, inputs);
        let mut y = product((rows, outputs, inputs), x, Matrix::rows(&weight, inputs).transposed(), 1.0);
        let u = product((rows, rank, inputs), x, Matrix::rows(a, inputs).transposed(), 1.0);
        let b = Matrix::rows(b, rank).transposed();
        multiply((rows, outputs, rank), &mut y, outputs, Into::Add, Matrix::rows(&u, rank), b, self.scale);
        output(x_layout, y, outputs)
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (x_values, a_values, b_values) = (Values::of(x)?, Values::of(a)?, Values::of(b)?);
        let (g_values, weight) = (Values::of(&gradient)?, Values::of(&self.weight)?);
        let (outputs, inputs) = self.weight.dims2()?;
        let rank = a.dim(0)?;
        let rows = x_values.len() / inputs;
        let (x_rows, a_rows, b_rows) = (Matrix::rows(&x_values, inputs), Matrix::rows(&a_values, inputs), Matrix::rows(&b_values, rank));
        let g = Matrix::rows(&g_values, outputs);
        // u = x Aᵀ is computed again: cheaper than to keep it.
        let u = product((rows, rank, inputs), x_rows, a_rows.transposed(), 1.0);
        let du = product((rows, rank, outputs), g, b_rows, self.scale);
        let mut dx = product((rows, inputs, outputs), g, Matrix::rows(&weight, inputs), 1.0);
        multiply((rows, inputs, rank), &mut dx, inputs, Into::Add, Matrix::rows(&du, rank), a_rows, 1.0);
        let da = product((rank, inputs, rows), Matrix::rows(&du, rank).transposed(), x_rows, 1.0);
        let db = product((outputs, rank, rows), g.transposed(), Matrix::rows(&u, rank), self.scale);
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(da, a.shape(), device)?),
            Some(Tensor::from_vec(db, b.shape(), device)?),
        ))
    }
}

struct Trained;

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout, weight: &CpuStorage, weight_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (values(x, x_layout)?, values(weight, weight_layout)?);
        let (outputs, inputs) = weight_layout.shape().dims2()?;
        let rows = x.len() / inputs;
        let y = product((rows, outputs, inputs), Matrix::rows(x, inputs), Matrix::rows(weight, inputs).transposed(), 1.0);
        output(x_layout, y, outputs)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (x_values, w_values, g_values) = (Values::of(x)?, Values::of(weight)?, Values::of(&gradient)?);
        let (outputs, inputs) = weight.dims2()?;
        let rows = x_values.len() / inputs;
        let g = Matrix::rows(&g_values, outputs);
        let dx = product((rows, inputs, outputs), g, Matrix::rows(&w_values, inputs), 1.0);
        let dw = product((outputs, inputs, rows), g.transposed(), Matrix::rows(&x_values, inputs), 1.0);
        let device = x.device();
        Ok((Some(Tensor::from_vec(dx, x.shape(), device)?), Some(Tensor::from_vec(dw, weight.shape(), device)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let weight = noise_var(1, &[5, 6]);
        let fixed = weight.as_tensor().detach();
        check_gradients(&[noise_var(2, &[3, 6])], |v| frozen(&v[0], &fixed));
        check_gradients(&[noise_var(2, &[3, 6]), weight], |v| trained(&v[0], &v[1]));
        let inputs = [noise_var(2, &[3, 6]), noise_var(3, &[2, 6]), noise_var(4, &[5, 2])];
        check_gradients(&inputs, |v| lora(&v[0], &fixed, &v[1], &v[2], 1.5));
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let (x, weight) = (noise_var(1, &[3, 6]), noise_var(2, &[5, 6]));
        let gradients = frozen(&x, &weight).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
    }
}
