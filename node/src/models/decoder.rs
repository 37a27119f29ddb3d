//! The decoder: the one place where a model's blocks are put together.
//!
//! A [`Decoder`] is cheap to make and to clone: it shares the base's tensors. LoRA tensors and, in full training, the
//! weights themselves may be variables; then the loss has a graph.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::kernels::attention::{Heads, causal_attention};
use super::kernels::cross_entropy::{IGNORED, cross_entropy};
use super::kernels::rms_norm::rms_norm;
use super::kernels::rope::{RopeTable, rope};
use super::kernels::rows::rows;
use super::kernels::sum::sum;
use super::kernels::swiglu::swiglu;
use super::linear::Linear;
use super::{ModelConfig, ModelError};

/// One transformer block.
#[derive(Clone)]
pub(crate) struct Block {
    pub attention_norm: Tensor,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub feed_norm: Tensor,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// Names of a block's linear modules, after `model.layers.N.`.
pub const BLOCK_MODULES: [&str; 7] =
    ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"];

impl Block {
    pub(crate) fn linear_mut(&mut self, module: &str) -> Option<&mut Linear> {
        match module {
            "mlp.down_proj" => Some(&mut self.down),
            "mlp.gate_proj" => Some(&mut self.gate),
            "mlp.up_proj" => Some(&mut self.up),
            "self_attn.k_proj" => Some(&mut self.k),
            "self_attn.o_proj" => Some(&mut self.o),
            "self_attn.q_proj" => Some(&mut self.q),
            "self_attn.v_proj" => Some(&mut self.v),
            _ => None,
        }
    }
}

/// A model ready to run.
#[derive(Clone)]
pub struct Decoder {
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) rope: Arc<RopeTable>,
    /// (vocabulary, hidden).
    pub(crate) embedding: Tensor,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Tensor,
    pub(crate) head: Linear,
    /// Every weight is a variable: norms want gradients too.
    pub(crate) trained: bool,
    pub(crate) device: Device,
}

/// Sequences of one length; shorter ones are padded at the end, where causal attention keeps padding unseen.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenBatch {
    pub sequences: usize,
    /// Tokens of each sequence, padding included.
    pub length: usize,
    /// `sequences * length` tokens.
    pub tokens: Vec<u32>,
    /// What each position should predict: the next token, or [`IGNORED`].
    pub targets: Vec<i64>,
}

impl TokenBatch {
    /// How many positions carry a target.
    pub fn labelled(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORED).count()
    }
}

impl Decoder {
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Logits of every position: `(sequences * length, vocabulary)`.
    pub fn logits(&self, tokens: &[u32], sequences: usize) -> std::result::Result<Tensor, ModelError> {
        let hidden = self.hidden(tokens, sequences)?;
        Ok(self.head(&hidden)?)
    }

    /// Cross entropy summed over the batch's targets and divided by `denominator`, a scalar with its graph. The head is
    /// computed for labelled positions only.
    pub fn loss(&self, batch: &TokenBatch, denominator: f64) -> std::result::Result<Tensor, ModelError> {
        let hidden = self.hidden(&batch.tokens, batch.sequences)?;
        let labelled = |(row, target): (usize, &i64)| (*target != IGNORED).then_some((row, *target));
        let (kept, targets): (Vec<usize>, Vec<i64>) = batch.targets.iter().enumerate().filter_map(labelled).unzip();
        if kept.is_empty() {
            return Ok(Tensor::zeros((), DType::F32, &self.device)?);
        }
        let logits = self.head(&rows(&hidden, kept)?)?;
        Ok(cross_entropy(&logits, targets, denominator)?)
    }

    /// The last block's output, before the final norm: `(sequences * length, hidden)`.
    fn hidden(&self, tokens: &[u32], sequences: usize) -> std::result::Result<Tensor, ModelError> {
        let length = tokens.len() / sequences.max(1);
        let mut x = self.embed(tokens, length)?;
        for block in &self.blocks {
            x = self.block(block, &x, sequences, length)?;
        }
        Ok(x)
    }

    /// Refuses tokens outside the vocabulary and positions beyond the model's.
    pub(crate) fn check_tokens(&self, tokens: &[u32], end: usize) -> std::result::Result<(), ModelError> {
        let vocabulary = self.config.vocabulary;
        if end > self.rope.positions() {
            return Err(ModelError::TooLong { found: end, max: self.rope.positions() });
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(ModelError::Token { token: *token, vocabulary });
        }
        Ok(())
    }

    fn embed(&self, tokens: &[u32], end: usize) -> std::result::Result<Tensor, ModelError> {
        self.check_tokens(tokens, end)?;
        Ok(rows(&self.embedding, tokens.iter().map(|token| *token as usize).collect())?)
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(&self.normalise(hidden, &self.norm)?)
    }

    fn normalise(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(x, weight, self.config.norm_eps, self.trained)
    }

    fn block(&self, block: &Block, x: &Tensor, sequences: usize, length: usize) -> Result<Tensor> {
        let config = &self.config;
        let y = self.normalise(x, &block.attention_norm)?;
        let q = rope(&block.q.forward(&y)?, &self.rope, length, 0)?;
        let k = rope(&block.k.forward(&y)?, &self.rope, length, 0)?;
        let v = block.v.forward(&y)?;
        let heads = Heads { sequences, length, heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
        let attended = causal_attention(&q, &k, &v, heads)?;
        let x = sum(x, &block.o.forward(&attended)?)?;
        self.feed_forward(block, &x)
    }

    fn feed_forward(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        let y = self.normalise(x, &block.feed_norm)?;
        let z = swiglu(&block.gate.forward(&y)?, &block.up.forward(&y)?)?;
        sum(x, &block.down.forward(&z)?)
    }
}

/// Keys and values of the tokens a sequence has so far, for generation. Without gradients.
#[derive(Default)]
pub struct KvCache {
    /// Per block: keys and values, `(kv_heads, tokens, head_dim)`.
    blocks: Vec<(Tensor, Tensor)>,
    tokens: usize,
}

impl KvCache {
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl Decoder {
    /// Appends `tokens` to one sequence and returns the logits after the last: `(vocabulary)`.
    pub fn extend(&self, tokens: &[u32], cache: &mut KvCache) -> std::result::Result<Tensor, ModelError> {
        let past = cache.tokens;
        let mut x = self.embed(tokens, past + tokens.len())?;
        for (index, block) in self.blocks.iter().enumerate() {
            x = self.block_cached(block, &x, index, cache, past)?;
        }
        cache.tokens = past + tokens.len();
        Ok(self.head(&x.narrow(0, tokens.len() - 1, 1)?.contiguous()?)?.squeeze(0)?)
    }

    fn block_cached(&self, block: &Block, x: &Tensor, index: usize, cache: &mut KvCache, past: usize) -> Result<Tensor> {
        let config = &self.config;
        let count = x.dim(0)?;
        let y = self.normalise(x, &block.attention_norm)?;
        let split = |t: Tensor, heads: usize| t.reshape((count, heads, config.head_dim))?.transpose(0, 1)?.contiguous();
        let q = split(rope(&block.q.forward(&y)?, &self.rope, count, past)?, config.heads)?;
        let mut k = split(rope(&block.k.forward(&y)?, &self.rope, count, past)?, config.kv_heads)?;
        let mut v = split(block.v.forward(&y)?, config.kv_heads)?;
        if let Some((old_k, old_v)) = cache.blocks.get(index) {
            k = Tensor::cat(&[old_k, &k], 1)?;
            v = Tensor::cat(&[old_v, &v], 1)?;
        }
        let (k, v) = (k.detach(), v.detach());
        let groups = config.heads / config.kv_heads;
        let total = past + count;
        // All query heads of a key-value head are rows of one product.
        let q = q.reshape((config.kv_heads, groups * count, config.head_dim))?;
        let scores = (q.matmul(&k.t()?)? * (1.0 / (config.head_dim as f64).sqrt()))?;
        let scores = scores.reshape((config.heads, count, total))?;
        let scores = match count {
            1 => scores,
            _ => {
                let unseen = |at: usize| if at % total > past + at / total { f32::NEG_INFINITY } else { 0.0 };
                let mask: Vec<f32> = (0..count * total).map(unseen).collect();
                scores.broadcast_add(&Tensor::from_vec(mask, (count, total), &self.device)?)?
            }
        };
        let p = candle_nn::ops::softmax(&scores, D::Minus1)?.reshape((config.kv_heads, groups * count, total))?;
        let attended = p.matmul(&v)?.reshape((config.heads, count, config.head_dim))?;
        let attended = attended.transpose(0, 1)?.reshape((count, config.query_width()))?.contiguous()?;
        match cache.blocks.get_mut(index) {
            Some(slot) => *slot = (k, v),
            None => cache.blocks.push((k, v)),
        }
        let x = sum(x, &block.o.forward(&attended)?)?;
        self.feed_forward(block, &x)
    }
}
