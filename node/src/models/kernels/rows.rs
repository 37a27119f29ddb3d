//! Rows of a matrix by index: token embeddings (with a gradient for the table where it is trained), and the positions
//! that carry a label, so that the output head is computed for those alone.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{Values, values};

/// `x (n, width)` to `(rows.len(), width)`. A row may be taken more than once.
pub fn rows(x: &Tensor, rows: Vec<usize>) -> Result<Tensor> {
    let count = x.dim(0)?;
    if let Some(row) = rows.iter().find(|row| **row >= count) {
        bail!("row {row} of a matrix with {count}");
    }
    x.apply_op1(Rows(rows))
}

struct Rows(Vec<usize>);

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let mut y = Vec::with_capacity(self.0.len() * width);
        for row in &self.0 {
            y.extend_from_slice(&x[row * width..(row + 1) * width]);
        }
        Ok((CpuStorage::F32(y), (self.0.len(), width).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.contiguous()?;
        let g = Values::of(&gradient)?;
        let width = x.dim(1)?;
        let mut dx = vec![0.0; x.elem_count()];
        for (row, g) in self.0.iter().zip(g.chunks_exact(width)) {
            for (dx, g) in dx[row * width..(row + 1) * width].iter_mut().zip(g) {
                *dx += g;
            }
        }
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        check_gradients(&[noise_var(1, &[4, 5])], |v| rows(&v[0], vec![2, 0, 2]));
        assert!(rows(&noise_var(1, &[4, 5]), vec![4]).is_err());
    }
}
