//! The portable forms against the loops of the processor, against finite differences where these have no loop of their
//! own shape, and against each other in narrow dtypes.

use candle_core::{DType, Device, Tensor, Var};

use super::super::{Array, Norm, NormKind, Past, attend};
use super::*;
use crate::models::kernels;
use crate::models::kernels::adamw::AdamW;
use crate::models::kernels::attention::{Heads, Mask};

fn noise(seed: u64, dims: &[usize]) -> Tensor {
    let mut stream = blake3::Hasher::new_derive_key("noise of device tests").update(&seed.to_le_bytes()).finalize_xof();
    let mut word = [0; 4];
    let mut next = || {
        stream.fill(&mut word);
        u32::from_le_bytes(word) as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    let values: Vec<f32> = (0..dims.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * (1.0 + expected.abs()), "element {at}: {found}, expected {expected}");
    }
}

/// Holds `backward(inputs, g)` against central differences of `sum(g * forward(inputs))`.
fn check_gradients(inputs: &[Tensor], forward: impl Fn(&[Tensor]) -> Tensor, backward: impl Fn(&[Tensor], &Tensor) -> Vec<Tensor>) {
    let g = noise(99, forward(inputs).dims());
    let value = |inputs: &[Tensor]| -> f64 { flat(&forward(inputs)).iter().zip(flat(&g)).map(|(y, g)| f64::from(*y) * f64::from(g)).sum() };
    const STEP: f32 = 1e-2;
    for (which, gradient) in backward(inputs, &g).iter().enumerate() {
        for (element, found) in flat(gradient).iter().enumerate() {
            let moved = |by: f32| {
                let mut values = flat(&inputs[which]);
                values[element] += by;
                let mut all = inputs.to_vec();
                all[which] = Tensor::from_vec(values, inputs[which].shape(), &Device::Cpu).unwrap();
                value(&all)
            };
            let expected = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
            assert!((f64::from(*found) - expected).abs() < 2e-3 * (1.0 + expected.abs()), "{which}[{element}]: {found} {expected}");
        }
    }
}

fn norms(width: usize) -> [Norm; 3] {
    let norm = |kind, offset, bias| Norm { weight: noise(2, &[width]), bias, kind, offset, eps: 1e-5 };
    [norm(NormKind::Rms, 0.0, None), norm(NormKind::Rms, 1.0, None), norm(NormKind::Layer, 0.0, Some(noise(3, &[width])))]
}

#[test]
fn norms_agree_with_the_loops() {
    let (x, g) = (noise(1, &[5, 20]), noise(4, &[5, 20]));
    for norm in norms(20) {
        let (weight, xs, gs) = (flat(&norm.weight), flat(&x), flat(&g));
        let (mut y, mut dx, mut dw, mut db) = (vec![0.0; 100], vec![0.0; 100], vec![0.0; 20], vec![0.0; 20]);
        match &norm.bias {
            None => {
                kernels::norm::rms(&xs, &weight, norm.offset, norm.eps, &mut y);
                kernels::norm::rms_backward(&xs, &weight, norm.offset, norm.eps, &gs, &mut dx);
                kernels::norm::rms_backward_weight(&xs, norm.eps, &gs, &mut dw);
            }
            Some(bias) => {
                kernels::norm::layer(&xs, &weight, &flat(bias), norm.eps, &mut y);
                kernels::norm::layer_backward(&xs, &weight, norm.eps, &gs, &mut dx);
                kernels::norm::layer_backward_weight(&xs, norm.eps, &gs, &mut dw, &mut db);
            }
        }
        close(&flat(&super::norm(&x, &norm).unwrap()), &y, 1e-5);
        close(&flat(&norm_backward(&x, &norm, &g).unwrap()), &dx, 1e-5);
        let (found_dw, found_db) = norm_backward_weight(&x, &norm, &g).unwrap();
        close(&flat(&found_dw), &dw, 1e-5);
        assert_eq!(found_db.is_some(), norm.bias.is_some());
        if let Some(found) = found_db {
            close(&flat(&found), &db, 1e-5);
        }
    }
}

#[test]
fn activations_agree_with_the_loops() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let x = (noise(1, &[4, 12]) * 3.0).unwrap();
        let (g_plain, g_gated) = (noise(2, &[4, 12]), noise(3, &[4, 6]));
        close(&flat(&activate(&x, activation, false).unwrap()), &kernels::activation::plain(activation, &flat(&x)), 1e-5);
        close(&flat(&activate(&x, activation, true).unwrap()), &kernels::activation::gated(activation, &flat(&x), 6), 1e-5);
        let back = kernels::activation::plain_backward(activation, &flat(&x), &flat(&g_plain));
        close(&flat(&activate_backward(&x, &g_plain, activation, false).unwrap()), &back, 1e-5);
        let back = kernels::activation::gated_backward(activation, &flat(&x), 6, &flat(&g_gated));
        close(&flat(&activate_backward(&x, &g_gated, activation, true).unwrap()), &back, 1e-5);
    }
    let y = tanh(&noise(5, &[3, 4])).unwrap();
    check_gradients(&[noise(5, &[3, 4])], |v| tanh(&v[0]).unwrap(), |_, g| vec![tanh_backward(&y, g).unwrap()]);
}

#[test]
fn dropout_draws_the_processors_mask() {
    let x = noise(1, &[7, 9]);
    assert_eq!(flat(&dropout(&x, 0.4, 11).unwrap()), kernels::dropout::dropout(&flat(&x), 0.4, 11));
}

#[test]
fn products_transpose_scale_and_add() {
    let (a, b) = (noise(1, &[3, 4]), noise(2, &[4, 5]));
    let expected = flat(&(a.matmul(&b).unwrap() * 0.5).unwrap());
    let (at, bt) = (a.t().unwrap().contiguous().unwrap(), b.t().unwrap().contiguous().unwrap());
    for (a, ta) in [(&a, false), (&at, true)] {
        for (b, tb) in [(&b, false), (&bt, true)] {
            close(&flat(&product(a, ta, b, tb, 0.5).unwrap()), &expected, 1e-6);
            let y = noise(3, &[3, 5]);
            let sum: Vec<f32> = flat(&y).iter().zip(&expected).map(|(y, p)| y + p).collect();
            close(&flat(&product_onto(y, a, ta, b, tb, 0.5).unwrap()), &sum, 1e-6);
        }
    }
    // A narrow factor meets an f32 parameter in its own dtype; a gradient's sum stays f32.
    let narrow = a.to_dtype(DType::BF16).unwrap();
    assert_eq!(product(&narrow, false, &b, false, 1.0).unwrap().dtype(), DType::BF16);
    assert_eq!(product_onto(noise(3, &[3, 5]), &narrow, false, &b, false, 1.0).unwrap().dtype(), DType::F32);
}

#[test]
fn what_is_handed_over_by_value_is_overwritten() {
    let y = noise(1, &[3, 5]);
    let sum = product_onto(y.clone(), &noise(2, &[3, 4]), false, &noise(3, &[4, 5]), false, 1.0).unwrap();
    assert_eq!(flat(&y), flat(&sum), "a caller that keeps a clone must see it in every build with debug assertions");
}

#[test]
fn rows_and_columns_come_back_to_where_they_were() {
    let x = noise(1, &[4, 6]);
    assert_eq!(flat(&rows(&x, &[2, 0]).unwrap()), [&flat(&x)[12..18], &flat(&x)[..6]].concat());
    let parts = [columns(&x, 0, 2).unwrap(), columns(&x, 2, 4).unwrap()];
    assert_eq!(flat(&join(&parts).unwrap()), flat(&x));
    let put = put_rows(&rows(&x, &[3, 1]).unwrap(), &[3, 1], 4).unwrap();
    assert_eq!(flat(&put)[6..12], flat(&x)[6..12]);
    assert_eq!(flat(&put)[..6], [0.0; 6]);
    let sum = add_rows(&x, &[1, 1], &Tensor::ones((2, 6), DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert_eq!(flat(&sum)[6], flat(&noise(1, &[4, 6]))[6] + 2.0);
    close(&flat(&column_sums(&parts[0]).unwrap()), &flat(&parts[0].sum(0).unwrap()), 1e-6);
    let bias = noise(7, &[6]);
    close(&flat(&add_bias(noise(1, &[4, 6]), &bias).unwrap()), &flat(&noise(1, &[4, 6]).broadcast_add(&bias).unwrap()), 1e-6);
    close(&flat(&add(&put, &put).unwrap()), &flat(&(&put * 2.0).unwrap()), 1e-6);
}

#[test]
fn rotation_agrees_with_the_loop_and_turns_back() {
    let table = RopeTable::new(&[1.0, 0.3, 0.1], 8);
    let positions = [0, 1, 2, 0, 1];
    let turned = rope(noise(1, &[5, 20]), &table, &positions, 12, 1.0).unwrap();
    let mut expected = flat(&noise(1, &[5, 20]));
    table.turn_rows(&mut expected, 20, 12, &positions, 1.0);
    close(&flat(&turned), &expected, 1e-6);
    close(&flat(&rope(turned, &table, &positions, 12, -1.0).unwrap()), &flat(&noise(1, &[5, 20])), 1e-6);
}

#[test]
fn attention_agrees_with_the_loops() {
    let sequences = [3, 1, 4];
    for mask in [Mask::Causal, Mask::Window(2), Mask::Full] {
        for kv_heads in [1, 2, 4] {
            let heads = Heads { heads: 4, kv_heads, head_dim: 2, scale: 0.6, mask };
            let (qkv, g) = (noise(1, &[8, heads.width()]), noise(2, &[8, 8]));
            close(&flat(&attention(&qkv, &sequences, &heads).unwrap()), &heads.forward(&flat(&qkv), &sequences), 1e-5);
            let expected = heads.backward(&flat(&qkv), &flat(&g), &sequences);
            close(&flat(&attention_backward(&qkv, &g, &sequences, &heads).unwrap()), &expected, 1e-5);
            // Two of five rows of a sequence, and a first row of another, after what they keep.
            let (first, second) = (noise(3, &[3, heads.width()]), noise(4, &[3, heads.width()]));
            let carried_on = |of: &dyn Fn(&Tensor) -> Array, host| {
                let [mut a, mut b] = [Past::new(host), Past::new(host)];
                attend(&of(&first), &[3], vec![&mut a], &heads, 3).unwrap();
                attend(&of(&second), &[2, 1], vec![&mut a, &mut b], &heads, 6).unwrap().to_vec().unwrap()
            };
            let expected = carried_on(&|x| Array::Host(flat(x)), true);
            close(&carried_on(&|x| Array::Device(x.clone()), false), &expected, 1e-5);
        }
    }
}

#[test]
fn cross_entropy_agrees_with_the_loop() {
    let (logits, labels) = (noise(1, &[4, 19]), [3, 18, 0, 3]);
    let mut expected = flat(&logits);
    let loss = kernels::cross_entropy::loss_and_gradient(&mut expected, 19, &labels, 7.0);
    let (found, gradient) = cross_entropy(logits, &labels, 7.0).unwrap();
    assert!((found - loss).abs() < 1e-6, "{found} {loss}");
    close(&flat(&gradient), &expected, 1e-6);
    assert!(cross_entropy(noise(1, &[4, 3]), &labels, 1.0).is_err());
}

#[test]
fn the_step_agrees_with_the_loop() {
    let start = noise(1, &[3, 5]);
    let variables = [Var::from_tensor(&start).unwrap(), Var::from_tensor(&start).unwrap()];
    let (m, v) = (start.zeros_like().unwrap(), start.zeros_like().unwrap());
    let (loop_m, loop_v) = (start.zeros_like().unwrap(), start.zeros_like().unwrap());
    for step in 1..=3 {
        let settings = AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01, step, gradient_scale: 0.5 };
        let g = noise(step as u64 + 10, &[3, 5]);
        adamw(&variables[0], &m, &v, &g, &settings).unwrap();
        settings.update(&variables[1], &loop_m, &loop_v, &g).unwrap();
        close(&flat(&variables[0]), &flat(&variables[1]), 1e-6);
        close(&flat(&m), &flat(&loop_m), 1e-6);
        close(&flat(&v), &flat(&loop_v), 1e-6);
    }
    let norm: f64 = flat(&start).iter().map(|x| f64::from(*x).powi(2)).sum();
    assert!((squared_norm(&start).unwrap() - norm).abs() < 1e-5);
}

/// In bf16 every op gives bf16, near what it gives in f32.
#[test]
fn narrow_tensors_stay_narrow() {
    let narrow = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let same = |found: Tensor, expected: Tensor| {
        assert_eq!(found.dtype(), DType::BF16);
        close(&flat(&found), &flat(&expected), 0.03);
    };
    let (x, g) = (noise(1, &[6, 16]), noise(2, &[6, 16]));
    for norm in norms(16) {
        same(super::norm(&narrow(&x), &norm).unwrap(), super::norm(&x, &norm).unwrap());
        same(norm_backward(&narrow(&x), &norm, &narrow(&g)).unwrap(), norm_backward(&x, &norm, &g).unwrap());
    }
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 2, scale: 0.7, mask: Mask::Causal };
    same(attention(&narrow(&x), &[4, 2], &heads).unwrap(), attention(&x, &[4, 2], &heads).unwrap());
    let g_out = noise(3, &[6, 8]);
    let back = attention_backward(&narrow(&x), &narrow(&g_out), &[4, 2], &heads).unwrap();
    same(back, attention_backward(&x, &g_out, &[4, 2], &heads).unwrap());
    same(activate(&narrow(&x), Activation::Silu, true).unwrap(), activate(&x, Activation::Silu, true).unwrap());
    same(dropout(&narrow(&x), 0.5, 1).unwrap(), dropout(&x, 0.5, 1).unwrap());
    let table = RopeTable::new(&[1.0, 0.3], 8);
    let positions = [0, 1, 2, 3, 4, 5];
    same(rope(narrow(&x), &table, &positions, 8, 1.0).unwrap(), rope(x.copy().unwrap(), &table, &positions, 8, 1.0).unwrap());
    same(cross_entropy(narrow(&x), &[0; 6], 6.0).unwrap().1, cross_entropy(x.copy().unwrap(), &[0; 6], 6.0).unwrap().1);
}
