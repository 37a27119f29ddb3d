//! Linear maps that share an input, laid side by side in one output: query, key and value; gate and up; or one alone.
//!
//! `y = x Wᵀ + b`, and for each low-rank part (LoRA, Hu et al. 2021) `+ scale * dropout(x) Aᵀ Bᵀ`. Weights are (outputs,
//! inputs). Nothing is computed for a frozen weight but the input's gradient.

mod rights;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Result, Tensor, TensorId};

use super::gradients::Columns;
use super::{Array, Gradients, device, drop_out, elsewhere};
use crate::models::kernels::packed::{Low as LowPart, LowBack, Packed};
use crate::models::kernels::product::{Into, Matrix, multiply, product};
use crate::models::kernels::{Values, skinny};
use rights::KeptRights;

/// One linear map.
#[derive(Debug, Clone)]
pub struct Linear {
    /// (outputs, inputs).
    pub weight: Tensor,
    /// (outputs).
    pub bias: Option<Tensor>,
    /// Low-rank parts, all added.
    pub lora: Vec<Lora>,
}

/// A low-rank part of a linear map.
#[derive(Debug, Clone)]
pub struct Lora {
    /// (rank, inputs).
    pub a: Tensor,
    /// (outputs, rank).
    pub b: Tensor,
    /// alpha / rank, or alpha / sqrt(rank).
    pub scale: f32,
    /// The part of the input that is dropped in training.
    pub dropout: f32,
}

impl Linear {
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, lora: Vec::new() }
    }

    pub fn outputs(&self) -> usize {
        self.weight.dims()[0]
    }

    pub fn inputs(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Whether any of its tensors wants a gradient.
    fn is_wanted(&self, into: &Gradients) -> bool {
        let lora = self.lora.iter().any(|lora| into.wants(&lora.a).is_some() || into.wants(&lora.b).is_some());
        lora || into.wants(&self.weight).is_some() || self.bias.as_ref().is_some_and(|bias| into.wants(bias).is_some())
    }
}

/// `dropout(x) Aᵀ` of every low-rank part, in order: what the backward needs beside the input.
pub(crate) type Low = Vec<Array>;

/// Linear maps of one input.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub parts: Vec<Linear>,
    /// The weights as the CPU's kernels want them, made when first used; models of one base share them.
    packed: Arc<OnceLock<(Vec<TensorId>, Packed)>>,
    /// Low-rank parts as the kernels want them; models of one base share these too.
    rights: Arc<KeptRights>,
    /// Packed weights and their products are in bf16.
    in_bf16: bool,
}

/// Below so many outputs a panel would be mostly empty.
const PACKED_OUTPUTS_MIN: usize = 16;
/// Up to this rank, low-rank parts take kernels of their own.
pub(super) const SKINNY_RANK_MAX: usize = 64;

impl Group {
    pub fn new(parts: Vec<Linear>) -> Self {
        Self { parts, packed: Arc::default(), rights: Arc::default(), in_bf16: false }
    }

    /// From now on packs its frozen weights in bf16.
    pub fn multiply_in_bf16(&mut self) {
        (self.packed, self.in_bf16) = (Arc::default(), true);
    }

    /// From now on packs its own weights, where they are not `base`'s, with which it shares the packed ones.
    pub fn pack_apart_from(&mut self, base: &Self) {
        let ids = |group: &Self| group.parts.iter().map(|part| part.weight.id()).collect::<Vec<TensorId>>();
        if ids(self) != ids(base) {
            self.packed = Arc::default();
        }
    }

    /// The packed weights, where they are frozen: those of variables change with every step.
    fn packed(&self) -> Result<Option<&Packed>> {
        let is_frozen = |weight: &Tensor| weight.device().is_cpu() && weight.dtype() == DType::F32 && !weight.is_variable();
        if self.outputs() < PACKED_OUTPUTS_MIN || !self.parts.iter().all(|part| is_frozen(&part.weight)) {
            return Ok(None);
        }
        let weights = self.parts.iter().map(|part| Values::of(&part.weight)).collect::<Result<Vec<_>>>()?;
        let ids: Vec<TensorId> = self.parts.iter().map(|part| part.weight.id()).collect();
        let pack = || {
            let weights: Vec<&[f32]> = weights.iter().map(|weight| &**weight).collect();
            let packed = match self.in_bf16 {
                true => Packed::new_bf16(&weights, self.inputs()),
                false => Packed::new(&weights, self.inputs()),
            };
            (ids.clone(), packed)
        };
        let (of, packed) = self.packed.get_or_init(pack);
        // A weight may have been replaced since.
        Ok((*of == ids).then_some(packed))
    }

    pub fn outputs(&self) -> usize {
        self.parts.iter().map(Linear::outputs).sum()
    }

    fn inputs(&self) -> usize {
        self.parts[0].inputs()
    }

    /// Whether the backward needs this group's input: some tensor of it wants a gradient.
    pub fn is_wanted(&self, into: &Gradients) -> bool {
        self.parts.iter().any(|part| part.is_wanted(into))
    }

    /// Whether dropout would change anything: then the forward in training differs from that in use.
    fn seed(seed: Option<u64>, part: usize, lora: &Lora) -> Option<u64> {
        // Each part of each group draws its own mask.
        seed.filter(|_| lora.dropout > 0.0).map(|seed| seed.wrapping_add((part as u64) << 32))
    }

    /// The group's output for `rows` rows of `x`, added to `onto` where given. `seed` drops out, for training.
    pub fn forward(&self, x: &Array, rows: usize, onto: Option<Array>, seed: Option<u64>) -> Result<(Array, Low)> {
        let mut low = Vec::new();
        for (index, lora) in self.parts.iter().flat_map(|part| &part.lora).enumerate() {
            let dropped = Self::seed(seed, index, lora).map(|seed| drop_out(x, lora.dropout, seed)).transpose()?;
            low.push(product_array(dropped.as_ref().unwrap_or(x), &lora.a, rows)?);
        }
        let y = match (x, onto) {
            (Array::Host(x), None) => Array::Host(self.forward_host(x, rows, &low, None)?),
            (Array::Host(x), Some(Array::Host(onto))) => Array::Host(self.forward_host(x, rows, &low, Some(onto))?),
            (Array::Device(x), None) => Array::Device(self.forward_device(x, &low)?),
            (Array::Device(x), Some(Array::Device(onto))) => Array::Device(device::add(&onto, &self.forward_device(x, &low)?)?),
            _ => return elsewhere(),
        };
        Ok((y, low))
    }

    fn forward_host(&self, x: &[f32], rows: usize, low: &Low, onto: Option<Vec<f32>>) -> Result<Vec<f32>> {
        let (inputs, width) = (self.inputs(), self.outputs());
        if let Some(packed) = self.packed()? {
            return self.forward_packed(packed, x, rows, low, onto);
        }
        let into = if onto.is_some() { Into::Add } else { Into::Overwrite };
        let mut low = low.iter();
        let mut y = match onto {
            Some(y) => y,
            None => vec![0.0; rows * width],
        };
        let mut from = 0;
        for part in &self.parts {
            let weight = Values::of(&part.weight)?;
            let dims = (rows, part.outputs(), inputs);
            multiply(dims, &mut y[from..], width, into, Matrix::rows(x, inputs), Matrix::rows(&weight, inputs).transposed(), 1.0);
            for lora in &part.lora {
                let (Some(Array::Host(u)), b, rank) = (low.next(), Values::of(&lora.b)?, lora.b.dim(1)?) else { return elsewhere() };
                let dims = (rows, part.outputs(), rank);
                multiply(dims, &mut y[from..], width, Into::Add, Matrix::rows(u, rank), Matrix::rows(&b, rank).transposed(), lora.scale);
            }
            if let Some(bias) = &part.bias {
                let bias = Values::of(bias)?;
                for row in y.chunks_exact_mut(width) {
                    row[from..from + bias.len()].iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b);
                }
            }
            from += part.outputs();
        }
        Ok(y)
    }

    fn forward_packed(&self, packed: &Packed, x: &[f32], rows: usize, low: &Low, onto: Option<Vec<f32>>) -> Result<Vec<f32>> {
        let bias = match self.parts.iter().any(|part| part.bias.is_some()) {
            true => {
                let mut bias = Vec::with_capacity(self.outputs());
                for part in &self.parts {
                    match &part.bias {
                        Some(values) => bias.extend_from_slice(&Values::of(values)?),
                        None => bias.resize(bias.len() + part.outputs(), 0.0),
                    }
                }
                Some(bias)
            }
            false => None,
        };
        let bs = self.parts.iter().flat_map(|part| &part.lora).map(|lora| Values::of(&lora.b)).collect::<Result<Vec<_>>>()?;
        let rights = self.rights.of(&self.parts, self.outputs())?;
        let (mut parts, mut from) = (Vec::with_capacity(bs.len()), 0);
        for part in &self.parts {
            for lora in &part.lora {
                let index = parts.len();
                let (Some(Array::Host(u)), rank) = (low.get(index), lora.b.dim(1)?) else { return elsewhere() };
                let laid_out = rights.as_ref().map(|rights| &rights[index][..]);
                parts.push(LowPart { u, b: &bs[index], rank, from, count: part.outputs(), scale: lora.scale, laid_out });
            }
            from += part.outputs();
        }
        Ok(packed.forward(x, rows, &parts, bias.as_deref(), onto))
    }

    fn forward_device(&self, x: &Tensor, low: &Low) -> Result<Tensor> {
        let mut low = low.iter();
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let mut y = device::product(x, false, &part.weight, true, 1.0)?;
            for lora in &part.lora {
                let Some(Array::Device(u)) = low.next() else { return elsewhere() };
                y = device::product_onto(y, u, false, &lora.b, true, lora.scale)?;
            }
            if let Some(bias) = &part.bias {
                y = device::add_bias(y, bias)?;
            }
            parts.push(y);
        }
        match parts.len() {
            1 => Ok(parts.remove(0)),
            _ => device::join(&parts),
        }
    }

    /// Adds the group's gradients `into`, and, where the input wants one, returns its gradient, added to `onto`.
    #[allow(clippy::too_many_arguments)] // A backward needs all of its forward.
    pub fn backward(
        &self,
        x: &Array,
        low: &Low,
        g: &Array,
        rows: usize,
        input_wanted: bool,
        onto: Option<Array>,
        seed: Option<u64>,
        into: &mut Gradients,
    ) -> Result<Option<Array>> {
        let width = self.outputs();
        let packed = match (g, input_wanted) {
            (Array::Host(_), true) => self.packed()?,
            _ => None,
        };
        // Low-rank parts that ride along with the packed weights.
        let mut riding = Vec::new();
        let mut dx = onto;
        let (mut from, mut index) = (0, 0);
        for part in &self.parts {
            let columns = Columns { width, from, count: part.outputs() };
            from += part.outputs();
            if input_wanted && packed.is_none() {
                dx = Some(product_back(g, columns, &part.weight, 1.0, rows, dx)?);
            }
            if let Some(weight) = into.wants(&part.weight) {
                into.add_outer(weight, g, columns, x, part.inputs(), 1.0)?;
            }
            if let Some(bias) = part.bias.as_ref().and_then(|bias| into.wants(bias)) {
                into.add_column_sums(bias, g, columns)?;
            }
            for lora in &part.lora {
                let seed = Self::seed(seed, index, lora);
                let u = low.get(index);
                index += 1;
                let rank = lora.b.dim(1)?;
                if let (Some(b), Some(u)) = (into.wants(&lora.b), u) {
                    into.add_outer(b, g, columns, u, rank, lora.scale)?;
                }
                let a = into.wants(&lora.a);
                if a.is_none() && !input_wanted {
                    continue;
                }
                let du = product_back(g, columns, &lora.b, lora.scale, rows, None)?;
                let whole = Columns { width: rank, from: 0, count: rank };
                if let Some(a) = a {
                    let dropped = seed.map(|seed| drop_out(x, lora.dropout, seed)).transpose()?;
                    into.add_outer(a, &du, whole, dropped.as_ref().unwrap_or(x), part.inputs(), 1.0)?;
                }
                if input_wanted {
                    dx = Some(match seed {
                        None if packed.is_some() => {
                            riding.push((du, Values::of(&lora.a)?, rank));
                            continue;
                        }
                        None => product_back(&du, whole, &lora.a, 1.0, rows, dx)?,
                        Some(seed) => {
                            let through = drop_out(&product_back(&du, whole, &lora.a, 1.0, rows, None)?, lora.dropout, seed)?;
                            match dx {
                                Some(dx) => dx.plus(&through)?,
                                None => through,
                            }
                        }
                    });
                }
            }
        }
        let (Some(packed), Array::Host(g)) = (packed, g) else { return Ok(dx) };
        let onto = match dx {
            Some(Array::Host(dx)) => Some(dx),
            None => None,
            Some(Array::Device(_)) => return elsewhere(),
        };
        let mut parts = Vec::with_capacity(riding.len());
        for (du, a, rank) in &riding {
            let Array::Host(du) = du else { return elsewhere() };
            parts.push(LowBack { du, a, rank: *rank, scale: 1.0 });
        }
        Ok(Some(Array::Host(packed.backward(g, rows, &parts, onto))))
    }
}

/// `x wᵀ` for `w (outputs, inputs)`.
fn product_array(x: &Array, weight: &Tensor, rows: usize) -> Result<Array> {
    let (outputs, inputs) = weight.dims2()?;
    match x {
        Array::Host(x) => {
            let weight = Values::of(weight)?;
            if outputs <= SKINNY_RANK_MAX {
                return Ok(Array::Host(skinny::narrow(x, inputs, rows, inputs, &weight, outputs, 1.0)));
            }
            Ok(Array::Host(product((rows, outputs, inputs), Matrix::rows(x, inputs), Matrix::rows(&weight, inputs).transposed(), 1.0)))
        }
        Array::Device(x) => device::product(x, false, weight, true, 1.0).map(Array::Device),
    }
}

/// `onto + scale * g w` for the given columns of `g` and `w (columns, inputs)`.
fn product_back(g: &Array, columns: Columns, weight: &Tensor, scale: f32, rows: usize, onto: Option<Array>) -> Result<Array> {
    let (outputs, inputs) = weight.dims2()?;
    match (g, onto) {
        (Array::Host(g), onto) => {
            let weight = Values::of(weight)?;
            if inputs <= SKINNY_RANK_MAX && onto.is_none() {
                let du = skinny::narrow_back(&g[columns.from..], columns.width, rows, outputs, &weight, inputs, scale);
                return Ok(Array::Host(du));
            }
            let dims = (rows, inputs, outputs);
            let (g, weight) = (Matrix::rows(&g[columns.from..], columns.width), Matrix::rows(&weight, inputs));
            match onto {
                Some(Array::Host(mut dx)) => {
                    multiply(dims, &mut dx, inputs, Into::Add, g, weight, scale);
                    Ok(Array::Host(dx))
                }
                None => Ok(Array::Host(product(dims, g, weight, scale))),
                Some(Array::Device(_)) => elsewhere(),
            }
        }
        (Array::Device(g), onto) => {
            let g = if columns.count == columns.width { g.clone() } else { device::columns(g, columns.from, columns.count)? };
            match onto {
                Some(Array::Device(dx)) => device::product_onto(dx, &g, false, weight, false, scale).map(Array::Device),
                None => device::product(&g, false, weight, false, scale).map(Array::Device),
                Some(Array::Host(_)) => elsewhere(),
            }
        }
    }
}
