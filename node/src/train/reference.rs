//! Against torch and PEFT: logits, every gradient, twenty losses and the adapter they lead to. The cases were computed by
//! transformers and PEFT and lie outside this repository; where they are absent, the tests say so and pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};

use super::optimiser::Optimiser;
use super::{Schedule, TrainSettings};
use crate::models::BaseModel;
use crate::models::backward::variable_indices;
use crate::models::decoder::TokenBatch;
use crate::models::kernels::cross_entropy::IGNORED;
use crate::peft;

fn case(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference").join(name);
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The case's input, with labels shifted as the trainer feeds them.
fn token_batch(tensors: &std::collections::HashMap<String, Tensor>) -> TokenBatch {
    let (sequences, length) = tensors["input_ids"].dims2().unwrap();
    let ids: Vec<i64> = tensors["input_ids"].flatten_all().unwrap().to_vec1().unwrap();
    let labels: Vec<i64> = tensors["labels"].flatten_all().unwrap().to_vec1().unwrap();
    let target = |at: usize| if at % length + 1 < length { labels[at + 1] } else { IGNORED };
    let targets = (0..labels.len()).map(target).collect();
    TokenBatch { sequences, length, tokens: ids.iter().map(|id| *id as u32).collect(), targets }
}

fn agrees_with_torch(name: &str) {
    let Some(path) = case(name) else { return };
    let device = Device::Cpu;
    let base = BaseModel::load(&path.join("base"), &device).unwrap();
    let adapter = peft::read(&path.join("adapter_start")).unwrap();
    let tensors = candle_core::safetensors::load(path.join("tensors.safetensors"), &device).unwrap();
    let reference: serde_json::Value = serde_json::from_slice(&std::fs::read(path.join("reference.json")).unwrap()).unwrap();

    let mut variables: Vec<(String, Var)> = Vec::new();
    for tensor in &adapter.tensors {
        let values = Tensor::from_slice(&tensor.values, tensor.dims.as_slice(), &device).unwrap();
        variables.push((tensor.name.clone(), Var::from_tensor(&values).unwrap()));
    }
    let find = |name: String| variables.iter().find(|(known, _)| *known == name).unwrap().1.as_tensor().clone();
    let half = |module: &String, which| find(peft::Adapter::tensor_name(module, which));
    let lora: BTreeMap<_, _> =
        adapter.modules().into_iter().map(|m| (m.clone(), (half(&m, 'A'), half(&m, 'B'), adapter.config.scale_of(&m)))).collect();
    let decoder = base.with_lora(&lora).unwrap();
    let batch = token_batch(&tensors);

    let logits = decoder.logits(&batch.tokens, batch.sequences).unwrap();
    let worst = largest_difference(&flat(&logits), &flat(&tensors["logits"]));
    println!("{name}: logits within {worst:e}");
    assert!(worst < 1e-4, "{name}: logits differ by {worst}");

    let settings = TrainSettings {
        learning_rate: 1e-3,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.01,
        clip_norm: 0.0,
        ..TrainSettings::default()
    };
    let losses: Vec<f64> = serde_json::from_value(reference["losses"].clone()).unwrap();
    let indices = variable_indices(&variables);
    let (mut furthest, mut gradient_error) = (0f64, 0f32);
    let mut optimiser = Optimiser::new(&variables);
    for (step, expected) in losses.iter().enumerate() {
        let loss = decoder.loss(&batch, batch.labelled() as f64).unwrap();
        let found = f64::from(loss.to_scalar::<f32>().unwrap());
        furthest = furthest.max((found - expected).abs());
        assert!((found - expected).abs() < 1e-3, "{name}: loss {found} at step {step}, torch says {expected}");
        let store = loss.backward().unwrap();
        let gradients: Vec<Vec<f32>> = variables.iter().map(|(_, v)| flat(store.get(v).expect("has a gradient"))).collect();
        let (by_hand, found) = decoder.loss_and_gradients(&batch, batch.labelled() as f64, &indices).unwrap();
        assert!((f64::from(by_hand) - expected).abs() < 1e-3, "{name}: loss {by_hand} by hand, torch says {expected}");
        let by_hand: Vec<Vec<f32>> = found.into_iter().map(|gradient| gradient.expect("has a gradient")).collect();
        if step == 0 {
            for ((parameter, _), gradient) in variables.iter().zip(&gradients).chain(variables.iter().zip(&by_hand)) {
                let expected = flat(&tensors[&format!("grad.{parameter}")]);
                let size = expected.iter().fold(0f32, |most, g| most.max(g.abs()));
                let worst = largest_difference(gradient, &expected);
                gradient_error = gradient_error.max(worst / size);
                assert!(worst < 1e-4 * size, "{name}: gradient of {parameter} differs by {worst}, its size is {size}");
            }
        }
        if step + 1 < losses.len() {
            optimiser.step(&variables, &by_hand, &settings, step, losses.len() - 1).unwrap();
        }
    }
    println!("{name}: gradients within {gradient_error:e} of their size, losses within {furthest:e}");
    let end = peft::read(&path.join("adapter_end")).unwrap();
    let mut adapter_error = 0f32;
    for ((name, variable), expected) in variables.iter().zip(&end.tensors) {
        assert_eq!(*name, expected.name);
        let worst = largest_difference(&flat(variable), &expected.values);
        adapter_error = adapter_error.max(worst);
        assert!(worst < 1e-3, "{name} ends {worst} away");
    }
    println!("{name}: the trained adapter within {adapter_error:e}");
}

#[test]
fn llama_agrees_with_torch() {
    agrees_with_torch("llama");
}

#[test]
fn llama_with_tied_embeddings_agrees_with_torch() {
    agrees_with_torch("llama-tied");
}

#[test]
fn llama_with_rank_stabilised_scaling_agrees_with_torch() {
    agrees_with_torch("llama-rslora");
}

#[test]
fn llama3_rope_agrees_with_torch() {
    agrees_with_torch("llama3-rope");
}

#[test]
fn other_families_are_refused_by_name() {
    if let Some(path) = case("qwen2") {
        let error = BaseModel::load(&path.join("base"), &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("model_type is \"qwen2\""), "{error}");
    }
}
