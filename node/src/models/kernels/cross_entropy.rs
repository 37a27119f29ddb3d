//! Cross entropy of logits against labels, some of which count for nothing.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::vector::{exp_in_place, max, vectorised};
use super::{Values, values};

/// The label of a position that counts for nothing (a prompt's, or padding's).
pub const IGNORED: i64 = -100;

/// Sum of the labelled rows' cross entropies divided by `denominator`; `logits (n, vocabulary)`. Dividing by the number
/// of labels of a whole batch lets its slices be computed apart and added.
pub fn cross_entropy(logits: &Tensor, labels: Vec<i64>, denominator: f64) -> Result<Tensor> {
    let (rows, vocabulary) = logits.dims2()?;
    if labels.len() != rows {
        bail!("{} labels for {rows} rows of logits", labels.len());
    }
    if let Some(label) = labels.iter().find(|label| **label != IGNORED && !(0..vocabulary as i64).contains(*label)) {
        bail!("label {label} lies outside the vocabulary of {vocabulary}");
    }
    logits.apply_op1(CrossEntropy { labels, denominator })
}

struct CrossEntropy {
    labels: Vec<i64>,
    denominator: f64,
}

vectorised! {
    /// `out = [max, sum of exp(x - max)]`.
    fn partition(x: &[f32], work: &mut [f32], out: &mut [f32; 2]) {
        let most = max(x);
        work.copy_from_slice(x);
        *out = [most, exp_in_place(work, most, 1.0)];
    }
}

vectorised! {
    /// `dx = scale * softmax(x)`.
    fn softmax(x: &[f32], dx: &mut [f32], scale: f32) {
        let most = max(x);
        dx.copy_from_slice(x);
        let factor = scale / exp_in_place(dx, most, 1.0);
        for dx in dx.iter_mut() {
            *dx *= factor;
        }
    }
}

vectorised! {
    /// `x = scale * softmax(x)`; `out = [max, sum of exp(x - max)]`.
    fn softmax_in_place(x: &mut [f32], scale: f32, out: &mut [f32; 2]) {
        let most = max(x);
        let sum = exp_in_place(x, most, 1.0);
        let factor = scale / sum;
        for x in x.iter_mut() {
            *x *= factor;
        }
        *out = [most, sum];
    }
}

/// Replaces logits by their gradient and returns the loss, both divided by `denominator`. Every row must carry a label
/// within the vocabulary.
pub(crate) fn loss_and_gradient(logits: &mut [f32], vocabulary: usize, labels: &[usize], denominator: f64) -> f64 {
    let scale = (1.0 / denominator) as f32;
    let mut sum = 0f64;
    for (x, label) in logits.chunks_exact_mut(vocabulary).zip(labels) {
        let mut out = [0.0; 2];
        let labelled = x[*label];
        softmax_in_place(x, scale, &mut out);
        x[*label] -= scale;
        sum += f64::from(out[0]) + f64::from(out[1]).ln() - f64::from(labelled);
    }
    sum / denominator
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (_, vocabulary) = layout.shape().dims2()?;
        let mut work = vec![0.0; vocabulary];
        let mut sum = 0f64;
        for (x, label) in x.chunks_exact(vocabulary).zip(&self.labels).filter(|(_, label)| **label != IGNORED) {
            let mut out = [0.0; 2];
            partition(x, &mut work, &mut out);
            sum += f64::from(out[0]) + f64::from(out[1]).ln() - f64::from(x[*label as usize]);
        }
        Ok((CpuStorage::F32(vec![(sum / self.denominator) as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let scale = (f64::from(gradient.to_scalar::<f32>()?) / self.denominator) as f32;
        let logits = Values::of(x)?;
        let vocabulary = x.dim(1)?;
        let mut dx = vec![0.0; logits.len()];
        let rows = logits.chunks_exact(vocabulary).zip(dx.chunks_exact_mut(vocabulary));
        for ((x, dx), label) in rows.zip(&self.labels).filter(|(_, label)| **label != IGNORED) {
            softmax(x, dx, scale);
            dx[*label as usize] -= scale;
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
        check_gradients(&[noise_var(1, &[4, 19])], |v| cross_entropy(&v[0], vec![3, IGNORED, 18, 0], 3.0));
    }

    #[test]
    fn ignored_rows_count_for_nothing() {
        let logits = noise_var(1, &[3, 7]);
        let all = |labels| cross_entropy(&logits, labels, 1.0).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(all(vec![IGNORED; 3]), 0.0);
        let apart = all(vec![2, IGNORED, IGNORED]) + all(vec![IGNORED, IGNORED, 5]);
        assert!((all(vec![2, IGNORED, 5]) - apart).abs() < 1e-6);
        assert!(cross_entropy(&logits, vec![7, 0, 0], 1.0).is_err());
    }
}
