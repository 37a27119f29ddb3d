//! Activations, gated and plain, and dropout. `kernels/activation.rs` has the formulas.

use candle_core::{D, Result, Tensor};

use super::wide;
use crate::models::kernels::activation::Activation;
use crate::models::kernels::dropout;

const ROOT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;
const NORMAL_DENSITY: f64 = 0.398_942_280_401_432_7;

/// Value of the function at `x` (f32).
fn value(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
        Activation::Gelu => x.gelu_erf(),
    }
}

/// Its derivative.
fn slope(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => {
            let s = candle_nn::ops::sigmoid(x)?;
            &s * (x * s.affine(-1.0, 1.0)?)?.affine(1.0, 1.0)?
        }
        Activation::GeluTanh => {
            let square = x.sqr()?;
            let t = (x * square.affine(ROOT_2_OVER_PI * CUBIC, ROOT_2_OVER_PI)?)?.tanh()?;
            let inner = square.affine(3.0 * CUBIC * ROOT_2_OVER_PI, ROOT_2_OVER_PI)?;
            t.affine(0.5, 0.5)? + ((x * t.sqr()?.affine(-0.5, 0.5)?)? * inner)?
        }
        Activation::Gelu => {
            let normal = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?;
            let density = ((x.sqr()? * -0.5)?.exp()? * NORMAL_DENSITY)?;
            normal + (x * density)?
        }
    }
}

/// Gate and up-projection in f32.
fn halves(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let (x, width) = (wide(x)?, x.dim(D::Minus1)? / 2);
    Ok((x.narrow(D::Minus1, 0, width)?.contiguous()?, x.narrow(D::Minus1, width, width)?.contiguous()?))
}

pub(in super::super) fn activate(x: &Tensor, activation: Activation, gated: bool) -> Result<Tensor> {
    let y = match gated {
        true => {
            let (gate, up) = halves(x)?;
            (value(activation, &gate)? * up)?
        }
        false => value(activation, &wide(x)?)?,
    };
    y.to_dtype(x.dtype())
}

pub(in super::super) fn activate_backward(x: &Tensor, g: &Tensor, activation: Activation, gated: bool) -> Result<Tensor> {
    let g = wide(g)?;
    let dx = match gated {
        true => {
            let (gate, up) = halves(x)?;
            let d_gate = ((&g * up)? * slope(activation, &gate)?)?;
            let d_up = (g * value(activation, &gate)?)?;
            Tensor::cat(&[d_gate, d_up], D::Minus1)?.contiguous()?
        }
        false => (g * slope(activation, &wide(x)?)?)?,
    };
    dx.to_dtype(x.dtype())
}

pub(in super::super) fn tanh(x: &Tensor) -> Result<Tensor> {
    x.tanh()
}

pub(in super::super) fn tanh_backward(y: &Tensor, g: &Tensor) -> Result<Tensor> {
    g * y.sqr()?.affine(-1.0, 1.0)?
}

/// The mask is drawn on the processor: tensors have no bit operations to draw it with.
pub(in super::super) fn dropout(x: &Tensor, p: f32, seed: u64) -> Result<Tensor> {
    let factors = dropout::dropout(&vec![1.0; x.elem_count()], p, seed);
    let factors = Tensor::from_vec(factors, x.shape(), x.device())?;
    (wide(x)? * factors)?.to_dtype(x.dtype())
}
