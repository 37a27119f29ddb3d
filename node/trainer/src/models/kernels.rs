//! The CPU's side of the model's ops: loops over contiguous f32 rows, forward and backward, each fused into as few passes
//! over memory as it needs.
//!
//! Training is parallel over slices of a batch, each on one thread, so most loops do not split their work; only those that
//! meet a large model do ([`PARALLEL_WORK`]), and then only where the slices have not taken all threads ([`serially`]).
//!
//! This is the only folder of the room with `unsafe`: calls of the GEMM, and functions compiled for wider vector units
//! that run only where the processor has them.
#![allow(unsafe_code)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cross_entropy;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod cuda;
pub mod dropout;
pub mod norm;
pub(crate) mod packed;
mod panels;
pub(crate) mod product;
pub mod rope;
pub(crate) mod skinny;
mod small;
mod vector;

use std::cell::{Cell, RefCell};
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};

/// Multiply-adds above which one op is split over threads.
pub(crate) const PARALLEL_WORK: usize = 1 << 27;

thread_local! {
    static SERIAL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with every op on this thread alone: for slices that keep all threads busy themselves.
pub fn serially<T>(body: impl FnOnce() -> T) -> T {
    let before = SERIAL.replace(true);
    let result = body();
    SERIAL.set(before);
    result
}

/// How many threads an op of so many multiply-adds may use.
pub(crate) fn threads_for(work: usize) -> usize {
    threads_from(PARALLEL_WORK, work)
}

/// As [`threads_for`], for an op that is worth splitting from `least` multiply-adds on.
pub(crate) fn threads_from(least: usize, work: usize) -> usize {
    match work >= least && !SERIAL.get() {
        true => rayon::current_num_threads(),
        false => 1,
    }
}

/// `x += y`.
pub(crate) fn add_to(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// A CPU tensor's values, borrowed for as long as this lives.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Values<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(_)) = &*storage else { bail!("a CPU op needs f32 values on the CPU") };
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Self { storage, range: start..end }),
            None => bail!("a CPU op needs a contiguous tensor"),
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

/// Lends a CPU tensor's values for writing.
pub(crate) fn mutate(tensor: &Tensor, body: impl FnMut(&mut [f32]) -> Result<()>) -> Result<()> {
    struct Body<F>(RefCell<F>);
    impl<F: FnMut(&mut [f32]) -> Result<()>> InplaceOp1 for Body<F> {
        fn name(&self) -> &'static str {
            "mutate"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let (CpuStorage::F32(all), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
                bail!("a CPU op needs contiguous f32 values")
            };
            (self.0.borrow_mut())(&mut all[start..end])
        }
    }
    tensor.inplace_op1(&Body(RefCell::new(body)))
}

#[cfg(test)]
pub(crate) mod testing {
    //! Finite differences: what every backward is held against.

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

    /// Holds `backward(inputs, g)`, the gradients of `sum(g * forward(inputs))` for each input, against central
    /// differences, element by element.
    pub fn check_gradients(
        inputs: &[Vec<f32>],
        forward: impl Fn(&[Vec<f32>]) -> Vec<f32>,
        backward: impl Fn(&[Vec<f32>], &[f32]) -> Vec<Vec<f32>>,
    ) {
        let g = noise(99, forward(inputs).len());
        // Summed in f64: the differences are small.
        let value = |inputs: &[Vec<f32>]| forward(inputs).iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum::<f64>();
        let gradients = backward(inputs, &g);
        assert_eq!(gradients.len(), inputs.len());
        const STEP: f32 = 1e-2;
        for (which, gradient) in gradients.iter().enumerate() {
            assert_eq!(gradient.len(), inputs[which].len());
            for (element, found) in gradient.iter().enumerate() {
                let at = |by: f32| {
                    let mut changed = inputs.to_vec();
                    changed[which][element] += by;
                    value(&changed)
                };
                let expected = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 2e-3 * (1.0 + expected.abs()), "input {which}[{element}]: {found}, differences say {expected}");
            }
        }
    }
}
