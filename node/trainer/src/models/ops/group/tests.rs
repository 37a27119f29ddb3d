//! Packed weights against plain ones, which variables take.

use std::collections::HashMap;

use candle_core::{Device, Var};

use super::*;
use crate::models::kernels::testing::noise;

const ROWS: usize = 21;
const INPUTS: usize = 50;
const OUTPUTS: [usize; 2] = [40, 30];

fn tensor(seed: u64, dims: &[usize]) -> Tensor {
    Tensor::from_vec(noise(seed, dims.iter().product()), dims, &Device::Cpu).unwrap()
}

/// Two maps, the second with bias, each with a low-rank part; `weight` says what kind of tensor a weight is.
fn group(weight: impl Fn(Tensor) -> Tensor) -> Group {
    let part = |index: usize| {
        let (seed, outputs) = (10 * index as u64, OUTPUTS[index]);
        let bias = (index == 1).then(|| tensor(seed + 1, &[outputs]));
        let mut part = Linear::new(weight(tensor(seed, &[outputs, INPUTS])), bias);
        let (a, b) = (tensor(seed + 2, &[4, INPUTS]), tensor(seed + 3, &[outputs, 4]));
        part.lora.push(Lora { a, b, scale: 0.5, dropout: 0.0 });
        part
    };
    Group::new(vec![part(0), part(1)])
}

fn host(array: Array) -> Vec<f32> {
    let Array::Host(values) = array else { panic!("a host's array") };
    values
}

/// Output, gradient of the input, and gradients of the low-rank parts.
fn passes(group: &Group) -> Vec<Vec<f32>> {
    let width = OUTPUTS.iter().sum::<usize>();
    let (x, g) = (Array::Host(noise(5, ROWS * INPUTS)), Array::Host(noise(6, ROWS * width)));
    let onto = |seed, count| Some(Array::Host(noise(seed, ROWS * count)));
    let (y, low) = group.forward(&x, ROWS, onto(7, width), None).unwrap();
    let lora: Vec<&Tensor> = group.parts.iter().flat_map(|part| &part.lora).flat_map(|lora| [&lora.a, &lora.b]).collect();
    let wanted: HashMap<TensorId, usize> = lora.iter().enumerate().map(|(index, tensor)| (tensor.id(), index)).collect();
    let variables: Vec<(String, Var)> = lora.iter().map(|tensor| (String::new(), Var::from_tensor(tensor).unwrap())).collect();
    let mut into = Gradients::new(&wanted);
    let dx = group.backward(&x, &low, &g, ROWS, true, onto(8, INPUTS), None, &mut into).unwrap().unwrap();
    let gradients = into.finish(&variables, &Device::Cpu).unwrap();
    let flat = |gradient: Option<Tensor>| gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    [host(y), host(dx)].into_iter().chain(gradients.into_iter().map(flat)).collect()
}

/// The difference's length as a part of the expected one's.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
    (squares(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / squares(&mut expected.iter().copied())).sqrt()
}

fn variable(tensor: Tensor) -> Tensor {
    Var::from_tensor(&tensor).unwrap().as_tensor().clone()
}

#[test]
fn packed_weights_compute_what_plain_ones_do() {
    let (packed, plain) = (group(|weight| weight), group(variable));
    assert!(packed.packed().unwrap().is_some() && plain.packed().unwrap().is_none());
    for (found, expected) in passes(&packed).iter().zip(passes(&plain)) {
        assert!(relative_error(found, &expected) < 1e-6);
    }
}

#[test]
fn a_weight_that_is_replaced_later_is_used() {
    let mut found = group(|weight| weight);
    let before = passes(&found);
    found.parts[0].weight = tensor(77, &[OUTPUTS[0], INPUTS]);
    let after = passes(&found);
    assert!(relative_error(&after[0], &before[0]) > 0.1);
    let mut expected = group(variable);
    expected.parts[0].weight = variable(tensor(77, &[OUTPUTS[0], INPUTS]));
    for (found, expected) in after.iter().zip(passes(&expected)) {
        assert!(relative_error(found, &expected) < 1e-6);
    }
}

/// What bf16 costs: both roundings are within 2^-9, so a sum of many products errs by less than half a percent.
#[test]
fn bf16_errs_by_less_than_half_a_percent() {
    let mut rounded = group(|weight| weight);
    rounded.multiply_in_bf16();
    let exact = passes(&group(|weight| weight));
    for (index, (found, expected)) in passes(&rounded).iter().zip(&exact).enumerate() {
        let error = relative_error(found, expected);
        // Low-rank parts see no rounded value here: their gradients come from the group's own input and gradient.
        assert!(if index < 2 { error > 1e-4 && error < 5e-3 } else { error == 0.0 }, "{index}: {error}");
    }
}
