//! Loss and gradients of a whole decoder by a hand-written backward on slices: the path that training takes.
//!
//! candle's autograd, over the same kernels ([`Decoder::loss`]), allocates and adds a zero tensor for every gradient of
//! every op; for small models that is most of a step. It stays as the oracle: a test holds the two against each other.

use std::collections::HashMap;

use candle_core::{Result, TensorId, Var};

use super::ModelError;
use super::decoder::{Block, Decoder, TokenBatch};
use super::kernels::Values;
use super::kernels::attention::Heads;
use super::kernels::cross_entropy::{IGNORED, loss_and_gradient};
use super::kernels::product::{Into, Matrix, multiply, product};
use super::kernels::sum::add_to;
use super::kernels::{rms_norm, swiglu};
use super::linear::Linear;

/// A gradient for each variable, flat; `None` where nothing flowed.
pub type GradientList = Vec<Option<Vec<f32>>>;

/// Where gradients are gathered, by the index of their variable.
struct Gradients<'a> {
    indices: &'a HashMap<TensorId, usize>,
    values: GradientList,
}

/// Index of each variable by the identity of its tensor.
pub fn variable_indices(variables: &[(String, Var)]) -> HashMap<TensorId, usize> {
    variables.iter().enumerate().map(|(index, (_, variable))| (variable.as_tensor().id(), index)).collect()
}

impl Gradients<'_> {
    fn wants(&self, tensor: &candle_core::Tensor) -> Option<usize> {
        self.indices.get(&tensor.id()).copied()
    }

    /// Adds `scale * a b`, of `dims (m, n)` with inner length `k`, to the variable's gradient.
    fn add_product(&mut self, index: usize, (m, n, k): (usize, usize, usize), a: Matrix, b: Matrix, scale: f32) {
        match &mut self.values[index] {
            Some(sum) => multiply((m, n, k), sum, n, Into::Add, a, b, scale),
            none => *none = Some(product((m, n, k), a, b, scale)),
        }
    }

    fn slot(&mut self, index: usize, length: usize) -> &mut Vec<f32> {
        self.values[index].get_or_insert_with(|| vec![0.0; length])
    }
}

/// `y += x Wᵀ + LoRA` for `rows` rows; returns `x Aᵀ` for the backward.
fn linear_forward(linear: &Linear, x: &[f32], rows: usize, y: Option<Vec<f32>>) -> Result<(Vec<f32>, Vec<f32>)> {
    let weight = Values::of(&linear.weight)?;
    let (outputs, inputs) = linear.weight.dims2()?;
    let (x, weight) = (Matrix::rows(x, inputs), Matrix::rows(&weight, inputs).transposed());
    let mut y = match y {
        Some(mut y) => {
            multiply((rows, outputs, inputs), &mut y, outputs, Into::Add, x, weight, 1.0);
            y
        }
        None => product((rows, outputs, inputs), x, weight, 1.0),
    };
    let Some(lora) = &linear.lora else { return Ok((y, Vec::new())) };
    let (a, b) = (Values::of(&lora.a)?, Values::of(&lora.b)?);
    let rank = lora.a.dim(0)?;
    let u = product((rows, rank, inputs), x, Matrix::rows(&a, inputs).transposed(), 1.0);
    let b = Matrix::rows(&b, rank).transposed();
    multiply((rows, outputs, rank), &mut y, outputs, Into::Add, Matrix::rows(&u, rank), b, lora.scale);
    Ok((y, u))
}

/// Adds the linear's gradients to `into`, and the input's gradient to `dx`, or makes it where there is none yet.
fn linear_backward(
    linear: &Linear,
    x: &[f32],
    u: &[f32],
    g: &[f32],
    rows: usize,
    dx: Option<Vec<f32>>,
    into: &mut Gradients,
) -> Result<Vec<f32>> {
    let weight = Values::of(&linear.weight)?;
    let (outputs, inputs) = linear.weight.dims2()?;
    let (x, g) = (Matrix::rows(x, inputs), Matrix::rows(g, outputs));
    let mut dx = match dx {
        Some(mut dx) => {
            multiply((rows, inputs, outputs), &mut dx, inputs, Into::Add, g, Matrix::rows(&weight, inputs), 1.0);
            dx
        }
        None => product((rows, inputs, outputs), g, Matrix::rows(&weight, inputs), 1.0),
    };
    if let Some(index) = into.wants(&linear.weight) {
        into.add_product(index, (outputs, inputs, rows), g.transposed(), x, 1.0);
    }
    if let Some(lora) = &linear.lora {
        let (a, b) = (Values::of(&lora.a)?, Values::of(&lora.b)?);
        let rank = lora.a.dim(0)?;
        let du = product((rows, rank, outputs), g, Matrix::rows(&b, rank), lora.scale);
        let du = Matrix::rows(&du, rank);
        multiply((rows, inputs, rank), &mut dx, inputs, Into::Add, du, Matrix::rows(&a, inputs), 1.0);
        if let Some(index) = into.wants(&lora.a) {
            into.add_product(index, (rank, inputs, rows), du.transposed(), x, 1.0);
        }
        if let Some(index) = into.wants(&lora.b) {
            into.add_product(index, (outputs, rank, rows), g.transposed(), Matrix::rows(u, rank), lora.scale);
        }
    }
    Ok(dx)
}

/// A linear's `x Aᵀ`; empty without LoRA.
type Low = Vec<f32>;

/// What a block's backward needs of its forward.
struct Kept {
    x: Vec<f32>,
    y1: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    x2: Vec<f32>,
    y2: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    z: Vec<f32>,
    low: [Low; 7],
}

impl Decoder {
    /// Loss of the batch (summed over its targets, divided by `denominator`) and the gradients of the variables in
    /// `indices`, as [`variable_indices`] makes it.
    pub fn loss_and_gradients(
        &self,
        batch: &TokenBatch,
        denominator: f64,
        indices: &HashMap<TensorId, usize>,
    ) -> std::result::Result<(f32, GradientList), ModelError> {
        self.check_tokens(&batch.tokens, batch.length)?;
        let vocabulary = self.config.vocabulary;
        let mut into = Gradients { indices, values: vec![None; indices.len()] };
        let (mut kept_rows, mut labels) = (Vec::new(), Vec::new());
        for (row, target) in batch.targets.iter().enumerate().filter(|(_, target)| **target != IGNORED) {
            let label = usize::try_from(*target).ok().filter(|label| *label < vocabulary);
            labels.push(label.ok_or(ModelError::Token { token: *target as u32, vocabulary })?);
            kept_rows.push(row);
        }
        if labels.is_empty() {
            return Ok((0.0, into.values));
        }
        let width = self.config.hidden;
        let mut x = take_rows(&Values::of(&self.embedding)?, width, batch.tokens.iter().map(|token| *token as usize));
        let mut kept = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (next, saved) = self.block_forward(block, x, batch)?;
            kept.push(saved);
            x = next;
        }
        let (loss, top) = self.head_step(&take_rows(&x, width, kept_rows.iter().copied()), &labels, denominator, &mut into)?;
        let mut g = vec![0.0; x.len()];
        for (row, top) in kept_rows.iter().zip(top.chunks_exact(width)) {
            g[row * width..(row + 1) * width].copy_from_slice(top);
        }
        for (block, saved) in self.blocks.iter().zip(kept).rev() {
            g = self.block_backward(block, saved, g, batch, &mut into)?;
        }
        if let Some(index) = into.wants(&self.embedding) {
            let slot = into.slot(index, vocabulary * width);
            for (token, g) in batch.tokens.iter().zip(g.chunks_exact(width)) {
                let at = *token as usize * width;
                add_to(&mut slot[at..at + width], g);
            }
        }
        Ok((loss as f32, into.values))
    }

    /// Final norm, head and loss of the labelled rows `x`; returns the loss and the gradient of `x`.
    fn head_step(&self, x: &[f32], labels: &[usize], denominator: f64, into: &mut Gradients) -> Result<(f64, Vec<f32>)> {
        let rows = labels.len();
        let y = self.norm_forward(x, &self.norm)?;
        let (mut logits, low) = linear_forward(&self.head, &y, rows, None)?;
        let loss = loss_and_gradient(&mut logits, self.config.vocabulary, labels, denominator);
        let dy = linear_backward(&self.head, &y, &low, &logits, rows, None, into)?;
        let mut dx = vec![0.0; x.len()];
        self.norm_backward(x, &self.norm, &dy, &mut dx, into)?;
        Ok((loss, dx))
    }

    fn norm_forward(&self, x: &[f32], weight: &candle_core::Tensor) -> Result<Vec<f32>> {
        let mut y = vec![0.0; x.len()];
        rms_norm::forward(x, &Values::of(weight)?, self.config.norm_eps as f32, &mut y);
        Ok(y)
    }

    /// `dx +=` the gradient through the norm.
    fn norm_backward(&self, x: &[f32], weight: &candle_core::Tensor, g: &[f32], dx: &mut [f32], into: &mut Gradients) -> Result<()> {
        let eps = self.config.norm_eps as f32;
        rms_norm::backward(x, &Values::of(weight)?, g, eps, dx);
        if let Some(index) = into.wants(weight) {
            rms_norm::backward_weight(x, g, eps, into.slot(index, self.config.hidden));
        }
        Ok(())
    }

    fn heads(&self, batch: &TokenBatch) -> Heads {
        let config = &self.config;
        Heads {
            sequences: batch.sequences,
            length: batch.length,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }

    fn block_forward(&self, block: &Block, x: Vec<f32>, batch: &TokenBatch) -> Result<(Vec<f32>, Kept)> {
        let rows = batch.tokens.len();
        let turn = |x: &mut [f32]| self.rope.turn_rows(x, x.len() / rows, batch.length, 0, 1.0);
        let y1 = self.norm_forward(&x, &block.attention_norm)?;
        let (mut q, low_q) = linear_forward(&block.q, &y1, rows, None)?;
        let (mut k, low_k) = linear_forward(&block.k, &y1, rows, None)?;
        let (v, low_v) = linear_forward(&block.v, &y1, rows, None)?;
        turn(&mut q);
        turn(&mut k);
        let attended = self.heads(batch).forward(&q, &k, &v);
        let (x2, low_o) = linear_forward(&block.o, &attended, rows, Some(x.clone()))?;
        let y2 = self.norm_forward(&x2, &block.feed_norm)?;
        let (gate, low_gate) = linear_forward(&block.gate, &y2, rows, None)?;
        let (up, low_up) = linear_forward(&block.up, &y2, rows, None)?;
        let mut z = vec![0.0; gate.len()];
        swiglu::forward(&gate, &up, &mut z);
        let (out, low_down) = linear_forward(&block.down, &z, rows, Some(x2.clone()))?;
        let low = [low_q, low_k, low_v, low_o, low_gate, low_up, low_down];
        Ok((out, Kept { x, y1, q, k, v, attended, x2, y2, gate, up, z, low }))
    }

    /// `g` is the gradient of the block's output; returns that of its input.
    fn block_backward(&self, block: &Block, kept: Kept, mut g: Vec<f32>, batch: &TokenBatch, into: &mut Gradients) -> Result<Vec<f32>> {
        let rows = batch.tokens.len();
        let [low_q, low_k, low_v, low_o, low_gate, low_up, low_down] = &kept.low;
        let dz = linear_backward(&block.down, &kept.z, low_down, &g, rows, None, into)?;
        let (mut d_gate, mut d_up) = (vec![0.0; dz.len()], vec![0.0; dz.len()]);
        swiglu::backward(&kept.gate, &kept.up, &dz, &mut d_gate, &mut d_up);
        let dy = linear_backward(&block.gate, &kept.y2, low_gate, &d_gate, rows, None, into)?;
        let dy = linear_backward(&block.up, &kept.y2, low_up, &d_up, rows, Some(dy), into)?;
        // The residual: what flows around the norm is in `g` already.
        self.norm_backward(&kept.x2, &block.feed_norm, &dy, &mut g, into)?;

        let d_attended = linear_backward(&block.o, &kept.attended, low_o, &g, rows, None, into)?;
        let (mut dq, mut dk, dv) = self.heads(batch).backward(&kept.q, &kept.k, &kept.v, &d_attended);
        let turn_back = |x: &mut [f32]| self.rope.turn_rows(x, x.len() / rows, batch.length, 0, -1.0);
        turn_back(&mut dq);
        turn_back(&mut dk);
        let dy = linear_backward(&block.q, &kept.y1, low_q, &dq, rows, None, into)?;
        let dy = linear_backward(&block.k, &kept.y1, low_k, &dk, rows, Some(dy), into)?;
        let dy = linear_backward(&block.v, &kept.y1, low_v, &dv, rows, Some(dy), into)?;
        self.norm_backward(&kept.x, &block.attention_norm, &dy, &mut g, into)?;
        Ok(g)
    }
}

fn take_rows(x: &[f32], width: usize, rows: impl Iterator<Item = usize>) -> Vec<f32> {
    rows.flat_map(|row| &x[row * width..(row + 1) * width]).copied().collect()
}
