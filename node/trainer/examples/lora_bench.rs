//! Measures training speed and memory on a random Llama: LoRA on every linear module, or every weight.
//!
//! `cargo run --release -p mingle-trainer --example lora_bench -- [--threads 2] [--steps 6] [--full] [--recompute] [--bf16] [--hidden 512] [--layers 8]
//! [--intermediate 1376] [--vocabulary 4096] [--batch 8] [--seq 256] [--rank 8]`
//!
//! Prints one line: tokens per second of the median step (the first is left out), peak memory, and what that rate means in
//! GFLOP/s of matrix products. `tests/by_hand/speed_against_torch.py` holds it against torch and PEFT.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use mingle_trainer::data::TokenizedExample;
use mingle_trainer::models::{BaseModel, ModelConfig};
use mingle_trainer::train::{Control, Start, TrainData, TrainSettings, random_decoder, seeded_draw, train_adapter, train_full};
use serde_json::json;

struct Arguments {
    threads: usize,
    /// The first is not counted.
    steps: usize,
    full: bool,
    /// Keep activations at block boundaries only.
    recompute: bool,
    /// Frozen weights and their products in bf16.
    bf16: bool,
    hidden: usize,
    layers: usize,
    intermediate: usize,
    vocabulary: usize,
    /// Sequences of a step.
    batch: usize,
    /// Tokens fed of each sequence.
    seq: usize,
    rank: usize,
}

impl Arguments {
    fn read() -> anyhow::Result<Self> {
        let mut found = Self {
            threads: 2,
            steps: 6,
            full: false,
            recompute: false,
            bf16: false,
            hidden: 512,
            layers: 8,
            intermediate: 1376,
            vocabulary: 4096,
            batch: 8,
            seq: 256,
            rank: 8,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let number = match name.as_str() {
                "--full" => {
                    found.full = true;
                    continue;
                }
                "--recompute" => {
                    found.recompute = true;
                    continue;
                }
                "--bf16" => {
                    found.bf16 = true;
                    continue;
                }
                "--threads" => &mut found.threads,
                "--steps" => &mut found.steps,
                "--hidden" => &mut found.hidden,
                "--layers" => &mut found.layers,
                "--intermediate" => &mut found.intermediate,
                "--vocabulary" => &mut found.vocabulary,
                "--batch" => &mut found.batch,
                "--seq" => &mut found.seq,
                "--rank" => &mut found.rank,
                _ => anyhow::bail!("{name} is unknown; the head of this file names what there is"),
            };
            *number = arguments.next().unwrap_or_default().parse().map_err(|_| anyhow::anyhow!("{name} needs a number"))?;
        }
        Ok(found)
    }

    fn config(&self) -> anyhow::Result<ModelConfig> {
        let config = json!({
            "model_type": "llama", "hidden_act": "silu", "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.hidden / 64, "num_key_value_heads": (self.hidden / 128).max(1),
            "vocab_size": self.vocabulary, "max_position_embeddings": 2048.max(self.seq), "rms_norm_eps": 1e-6,
            "tie_word_embeddings": false,
        });
        Ok(ModelConfig::from_json(Path::new("config.json"), &config)?)
    }

    /// Multiply-adds of one token's matrix products, forward and backward, counted twice as floating-point operations.
    fn flops_per_token(&self) -> f64 {
        let (hidden, kv, wide) = (self.hidden, (self.hidden / 128).max(1) * 64, self.intermediate);
        let modules = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden), (hidden, wide), (hidden, wide), (wide, hidden)];
        let weights = self.layers * modules.iter().map(|(a, b)| a * b).sum::<usize>() + self.hidden * self.vocabulary;
        let low = self.layers * self.rank * modules.iter().map(|(a, b)| a + b).sum::<usize>();
        // Each row sees half of the sequence; the backward computes scores again: 2 products forward, 5 backward.
        let attention = self.layers * 7 * self.hidden * self.seq / 2;
        let passes = if self.full { 3 * weights } else { 2 * weights + 3 * low };
        2.0 * (passes + attention) as f64
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % below as u64) as u32
    };
    // One token more than is fed: the last predicts nothing.
    let length = arguments.seq + 1;
    let mut example = || TokenizedExample {
        tokens: (0..length).map(|_| draw(arguments.vocabulary)).collect(),
        learned: vec![true; length],
        ..TokenizedExample::default()
    };
    let examples: Vec<TokenizedExample> = (0..arguments.batch * 2).map(|_| example()).collect();
    let settings = TrainSettings {
        epochs: arguments.steps,
        steps_max: Some(arguments.steps),
        batch_size: arguments.batch,
        rank: arguments.rank,
        length_max: length,
        learning_rate: 1e-3,
        recompute: arguments.recompute,
        threads: Some(arguments.threads),
        ..TrainSettings::default()
    };
    let (decoder, variables) = random_decoder(arguments.config()?, 1, &Device::Cpu)?;
    let data = TrainData { train: &examples, held_out: &examples[..1] };
    let (mut times, mut last, mut loss) = (Vec::new(), None, 0.0);
    // From the end of the first step to the end of the last.
    let (mut first_seconds, mut last_seconds) = (0.0, 0.0);
    let mut step = |progress: &mingle_trainer::train::Progress| {
        let now = Instant::now();
        if progress.step == 1 {
            first_seconds = processor_seconds();
        }
        if progress.step == progress.steps {
            last_seconds = processor_seconds();
        }
        if let Some(before) = last.replace(now) {
            times.push(now.duration_since(before).as_secs_f64());
        }
        loss = progress.loss;
        Control::Continue
    };
    if arguments.full {
        train_full(&decoder, &variables, data, &settings, None, &mut step)?;
    } else {
        let dir = std::env::temp_dir().join(format!("mingle-lora-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        decoder.save(&dir)?;
        drop((decoder, variables));
        let base = BaseModel::load(&dir, &Device::Cpu);
        std::fs::remove_dir_all(&dir)?;
        let base = if arguments.bf16 { base?.multiply_in_bf16() } else { base? };
        train_adapter(&base, data, &settings, Start::Drawn(&seeded_draw(1)), None, &mut step)?;
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let rate = (arguments.batch * arguments.seq) as f64 / median;
    let what = if arguments.full { "full".into() } else { format!("lora-r{}", arguments.rank) };
    println!(
        "RESULT mingle {} {what} threads={}: {rate:.0} tok/s median step {median:.3} processor seconds a step {:.3} maxrss {} MB loss {loss:.4} {:.1} GFLOP/s",
        if arguments.bf16 { "bf16" } else { "f32" },
        arguments.threads,
        (last_seconds - first_seconds) / times.len() as f64,
        peak_megabytes(),
        rate * arguments.flops_per_token() / 1e9
    );
    Ok(())
}

/// Most memory this process has held, where the system says so.
fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}

/// Processor time of all threads so far, where the system says so; on a busy machine it tells more than the clock.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
