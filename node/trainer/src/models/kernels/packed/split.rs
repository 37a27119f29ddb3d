//! Products of few rows over several threads, each with panels of its own: generation reads all weights for a row or a few,
//! so what counts is that every core's share of the memory's bandwidth is used. Bits are those of one thread.

use std::borrow::Cow;

use rayon::prelude::*;

use super::super::panels::{Extra, Lines, Panels, Product, Right, WIDTH, pack, panels_length, unit};
use super::low::{Low, scaled_lefts};
use super::{Packed, SCRATCH, Shared};

/// Panels of a task: enough to be worth handing over.
const TASK_PANELS: usize = 4;

impl Packed {
    /// As [`Packed::forward`], all rows at once.
    pub(super) fn forward_split(&self, x: &[f32], rows: usize, low: &[Low], rights: &[Cow<[f32]>], onto: Option<Vec<f32>>) -> Vec<f32> {
        let (unit, depth) = (unit(), self.depth(self.inputs));
        // Not a thread's own scratch: while this thread waits it may take up another product.
        let (mut pairs, mut factor, mut scaled) = (Lines::default(), Lines::default(), Vec::new());
        let x = self.elements(x, rows, self.inputs, &mut pairs);
        let left = factor.at_least(panels_length(rows, depth));
        pack(x, depth, rows, depth, left);
        let parts = low.iter().zip(scaled_lefts(&mut scaled, low, 0, rows)).zip(rights);
        let extras: Vec<Extra> = parts.map(|((low, left), right)| low.extra(left, rows, right)).collect();
        let product = Product {
            rows,
            columns: self.outputs,
            length: depth,
            element: self.element,
            left: Panels { values: left, rows },
            right: Right::Panels(Panels { values: self.values.values(), rows: depth }),
            extras: &extras,
        };
        let add = onto.is_some();
        let mut y = onto.unwrap_or_else(|| Vec::with_capacity(rows * self.outputs));
        assert!(!add || y.len() == rows * self.outputs);
        let to = Shared(y.as_mut_ptr());
        let task = TASK_PANELS * WIDTH;
        (0..self.outputs.div_ceil(task)).into_par_iter().for_each(|index| {
            let span = index * task..self.outputs.min((index + 1) * task);
            SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: the length asserted above or the capacity asked for; tasks have columns of their own.
                unsafe { product.compute_columns(span, unit, to.at(0), self.outputs, add, false, &mut scratch.tile) }
            });
        });
        // SAFETY: every element has been written.
        unsafe { y.set_len(rows * self.outputs) };
        y
    }
}
