//! Text continued token by token.

use candle_transformers::generation::{LogitsProcessor, Sampling};

use crate::models::{Decoder, KvCache, ModelError};

/// How to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// `Sampling::ArgMax` always takes the likeliest token.
    pub sampling: Sampling,
    pub seed: u64,
    /// Tokens generated at most; the model's positions are a bound too.
    pub tokens_max: usize,
}

/// Continues `prompt` until `is_end` says so; returns the new tokens, the ending one not among them.
pub fn generate(decoder: &Decoder, prompt: &[u32], generation: &Generation, is_end: impl Fn(u32) -> bool) -> Result<Vec<u32>, ModelError> {
    generate_until(decoder, prompt, generation, is_end, |_| false)
}

/// As [`generate`], and also ends when `stopped` says so of all new tokens, the last among them.
pub fn generate_until(
    decoder: &Decoder,
    prompt: &[u32],
    generation: &Generation,
    is_end: impl Fn(u32) -> bool,
    stopped: impl Fn(&[u32]) -> bool,
) -> Result<Vec<u32>, ModelError> {
    let mut sampler = LogitsProcessor::from_sampling(generation.seed, generation.sampling.clone());
    let room = decoder.config().positions_max.saturating_sub(prompt.len());
    let mut cache = KvCache::default();
    let mut generated = Vec::new();
    if prompt.is_empty() || room == 0 || generation.tokens_max == 0 {
        return Ok(generated);
    }
    let mut logits = decoder.extend(prompt, &mut cache)?;
    loop {
        let token = sampler.sample(&logits)?;
        if is_end(token) {
            return Ok(generated);
        }
        generated.push(token);
        if generated.len() >= generation.tokens_max.min(room) || stopped(&generated) {
            return Ok(generated);
        }
        logits = decoder.extend(&[token], &mut cache)?;
    }
}
