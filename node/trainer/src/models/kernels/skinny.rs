//! Products with one short side, a low-rank part's rank: a general GEMM wastes most of its tile on them.

use std::cell::RefCell;

use super::panels::{Element, Lines, Panels, Product, Right, panels_length, unit};

thread_local! {
    static SCRATCH: RefCell<(Lines, Lines)> = RefCell::default();
}

/// `scale * x aᵀ`, `(rows, rank)`: `x` has `rows` rows of `count` elements, `width` apart; `a` is `(rank, count)`.
pub(crate) fn narrow(x: &[f32], width: usize, rows: usize, count: usize, a: &[f32], rank: usize, scale: f32) -> Vec<f32> {
    let mut u = vec![0.0; rows * rank];
    unit().narrow(x, width, rows, count, a, rank, scale, &mut u);
    u
}

/// `scale * g b`, `(rows, rank)`: `g` has `rows` rows of `count` elements, `width` apart; `b` is `(count, rank)`.
pub(crate) fn narrow_back(g: &[f32], width: usize, rows: usize, count: usize, b: &[f32], rank: usize, scale: f32) -> Vec<f32> {
    assert_eq!(b.len(), rank * count);
    let mut across = vec![0.0; b.len()];
    for (index, across) in across.chunks_exact_mut(count.max(1)).enumerate() {
        for (to, b) in across.iter_mut().zip(b[index..].iter().step_by(rank)) {
            *to = *b;
        }
    }
    narrow(g, width, rows, count, &across, rank, scale)
}

/// How [`outer`] lays its sum.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Side {
    /// (rank, count).
    Rank,
    /// (count, rank).
    Wide,
}

/// `to += scale * lowᵀ wide`: `low` is `(rows, rank)`, `wide` has `rows` rows of `count` elements, `width` apart.
#[allow(clippy::too_many_arguments)] // A product has that many.
pub(crate) fn outer(
    low: &[f32],
    rank: usize,
    wide: &[f32],
    width: usize,
    rows: usize,
    count: usize,
    scale: f32,
    to: &mut [f32],
    side: Side,
) {
    assert!(low.len() == rows * rank && to.len() == rank * count);
    if low.is_empty() || to.is_empty() {
        return;
    }
    SCRATCH.with_borrow_mut(|(factor, tile)| {
        let left = factor.at_least(panels_length(rank, rows));
        unit().pack_transposed(low, rank, rows, rank, left);
        if scale != 1.0 {
            left.iter_mut().for_each(|value| *value *= scale);
        }
        let (left, right) = (Panels { values: left, rows: rank }, Right::Rows { values: wide, width });
        let product = Product { rows: rank, columns: count, length: rows, element: Element::Single, left, right, extras: &[] };
        let (width, transposed) = if side == Side::Wide { (rank, true) } else { (count, false) };
        // SAFETY: `to` holds the whole product, as asserted.
        unsafe { product.compute(unit(), to.as_mut_ptr(), width, true, transposed, tile) }
    });
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;

    /// Odd sizes, rows wider than what is used, ranks below, at and above a tile's.
    const SIZES: [(usize, usize, usize, usize); 6] =
        [(1, 1, 1, 1), (7, 40, 33, 3), (33, 50, 50, 8), (65, 130, 100, 17), (4, 70, 64, 40), (300, 40, 37, 8)];

    fn close(found: &[f32], expected: impl Fn(usize) -> f64) {
        for (at, found) in found.iter().enumerate() {
            let expected = expected(at);
            assert!((f64::from(*found) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{at}: {found}, expected {expected}");
        }
    }

    #[test]
    fn products_agree_with_plain_loops() {
        for (rows, width, count, rank) in SIZES {
            let (x, a, b, low) = (noise(1, rows * width), noise(2, rank * count), noise(3, count * rank), noise(4, rows * rank));
            let x_at = |row: usize, column: usize| f64::from(x[row * width + column]);
            let u = narrow(&x, width, rows, count, &a, rank, 0.5);
            let sum = |at: usize| (0..count).map(|c| x_at(at / rank, c) * f64::from(a[at % rank * count + c])).sum::<f64>();
            close(&u, |at| 0.5 * sum(at));
            let du = narrow_back(&x, width, rows, count, &b, rank, 2.0);
            let sum = |at: usize| (0..count).map(|c| x_at(at / rank, c) * f64::from(b[c * rank + at % rank])).sum::<f64>();
            close(&du, |at| 2.0 * sum(at));
            let sum =
                |index: usize, column: usize| (0..rows).map(|row| f64::from(low[row * rank + index]) * x_at(row, column)).sum::<f64>();
            let before = noise(5, rank * count);
            let mut to = before.clone();
            outer(&low, rank, &x, width, rows, count, 0.5, &mut to, Side::Rank);
            close(&to, |at| f64::from(before[at]) + 0.5 * sum(at / count, at % count));
            let mut to = before.clone();
            outer(&low, rank, &x, width, rows, count, 0.5, &mut to, Side::Wide);
            close(&to, |at| f64::from(before[at]) + 0.5 * sum(at % rank, at / rank));
        }
    }
}
