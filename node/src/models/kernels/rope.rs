//! Rotary positions, half-split as Hugging Face does it: element `i` of a head turns with element `i + head_dim / 2`.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::vector::vectorised;
use super::{Values, values};

/// Cosines and sines of every position, rows of `head_dim / 2`.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
    /// Both as tensors of the device that last asked.
    on_device: Mutex<Option<(Tensor, Tensor)>>,
}

impl RopeTable {
    /// `frequencies`: radians per position for each pair.
    pub fn new(frequencies: &[f64], positions: usize) -> Self {
        // Angles in f32, as Hugging Face computes them: position times frequency rounded, then its cosine.
        let angles = |f: fn(f32) -> f32| -> Vec<f32> {
            let row = |position: usize| frequencies.iter().map(move |w| f(position as f32 * *w as f32));
            (0..positions).flat_map(row).collect()
        };
        Self { cos: angles(f32::cos), sin: angles(f32::sin), pairs: frequencies.len(), on_device: Mutex::default() }
    }

    pub fn positions(&self) -> usize {
        self.cos.len() / self.pairs
    }

    /// Cosines and sines as tensors `(positions, pairs)`, f32, sent to a device once.
    pub(crate) fn on(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let mut held = self.on_device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cos, sin)) = held.as_ref().filter(|(cos, _)| cos.device().same_device(device)) {
            return Ok((cos.clone(), sin.clone()));
        }
        let tensor = |angles: &[f32]| Tensor::from_slice(angles, (self.positions(), self.pairs), device);
        let both = (tensor(&self.cos)?, tensor(&self.sin)?);
        *held = Some(both.clone());
        Ok(both)
    }
}

/// Turns `x (sequences * length, heads * head_dim)`; the first row of each sequence stands at position `offset`.
pub fn rope(x: &Tensor, table: &Arc<RopeTable>, length: usize, offset: usize) -> Result<Tensor> {
    if offset + length > table.positions() {
        bail!("position {} lies beyond the table of {}", offset + length - 1, table.positions());
    }
    x.apply_op1(Rope { table: table.clone(), length, offset, direction: 1.0 })
}

struct Rope {
    table: Arc<RopeTable>,
    length: usize,
    offset: usize,
    /// 1 turns forward, -1 back: the gradient of a rotation is the rotation back.
    direction: f32,
}

vectorised! {
    fn turn(row: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
        let pairs = cos.len();
        for head in row.chunks_exact_mut(2 * pairs) {
            let (first, second) = head.split_at_mut(pairs);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (x, y, s) = (*a, *b, direction * s);
                *a = x * c - y * s;
                *b = y * c + x * s;
            }
        }
    }
}

impl RopeTable {
    /// Turns rows of `width` in place; the rows of each sequence stand at `offset` and on. `direction` is 1, or -1 for the
    /// way back.
    pub(crate) fn turn_rows(&self, x: &mut [f32], width: usize, length: usize, offset: usize, direction: f32) {
        for (row, x) in x.chunks_exact_mut(width).enumerate() {
            let at = (offset + row % length) * self.pairs;
            turn(x, &self.cos[at..at + self.pairs], &self.sin[at..at + self.pairs], direction);
        }
    }
}

impl Rope {
    fn apply(&self, x: &[f32], width: usize) -> Vec<f32> {
        let mut y = x.to_vec();
        self.table.turn_rows(&mut y, width, self.length, self.offset, self.direction);
        y
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        Ok((CpuStorage::F32(self.apply(values(x, layout)?, width)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let back = Rope { table: self.table.clone(), direction: -self.direction, ..*self };
        let dx = back.apply(&Values::of(&gradient)?, x.dim(1)?);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let table = Arc::new(RopeTable::new(&[1.0, 0.3, 0.1], 8));
        check_gradients(&[noise_var(1, &[6, 12])], |v| rope(&v[0], &table, 3, 2));
    }

    #[test]
    fn a_position_beyond_the_table_is_refused() {
        let table = Arc::new(RopeTable::new(&[1.0], 4));
        assert!(rope(&noise_var(1, &[5, 2]), &table, 5, 0).is_err());
    }
}
