//! The feed-forward part's activation: plain `act(x)`, or gated `act(gate) * up`, where a row of the input is the gate's
//! row and then the up-projection's.

use super::vector::{exp, sigmoid, vectorised};

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// GELU by `tanh` (Hendrycks and Gimpel 2016): `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// GELU by the error function: `gelu`.
    Gelu,
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Odd, so that no sign meets an overflowing exponential.
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// The error function by Abramowitz and Stegun 7.1.26, refined: absolute error below 1.2e-7 (Numerical Recipes, erfc).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / 0.5f32.mul_add(a, 1.0);
    let mut p = 0.170_872_77f32;
    for c in [-0.822_152_23, 1.488_515_9, -1.135_204, 0.278_868_07, -0.186_288_06, 0.096_784_18, 0.374_091_96, 1.000_023_7, -1.265_512_2] {
        p = p.mul_add(t, c);
    }
    (1.0 - t * exp((-a).mul_add(a, p))).copysign(x)
}

const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl Activation {
    /// Value and derivative.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        match self {
            Self::Silu => {
                let s = sigmoid(x);
                (x * s, s * (1.0 + x * (1.0 - s)))
            }
            Self::GeluTanh => {
                let t = tanh(ROOT_2_OVER_PI * (x + CUBIC * x * x * x));
                let inner = ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
                (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
            }
            Self::Gelu => {
                let normal = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
                (x * normal, normal + x * 0.398_942_3 * exp(-0.5 * x * x))
            }
        }
    }
}

/// The loops below, once for each function, so that the choice is made outside them.
macro_rules! for_each_function {
    ($activation:expr, $loop:ident($($arg:expr),*)) => {
        match $activation {
            Activation::Silu => $loop::silu($($arg),*),
            Activation::GeluTanh => $loop::gelu_tanh($($arg),*),
            Activation::Gelu => $loop::gelu($($arg),*),
        }
    };
}

macro_rules! loops {
    ($module:ident: $($name:ident = $function:expr),*) => { loops!(@ $module $($name $function)*); };
    (@ plain_loop $($name:ident $function:expr)*) => {
        mod plain_loop {
            use super::*;
            $(vectorised! { pub(super) fn $name(x: &[f32], y: &mut [f32]) {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = $function.at(*x).0;
                }
            } })*
        }
    };
    (@ plain_back $($name:ident $function:expr)*) => {
        mod plain_back {
            use super::*;
            $(vectorised! { pub(super) fn $name(x: &[f32], g: &[f32], dx: &mut [f32]) {
                for ((dx, x), g) in dx.iter_mut().zip(x).zip(g) {
                    *dx = g * $function.at(*x).1;
                }
            } })*
        }
    };
    (@ gated_loop $($name:ident $function:expr)*) => {
        mod gated_loop {
            use super::*;
            $(vectorised! { pub(super) fn $name(x: &[f32], width: usize, y: &mut [f32]) {
                for (x, y) in x.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
                    let (gate, up) = x.split_at(width);
                    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                        *y = $function.at(*gate).0 * up;
                    }
                }
            } })*
        }
    };
    (@ gated_back $($name:ident $function:expr)*) => {
        mod gated_back {
            use super::*;
            $(vectorised! { pub(super) fn $name(x: &[f32], width: usize, g: &[f32], dx: &mut [f32]) {
                for ((x, g), dx) in x.chunks_exact(2 * width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(2 * width)) {
                    let (gate, up) = x.split_at(width);
                    let (d_gate, d_up) = dx.split_at_mut(width);
                    for ((((d_gate, d_up), gate), up), g) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(g) {
                        let (value, slope) = $function.at(*gate);
                        *d_gate = g * up * slope;
                        *d_up = g * value;
                    }
                }
            } })*
        }
    };
}

loops!(plain_loop: silu = Activation::Silu, gelu_tanh = Activation::GeluTanh, gelu = Activation::Gelu);
loops!(plain_back: silu = Activation::Silu, gelu_tanh = Activation::GeluTanh, gelu = Activation::Gelu);
loops!(gated_loop: silu = Activation::Silu, gelu_tanh = Activation::GeluTanh, gelu = Activation::Gelu);
loops!(gated_back: silu = Activation::Silu, gelu_tanh = Activation::GeluTanh, gelu = Activation::Gelu);

/// Rows of `2 * width` to rows of `width`.
pub(crate) fn gated(activation: Activation, x: &[f32], width: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / 2];
    for_each_function!(activation, gated_loop(x, width, &mut y));
    y
}

/// Gradient of the input, rows of `2 * width`, from that of the output.
pub(crate) fn gated_backward(activation: Activation, x: &[f32], width: usize, g: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; x.len()];
    for_each_function!(activation, gated_back(x, width, g, &mut dx));
    dx
}

pub(crate) fn plain(activation: Activation, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for_each_function!(activation, plain_loop(x, &mut y));
    y
}

pub(crate) fn plain_backward(activation: Activation, x: &[f32], g: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; x.len()];
    for_each_function!(activation, plain_back(x, g, &mut dx));
    dx
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    #[test]
    fn gradients_agree_with_finite_differences() {
        for activation in ALL {
            let wide = |count| noise(1, count).iter().map(|x| 3.0 * x).collect::<Vec<f32>>();
            check_gradients(&[wide(54)], |v| plain(activation, &v[0]), |v, g| vec![plain_backward(activation, &v[0], g)]);
            check_gradients(&[wide(108)], |v| gated(activation, &v[0], 18), |v, g| vec![gated_backward(activation, &v[0], 18, g)]);
        }
    }

    /// Against values of torch 2.15 (`torch.nn.functional.gelu`, both forms, and `silu`), f64.
    #[test]
    fn values_agree_with_torch() {
        let cases = [
            (-3.0f32, [-0.142_277_619_5, -0.003_637_392_1, -0.004_049_694_1]),
            (-0.5, [-0.188_770_334_4, -0.154_285_990_2, -0.154_268_769_4]),
            (0.1, [0.052_497_918_7, 0.053_982_751_0, 0.053_982_783_7]),
            (1.7, [1.437_409_049_4, 1.624_105_895_6, 1.624_238_713_3]),
        ];
        for (x, expected) in cases {
            for (activation, expected) in ALL.into_iter().zip(expected) {
                let found = plain(activation, &[x])[0];
                assert!((f64::from(found) - expected).abs() < 2e-6, "{activation:?}({x}) = {found}, torch says {expected}");
            }
        }
    }
}
