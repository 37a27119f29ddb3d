//! Normalisation of rows.
//!
//! Root mean square: `y = (w + offset) x r` with `r = 1 / sqrt(mean(x²) + eps)`. Layer: `y = w (x - mean) r + b` with
//! `r = 1 / sqrt(variance + eps)`.

use super::vector::{LANES, dot, dot_of_three, vectorised};

vectorised! {
    pub(crate) fn rms(x: &[f32], weight: &[f32], offset: f32, eps: f32, y: &mut [f32]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let r = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * r * (w + offset);
            }
        }
    }
}

vectorised! {
    /// `dx += r (w g) - x r³ mean(w g x)`, with the offset in `w`.
    pub(crate) fn rms_backward(x: &[f32], weight: &[f32], offset: f32, eps: f32, g: &[f32], dx: &mut [f32]) {
        let width = weight.len();
        for ((x, g), dx) in x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let r = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            let c = (dot_of_three(weight, g, x) + offset * dot(g, x)) * r * r * r / width as f32;
            for (((dx, g), w), x) in dx.iter_mut().zip(g).zip(weight).zip(x) {
                *dx += g * (w + offset) * r - x * c;
            }
        }
    }
}

vectorised! {
    /// `dw += sum over rows of r x g`.
    pub(crate) fn rms_backward_weight(x: &[f32], eps: f32, g: &[f32], dw: &mut [f32]) {
        let width = dw.len();
        for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
            let r = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
            for ((dw, x), g) in dw.iter_mut().zip(x).zip(g) {
                *dw += x * r * g;
            }
        }
    }
}

/// Mean and `1 / sqrt(variance + eps)` of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mut sums = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    let width = x.len() as f32;
    let mean = (sums.iter().sum::<f32>() + rest.iter().sum::<f32>()) / width;
    let mut squares = [0f32; LANES];
    for chunk in whole {
        for lane in 0..LANES {
            let centred = chunk[lane] - mean;
            squares[lane] = centred.mul_add(centred, squares[lane]);
        }
    }
    let rest = rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>();
    (mean, 1.0 / ((squares.iter().sum::<f32>() + rest) / width + eps).sqrt())
}

vectorised! {
    pub(crate) fn layer(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (mean, r) = moments(x, eps);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (x - mean) * r * w + b;
            }
        }
    }
}

vectorised! {
    /// With `n = (x - mean) r` and `d = w g`: `dx += r (d - mean(d) - n mean(d n))`.
    pub(crate) fn layer_backward(x: &[f32], weight: &[f32], eps: f32, g: &[f32], dx: &mut [f32]) {
        let width = weight.len();
        for ((x, g), dx) in x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let (mean, r) = moments(x, eps);
            let along_one = dot(weight, g) / width as f32;
            let along_n = (dot_of_three(weight, g, x) / width as f32 - mean * along_one) * r;
            for (((dx, g), w), x) in dx.iter_mut().zip(g).zip(weight).zip(x) {
                *dx += r * (w * g - along_one - (x - mean) * r * along_n);
            }
        }
    }
}

vectorised! {
    /// `dw += sum over rows of n g`, `db += sum over rows of g`.
    pub(crate) fn layer_backward_weight(x: &[f32], eps: f32, g: &[f32], dw: &mut [f32], db: &mut [f32]) {
        let width = dw.len();
        for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
            let (mean, r) = moments(x, eps);
            for (((dw, db), x), g) in dw.iter_mut().zip(db.iter_mut()).zip(x).zip(g) {
                *dw += (x - mean) * r * g;
                *db += g;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn rms_gradients_agree_with_finite_differences() {
        for offset in [0.0, 1.0] {
            let forward = |v: &[Vec<f32>]| {
                let mut y = vec![0.0; v[0].len()];
                rms(&v[0], &v[1], offset, 1e-5, &mut y);
                y
            };
            let backward = |v: &[Vec<f32>], g: &[f32]| {
                let (mut dx, mut dw) = (vec![0.0; v[0].len()], vec![0.0; v[1].len()]);
                rms_backward(&v[0], &v[1], offset, 1e-5, g, &mut dx);
                rms_backward_weight(&v[0], 1e-5, g, &mut dw);
                vec![dx, dw]
            };
            check_gradients(&[noise(1, 60), noise(2, 20)], forward, backward);
        }
    }

    #[test]
    fn layer_gradients_agree_with_finite_differences() {
        let forward = |v: &[Vec<f32>]| {
            let mut y = vec![0.0; v[0].len()];
            layer(&v[0], &v[1], &v[2], 1e-5, &mut y);
            y
        };
        let backward = |v: &[Vec<f32>], g: &[f32]| {
            let (mut dx, mut dw, mut db) = (vec![0.0; v[0].len()], vec![0.0; v[1].len()], vec![0.0; v[1].len()]);
            layer_backward(&v[0], &v[1], 1e-5, g, &mut dx);
            layer_backward_weight(&v[0], 1e-5, g, &mut dw, &mut db);
            vec![dx, dw, db]
        };
        check_gradients(&[noise(1, 60), noise(2, 20), noise(3, 20)], forward, backward);
    }
}
