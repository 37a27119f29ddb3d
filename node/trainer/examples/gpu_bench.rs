//! Measures LoRA training on a device at the shape of a known model, with drawn weights: time of a step, memory, and the
//! largest batch that fits.
//!
//! `cargo run --release -p mingle-trainer --features flash-attn --example gpu_bench -- [--device auto] [--precision bf16]
//! [--shape tinyllama|7b] [--seq 1024] [--batch 4] [--steps 10] [--rank 8] [--recompute] [--largest]`
//!
//! Prints one JSON object: seconds and tokens per second of the median step (the first two are left out), the device's
//! memory in use at the end, and with `--largest` the largest batch, doubled until one does not fit.

use std::time::Instant;

use mingle_trainer::data::TokenizedExample;
use mingle_trainer::models::device::{DeviceChoice, OpenedDevice, Precision};
use mingle_trainer::models::{BaseModel, ModelConfig};
use mingle_trainer::train::{Control, Start, TrainData, TrainSettings, seeded_draw, train_adapter};
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1));
    let number = |name: &str, default: usize| given(name).map_or(Ok(default), |text| text.parse());
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);

    let choice: DeviceChoice = given("--device").map_or(Ok(DeviceChoice::Auto), |text| text.parse())?;
    let precision: Option<Precision> = given("--precision").map(|text| text.parse()).transpose()?;
    let opened = choice.open()?;
    let placement = opened.placement(precision)?;
    let shape = given("--shape").map_or("tinyllama", String::as_str);
    let base = BaseModel::drawn(config(shape)?, &placement)?;
    let (seq, rank, recompute) = (number("--seq", 1024)?, number("--rank", 8)?, flag("--recompute"));
    let measure = |batch: usize, steps: usize| measure(&base, &opened, batch, seq, steps, rank, recompute);

    let batch = number("--batch", 4)?;
    let mut report = json!({ "device": opened.line(), "dtype": format!("{:?}", placement.dtype), "shape": shape, "sequence": seq,
        "rank": rank, "recompute": recompute, "batch": batch });
    let (seconds, bytes) = measure(batch, number("--steps", 10)?)?;
    report["seconds_per_step"] = json!(seconds);
    report["tokens_per_second"] = json!((batch * seq) as f64 / seconds);
    report["bytes_in_use"] = json!(bytes);
    if flag("--largest") {
        let (mut fits, mut next) = (batch, batch * 2);
        while next <= 1 << 12 {
            match measure(next, 3) {
                Ok(_) => (fits, next) = (next, next * 2),
                // The first that does not fit ends the doubling.
                Err(error) => {
                    report["first_too_large"] = json!({ "batch": next, "reason": error.to_string().lines().next() });
                    break;
                }
            }
        }
        report["largest_batch"] = json!(fits);
    }
    println!("{report}");
    Ok(())
}

/// The shapes of TinyLlama-1.1B and Llama-2-7B.
fn config(shape: &str) -> anyhow::Result<ModelConfig> {
    let [hidden, intermediate, layers, heads, kv_heads] = match shape {
        "tinyllama" => [2048, 5632, 22, 32, 4],
        "7b" => [4096, 11008, 32, 32, 32],
        other => anyhow::bail!("{other:?} is no shape: tinyllama or 7b"),
    };
    let json = json!({ "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5 });
    Ok(ModelConfig::from_json(std::path::Path::new(shape), &json)?)
}

/// Seconds of the median step and, of a GPU, the bytes in use after the last.
fn measure(
    base: &BaseModel,
    opened: &OpenedDevice,
    batch: usize,
    seq: usize,
    steps: usize,
    rank: usize,
    recompute: bool,
) -> anyhow::Result<(f64, Option<u64>)> {
    let example = |index: usize| TokenizedExample {
        tokens: (0..seq).map(|at| ((index * 7919 + at * 104_729) % 31_999) as u32).collect(),
        learned: vec![true; seq],
        ..TokenizedExample::default()
    };
    let examples: Vec<TokenizedExample> = (0..batch * steps).map(example).collect();
    let held_out = [example(1)];
    let settings = TrainSettings {
        epochs: 1,
        batch_size: batch,
        length_max: seq,
        recompute,
        rank,
        alpha: 2.0 * rank as f64,
        ..TrainSettings::default()
    };
    let (mut times, mut last) = (Vec::new(), Instant::now());
    let mut progress = |_: &mingle_trainer::train::Progress| {
        times.push(last.elapsed().as_secs_f64());
        last = Instant::now();
        Control::Continue
    };
    let draw = seeded_draw(1);
    train_adapter(base, TrainData { train: &examples, held_out: &held_out }, &settings, Start::Drawn(&draw), None, &mut progress)?;
    let mut counted = times.split_off(times.len().min(2));
    counted.sort_by(f64::total_cmp);
    let median = counted.get(counted.len() / 2).or(times.last()).copied().unwrap_or_default();
    Ok((median, opened.memory_now().map(|memory| memory.total - memory.free)))
}
