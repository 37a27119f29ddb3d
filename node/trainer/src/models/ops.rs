//! The ops of a model, forward and backward, on any device: the one door between the models and what computes.
//!
//! Activations are an [`Array`]: on the CPU a plain vector for the fused loops of [`super::kernels`], elsewhere a tensor for
//! [`device`]. Rows are tokens of packed sequences. Nothing here builds a graph: a backward is called with what its forward
//! was given, and adds what it finds to [`Gradients`] for the parameters that want it, and only for those.

pub(crate) mod device;
mod gradients;
mod group;
mod past;

use candle_core::{Device, Result, Tensor, Var};

use super::kernels::activation::{self, Activation};
use super::kernels::adamw::AdamW;
use super::kernels::attention::Heads;
use super::kernels::rope::RopeTable;
use super::kernels::{Values, add_to, cross_entropy, dropout, norm};

pub use gradients::{GradientList, Gradients, variable_indices};
pub(crate) use group::{Group, Low};
pub use group::{Linear, Lora};
pub(crate) use past::{Past, attend};

/// Rows of activations, or a gradient.
#[derive(Debug, Clone)]
pub(crate) enum Array {
    /// On the CPU, f32.
    Host(Vec<f32>),
    /// `(rows, width)` in the compute dtype; gradients of parameters in f32.
    Device(Tensor),
}

/// For ops whose arguments were made by one model and so live in one place.
pub(crate) fn elsewhere<T>() -> Result<T> {
    candle_core::bail!("an op was given arrays of two devices")
}

impl Array {
    /// A device's values copied to the host, in f32.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        match self {
            Self::Host(values) => Ok(values.clone()),
            Self::Device(tensor) => tensor.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1(),
        }
    }

    /// A device's values in another dtype.
    pub fn held_in(self, dtype: candle_core::DType) -> Result<Self> {
        match self {
            Self::Host(_) => Ok(self),
            Self::Device(tensor) => tensor.to_dtype(dtype).map(Self::Device),
        }
    }

    pub fn into_tensor(self, dims: &[usize], device: &Device) -> Result<Tensor> {
        match self {
            Self::Host(values) => Tensor::from_vec(values, dims, device),
            Self::Device(tensor) => tensor.reshape(dims),
        }
    }

    pub fn plus(self, other: &Self) -> Result<Self> {
        match (self, other) {
            (Self::Host(mut x), Self::Host(y)) => {
                add_to(&mut x, y);
                Ok(Self::Host(x))
            }
            (Self::Device(x), Self::Device(y)) => device::add(&x, y).map(Self::Device),
            _ => elsewhere(),
        }
    }
}

/// Rows of `table (n, width)` by index, scaled. `host` says where the result lives.
pub(crate) fn embed(table: &Tensor, indices: &[u32], scale: f32, host: bool) -> Result<Array> {
    if !host {
        let rows = device::rows(table, indices)?;
        return Ok(Array::Device(if scale == 1.0 { rows } else { rows.affine(f64::from(scale), 0.0)? }));
    }
    let mut rows = take(&Values::of(table)?, table.dim(1)?, indices);
    if scale != 1.0 {
        rows.iter_mut().for_each(|x| *x *= scale);
    }
    Ok(Array::Host(rows))
}

fn take(x: &[f32], width: usize, indices: &[u32]) -> Vec<f32> {
    let mut rows = Vec::with_capacity(indices.len() * width);
    for index in indices {
        let at = *index as usize * width;
        rows.extend_from_slice(&x[at..at + width]);
    }
    rows
}

/// Rows of `x` by index.
pub(crate) fn rows(x: &Array, width: usize, indices: &[u32]) -> Result<Array> {
    match x {
        Array::Host(x) => Ok(Array::Host(take(x, width, indices))),
        Array::Device(x) => device::rows(x, indices).map(Array::Device),
    }
}

/// The gradient of [`rows`] for distinct indices: `g`'s rows at their places, zeros elsewhere.
pub(crate) fn put_rows(g: &Array, width: usize, indices: &[u32], count: usize) -> Result<Array> {
    match g {
        Array::Host(g) => {
            let mut x = vec![0.0; count * width];
            for (index, g) in indices.iter().zip(g.chunks_exact(width)) {
                let at = *index as usize * width;
                x[at..at + width].copy_from_slice(g);
            }
            Ok(Array::Host(x))
        }
        Array::Device(g) => device::put_rows(g, indices, count).map(Array::Device),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By the root mean square, without bias.
    Rms,
    /// By mean and variance, with bias.
    Layer,
}

/// A normalisation of rows with its parameters.
#[derive(Debug, Clone)]
pub struct Norm {
    /// `(width)`.
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub kind: NormKind,
    /// Added to the weight: 1 for Gemma, which stores it so.
    pub offset: f32,
    pub eps: f32,
}

impl Norm {
    pub(crate) fn is_wanted(&self, into: &Gradients) -> bool {
        into.wants(&self.weight).is_some() || self.bias.as_ref().is_some_and(|bias| into.wants(bias).is_some())
    }

    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let x = match x {
            Array::Host(x) => x,
            Array::Device(x) => return device::norm(x, self).map(Array::Device),
        };
        let (mut y, weight) = (vec![0.0; x.len()], Values::of(&self.weight)?);
        match &self.bias {
            Some(bias) => norm::layer(x, &weight, &Values::of(bias)?, self.eps, &mut y),
            None => norm::rms(x, &weight, self.offset, self.eps, &mut y),
        }
        Ok(Array::Host(y))
    }

    /// The gradient of the input, added to `onto`; gradients of weight and bias go `into`.
    pub(crate) fn backward(&self, x: &Array, g: &Array, onto: Option<Array>, into: &mut Gradients) -> Result<Array> {
        self.backward_weight(x, g, into)?;
        match (x, g, onto) {
            (Array::Host(x), Array::Host(g), onto) => {
                let mut dx = match onto {
                    Some(Array::Host(dx)) => dx,
                    None => vec![0.0; x.len()],
                    Some(Array::Device(_)) => return elsewhere(),
                };
                let weight = Values::of(&self.weight)?;
                match self.kind {
                    NormKind::Layer => norm::layer_backward(x, &weight, self.eps, g, &mut dx),
                    NormKind::Rms => norm::rms_backward(x, &weight, self.offset, self.eps, g, &mut dx),
                }
                Ok(Array::Host(dx))
            }
            (Array::Device(x), Array::Device(g), onto) => {
                let dx = Array::Device(device::norm_backward(x, self, g)?);
                onto.map_or(Ok(dx.clone()), |onto| onto.plus(&dx))
            }
            _ => elsewhere(),
        }
    }

    fn backward_weight(&self, x: &Array, g: &Array, into: &mut Gradients) -> Result<()> {
        let bias_index = self.bias.as_ref().and_then(|bias| into.wants(bias));
        let Some(index) = into.wants(&self.weight).or(bias_index) else { return Ok(()) };
        let (dw, db) = match (x, g) {
            (Array::Host(x), Array::Host(g)) => {
                let mut dw = vec![0.0; self.weight.elem_count()];
                let mut db = vec![0.0; dw.len()];
                match self.kind {
                    NormKind::Layer => norm::layer_backward_weight(x, self.eps, g, &mut dw, &mut db),
                    NormKind::Rms => norm::rms_backward_weight(x, self.eps, g, &mut dw),
                }
                (Array::Host(dw), Some(Array::Host(db)))
            }
            (Array::Device(x), Array::Device(g)) => {
                let (dw, db) = device::norm_backward_weight(x, self, g)?;
                (Array::Device(dw), db.map(Array::Device))
            }
            _ => return elsewhere(),
        };
        if into.wants(&self.weight).is_some() {
            into.add(index, dw)?;
        }
        match (bias_index, db) {
            (Some(index), Some(db)) => into.add(index, db),
            _ => Ok(()),
        }
    }
}

/// Turns queries and keys, the leading columns of `qkv`, to their positions, in place.
pub(crate) fn rope(qkv: Array, table: &RopeTable, heads: &Heads, positions: &[u32], direction: f32) -> Result<Array> {
    let turned = (heads.heads + heads.kv_heads) * heads.head_dim;
    match qkv {
        Array::Host(mut qkv) => {
            table.turn_rows(&mut qkv, heads.width(), turned, positions, direction);
            Ok(Array::Host(qkv))
        }
        Array::Device(qkv) => device::rope(qkv, table, positions, turned, direction).map(Array::Device),
    }
}

/// Attended values of sequences that lie one after the other.
pub(crate) fn attention(qkv: &Array, lengths: &[usize], heads: &Heads) -> Result<Array> {
    match qkv {
        Array::Host(qkv) => Ok(Array::Host(heads.forward(qkv, lengths))),
        Array::Device(qkv) => device::attention(qkv, lengths, heads).map(Array::Device),
    }
}

/// Gradient of `qkv`.
pub(crate) fn attention_backward(qkv: &Array, g: &Array, lengths: &[usize], heads: &Heads) -> Result<Array> {
    match (qkv, g) {
        (Array::Host(qkv), Array::Host(g)) => Ok(Array::Host(heads.backward(qkv, g, lengths))),
        (Array::Device(qkv), Array::Device(g)) => device::attention_backward(qkv, g, lengths, heads).map(Array::Device),
        _ => elsewhere(),
    }
}

/// The feed-forward activation; gated, a row is the gate and then the up-projection, `width` each.
pub(crate) fn activate(x: &Array, activation: Activation, gated: bool, width: usize) -> Result<Array> {
    match x {
        Array::Host(x) if gated => Ok(Array::Host(activation::gated(activation, x, width))),
        Array::Host(x) => Ok(Array::Host(activation::plain(activation, x))),
        Array::Device(x) => device::activate(x, activation, gated).map(Array::Device),
    }
}

pub(crate) fn activate_backward(x: &Array, g: &Array, activation: Activation, gated: bool, width: usize) -> Result<Array> {
    match (x, g) {
        (Array::Host(x), Array::Host(g)) if gated => Ok(Array::Host(activation::gated_backward(activation, x, width, g))),
        (Array::Host(x), Array::Host(g)) => Ok(Array::Host(activation::plain_backward(activation, x, g))),
        (Array::Device(x), Array::Device(g)) => device::activate_backward(x, g, activation, gated).map(Array::Device),
        _ => elsewhere(),
    }
}

pub(crate) fn tanh(x: Array) -> Result<Array> {
    match x {
        Array::Host(x) => Ok(Array::Host(x.iter().map(|x| x.tanh()).collect())),
        Array::Device(x) => device::tanh(&x).map(Array::Device),
    }
}

/// `y` is what [`tanh`] gave.
pub(crate) fn tanh_backward(y: &Array, g: &Array) -> Result<Array> {
    match (y, g) {
        (Array::Host(y), Array::Host(g)) => Ok(Array::Host(y.iter().zip(g).map(|(y, g)| g * (1.0 - y * y)).collect())),
        (Array::Device(y), Array::Device(g)) => device::tanh_backward(y, g).map(Array::Device),
        _ => elsewhere(),
    }
}

/// A part `p` of `x` set to 0, the rest scaled up; the same mask for the same seed, so it is its own backward.
pub(crate) fn drop_out(x: &Array, p: f32, seed: u64) -> Result<Array> {
    match x {
        Array::Host(x) => Ok(Array::Host(dropout::dropout(x, p, seed))),
        Array::Device(x) => device::dropout(x, p, seed).map(Array::Device),
    }
}

/// Cross entropy summed over rows, divided by `denominator`, and the gradient of the logits. Labels lie below `classes`.
pub(crate) fn cross_entropy(logits: Array, classes: usize, labels: &[u32], denominator: f64) -> Result<(f64, Array)> {
    match logits {
        Array::Host(mut x) => {
            let loss = cross_entropy::loss_and_gradient(&mut x, classes, labels, denominator);
            Ok((loss, Array::Host(x)))
        }
        Array::Device(x) => device::cross_entropy(x, labels, denominator).map(|(loss, g)| (loss, Array::Device(g))),
    }
}

/// Parts of rows, one below the other.
pub(crate) fn stack(mut parts: Vec<Array>) -> Result<Array> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or(Array::Host(Vec::new()));
    for part in parts {
        append(&mut all, part)?;
    }
    Ok(all)
}

/// Appends the rows of `part`.
fn append(all: &mut Array, part: Array) -> Result<()> {
    match (all, part) {
        (Array::Host(all), Array::Host(part)) => all.extend(part),
        (Array::Device(all), Array::Device(part)) => *all = Tensor::cat(&[&*all, &part], 0)?,
        _ => return elsewhere(),
    }
    Ok(())
}

/// Sum of squares, in f64.
pub(crate) fn squared_norm(x: &Tensor) -> Result<f64> {
    match x.device().is_cpu() {
        true => Ok(Values::of(x)?.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()),
        false => device::squared_norm(x),
    }
}

/// One AdamW update of `variable` and its moments in place.
pub(crate) fn adamw(variable: &Var, m: &Tensor, v: &Tensor, gradient: &Tensor, step: &AdamW) -> Result<()> {
    match variable.device().is_cpu() {
        true => step.update(variable, m, v, gradient),
        false => device::adamw(variable, m, v, gradient, step),
    }
}
