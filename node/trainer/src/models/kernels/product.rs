//! Matrix products on slices with strides: safe doors to the GEMM that candle uses, which can also add to what is there.

use gemm::Parallelism;

use super::threads_for;

/// A matrix in a slice: element (i, j) lies at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` elements one after the other.
    pub fn rows(values: &'a [f32], width: usize) -> Self {
        Self { values, row: width, column: 1 }
    }

    pub fn transposed(self) -> Self {
        Self { row: self.column, column: self.row, ..self }
    }

    /// The matrix without its first `row` rows.
    pub fn below(self, row: usize) -> Self {
        Self { values: &self.values[row * self.row..], ..self }
    }

    pub(super) fn covers(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// What a product does with the destination's old values.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Into {
    Overwrite,
    Add,
}

/// `destination (m, n; rows of `width`) = or += scale * a (m, k) b (k, n)`.
#[allow(clippy::too_many_arguments)] // A GEMM has that many.
pub(crate) fn multiply(
    (m, n, k): (usize, usize, usize),
    destination: &mut [f32],
    width: usize,
    into: Into,
    a: Matrix,
    b: Matrix,
    scale: f32,
) {
    assert!(n <= width && Matrix::rows(destination, width).covers(m, n), "the product's destination is too small");
    // SAFETY: the assertion above, and `destination` is borrowed mutably.
    unsafe { multiply_raw((m, n, k), destination.as_mut_ptr(), width, into, a, b, scale) }
}

/// `scale * a (m, k) b (k, n)` as a new vector of `m * n` elements.
pub(crate) fn product((m, n, k): (usize, usize, usize), a: Matrix, b: Matrix, scale: f32) -> Vec<f32> {
    let mut values = Vec::with_capacity(m * n);
    // SAFETY: the GEMM writes each of the `m * n` elements before `set_len` exposes them, and reads none.
    unsafe {
        multiply_raw((m, n, k), values.as_mut_ptr(), n, Into::Overwrite, a, b, scale);
        values.set_len(m * n);
    }
    values
}

/// As [`multiply`], into memory that several threads may hold parts of.
///
/// # Safety
/// `destination` must be valid for `m` rows of `n` elements, `width` apart, which nobody else touches meanwhile.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn multiply_raw(
    (m, n, k): (usize, usize, usize),
    destination: *mut f32,
    width: usize,
    into: Into,
    a: Matrix,
    b: Matrix,
    scale: f32,
) {
    assert!(a.covers(m, k) && b.covers(k, n), "a factor of the product is too small");
    let parallelism = match threads_for(m * n * k) {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    // SAFETY: the factors cover what is read; the caller answers for the destination.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            destination,
            1,
            width as isize,
            into == Into::Add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
