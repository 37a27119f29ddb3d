//! Against torch and PEFT: logits, every gradient, twenty losses and the adapter they lead to. The cases were computed by
//! transformers and PEFT; those that lie outside this repository are skipped, with a word, where they are absent.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use serde_json::Value;

use super::optimiser::Optimiser;
use super::{Schedule, TrainSettings};
use crate::models::batch::IGNORED;
use crate::models::{Attached, BaseModel, Lora, Pass, TokenBatch};

fn case(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference").join(name);
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

fn length(values: &[f32]) -> f32 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The case's input as the trainer feeds it: labels shifted, padding left out.
fn token_batch(tensors: &HashMap<String, Tensor>) -> TokenBatch {
    let (sequences, length) = tensors["input_ids"].dims2().unwrap();
    let whole = |name: &str| -> Vec<i64> { tensors[name].flatten_all().unwrap().to_vec1().unwrap() };
    let (ids, labels) = (whole("input_ids"), whole("labels"));
    let mask = if tensors.contains_key("attention_mask") { whole("attention_mask") } else { vec![1; ids.len()] };
    let mut batch = TokenBatch::default();
    for sequence in 0..sequences {
        let fed: Vec<usize> = (sequence * length..(sequence + 1) * length).filter(|at| mask[*at] == 1).collect();
        batch.lengths.push(fed.len());
        batch.tokens.extend(fed.iter().map(|at| ids[*at] as u32));
        if labels.len() == sequences {
            batch.targets.push(labels[sequence]);
        } else {
            batch.targets.extend(fed.iter().map(|at| if (at + 1) % length == 0 { IGNORED } else { labels[at + 1] }));
        }
    }
    batch
}

/// A PEFT directory's tensors as variables by PEFT name, and the base with them.
fn attach(base: &BaseModel, dir: &Path) -> (Attached, Vec<(String, Var)>) {
    let config = json(dir.join("adapter_config.json"));
    let by_pattern = |field: &str, module: &str, default: &str| {
        let pattern = config[field].as_object().and_then(|map| map.iter().find(|(key, _)| module.ends_with(key.as_str())));
        pattern.map_or(&config[default], |(_, value)| value).as_f64().unwrap()
    };
    let mut variables: BTreeMap<String, Var> = BTreeMap::new();
    for (name, tensor) in candle_core::safetensors::load(dir.join("adapter_model.safetensors"), &Device::Cpu).unwrap() {
        variables.insert(name, Var::from_tensor(&tensor).unwrap());
    }
    let mut parts = Attached::default();
    for (name, variable) in &variables {
        let name = name.strip_prefix("base_model.model.").unwrap();
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let (rank, alpha) = (by_pattern("rank_pattern", module, "r"), by_pattern("alpha_pattern", module, "lora_alpha"));
            let scale = if config["use_rslora"] == true { alpha / rank.sqrt() } else { alpha / rank } as f32;
            let b = variables[&format!("base_model.model.{module}.lora_B.weight")].as_tensor().clone();
            parts.lora.insert(module.into(), vec![Lora { a: variable.as_tensor().clone(), b, scale, dropout: 0.0 }]);
        } else if !name.contains(".lora_") {
            parts.replaced.insert(name.into(), variable.as_tensor().clone());
        }
    }
    assert!(base.attach(&parts).is_ok());
    (parts, variables.into_iter().collect())
}

fn agrees_with_torch(name: &str) {
    let Some(path) = case(name) else { return };
    let base = BaseModel::load(&path.join("base"), &Device::Cpu).unwrap();
    let (parts, variables) = attach(&base, &path.join("adapter_start"));
    let decoder = base.attach(&parts).unwrap();
    let tensors = candle_core::safetensors::load(path.join("tensors.safetensors"), &Device::Cpu).unwrap();
    let reference = json(path.join("reference.json"));
    let batch = token_batch(&tensors);

    let logits = flat(&decoder.logits(&batch).unwrap());
    let expected = flat(&tensors["logits"]);
    // Padding has logits in torch; here it is not fed. Classifiers have one row a sequence either way.
    let worst = largest_difference(&logits, &expected);
    println!("{name}: logits within {worst:e}");
    assert!(worst < 1e-4, "{name}: logits differ by {worst}");

    let settings = TrainSettings {
        learning_rate: reference["optimiser"]["lr"].as_f64().unwrap(),
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.01,
        clip_norm: 0.0,
        ..TrainSettings::default()
    };
    let losses: Vec<f64> = serde_json::from_value(reference["losses"].clone()).unwrap();
    let (mut furthest, mut gradient_error) = (0f64, 0f32);
    let mut optimiser = Optimiser::new(&variables).unwrap();
    for (step, expected) in losses.iter().enumerate() {
        let labels = batch.labelled() as f64;
        let (found, gradients) = decoder.loss_and_gradients(&batch, labels, &variables, &Pass::default()).unwrap();
        furthest = furthest.max((found - expected).abs());
        assert!((found - expected).abs() < 1e-3, "{name}: loss {found} at step {step}, torch says {expected}");
        assert!((found - decoder.loss(&batch, labels).unwrap()).abs() < 1e-6);
        let gradients: Vec<Tensor> = gradients.into_iter().map(|gradient| gradient.expect("has a gradient")).collect();
        if step == 0 {
            for ((parameter, _), gradient) in variables.iter().zip(&gradients) {
                let expected = flat(&tensors[&format!("grad.{parameter}")]);
                let difference: Vec<f32> = flat(gradient).iter().zip(&expected).map(|(a, b)| a - b).collect();
                let error = length(&difference) / length(&expected);
                gradient_error = gradient_error.max(error);
                assert!(error < 1e-4, "{name}: the gradient of {parameter} differs by {error} of its norm");
            }
        }
        if step + 1 < losses.len() {
            // PEFT's whole modules decay as the rest does; torch knows no exception for biases.
            optimiser.step(&variables, &gradients, &settings, settings.learning_rate).unwrap();
        }
    }
    println!("{name}: gradients within {gradient_error:e} of their norms, losses within {furthest:e}");
    let (_, end) = attach(&base, &path.join("adapter_end"));
    let mut adapter_error = 0f32;
    for ((name, variable), (expected_name, expected)) in variables.iter().zip(&end) {
        assert_eq!(name, expected_name);
        let worst = largest_difference(&flat(variable), &flat(expected));
        adapter_error = adapter_error.max(worst);
        assert!(worst < 1e-3, "{name} ends {worst} away");
    }
    println!("{name}: the trained adapter within {adapter_error:e}");
}

macro_rules! cases {
    ($($test:ident: $name:literal;)*) => {
        $(#[test]
        fn $test() {
            agrees_with_torch($name);
        })*
    };
}

cases! {
    llama_agrees_with_torch: "llama";
    llama_with_tied_embeddings_agrees_with_torch: "llama-tied";
    llama3_rope_agrees_with_torch: "llama3-rope";
    rank_stabilised_lora_agrees_with_torch: "llama-rslora";
    mistral_agrees_with_torch: "mistral";
    qwen2_agrees_with_torch: "qwen2";
    gemma_agrees_with_torch: "gemma";
    gpt2_agrees_with_torch: "gpt2";
    bert_agrees_with_torch: "bert";
    roberta_agrees_with_torch: "roberta";
}
