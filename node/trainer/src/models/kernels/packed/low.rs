//! Low-rank parts of a product, packed for its tiles.

use std::borrow::Cow;

use super::super::panels::{Extra, Lines, Panels, WIDTH, pack, panels_length};

/// A low-rank part of the output: `scale * u bᵀ` on the columns `from..from + count`.
#[derive(Clone, Copy)]
pub(crate) struct Low<'a> {
    /// (rows, rank).
    pub u: &'a [f32],
    /// (count, rank).
    pub b: &'a [f32],
    pub rank: usize,
    pub from: usize,
    pub count: usize,
    pub scale: f32,
    /// What [`Low::right`] gave, where it was kept.
    pub laid_out: Option<&'a [f32]>,
}

/// A low-rank part of the input's gradient: `scale * du a`.
#[derive(Clone, Copy)]
pub(crate) struct LowBack<'a> {
    /// (rows, rank).
    pub du: &'a [f32],
    /// (rank, inputs).
    pub a: &'a [f32],
    pub rank: usize,
    pub scale: f32,
}

impl<'a> Low<'a> {
    /// `bᵀ` in panels of the output's columns: those that the part touches.
    pub fn right(&self, outputs: usize) -> Cow<'a, [f32]> {
        if let Some(right) = self.laid_out {
            return Cow::Borrowed(right);
        }
        let last = self.from + self.count;
        assert!(last <= outputs && self.b.len() == self.count * self.rank, "the low-rank part does not fit the weights");
        let begin = self.from / WIDTH * WIDTH;
        let mut right = vec![0.0; (last - begin).next_multiple_of(WIDTH) * self.rank];
        for (output, b) in self.b.chunks_exact(self.rank).enumerate() {
            let column = self.from + output - begin;
            for (index, b) in b.iter().enumerate() {
                right[(column / WIDTH * self.rank + index) * WIDTH + column % WIDTH] = *b;
            }
        }
        Cow::Owned(right)
    }

    pub(super) fn extra<'b>(&self, left: &'b [f32], rows: usize, right: &'b [f32]) -> Extra<'b> {
        Extra { length: self.rank, left: Panels { values: left, rows }, right, first: self.from, last: self.from + self.count }
    }
}

impl LowBack<'_> {
    /// `scale * aᵀ (inputs, rank)` in panels.
    pub(super) fn left(&self, inputs: usize) -> Vec<f32> {
        assert_eq!(self.a.len(), inputs * self.rank, "the low-rank part does not fit the weights");
        let mut left = vec![0.0; panels_length(inputs, self.rank)];
        for (index, a) in self.a.chunks_exact(inputs).enumerate() {
            let panel = &mut left[index / WIDTH * inputs * WIDTH + index % WIDTH..];
            for (to, a) in panel.iter_mut().step_by(WIDTH).zip(a) {
                *to = a * self.scale;
            }
        }
        left
    }

    /// For the inputs from `begin` on.
    pub(super) fn extra<'a>(&self, left: &'a [f32], inputs: usize, begin: usize, right: &'a Lines, rows: usize) -> Extra<'a> {
        let left = Panels { values: &left[begin * WIDTH..], rows: inputs };
        Extra { length: self.rank, left, right: right.values(), first: 0, last: rows }
    }
}

/// Packs `scale * u` of each part, for `rows` rows from `first`; returns them in order.
pub(super) fn scaled_lefts<'a>(into: &'a mut Vec<Lines>, parts: &[Low], first: usize, rows: usize) -> impl Iterator<Item = &'a [f32]> {
    into.resize_with(parts.len().max(into.len()), Lines::default);
    for (low, lines) in parts.iter().zip(into.iter_mut()) {
        let left = lines.at_least(panels_length(rows, low.rank));
        pack(&low.u[first * low.rank..], low.rank, rows, low.rank, left);
        left.iter_mut().for_each(|value| *value *= low.scale);
    }
    into.iter().map(Lines::values).take(parts.len())
}
