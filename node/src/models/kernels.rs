//! Fused operations with their own backward, on CPU f32. candle's fast ops (norm, rope, softmax) have no gradient, and its
//! differentiable ones cost several passes over memory and a gradient for every frozen weight.
//!
//! Every op is a plain loop over contiguous rows. Training is parallel over slices of a batch, each with its own graph,
//! so most ops do not split their work; only those that meet a large model do ([`PARALLEL_WORK`]).
//!
//! This is the only folder of the room with `unsafe`: calls of the GEMM, and functions compiled for wider vector units
//! that run only where the processor has them.
#![allow(unsafe_code)]

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod linear;
pub(crate) mod packed;
mod panels;
pub(crate) mod product;
pub mod rms_norm;
pub mod rope;
pub mod rows;

pub(crate) mod skinny;
pub mod sum;
pub mod swiglu;
mod vector;

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor, bail};

/// Multiply-adds above which one op is split over threads.
pub(crate) const PARALLEL_WORK: usize = 1 << 27;

/// The values of a contiguous f32 tensor's storage.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("a fused op needs a contiguous tensor"),
    }
}

/// A tensor's values, borrowed for as long as this lives.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Values<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(_)) = &*storage else { bail!("a fused op needs f32 values on the CPU") };
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Self { storage, range: start..end }),
            None => bail!("a fused op needs a contiguous tensor"),
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(all)) => &all[self.range.clone()],
            _ => &[], // `of` has refused every other storage.
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Finite differences: what every op's backward is held against.
    use super::*;
    use candle_core::{Device, Var};

    /// Numbers in (-1, 1), the same on every run.
    pub fn noise(seed: u64, count: usize) -> Vec<f32> {
        let mut stream = blake3::Hasher::new_derive_key("noise of tests").update(&seed.to_le_bytes()).finalize_xof();
        let mut word = [0; 4];
        let mut next = || {
            stream.fill(&mut word);
            u32::from_le_bytes(word) as f32 / u32::MAX as f32 * 2.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    pub fn noise_var(seed: u64, dims: &[usize]) -> Var {
        let values = noise(seed, dims.iter().product());
        Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
    }

    /// Compares the gradient of `sum(weights * op(inputs))` with central differences, element by element.
    pub fn check_gradients(inputs: &[Var], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let tensors = |changed: Option<(usize, usize, f32)>| -> Vec<Tensor> {
            let one = |(which, var): (usize, &Var)| match changed {
                Some((input, element, by)) if input == which => {
                    let mut values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    values[element] += by;
                    Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()
                }
                _ => var.as_tensor().clone(),
            };
            inputs.iter().enumerate().map(one).collect()
        };
        let shape = op(&tensors(None)).unwrap().shape().clone();
        let weights = Tensor::from_vec(noise(99, shape.elem_count()), shape, &Device::Cpu).unwrap();
        // Summed in f64: the differences are small.
        let value = |changed| -> f64 {
            let product = (op(&tensors(changed)).unwrap() * &weights).unwrap();
            product.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| f64::from(*v)).sum()
        };
        let scalar = (op(&tensors(None)).unwrap() * &weights).unwrap().sum_all().unwrap();
        let gradients = scalar.backward().unwrap();
        const STEP: f32 = 1e-2;
        for (which, var) in inputs.iter().enumerate() {
            let gradient = gradients.get(var).expect("every input has a gradient");
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (element, found) in gradient.iter().enumerate() {
                let difference = value(Some((which, element, STEP))) - value(Some((which, element, -STEP)));
                let expected = difference / f64::from(2.0 * STEP);
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 2e-3 * (1.0 + expected.abs()), "input {which}[{element}]: {found}, differences say {expected}");
            }
        }
    }
}
