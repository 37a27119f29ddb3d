//! Rotary positions, half-split as Hugging Face does it: element `i` of a head turns with element `i + head_dim / 2`.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Tensor};

use super::vector::vectorised;

/// Cosines and sines of every position, rows of `head_dim / 2`.
#[derive(Debug)]
pub struct RopeTable {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    pub(crate) pairs: usize,
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

    /// Cosines and sines as tensors `(positions, pairs)`, f32, sent to a device once.
    pub(crate) fn on(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let mut held = self.on_device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((cos, sin)) = held.as_ref().filter(|(cos, _)| cos.device().same_device(device)) {
            return Ok((cos.clone(), sin.clone()));
        }
        let tensor = |angles: &[f32]| Tensor::from_slice(angles, (angles.len() / self.pairs, self.pairs), device);
        let both = (tensor(&self.cos)?, tensor(&self.sin)?);
        *held = Some(both.clone());
        Ok(both)
    }
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
    /// Turns the first `turned` columns of rows of `width` in place; row `i` stands at `positions[i]`. `direction` is 1,
    /// or -1 for the gradient: the way back.
    pub(crate) fn turn_rows(&self, x: &mut [f32], width: usize, turned: usize, positions: &[u32], direction: f32) {
        for (x, position) in x.chunks_exact_mut(width).zip(positions) {
            let at = *position as usize * self.pairs;
            turn(&mut x[..turned], &self.cos[at..at + self.pairs], &self.sin[at..at + self.pairs], direction);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let table = RopeTable::new(&[1.0, 0.3, 0.1], 8);
        let turned = |x: &[f32], direction| {
            let mut x = x.to_vec();
            table.turn_rows(&mut x, 14, 12, &[0, 1, 2, 0, 5], direction);
            x
        };
        check_gradients(&[noise(1, 70)], |v| turned(&v[0], 1.0), |_, g| vec![turned(g, -1.0)]);
    }
}
