//! Against torch and PEFT: logits, every gradient, twenty losses and the weights they lead to. The cases were computed by
//! transformers and PEFT (`tests/by_hand/make_reference.py`); larger ones may lie outside this repository, and are skipped,
//! with a word, where they are absent.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use serde_json::Value;

use super::TrainSettings;
use super::optimiser::Optimiser;
use crate::models::batch::IGNORED;
use crate::models::config::Head;
use crate::models::{BaseModel, Decoder, Pass, TokenBatch};
use crate::peft::{self, Adapter};

fn ours(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference").join(name)
}

fn theirs(name: &str) -> Option<PathBuf> {
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
    let types = tensors.contains_key("token_type_ids").then(|| whole("token_type_ids"));
    let mut batch = TokenBatch::default();
    for sequence in 0..sequences {
        let fed: Vec<usize> = (sequence * length..(sequence + 1) * length).filter(|at| mask[*at] == 1).collect();
        batch.lengths.push(fed.len());
        batch.tokens.extend(fed.iter().map(|at| ids[*at] as u32));
        batch.types.extend(fed.iter().filter_map(|at| Some(types.as_ref()?[*at] as u32)));
        if labels.len() == sequences {
            batch.targets.push(labels[sequence]);
        } else {
            batch.targets.extend(fed.iter().map(|at| if (at + 1) % length == 0 { IGNORED } else { labels[at + 1] }));
        }
    }
    batch
}

/// A PEFT directory's tensors as variables by PEFT name, and the base with them.
fn attach(base: &BaseModel, dir: &Path) -> (Decoder, Variables) {
    let adapter = peft::read(dir).unwrap();
    let mut parts = adapter.parts(&Device::Cpu).unwrap();
    let mut variables: BTreeMap<String, Var> = BTreeMap::new();
    let mut variable = |name: String, tensor: &mut Tensor| {
        let variable = Var::from_tensor(tensor).unwrap();
        *tensor = variable.as_tensor().clone();
        variables.insert(name, variable);
    };
    for (module, parts) in &mut parts.lora {
        let [lora] = parts.as_mut_slice() else { panic!("{module} has {} parts", parts.len()) };
        variable(Adapter::tensor_name(module, 'A'), &mut lora.a);
        variable(Adapter::tensor_name(module, 'B'), &mut lora.b);
    }
    for (name, tensor) in &mut parts.replaced {
        variable(Adapter::saved_name(name), tensor);
    }
    assert_eq!(variables.len(), adapter.tensors.len());
    (base.attach(&parts).unwrap(), variables.into_iter().collect())
}

type Variables = Vec<(String, Var)>;

/// The model that is trained, its variables by the names of the case's gradients, and the same at the end of torch's training.
fn trained(path: &Path) -> (Decoder, Variables, Variables) {
    let base = BaseModel::load(&path.join("base"), &Device::Cpu).unwrap();
    if path.join("adapter_start").exists() {
        let (decoder, variables) = attach(&base, &path.join("adapter_start"));
        return (decoder, variables, attach(&base, &path.join("adapter_end")).1);
    }
    let (decoder, variables) = base.trainable().unwrap();
    let end = path.join("end");
    if !end.join("config.json").exists() {
        // The trained weights alone are kept: the configuration is the base's.
        let weights = crate::models::weights::Weights::open(&end).unwrap();
        let read = |(name, variable): &(String, Var)| {
            let stored = base.config().stores_transposed(name);
            let dims: Vec<usize> = if stored { variable.dims().iter().rev().copied().collect() } else { variable.dims().to_vec() };
            let tensor = weights.find(name, &dims, &Device::Cpu).unwrap();
            let tensor = if stored { tensor.t().unwrap().contiguous().unwrap() } else { tensor };
            (name.clone(), Var::from_tensor(&tensor).unwrap())
        };
        let end = variables.iter().map(read).collect();
        return (decoder, variables, end);
    }
    let end = BaseModel::load(&end, &Device::Cpu).unwrap().trainable().unwrap().1;
    (decoder, variables, end)
}

/// Whether torch's gradient of it is rounding noise: a constant added to every key changes no attention.
fn is_key_bias(name: &str) -> bool {
    name.ends_with("k_proj.bias") || name.ends_with("key.bias")
}

/// The ops that other devices compute with, here on the CPU: the same loss and gradients.
fn computes_the_same_elsewhere(
    name: &str,
    decoder: &Decoder,
    batch: &TokenBatch,
    variables: &[(String, Var)],
    loss: f64,
    gradients: &[Tensor],
) {
    let elsewhere = Decoder { host: false, ..decoder.clone() };
    for recompute in [false, true] {
        let pass = Pass { recompute, ..Pass::default() };
        let (found, others) = elsewhere.loss_and_gradients(batch, batch.labelled() as f64, variables, &pass).unwrap();
        assert!((found - loss).abs() < 1e-5, "{name}: loss {found} by portable ops, {loss} by the CPU's");
        for (((parameter, _), gradient), other) in variables.iter().zip(gradients).zip(others) {
            let (gradient, other) = (flat(gradient), flat(&other.expect("has a gradient")));
            let worst = largest_difference(&gradient, &other);
            let bound = 1e-4 * length(&gradient) + 1e-6;
            assert!(worst < bound, "{name}: the gradient of {parameter} by portable ops is {worst} away");
        }
    }
}

fn agrees_with_torch(name: &str, path: &Path) {
    let (decoder, variables, end) = trained(path);
    let tensors = candle_core::safetensors::load(path.join("tensors.safetensors"), &Device::Cpu).unwrap();
    let reference = json(path.join("reference.json"));
    let batch = token_batch(&tensors);

    let mut expected = flat(&tensors["logits"]);
    if let (Some(mask), Head::Tokens) = (tensors.get("attention_mask"), decoder.config().head) {
        // Padding has rows of logits there; here it is not fed.
        let mask: Vec<i64> = mask.flatten_all().unwrap().to_vec1().unwrap();
        let rows = expected.chunks_exact(decoder.config().vocabulary).zip(mask).filter(|(_, mask)| *mask == 1);
        expected = rows.flat_map(|(row, _)| row.to_vec()).collect();
    }
    let worst = largest_difference(&flat(&decoder.logits(&batch).unwrap()), &expected);
    println!("{name}: logits within {worst:e}");
    assert!(worst < 1e-4, "{name}: logits differ by {worst}");

    let settings = TrainSettings { weight_decay: 0.01, clip_norm: 0.0, ..TrainSettings::default() };
    let learning_rate = reference["optimiser"]["lr"].as_f64().unwrap();
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
            computes_the_same_elsewhere(name, &decoder, &batch, &variables, found, &gradients);
        }
        for ((parameter, _), gradient) in variables.iter().zip(&gradients).filter(|_| step == 0) {
            let expected = &tensors[&format!("grad.{parameter}")];
            // A weight that the family stores transposed comes so.
            let stored = decoder.config().stores_transposed(parameter);
            let expected = if stored { flat(&expected.t().unwrap().contiguous().unwrap()) } else { flat(expected) };
            let difference: Vec<f32> = flat(gradient).iter().zip(&expected).map(|(a, b)| a - b).collect();
            if is_key_bias(parameter) {
                assert!(length(&difference) < 1e-5, "{name}: the gradient of {parameter} is not near 0");
                continue;
            }
            let error = length(&difference) / length(&expected);
            gradient_error = gradient_error.max(error);
            assert!(error < 1e-4, "{name}: the gradient of {parameter} differs by {error} of its norm");
        }
        if step + 1 < losses.len() {
            optimiser.step(&variables, &gradients, &settings, learning_rate).unwrap();
        }
    }
    println!("{name}: gradients within {gradient_error:e} of their norms, losses within {furthest:e}");
    let mut end_error = 0f32;
    for ((name, variable), (expected_name, expected)) in variables.iter().zip(&end) {
        assert_eq!(name, expected_name);
        let (mut found, mut expected) = (flat(variable), flat(expected));
        if name.ends_with("c_attn.bias") {
            // Its middle third is the keys'.
            let keys = found.len() / 3..2 * found.len() / 3;
            found[keys.clone()].fill(0.0);
            expected[keys].fill(0.0);
        }
        let worst = if is_key_bias(name) { 0.0 } else { largest_difference(&found, &expected) };
        end_error = end_error.max(worst);
        assert!(worst < 1e-3, "{name} ends {worst} away");
    }
    println!("{name}: what is trained ends within {end_error:e}");
}

macro_rules! cases {
    ($($test:ident: $($name:literal),*;)*) => {
        $(#[test]
        fn $test() {
            for name in [$($name),*] {
                agrees_with_torch(name, &ours(name));
                if let Some(path) = theirs(name) {
                    agrees_with_torch(name, &path);
                }
            }
        })*
    };
}

cases! {
    llama_agrees_with_torch: "llama", "llama-tied", "llama-biased", "llama-head-dim", "llama-ragged", "llama-saved", "full-llama";
    stored_halves_and_shards_agree_with_torch: "llama-bf16", "llama-f16";
    rope_scalings_agree_with_torch: "linear-rope", "linear-rope-old", "llama3-rope", "llama3-rope-old";
    forms_of_lora_agree_with_torch: "llama-rslora", "llama-patterns", "llama-regex";
    mistral_agrees_with_torch: "mistral", "mistral-old";
    qwen2_agrees_with_torch: "qwen2", "qwen2-old", "qwen2-window", "full-qwen2";
    gemma_agrees_with_torch: "gemma", "gemma-old", "full-gemma";
    gpt2_agrees_with_torch: "gpt2", "gpt2-old", "full-gpt2";
    bert_agrees_with_torch: "bert", "bert-old", "full-bert";
    roberta_agrees_with_torch: "roberta", "roberta-old", "full-roberta";
}

/// A case that no test names would be computed for nothing.
#[test]
fn every_case_is_compared() {
    let source = include_str!("reference.rs");
    for entry in std::fs::read_dir(ours("")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(source.contains(&format!("\"{name}\"")), "{name} is in no list");
    }
}
