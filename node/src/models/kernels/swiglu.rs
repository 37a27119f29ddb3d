//! `silu(gate) * up`, the gated activation of the feed-forward part.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::vector::{sigmoid, vectorised};
use super::{Values, values};

/// `gate` and `up` of one shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu)
}

struct SwiGlu;

vectorised! {
    pub(crate) fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * sigmoid(*gate) * up;
        }
    }
}

vectorised! {
    pub(crate) fn backward(gate: &[f32], up: &[f32], g: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        for i in 0..g.len().min(gate.len()).min(up.len()).min(d_gate.len()).min(d_up.len()) {
            let s = sigmoid(gate[i]);
            d_up[i] = g[i] * gate[i] * s;
            d_gate[i] = g[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
        }
    }
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gate_l: &Layout, up: &CpuStorage, up_l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(gate, gate_l)?, values(up, up_l)?);
        let mut y = vec![0.0; gate.len()];
        forward(gate, up, &mut y);
        Ok((CpuStorage::F32(y), gate_l.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (gate_values, up_values, g) = (Values::of(gate)?, Values::of(up)?, Values::of(&gradient)?);
        let (mut d_gate, mut d_up) = (vec![0.0; g.len()], vec![0.0; g.len()]);
        backward(&gate_values, &up_values, &g, &mut d_gate, &mut d_up);
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((Some(tensor(d_gate)?), Some(tensor(d_up)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        check_gradients(&[noise_var(1, &[3, 18]), noise_var(2, &[3, 18])], |v| swiglu(&v[0], &v[1]));
    }
}
