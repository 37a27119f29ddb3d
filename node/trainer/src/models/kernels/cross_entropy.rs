//! Cross entropy of logits against labels.

use super::vector::{exp_in_place, max, vectorised};

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

/// Replaces logits by their gradient and returns the loss, both divided by `denominator`. Dividing by the number of
/// labels of a whole batch lets its slices be computed apart and added. Every row has a label, below `classes`.
pub(crate) fn loss_and_gradient(logits: &mut [f32], classes: usize, labels: &[u32], denominator: f64) -> f64 {
    let scale = (1.0 / denominator) as f32;
    let mut sum = 0f64;
    for (x, label) in logits.chunks_exact_mut(classes).zip(labels) {
        let mut out = [0.0; 2];
        let labelled = x[*label as usize];
        softmax_in_place(x, scale, &mut out);
        x[*label as usize] -= scale;
        sum += f64::from(out[0]) + f64::from(out[1]).ln() - f64::from(labelled);
    }
    sum / denominator
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let labels = [3, 0, 16];
        let forward = |v: &[Vec<f32>]| vec![loss_and_gradient(&mut v[0].clone(), 17, &labels, 2.0) as f32];
        let backward = |v: &[Vec<f32>], g: &[f32]| {
            let mut x = v[0].clone();
            loss_and_gradient(&mut x, 17, &labels, 2.0);
            vec![x.iter().map(|x| x * g[0]).collect()]
        };
        check_gradients(&[noise(1, 51)], forward, backward);
    }

    #[test]
    fn equal_logits_cost_the_logarithm_of_their_number() {
        let loss = loss_and_gradient(&mut [1e4; 8], 4, &[0, 1], 1.0);
        assert!((loss - 2.0 * 4f64.ln()).abs() < 1e-6);
    }
}
