//! What a training will need, said before its weights are loaded: from the configuration, the headers of the weights'
//! files, the settings and the lengths of the examples.
//!
//! The bytes follow what the trainer keeps, part by part. They were held against the measured peak of real trainings;
//! `docs/training.md` has the ratios.

use serde::Serialize;

use super::{Steps, TrainError, TrainSettings};
use crate::models::ModelConfig;

/// Bytes of a number while it is computed with, and of everything that is trained.
const F32: u64 = 4;
/// What the program takes without a model: code, tokenizer, threads, and what the allocator keeps.
const PROCESS_BYTES: u64 = 48 << 20;
/// Trained numbers exist four times: values, gradients, and two moments.
const MOMENTS: u64 = 2;

/// Of a training, before it starts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Numbers in the base's weights.
    pub parameters: u64,
    pub trainable_parameters: u64,
    pub examples: u64,
    /// Of the longest example, after cutting.
    pub longest_tokens: u64,
    /// Optimiser steps, and tokens fed over all of them.
    pub steps: u64,
    pub tokens: u64,
    pub bytes: Bytes,
    /// Sum of [`Bytes`] with the settings as they are.
    pub needed_bytes: u64,
    /// Memory that is free, where the system tells.
    pub available_bytes: Option<u64>,
}

/// Where the memory goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bytes {
    /// The base's weights.
    pub weights: u64,
    /// Frozen weights as the CPU's products want them.
    pub packed: u64,
    /// What is trained, beside the base.
    pub trained: u64,
    pub gradients: u64,
    pub moments: u64,
    /// The values of the best evaluation.
    pub best: u64,
    /// At the largest step, with and without recomputing.
    pub activations: u64,
    pub activations_kept: u64,
    pub activations_recomputed: u64,
    pub examples: u64,
    pub process: u64,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trainable {
    pub parameters: u64,
    /// Those that have gradients and moments at one time: fewer where blocks take turns.
    pub active: u64,
    /// Numbers in frozen linear maps, which the CPU lays out a second time for its products.
    pub packed: u64,
    /// Width of all low-rank matrices of a block together; 0 without them.
    pub rank_per_block: u64,
}

/// Estimates a training on examples of these lengths. `parameters` are the numbers in the base's files.
pub fn estimate(config: &ModelConfig, parameters: u64, trainable: Trainable, lengths: &[usize], settings: &TrainSettings) -> Estimate {
    let mut steps = Steps::new(lengths.to_vec(), settings);
    let threads = settings.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)) as u64;
    let longest = lengths.iter().copied().max().unwrap_or(0) as u64;
    let tokens = steps.tokens();
    let (trained, active) = (F32 * trainable.parameters, F32 * trainable.active);
    let at_work = Work::largest(lengths, &mut steps, threads, active);
    let kept = at_work.bytes(config, trainable, false);
    let recomputed = at_work.bytes(config, trainable, true);
    let bytes = Bytes {
        weights: F32 * parameters,
        packed: F32 * trainable.packed,
        trained,
        gradients: active * (1 + at_work.slices),
        moments: MOMENTS * active,
        best: if settings.keep_best { trained } else { 0 },
        activations: if settings.recompute { recomputed } else { kept },
        activations_kept: kept,
        activations_recomputed: recomputed,
        // A token, whether it is learned, and its place in a list.
        examples: lengths.iter().map(|length| 5 * *length as u64 + 64).sum(),
        process: PROCESS_BYTES,
    };
    let parts = [
        bytes.weights,
        bytes.packed,
        bytes.trained,
        bytes.gradients,
        bytes.moments,
        bytes.best,
        bytes.activations,
        bytes.examples,
        bytes.process,
    ];
    Estimate {
        parameters,
        trainable_parameters: trainable.parameters,
        examples: lengths.len() as u64,
        longest_tokens: longest,
        steps: steps.count() as u64,
        tokens,
        needed_bytes: parts.iter().sum(),
        available_bytes: super::resources::available(),
        bytes,
    }
}

/// Tokens a slice of a batch has at least, where the batch has as many: `gradients` cuts so.
const SLICE_TOKENS: u64 = 256;
/// Tokens that an evaluation computes together on each thread.
const EVALUATED_TOKENS: u64 = 768;
/// Logits computed at a time.
const LOGITS_MAX: u64 = 1 << 22;

/// What is computed at the same time in the largest step.
struct Work {
    /// Sums of gradients side by side.
    slices: u64,
    /// Slices that run at once, and their tokens.
    at_once: u64,
    tokens: u64,
}

impl Work {
    fn largest(lengths: &[usize], steps: &mut Steps, threads: u64, gradient_bytes: u64) -> Self {
        let (mut slices, mut tokens) = (1, 1);
        for step in 0..steps.count() {
            let examples = steps.examples(step);
            let (count, total) = (examples.len() as u64, examples.iter().map(|index| lengths[*index] as u64).sum::<u64>());
            let longest = examples.iter().map(|index| lengths[*index] as u64).max().unwrap_or(1);
            let cut = (total / SLICE_TOKENS).clamp(1, count.max(1));
            slices = slices.max(cut);
            tokens = tokens.max(total.div_ceil(cut).max(longest));
        }
        let slices = slices.min(sums(gradient_bytes));
        Self { slices, at_once: slices.min(threads), tokens }
    }

    fn bytes(&self, config: &ModelConfig, trainable: Trainable, recompute: bool) -> u64 {
        let (hidden, vocabulary, layers) = (config.hidden as u64, config.vocabulary as u64, config.layers as u64);
        let (queries, keys) = (config.query_width() as u64, config.kv_width() as u64);
        let feed = config.intermediate as u64 * if config.gated { 3 } else { 2 };
        // Input, both norms' outputs and the first sum; queries, keys, values, what was attended; gate, up, their product.
        let block = 4 * hidden + 2 * queries + 2 * keys + feed + trainable.rank_per_block;
        // One block's gradients live while it goes backwards.
        let trained = match recompute {
            true => self.tokens * (layers * hidden + 2 * block),
            false => self.tokens * (layers * block + block),
        };
        let logits = 2 * vocabulary * self.tokens.min((LOGITS_MAX / vocabulary).max(16));
        let measured = EVALUATED_TOKENS.max(self.tokens) * block;
        F32 * self.at_once * (trained.max(measured) + logits)
    }
}

/// Sums of gradients that are kept side by side, where one takes so many bytes: `gradients` says why.
fn sums(bytes: u64) -> u64 {
    match bytes {
        0x4000_0000.. => 1,
        _ => ((256 << 20) / bytes.max(1)).clamp(2, 8),
    }
}

impl Estimate {
    /// Refuses a training that needs more memory than is free.
    pub fn check(&self) -> Result<(), TrainError> {
        match self.available_bytes {
            Some(available) if available < self.needed_bytes => Err(TrainError::DoesNotFit { needed: self.needed_bytes, available }),
            _ => Ok(()),
        }
    }

    /// Bytes with activations computed again.
    pub fn needed_recomputed(&self) -> u64 {
        self.needed_bytes - self.bytes.activations + self.bytes.activations_recomputed
    }
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0x4000_0000.. => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        0x10_0000.. => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.0} KiB", bytes as f64 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokens::tests::config;

    fn settings() -> TrainSettings {
        TrainSettings { epochs: 2, batch_size: 4, threads: Some(2), ..TrainSettings::default() }
    }

    fn lora() -> Trainable {
        Trainable { parameters: 1_000, active: 1_000, packed: 500, rank_per_block: 7 * 8 }
    }

    #[test]
    fn every_part_counts_once() {
        let found = estimate(&config(32), 10_000, lora(), &[100; 10], &settings());
        assert_eq!((found.steps, found.tokens, found.longest_tokens, found.examples), (6, 2_000, 100, 10));
        let bytes = &found.bytes;
        assert_eq!((bytes.weights, bytes.trained, bytes.moments, bytes.best), (40_000, 4_000, 8_000, 0));
        assert_eq!(bytes.activations, bytes.activations_kept);
        let parts =
            2_000 + bytes.weights + bytes.trained + bytes.gradients + bytes.moments + bytes.activations + bytes.examples + bytes.process;
        assert_eq!(found.needed_bytes, parts);
        let turns = Trainable { active: 250, ..lora() };
        let turns = estimate(&config(32), 10_000, turns, &[100; 10], &TrainSettings { keep_best: true, ..settings() });
        assert_eq!((turns.bytes.trained, turns.bytes.moments, turns.bytes.best), (4_000, 2_000, 4_000));
    }

    #[test]
    fn what_the_error_advises_does_lower_the_estimate() {
        let deep = ModelConfig { layers: 24, ..config(32) };
        let of = |settings: TrainSettings, length: usize, rank: u64| {
            let trainable = Trainable { parameters: 100_000 * rank, active: 100_000 * rank, packed: 0, rank_per_block: 7 * rank };
            estimate(&deep, 10_000, trainable, &[length; 16], &settings).needed_bytes
        };
        let whole = of(settings(), 1_000, 8);
        assert!(of(TrainSettings { recompute: true, ..settings() }, 1_000, 8) < whole);
        assert!(of(settings(), 500, 8) < whole);
        assert!(of(settings(), 1_000, 4) < whole);
        assert!(of(TrainSettings { threads: Some(1), ..settings() }, 1_000, 8) < whole);
        let recomputed = estimate(&deep, 10_000, lora(), &[1_000; 16], &settings());
        assert!(recomputed.needed_recomputed() < recomputed.needed_bytes);
    }

    #[test]
    fn a_training_that_does_not_fit_is_refused_with_both_numbers() {
        let mut found = estimate(&config(32), 10_000, lora(), &[100; 10], &settings());
        found.available_bytes = Some(found.needed_bytes);
        found.check().unwrap();
        (found.needed_bytes, found.available_bytes) = (3 << 30, Some(512 << 20));
        assert_eq!(found.check().unwrap_err().to_string(), "this training needs about 3.0 GiB of memory, but 512 MiB are free");
        found.available_bytes = None;
        found.check().unwrap();
    }
}
