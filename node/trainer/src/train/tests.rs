//! Training as a whole, on random bases of a few thousand parameters.

mod families;
mod methods;
mod passes;
mod private;
mod session;

use std::path::Path;

use candle_core::Device;

use super::*;
use crate::data::TokenizedExample;
use crate::data::batches::Draw;
use crate::evaluate::{Generation, generate, held_out_loss};
use crate::models::config::{Activation, Head, Mask, NormKind, Positions};
use crate::models::families::{Family, llama_json};
use crate::models::{BaseModel, ModelConfig, Pass, TokenBatch, base_digest};

fn tiny_config() -> ModelConfig {
    crate::data::tokens::tests::config(32)
}

fn tiny_base(dir: &Path, config: ModelConfig) -> BaseModel {
    random_decoder(config, 3, &Device::Cpu).unwrap().0.save(dir).unwrap();
    BaseModel::load(dir, &Device::Cpu).unwrap()
}

/// Counting upwards from a drawn number: easy to learn.
fn counting(count: usize) -> Vec<TokenizedExample> {
    let mut draw = Draw::new(7, "counting", 0);
    let mut one = || {
        let (start, length) = (3 + draw.below(8) as u32, 4 + draw.below(12) as u32);
        let tokens: Vec<u32> = [1].into_iter().chain(start..start + length).chain([2]).collect();
        TokenizedExample { learned: (0..tokens.len()).map(|i| i > 1).collect(), ..TokenizedExample::all_learned(tokens) }
    };
    (0..count).map(|_| one()).collect()
}

/// One sequence of which nothing is asked.
fn one(tokens: &[u32]) -> TokenBatch {
    TokenBatch { lengths: vec![tokens.len()], tokens: tokens.to_vec(), ..TokenBatch::default() }
}

fn quick() -> TrainSettings {
    TrainSettings { epochs: 2, batch_size: 8, learning_rate: 1e-2, rank: 2, alpha: 4.0, threads: Some(2), ..Default::default() }
}

fn finished<T>(outcome: Outcome<T>) -> T {
    match outcome {
        Outcome::Finished(done) => done,
        Outcome::Stopped { step, .. } => panic!("stopped at {step}"),
    }
}

fn lora(base: &BaseModel, settings: &TrainSettings, checkpoint: Option<&Path>, stop_at: usize) -> Outcome<TrainedAdapter> {
    let examples = counting(44);
    let (train, held_out) = examples.split_at(36);
    let draw = seeded_draw(5);
    let mut progress = |p: &Progress| if p.step == stop_at { Control::Stop } else { Control::Continue };
    train_adapter(base, TrainData { train, held_out }, settings, Start::Drawn(&draw), checkpoint, &mut progress).unwrap()
}

#[test]
fn an_interrupted_training_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let whole = finished(lora(&base, &quick(), None, usize::MAX));
    assert!(whole.losses.after < whole.losses.before - 0.05, "{:?}", whole.losses);
    let checkpoint = dir.path().join("state");
    // Stopped on request in the middle of an epoch, then again in the next; two steps between.
    for stop in [3, 7] {
        let outcome = lora(&base, &quick(), Some(&checkpoint), stop);
        assert_eq!(outcome, Outcome::Stopped { step: stop, steps: 10 });
    }
    // And once by a checkpoint that is older than the end.
    let resumed = finished(lora(&base, &quick(), Some(&checkpoint), usize::MAX));
    assert_eq!(resumed.adapter, whole.adapter);
    assert_eq!(resumed.step_losses, whole.step_losses);
    assert_eq!((resumed.losses, resumed.tokens), (whole.losses, whole.tokens));
    let other = TrainSettings { seed: 1, ..quick() };
    let examples = counting(36);
    let data = TrainData { train: &examples, held_out: &[] };
    let draw = seeded_draw(5);
    let refused = train_adapter(&base, data, &other, Start::Drawn(&draw), Some(&checkpoint), &mut |_| Control::Continue).unwrap_err();
    assert!(refused.to_string().contains("was made with other settings"), "{refused}");
}

#[test]
fn a_killed_training_resumes_from_its_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let whole = finished(lora(&base, &quick(), None, usize::MAX));
    let checkpoint = dir.path().join("state");
    let settings = TrainSettings { checkpoint_every_steps: 4, ..quick() };
    // A panic in the progress callback ends the training as a kill would: nothing is written after it.
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let examples = counting(44);
        let data = TrainData { train: &examples[..36], held_out: &examples[36..] };
        let draw = seeded_draw(5);
        let mut progress = |p: &Progress| if p.step == 6 { panic!("killed") } else { Control::Continue };
        train_adapter(&base, data, &settings, Start::Drawn(&draw), Some(&checkpoint), &mut progress).unwrap()
    }));
    assert!(killed.is_err() && checkpoint.join(checkpoint::FILE).exists());
    let resumed = finished(lora(&base, &settings, Some(&checkpoint), usize::MAX));
    assert_eq!(resumed.adapter, whole.adapter);
    assert_eq!(resumed.step_losses, whole.step_losses);
}

#[test]
fn the_number_of_threads_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let with = |threads| finished(lora(&base, &TrainSettings { threads: Some(threads), ..quick() }, None, usize::MAX));
    let (one, three) = (with(1), with(3));
    assert_eq!((one.adapter, one.step_losses), (three.adapter, three.step_losses));
}

#[test]
fn a_training_goes_on_from_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let first = finished(lora(&base, &quick(), None, usize::MAX));
    let examples = counting(44);
    let data = TrainData { train: &examples[..36], held_out: &examples[36..] };
    let go_on =
        |settings: &TrainSettings| train_adapter(&base, data, settings, Start::Adapter(&first.adapter), None, &mut |_| Control::Continue);
    let second = finished(go_on(&quick()).unwrap());
    assert_eq!(second.losses.before, first.losses.after);
    assert!(second.losses.after < second.losses.before);
    let error = go_on(&TrainSettings { rank: 4, ..quick() }).unwrap_err().to_string();
    assert!(error.contains("rank is 2 where the settings say 4"), "{error}");
    let error = go_on(&TrainSettings { targets: vec!["q_proj".into()], ..quick() }).unwrap_err().to_string();
    assert!(error.contains("names no module"), "{error}");
    let error = go_on(&TrainSettings { targets: vec!["w_proj".into()], ..quick() }).unwrap_err().to_string();
    assert!(error.contains("\"w_proj\" names no linear module"), "{error}");
}

#[test]
fn an_adapter_read_back_scores_as_the_trained_one() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let trained = finished(lora(&base, &quick(), None, usize::MAX));
    crate::peft::write(&dir.path().join("adapter"), &trained.adapter).unwrap();
    let read = crate::peft::read(&dir.path().join("adapter")).unwrap();
    let examples = counting(44);
    let score = held_out_loss(&read.apply(&base).unwrap(), &examples[36..]).unwrap();
    assert_eq!(score.loss, trained.losses.after);
    let plain = held_out_loss(&base.decoder(), &examples[36..]).unwrap();
    assert_eq!(plain.loss, trained.losses.before, "the base itself has not changed");
    assert_eq!(score.tokens, examples[36..].iter().map(|example| example.labels() as u64).sum::<u64>());
}

#[test]
fn every_weight_trains_and_the_model_is_saved_and_used() {
    let dir = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        let config = ModelConfig { tied, ..tiny_config() };
        let (decoder, variables) = random_decoder(config, 3, &Device::Cpu).unwrap();
        let before: Vec<Vec<f32>> = variables.iter().map(|(_, v)| v.flatten_all().unwrap().to_vec1().unwrap()).collect();
        let examples = counting(240);
        let data = TrainData { train: &examples[..220], held_out: &examples[220..] };
        let settings = TrainSettings { epochs: 5, ..quick() };
        let done = finished(train_full(&decoder, &variables, data, &settings, None, &mut |_| Control::Continue).unwrap());
        assert!(done.losses.after < 0.5 * done.losses.before, "{:?}", done.losses);
        for ((name, variable), before) in variables.iter().zip(before) {
            assert_ne!(variable.flatten_all().unwrap().to_vec1::<f32>().unwrap(), before, "{name} has not moved");
        }
        decoder.save(dir.path()).unwrap();
        let read = BaseModel::load(dir.path(), &Device::Cpu).unwrap();
        // Saved in bf16: three digits.
        let score = held_out_loss(&read.decoder(), data.held_out).unwrap();
        assert!((score.loss - done.losses.after).abs() < 0.02, "{} {:?}", score.loss, done.losses);
        let greedy = Generation { sampling: candle_transformers::generation::Sampling::ArgMax, seed: 0, tokens_max: 4 };
        assert_eq!(generate(&read.decoder(), &[1, 4, 5], &greedy, |token| token == 2).unwrap(), [6, 7, 8, 9]);
    }
}

#[test]
fn generation_with_a_cache_sees_what_the_whole_sequence_sees() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = tiny_base(dir.path(), tiny_config()).decoder();
    let tokens = [1, 9, 4, 30, 7, 7, 12];
    let whole = decoder.logits(&one(&tokens)).unwrap();
    let mut cache = crate::models::KvCache::default();
    decoder.extend(&tokens[..4], &mut cache).unwrap();
    decoder.extend(&tokens[4..6], &mut cache).unwrap();
    let last = decoder.extend(&tokens[6..], &mut cache).unwrap();
    let difference = (last - whole.get(6).unwrap()).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(difference < 1e-5, "{difference}");
    assert_eq!(cache.tokens(), 7);
}

#[test]
fn logits_agree_with_candle_transformers() {
    use candle_transformers::models::llama;
    let dir = tempfile::tempdir().unwrap();
    for tied in [true, false] {
        let decoder = tiny_base(dir.path(), ModelConfig { tied, ..tiny_config() }).decoder();
        let json = std::fs::read(dir.path().join("config.json")).unwrap();
        let config = serde_json::from_slice::<llama::LlamaConfig>(&json).unwrap().into_config(false);
        let weights = candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
        let weights = weights.into_iter().map(|(n, t)| (n, t.to_dtype(candle_core::DType::F32).unwrap())).collect();
        let builder = candle_nn::VarBuilder::from_tensors(weights, candle_core::DType::F32, &Device::Cpu);
        let theirs = llama::Llama::load(builder, &config).unwrap();
        let tokens: Vec<u32> = vec![1, 9, 4, 30, 7];
        let mut cache = llama::Cache::new(false, candle_core::DType::F32, &config, &Device::Cpu).unwrap();
        let input = candle_core::Tensor::new(&tokens[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let expected = theirs.forward(&input, 0, &mut cache).unwrap().squeeze(0).unwrap();
        let found = decoder.logits(&one(&tokens)).unwrap().get(4).unwrap();
        let difference = (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-5, "{difference}");
    }
}

#[test]
fn the_base_digest_does_not_depend_on_shards() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let single = base_digest(dir.path()).unwrap();
    // The same tensors in two shards with an index.
    let shards = dir.path().join("shards");
    std::fs::create_dir(&shards).unwrap();
    let all = candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    let mut halves = [std::collections::HashMap::new(), std::collections::HashMap::new()];
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in all.into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", index % 2).into());
        halves[index % 2].insert(name, tensor);
    }
    for (index, half) in halves.iter().enumerate() {
        candle_core::safetensors::save(half, shards.join(format!("model-{index}.safetensors"))).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(shards.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::copy(dir.path().join("config.json"), shards.join("config.json")).unwrap();
    assert_eq!(base_digest(&shards).unwrap(), single);
    let sharded = BaseModel::load(&shards, &Device::Cpu).unwrap();
    let logits = |base: &BaseModel| base.decoder().logits(&one(&[1, 2, 3])).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(logits(&sharded), logits(&base));
    // One changed weight is another base.
    let mut bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
    assert_ne!(base_digest(dir.path()).unwrap(), single);
    // A truncated file is refused.
    bytes.pop();
    std::fs::write(dir.path().join("model.safetensors"), &bytes).unwrap();
    assert!(BaseModel::load(dir.path(), &Device::Cpu).err().unwrap().to_string().contains("its header describes"));
}

#[test]
fn padding_and_neighbours_do_not_change_an_example() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = tiny_base(dir.path(), tiny_config()).decoder();
    let examples = counting(9);
    let apart: Vec<_> = examples.iter().map(|example| held_out_loss(&decoder, std::slice::from_ref(example)).unwrap()).collect();
    let sum: f64 = apart.iter().map(|one| one.loss * one.tokens as f64).sum();
    let together = held_out_loss(&decoder, &examples).unwrap();
    assert!((together.loss * together.tokens as f64 - sum).abs() < 1e-4);
}

#[test]
fn what_cannot_be_learnt_or_fed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let draw = seeded_draw(5);
    let train = |train: &[TokenizedExample]| {
        let data = TrainData { train, held_out: &[] };
        train_adapter(&base, data, &quick(), Start::Drawn(&draw), None, &mut |_| Control::Continue).unwrap_err().to_string()
    };
    assert!(train(&[]).starts_with("there is nothing to learn"));
    let example = TokenizedExample::all_learned;
    assert!(train(&[example(vec![1, 99, 2])]).contains("token 99 lies outside the vocabulary of 32"));
    assert!(train(&[example(vec![3; 100])]).contains("99 tokens in one sequence, but the model's positions end at 64"));
}

/// From JSON lines to right answers: tokens, training, generation and comparison together.
#[test]
fn a_learnt_answer_is_generated_exactly() {
    use crate::data::{Template, Tokens, read_jsonl};
    use crate::evaluate::{AnswerEnd, exact_match, template_prompts};
    let dir = tempfile::tempdir().unwrap();
    crate::data::tokens::tests::write_tokenizer(dir.path());
    let path = dir.path().join("data.jsonl");
    let lines = [("one ", "two three"), ("two ", "three four"), ("three ", "four five")];
    let line = |(q, a): (&str, &str)| format!("{{\"question\": \"count from {q}\", \"answer\": \"{a}\"}}\n");
    std::fs::write(&path, lines.map(line).concat()).unwrap();
    let (decoder, variables) = random_decoder(crate::data::tokens::tests::config(11), 3, &Device::Cpu).unwrap();
    let tokens = Tokens::read(dir.path(), decoder.config()).unwrap();
    let records = read_jsonl(&path).unwrap();
    let prompts = template_prompts(&tokens, &records, Template::Short).unwrap();
    let end = AnswerEnd { tokens_max: 8, stops: &[] };
    let score = || exact_match(&decoder, &tokens, &prompts, end, &|_, _| {}).unwrap();
    assert_eq!((score().whole, score().examples), (0.0, 3));
    let examples = tokens.examples(&records, Template::Short, 64).unwrap();
    let settings = TrainSettings { epochs: 150, batch_size: 3, ..quick() };
    let data = TrainData { train: &examples, held_out: &[] };
    finished(train_full(&decoder, &variables, data, &settings, None, &mut |_| Control::Continue).unwrap());
    assert_eq!(score().whole, 1.0);
}

#[test]
fn a_base_that_is_not_whole_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    tiny_base(dir.path(), tiny_config());
    let refused = || BaseModel::load(dir.path(), &Device::Cpu).err().unwrap().to_string();
    let write = |name: &str, json: serde_json::Value| std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    let config = llama_json(&tiny_config());
    let with = |field: &str, value: usize| {
        let mut json = config.clone();
        json[field] = value.into();
        write("config.json", json);
    };
    with("intermediate_size", 25);
    assert!(refused().contains("has shape [24, 16], but the configuration asks for [25, 16]"), "{}", refused());
    with("num_hidden_layers", 3);
    assert!(refused().contains("holds no tensor \"model.layers.2.self_attn.q_proj.weight\""), "{}", refused());
    write("config.json", config.clone());
    std::fs::rename(dir.path().join("model.safetensors"), dir.path().join("other.safetensors")).unwrap();
    assert!(refused().contains("holds neither model.safetensors nor"), "{}", refused());
    let index = |file: &str, name: &str| {
        write("model.safetensors.index.json", serde_json::json!({ "weight_map": { name: file } }));
    };
    index("../other.safetensors", "model.norm.weight");
    assert!(refused().contains("which is no file of this directory"), "{}", refused());
    index("other.safetensors", "model.none.weight");
    assert!(refused().contains("holds no tensor \"model.none.weight\""), "{}", refused());
    let mut bytes = std::fs::read(dir.path().join("other.safetensors")).unwrap();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    assert!(refused().contains("its header claims 18446744073709551615 bytes"), "{}", refused());
}
