//! AdamW on f32 masters and moments; `kernels/adamw.rs` has the formula.

use candle_core::{D, DType, Result, Tensor, Var};

use super::plain;
use crate::models::kernels::adamw::AdamW;

/// Summed by rows on the device and over rows in f64.
pub(in super::super) fn squared_norm(g: &Tensor) -> Result<f64> {
    let rows = g.to_dtype(DType::F32)?.sqr()?.sum_keepdim(D::Minus1)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(rows.iter().map(|sum| f64::from(*sum)).sum())
}

pub(in super::super) fn adamw(variable: &Var, m: &Tensor, v: &Tensor, g: &Tensor, step: &AdamW) -> Result<()> {
    let rest = |beta: f64| 1.0 - beta.powi(i32::try_from(step.step).unwrap_or(i32::MAX));
    let g = (plain(g) * step.gradient_scale)?;
    let new_m = ((m * step.beta1)? + (&g * (1.0 - step.beta1))?)?;
    let new_v = ((v * step.beta2)? + (g.sqr()? * (1.0 - step.beta2))?)?;
    let root = (new_v.sqrt()? / rest(step.beta2).sqrt())?;
    let move_by = ((&new_m / (root + step.epsilon)?)? * (step.learning_rate / rest(step.beta1)))?;
    let kept = (plain(variable.as_tensor()) * (1.0 - step.learning_rate * step.weight_decay))?;
    variable.set(&(kept - move_by)?)?;
    m.slice_set(&new_m, 0, 0)?;
    v.slice_set(&new_v, 0, 0)
}
