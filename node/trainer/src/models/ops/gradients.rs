//! Where a backward leaves the gradients of parameters. Only those that were asked for are computed.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, TensorId, Var};

use super::group::SKINNY_RANK_MAX;
use super::{Array, device, elsewhere};
use crate::models::kernels::add_to;
use crate::models::kernels::product::{Into, Matrix, multiply, product};
use crate::models::kernels::skinny::{Side, outer};

/// A gradient for each variable, in f32; `None` where nothing flowed.
pub type GradientList = Vec<Option<Tensor>>;

/// Sums of gradients, by the index of their variable.
pub struct Gradients<'a> {
    wanted: &'a HashMap<TensorId, usize>,
    sums: Vec<Option<Array>>,
}

/// Index of each variable by the identity of its tensor.
pub fn variable_indices(variables: &[(String, Var)]) -> HashMap<TensorId, usize> {
    variables.iter().enumerate().map(|(index, (_, variable))| (variable.as_tensor().id(), index)).collect()
}

/// A block of a gradient's columns: `g` has rows of `width`, of which `count` from `from` are meant.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    pub width: usize,
    pub from: usize,
    pub count: usize,
}

impl<'a> Gradients<'a> {
    pub fn new(wanted: &'a HashMap<TensorId, usize>) -> Self {
        let count = wanted.values().max().map_or(0, |last| last + 1);
        Self { wanted, sums: (0..count).map(|_| None).collect() }
    }

    pub(crate) fn wants(&self, tensor: &Tensor) -> Option<usize> {
        self.wanted.get(&tensor.id()).copied()
    }

    pub(crate) fn wants_id(&self, id: TensorId) -> bool {
        self.wanted.contains_key(&id)
    }

    pub(crate) fn add(&mut self, index: usize, gradient: Array) -> Result<()> {
        let slot = &mut self.sums[index];
        *slot = Some(match slot.take() {
            Some(sum) => sum.plus(&gradient)?,
            None => gradient,
        });
        Ok(())
    }

    /// Adds `scale * gᵀ x`: the gradient of a weight `(g's columns, inputs)`.
    pub(crate) fn add_outer(&mut self, index: usize, g: &Array, columns: Columns, x: &Array, inputs: usize, scale: f32) -> Result<()> {
        let slot = &mut self.sums[index];
        match (g, x) {
            (Array::Host(g), Array::Host(x)) => {
                let rows = x.len() / inputs;
                let is_low = columns.count == columns.width && columns.count <= SKINNY_RANK_MAX;
                if is_low || inputs <= SKINNY_RANK_MAX {
                    let sum = match slot.get_or_insert_with(|| Array::Host(vec![0.0; columns.count * inputs])) {
                        Array::Host(sum) => sum,
                        Array::Device(_) => return elsewhere(),
                    };
                    match is_low {
                        true => outer(g, columns.count, x, inputs, rows, inputs, scale, sum, Side::Rank),
                        false => outer(x, inputs, &g[columns.from..], columns.width, rows, columns.count, scale, sum, Side::Wide),
                    }
                    return Ok(());
                }
                let dims = (columns.count, inputs, rows);
                let (g, x) = (Matrix::rows(&g[columns.from..], columns.width).transposed(), Matrix::rows(x, inputs));
                match slot {
                    Some(Array::Host(sum)) => multiply(dims, sum, inputs, Into::Add, g, x, scale),
                    Some(Array::Device(_)) => return elsewhere(),
                    none => *none = Some(Array::Host(product(dims, g, x, scale))),
                }
            }
            (Array::Device(g), Array::Device(x)) => {
                let whole = columns.count == columns.width;
                let g = if whole { g.clone() } else { device::columns(g, columns.from, columns.count)? };
                *slot = Some(Array::Device(match slot.take() {
                    Some(Array::Device(sum)) => device::product_onto(sum, &g, true, x, false, scale)?,
                    _ => device::product(&g, true, x, false, scale)?.to_dtype(candle_core::DType::F32)?,
                }));
            }
            _ => return elsewhere(),
        }
        Ok(())
    }

    /// Adds the sums of `g`'s columns: the gradient of a bias.
    pub(crate) fn add_column_sums(&mut self, index: usize, g: &Array, columns: Columns) -> Result<()> {
        let sums = match g {
            Array::Host(g) => {
                let mut sums = vec![0.0; columns.count];
                for row in g.chunks_exact(columns.width) {
                    add_to(&mut sums, &row[columns.from..columns.from + columns.count]);
                }
                Array::Host(sums)
            }
            Array::Device(g) => Array::Device(device::column_sums(&device::columns(g, columns.from, columns.count)?)?),
        };
        self.add(index, sums)
    }

    /// Adds `scale * g`'s rows to the rows `indices` of a table's gradient `(count, width)`.
    pub(crate) fn add_rows(&mut self, index: usize, (count, width): (usize, usize), indices: &[u32], g: &Array, scale: f32) -> Result<()> {
        let slot = &mut self.sums[index];
        match g {
            Array::Host(g) => {
                let Array::Host(sum) = slot.get_or_insert_with(|| Array::Host(vec![0.0; count * width])) else { return elsewhere() };
                for (row, g) in indices.iter().zip(g.chunks_exact(width)) {
                    let at = *row as usize * width;
                    sum[at..at + width].iter_mut().zip(g).for_each(|(sum, g)| *sum += scale * g);
                }
            }
            Array::Device(g) => {
                let sum = match slot.take() {
                    Some(Array::Device(sum)) => sum,
                    _ => Tensor::zeros((count, width), candle_core::DType::F32, g.device())?,
                };
                let g = if scale == 1.0 { g.clone() } else { g.affine(f64::from(scale), 0.0)? };
                *slot = Some(Array::Device(device::add_rows(&sum, indices, &g)?));
            }
        }
        Ok(())
    }

    /// Adds all of `other`, variable by variable.
    pub(crate) fn merge(&mut self, other: Self) -> Result<()> {
        for (index, gradient) in other.sums.into_iter().enumerate() {
            if let Some(gradient) = gradient {
                self.add(index, gradient)?;
            }
        }
        Ok(())
    }

    /// The sums as tensors of their variables' shapes.
    pub(crate) fn finish(self, variables: &[(String, Var)], device: &Device) -> Result<GradientList> {
        let one =
            |(sum, (_, variable)): (Option<Array>, &(String, Var))| sum.map(|sum| sum.into_tensor(variable.dims(), device)).transpose();
        let none = std::iter::repeat_with(|| None);
        self.sums.into_iter().chain(none).zip(variables).map(one).collect()
    }
}
