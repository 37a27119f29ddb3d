//! The ops but attention and products, each as its kernels. What they compute is said in `ops/device.rs`.

use candle_core::{D, DType, Device, Result, Tensor, Var, bail};

use super::launch::{Launch, unwritten};
use super::{Module, ending};
use crate::models::kernels::activation::Activation;
use crate::models::kernels::adamw::AdamW;
use crate::models::kernels::dropout::threshold;
use crate::models::kernels::rope::RopeTable;
use crate::models::ops::device::upload;
use crate::models::ops::{Norm, NormKind};

/// Threads of a block for ops on single elements.
const THREADS: usize = 256;

/// Blocks of a grid whose threads walk through all elements.
const BLOCKS_MAX: usize = 1 << 16;

/// Threads of a block that owns a row.
fn row_threads(width: usize) -> usize {
    (width / 4).next_power_of_two().clamp(32, 512)
}

fn element_blocks(count: usize) -> usize {
    count.div_ceil(THREADS).min(BLOCKS_MAX)
}

impl Norm {
    fn kernel(&self, op: &str, x: &Tensor, weight: &Tensor) -> Result<String> {
        let kind = if self.kind == NormKind::Rms { "rms" } else { "layer" };
        Ok(format!("{kind}{op}_{}_{}", ending(x.dtype())?, ending(weight.dtype())?))
    }

    /// Weight and bias of one dtype, that of `x` or f32; without a bias the weight stands in, and is not read as one.
    fn parameters(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let dtype = if self.weight.dtype() == x.dtype() { x.dtype() } else { DType::F32 };
        let parameter = |tensor: &Tensor| tensor.detach().to_dtype(dtype);
        Ok((parameter(&self.weight)?, parameter(self.bias.as_ref().unwrap_or(&self.weight))?))
    }
}

pub(crate) fn norm(x: &Tensor, norm: &Norm) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (weight, bias) = norm.parameters(x)?;
    let y = unwritten(x.dims(), x.dtype(), x.device())?;
    let launch = Launch::new(Module::Norm, norm.kernel("", x, &weight)?).tensor(x).tensor(&weight).tensor(&bias).tensor(&y);
    launch.count(width).float(norm.offset).float(norm.eps).run(x.device(), [rows, 1], row_threads(width), 0)?;
    Ok(y)
}

pub(crate) fn norm_backward(x: &Tensor, norm: &Norm, g: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (weight, _) = norm.parameters(x)?;
    let dx = unwritten(x.dims(), x.dtype(), x.device())?;
    let launch = Launch::new(Module::Norm, norm.kernel("_backward", x, &weight)?).tensor(x).tensor(&weight).tensor(g).tensor(&dx);
    launch.count(width).float(norm.offset).float(norm.eps).run(x.device(), [rows, 1], row_threads(width), 0)?;
    Ok(dx)
}

/// Rows that one thread adds up, and how many such chunks there are.
fn chunks(rows: usize) -> (usize, usize) {
    let chunk = rows.div_ceil(64).max(16);
    (chunk, rows.div_ceil(chunk))
}

pub(crate) fn norm_backward_weight(x: &Tensor, norm: &Norm, g: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, width) = x.dims2()?;
    let (chunk, chunks) = chunks(rows);
    let (device, f32s) = (x.device(), |dims: &[usize]| unwritten(dims, DType::F32, x.device()));
    let (means, factors, dw, db) = (f32s(&[rows])?, f32s(&[rows])?, f32s(&[chunks, width])?, f32s(&[chunks, width])?);
    let kind = if norm.kind == NormKind::Rms { "rms" } else { "layer" };
    let launch = Launch::new(Module::Norm, format!("{kind}_rows_{}", ending(x.dtype())?)).tensor(x).tensor(&means).tensor(&factors);
    launch.count(width).float(norm.eps).run(device, [rows, 1], row_threads(width), 0)?;
    let launch = Launch::new(Module::Norm, format!("norm_weight_{}", ending(x.dtype())?)).tensor(x).tensor(g);
    let launch = launch.tensor(&means).tensor(&factors).tensor(&dw).tensor(&db).count(rows).count(width).count(chunk);
    launch.run(device, [width.div_ceil(THREADS), chunks], THREADS, 0)?;
    let db = norm.bias.as_ref().map(|_| column_sums(&db)).transpose()?;
    Ok((column_sums(&dw)?, db))
}

pub(crate) fn column_sums(g: &Tensor) -> Result<Tensor> {
    let (rows, width) = g.dims2()?;
    let (chunk, chunks) = chunks(rows);
    let sums = unwritten(&[chunks, width], DType::F32, g.device())?;
    let launch = Launch::new(Module::Norm, format!("column_sums_{}", ending(g.dtype())?)).tensor(g).tensor(&sums);
    launch.count(rows).count(width).count(chunk).run(g.device(), [width.div_ceil(THREADS), chunks], THREADS, 0)?;
    if chunks <= 1 { sums.reshape(width) } else { column_sums(&sums) }
}

pub(crate) fn rope(qkv: Tensor, table: &RopeTable, positions: &[u32], width: usize, direction: f32) -> Result<Tensor> {
    let (rows, total) = qkv.dims2()?;
    if positions.len() != rows || positions.iter().any(|position| *position as usize * table.pairs >= table.cos.len()) {
        bail!("{} positions for {rows} rows, or one beyond the table", positions.len())
    }
    let (cos, sin) = table.on(qkv.device())?;
    let positions = upload(positions, qkv.device())?;
    let heads = width / (2 * table.pairs);
    let launch = Launch::new(Module::Elements, format!("rope_{}", ending(qkv.dtype())?)).tensor(&qkv).tensor(&cos).tensor(&sin);
    let launch = launch.tensor(&positions).count(rows).count(total).count(heads).count(table.pairs).float(direction);
    launch.run(qkv.device(), [element_blocks(rows * heads * table.pairs), 1], THREADS, 0)?;
    Ok(qkv)
}

/// As `elements.cu` numbers them.
fn number(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
    }
}

pub(crate) fn activate(x: &Tensor, activation: Activation, gated: bool) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let width = x.dim(D::Minus1)? / if gated { 2 } else { 1 };
    dims[x.rank() - 1] = width;
    let y = unwritten(&dims, x.dtype(), x.device())?;
    let name = format!("{}_{}", if gated { "gate" } else { "activate" }, ending(x.dtype())?);
    let launch = Launch::new(Module::Elements, name).tensor(x).tensor(&y).wide_count(y.elem_count() as u64);
    let launch = if gated { launch.count(width) } else { launch };
    launch.count(number(activation)).run(x.device(), [element_blocks(y.elem_count()), 1], THREADS, 0)?;
    Ok(y)
}

pub(crate) fn activate_backward(x: &Tensor, g: &Tensor, activation: Activation, gated: bool) -> Result<Tensor> {
    let dx = unwritten(x.dims(), x.dtype(), x.device())?;
    let name = format!("{}_backward_{}", if gated { "gate" } else { "activate" }, ending(x.dtype())?);
    let launch = Launch::new(Module::Elements, name).tensor(x).tensor(g).tensor(&dx).wide_count(g.elem_count() as u64);
    let launch = if gated { launch.count(g.dim(D::Minus1)?) } else { launch };
    launch.count(number(activation)).run(x.device(), [element_blocks(g.elem_count()), 1], THREADS, 0)?;
    Ok(dx)
}

pub(crate) fn dropout(x: &Tensor, p: f32, seed: u64) -> Result<Tensor> {
    let y = unwritten(x.dims(), x.dtype(), x.device())?;
    let launch = Launch::new(Module::Elements, format!("dropout_{}", ending(x.dtype())?)).tensor(x).tensor(&y);
    let launch = launch.wide_count(x.elem_count() as u64).count(threshold(p) as usize).float(1.0 / (1.0 - p)).wide_count(seed);
    launch.run(x.device(), [element_blocks(x.elem_count()), 1], THREADS, 0)?;
    Ok(y)
}

pub(crate) fn cross_entropy(logits: Tensor, labels: &[u32], denominator: f64) -> Result<(f64, Tensor)> {
    let (rows, vocabulary) = logits.dims2()?;
    if labels.len() != rows || labels.iter().any(|label| *label as usize >= vocabulary) {
        bail!("{} labels for {rows} rows of {vocabulary} logits, or one beyond them", labels.len())
    }
    let losses = unwritten(&[rows], DType::F32, logits.device())?;
    let labels = upload(labels, logits.device())?;
    let launch = Launch::new(Module::Softmax, format!("cross_entropy_{}", ending(logits.dtype())?)).tensor(&logits).tensor(&labels);
    let launch = launch.tensor(&losses).count(vocabulary).float((1.0 / denominator) as f32);
    launch.run(logits.device(), [rows, 1], row_threads(vocabulary), 0)?;
    let loss = losses.to_vec1::<f32>()?.iter().map(|loss| f64::from(*loss)).sum::<f64>() / denominator;
    Ok((loss, logits))
}

pub(crate) fn squared_norm(g: &Tensor) -> Result<f64> {
    let count = g.elem_count();
    let blocks = count.div_ceil(THREADS * 16).clamp(1, 1024);
    let sums = unwritten(&[blocks], DType::F32, g.device())?;
    let launch = Launch::new(Module::Elements, "squared_sums").tensor(g).tensor(&sums).wide_count(count as u64);
    launch.run(g.device(), [blocks, 1], THREADS, 0)?;
    Ok(sums.to_vec1::<f32>()?.iter().map(|sum| f64::from(*sum)).sum())
}

pub(crate) fn adamw(variable: &Var, m: &Tensor, v: &Tensor, g: &Tensor, step: &AdamW) -> Result<()> {
    let device: &Device = variable.device();
    let count = g.elem_count();
    if [variable.elem_count(), m.elem_count(), v.elem_count()] != [count; 3] || variable.dtype() != DType::F32 {
        bail!("a variable of {} elements got a gradient of {count}", variable.elem_count())
    }
    let rest = |beta: f64| 1.0 - beta.powi(i32::try_from(step.step).unwrap_or(i32::MAX));
    let launch = Launch::new(Module::Elements, "adamw").tensor(variable).tensor(m).tensor(v).tensor(g).wide_count(count as u64);
    let launch = launch.float(step.beta1 as f32).float(step.beta2 as f32).float(step.epsilon as f32);
    let launch = launch.float((1.0 - step.learning_rate * step.weight_decay) as f32);
    let launch = launch.float((step.learning_rate / rest(step.beta1)) as f32).float(rest(step.beta2).sqrt() as f32);
    launch.float(step.gradient_scale as f32).run(device, [element_blocks(count), 1], THREADS, 0)
}
