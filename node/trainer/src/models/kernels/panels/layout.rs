//! Memory for panels, and matrices laid out in it.

use super::super::vector::vectorised;
use super::WIDTH;

/// A cache line: panels begin on one, so that no lane vector crosses two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; 16]);

/// Memory of whole cache lines.
#[derive(Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    pub fn zeros(length: usize) -> Self {
        Self(vec![Line([0.0; 16]); length.div_ceil(16)])
    }

    /// At least `length` elements, of whatever values.
    pub fn at_least(&mut self, length: usize) -> &mut [f32] {
        let lines = length.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        &mut self.values_mut()[..length]
    }

    pub fn values(&self) -> &[f32] {
        // SAFETY: a line is 16 floats without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// Two neighbours, rounded to bf16, as one element.
#[inline(always)]
fn pair(first: f32, second: f32) -> f32 {
    // To the nearest, ties to even. A value that is no number stays none: its low bits may not carry it away.
    let round = |value: f32| match value.is_nan() {
        true => (value.to_bits() >> 16) | 0x40,
        false => (value.to_bits() + 0x7fff + ((value.to_bits() >> 16) & 1)) >> 16,
    };
    f32::from_bits(round(first) | (round(second) << 16))
}

vectorised! {
    fn pair_up(from: &[[f32; 2]], to: &mut [f32]) {
        for (to, [first, second]) in to.iter_mut().zip(from) {
            *to = pair(*first, *second);
        }
    }
}

/// Rounds `rows` rows of `columns` elements to bf16 and pairs neighbours: rows of `columns / 2`, rounded up; 0 follows an odd
/// end.
pub(crate) fn paired(from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
    assert!(from.len() >= rows * columns && to.len() >= rows * columns.div_ceil(2));
    if columns.is_multiple_of(2) {
        pair_up(from[..rows * columns].as_chunks::<2>().0, to);
        return;
    }
    for (from, to) in from.chunks_exact(columns).zip(to.chunks_exact_mut(columns.div_ceil(2))).take(rows) {
        let (whole, rest) = from.as_chunks::<2>();
        pair_up(whole, to);
        to[whole.len()] = pair(rest[0], 0.0);
    }
}

/// Elements of a matrix in panels.
pub(crate) fn panels_length(rows: usize, columns: usize) -> usize {
    rows * columns.next_multiple_of(WIDTH)
}

/// Lays `rows` rows of `columns` elements, `width` apart, in panels. What lies beyond the last column keeps its values.
pub(crate) fn pack(from: &[f32], width: usize, rows: usize, columns: usize, to: &mut [f32]) {
    for (panel, first) in to.chunks_exact_mut((rows * WIDTH).max(1)).zip((0..columns).step_by(WIDTH)) {
        let count = WIDTH.min(columns - first);
        for (row, to) in panel.chunks_exact_mut(WIDTH).enumerate() {
            let from = &from[row * width + first..][..count];
            match <&[f32; WIDTH]>::try_from(from) {
                // Of known length it is two vector moves.
                Ok(whole) => to.copy_from_slice(whole),
                Err(_) => to[..count].copy_from_slice(from),
            }
        }
    }
}
