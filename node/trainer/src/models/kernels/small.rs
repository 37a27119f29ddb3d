//! Products of small matrices, such as one head's: packed into panels that stay in the cache, on one thread.
//!
//! A general GEMM packs for each of many small products anew, and for tiles that these do not fill.

use std::cell::RefCell;
use std::ops::Range;

use super::panels::{Element, Lines, Panels, Product, Right, WIDTH, pack, panels_length, unit};
use super::product::{Into, Matrix};

thread_local! {
    static SCRATCH: RefCell<[Lines; 3]> = RefCell::default();
}

/// `destination (m, n; rows of `width`) = or += a (m, k) b (k, n)`. One of each factor's strides must be 1.
///
/// # Safety
/// `destination` must be valid for `m` rows of `n` elements, `width` apart, which nobody else touches meanwhile.
pub(crate) unsafe fn multiply_small(
    (m, n, k): (usize, usize, usize),
    destination: *mut f32,
    width: usize,
    into: Into,
    a: Matrix,
    b: Matrix,
) {
    assert!(a.covers(m, k) && b.covers(k, n) && (a.column == 1 || a.row == 1) && (b.column == 1 || b.row == 1));
    if m * n * k == 0 {
        assert!(m * n == 0 || into == Into::Add, "a product of nothing");
        return;
    }
    let unit = unit();
    SCRATCH.with_borrow_mut(|[left, right, tile]| {
        let left = left.at_least(panels_length(m, k));
        match a.column {
            1 => pack(a.values, a.row, m, k, left),
            _ => unit.pack_transposed(a.values, a.column, k, m, left),
        }
        let right = match b.column {
            1 => Right::Rows { values: b.values, width: b.row },
            _ => {
                let right = right.at_least(panels_length(k, n));
                unit.pack_transposed(b.values, b.column, n, k, right);
                Right::Panels(Panels { values: right, rows: k })
            }
        };
        let left = Panels { values: left, rows: m };
        let product = Product { rows: m, columns: n, length: k, element: Element::Single, left, right, extras: &[] };
        // SAFETY: the caller's promise.
        unsafe { product.compute(unit, destination, width, into == Into::Add, false, tile) }
    });
}

/// Products of the rows of two matrices, `a bᵀ`, of which only some blocks are wanted: both are packed once.
pub(crate) struct RowProducts<'a> {
    left: &'a [f32],
    right: &'a [f32],
    tile: &'a mut Lines,
    rows: usize,
    length: usize,
}

impl RowProducts<'_> {
    /// For `a` and `b` of `rows` rows of `length` elements.
    pub fn of(a: Matrix, b: Matrix, rows: usize, length: usize, body: impl FnOnce(&mut RowProducts)) {
        assert!(a.column == 1 && b.column == 1 && a.covers(rows, length) && b.covers(rows, length));
        SCRATCH.with_borrow_mut(|[left, right, tile]| {
            let left = left.at_least(panels_length(rows, length));
            pack(a.values, a.row, rows, length, left);
            let right = right.at_least(panels_length(length, rows));
            unit().pack_transposed(b.values, b.row, rows, length, right);
            body(&mut RowProducts { left, right, tile, rows, length });
        });
    }

    /// The block of `p (rows, rows)` at the given rows and columns; up to 31 columns before them are computed as well.
    pub fn compute(&mut self, rows: Range<usize>, columns: Range<usize>, p: &mut [f32]) {
        assert!(rows.end <= self.rows && columns.end <= self.rows && p.len() == self.rows * self.rows);
        let begin = columns.start / WIDTH * WIDTH;
        let product = Product {
            rows: rows.len(),
            columns: columns.end - begin,
            length: self.length,
            element: Element::Single,
            left: Panels { values: &self.left[rows.start * WIDTH..], rows: self.rows },
            right: Right::Panels(Panels { values: &self.right[begin * self.length..], rows: self.length }),
            extras: &[],
        };
        let to = &mut p[rows.start * self.rows + begin..];
        // SAFETY: the block lies within `p`, as asserted.
        unsafe { product.compute(unit(), to.as_mut_ptr(), self.rows, false, false, self.tile) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;

    #[test]
    fn products_agree_with_plain_loops() {
        for (m, n, k) in [(1, 1, 1), (5, 33, 70), (32, 64, 40), (40, 7, 3)] {
            let (a, b, before) = (noise(1, m * k), noise(2, k * n), noise(3, m * n));
            // Each factor by rows, or by columns.
            let a_forms = [Matrix::rows(&a, k), Matrix::rows(&a, m).transposed()];
            let b_forms = [Matrix::rows(&b, n), Matrix::rows(&b, k).transposed()];
            for (a, b) in a_forms.into_iter().flat_map(|a| b_forms.map(|b| (a, b))) {
                for into in [Into::Overwrite, Into::Add] {
                    let mut found = before.clone();
                    // SAFETY: `found` holds the whole product.
                    unsafe { multiply_small((m, n, k), found.as_mut_ptr(), n, into, a, b) };
                    for at in 0..m * n {
                        let one = |l: usize| a.values[at / n * a.row + l * a.column] * b.values[l * b.row + at % n * b.column];
                        let sum = (0..k).map(one).sum::<f32>() + if into == Into::Add { before[at] } else { 0.0 };
                        assert!((found[at] - sum).abs() < 1e-4, "{at}: {} is not {sum}", found[at]);
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_of_row_products_agree_with_plain_loops() {
        let (rows, length) = (100, 20);
        let (a, b) = (noise(1, rows * length), noise(2, rows * length));
        let mut p = vec![7.0; rows * rows];
        RowProducts::of(Matrix::rows(&a, length), Matrix::rows(&b, length), rows, length, |products| {
            products.compute(30..70, 45..99, &mut p);
        });
        for (at, found) in p.iter().enumerate() {
            let (i, j) = (at / rows, at % rows);
            if (30..70).contains(&i) && (45..99).contains(&j) {
                let sum: f32 = (0..length).map(|l| a[i * length + l] * b[j * length + l]).sum();
                assert!((found - sum).abs() < 1e-4, "({i}, {j}): {found} is not {sum}");
            } else if !((30..70).contains(&i) && (32..99).contains(&j)) {
                assert_eq!(*found, 7.0);
            }
        }
    }
}
