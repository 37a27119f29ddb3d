//! Measures training speed and memory on a random Llama: LoRA on every linear module, or every weight.
//!
//! `cargo run --release -p mingle --example lora_bench -- [--threads 2] [--steps 6] [--full] [--hidden 512] [--layers 8]
//! [--intermediate 1376] [--vocabulary 4096] [--batch 8] [--seq 256] [--rank 8]`
//!
//! Prints one line: tokens per second of the median step (the first is left out), peak memory, and what that rate means in
//! GFLOP/s of matrix products. `tests/by_hand/speed_against_torch.py` holds it against torch and PEFT.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use clap::Parser;
use mingle::data::TokenizedExample;
use mingle::models::{BaseModel, ModelConfig};
use mingle::train::{Control, Start, TrainData, TrainSettings, random_decoder, seeded_draw, train_full, train_lora};
use serde_json::json;

/// Measures training speed and memory on a random Llama.
#[derive(Parser)]
struct Arguments {
    /// Threads that compute.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Steps; the first is not counted.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Train every weight instead of LoRA.
    #[arg(long)]
    full: bool,
    #[arg(long, default_value_t = 512)]
    hidden: usize,
    #[arg(long, default_value_t = 8)]
    layers: usize,
    #[arg(long, default_value_t = 1376)]
    intermediate: usize,
    #[arg(long, default_value_t = 4096)]
    vocabulary: usize,
    /// Sequences of a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens fed of each sequence.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    #[arg(long, default_value_t = 8)]
    rank: usize,
}

impl Arguments {
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
    let arguments = Arguments::parse();
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % below as u64) as u32
    };
    // One token more than is fed: the last predicts nothing.
    let length = arguments.seq + 1;
    let mut example =
        || TokenizedExample { tokens: (0..length).map(|_| draw(arguments.vocabulary)).collect(), learned: vec![true; length] };
    let examples: Vec<TokenizedExample> = (0..arguments.batch * 2).map(|_| example()).collect();
    let settings = TrainSettings {
        epochs: arguments.steps,
        steps_max: Some(arguments.steps),
        batch_size: arguments.batch,
        rank: arguments.rank,
        length_max: length,
        learning_rate: 1e-3,
        threads: Some(arguments.threads),
        ..TrainSettings::default()
    };
    let (decoder, variables) = random_decoder(arguments.config()?, 1, &Device::Cpu)?;
    let data = TrainData { train: &examples, held_out: &examples[..1] };
    let (mut times, mut last, mut loss) = (Vec::new(), None, 0.0);
    let mut step = |progress: &mingle::train::Progress| {
        let now = Instant::now();
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
        train_lora(&base?, data, &settings, Start::Drawn(&seeded_draw(1)), None, &mut step)?;
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let rate = (arguments.batch * arguments.seq) as f64 / median;
    let what = if arguments.full { "full".into() } else { format!("lora-r{}", arguments.rank) };
    println!(
        "RESULT mingle f32 {what} threads={}: {rate:.0} tok/s median step {median:.3} maxrss {} MB loss {loss:.4} {:.1} GFLOP/s",
        arguments.threads,
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
