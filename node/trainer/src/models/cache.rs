//! Generation token by token: keys and values of what a sequence has so far, and passes that carry many sequences on.

use candle_core::Tensor;

use super::batch::TokenBatch;
use super::ops::{self, Past};
use super::transformer::Decoder;
use super::{ModelError, config::Mask};

/// Keys and values of the tokens a sequence has so far. Without gradients.
#[derive(Default)]
pub struct KvCache {
    blocks: Vec<Past>,
    tokens: usize,
}

impl KvCache {
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// One sequence's part of a pass.
pub struct Step<'a> {
    /// What follows the tokens that the cache has; one at least.
    pub tokens: &'a [u32],
    pub cache: &'a mut KvCache,
    /// Whether the logits after the last of these tokens are asked for.
    pub wanted: bool,
}

impl Decoder {
    /// Appends `tokens` to one sequence and returns the logits after the last: `(vocabulary)`.
    ///
    /// # Errors
    /// As [`Decoder::advance`].
    pub fn extend(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Tensor, ModelError> {
        let logits = self.advance(&mut [Step { tokens, cache, wanted: true }])?;
        Ok(Tensor::from_vec(logits, self.classes(), &self.device)?)
    }

    /// Carries several sequences on in one pass, each by as many tokens as its step has. Returns the logits after the last
    /// token of each step that wants them, in order: rows of the vocabulary. Linear maps see all rows at once; attention sees
    /// each sequence by itself, so that a sequence's logits do not depend on those beside it.
    ///
    /// # Errors
    /// A model that sees what comes after, tokens outside the vocabulary, or more of them than the model has positions: then
    /// nothing has changed. After a failed computation the caches are of no use.
    pub fn advance(&self, steps: &mut [Step]) -> Result<Vec<f32>, ModelError> {
        let config = &self.config;
        if config.mask == Mask::Full {
            return Err(ModelError::Bidirectional);
        }
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let longest = steps.iter().map(|step| step.cache.tokens + step.tokens.len()).max().unwrap_or(0);
        if longest > config.positions_max {
            return Err(ModelError::TooLong { found: longest, max: config.positions_max });
        }
        let lengths: Vec<usize> = steps.iter().map(|step| step.tokens.len()).collect();
        let tokens = steps.iter().flat_map(|step| step.tokens).copied().collect();
        let batch = TokenBatch { lengths, tokens, ..TokenBatch::default() };
        self.check(&batch)?;
        for cache in steps.iter_mut().map(|step| &mut *step.cache).filter(|cache| cache.blocks.is_empty()) {
            cache.blocks.extend(self.blocks.iter().map(|_| Past::new(self.host)));
        }
        let of = |step: &Step| (step.cache.tokens..step.cache.tokens + step.tokens.len()).map(|position| position as u32);
        let positions: Vec<u32> = steps.iter().flat_map(of).collect();
        let (rows, seen) = (positions.len(), steps.iter().map(|step| step.cache.tokens + step.tokens.len()).sum());
        let mut x = self.embed(&batch, &positions)?.1;
        for (index, block) in self.blocks.iter().enumerate() {
            let heads = config.attention(index);
            let mut qkv = block.qkv.forward(&block.norms[0].forward(&x)?, rows, None, None)?.0;
            if let Some(rope) = &self.rope {
                qkv = ops::rope(qkv, rope, &heads, &positions, 1.0)?;
            }
            let pasts = steps.iter_mut().map(|step| &mut step.cache.blocks[index]).collect();
            let attended = ops::attend(&qkv, &batch.lengths, pasts, &heads, seen)?;
            let sum = block.output.forward(&attended, rows, Some(x), None)?.0;
            let up = block.up.forward(&block.norms[1].forward(&sum)?, rows, None, None)?.0;
            let activated = ops::activate(&up, config.activation, config.gated, config.intermediate)?;
            x = block.down.forward(&activated, rows, Some(sum), None)?.0;
        }
        let mut ends = Vec::new();
        for (step, start) in steps.iter_mut().zip(batch.starts()) {
            step.cache.tokens += step.tokens.len();
            ends.extend(step.wanted.then_some((start + step.tokens.len() - 1) as u32));
        }
        match ends.len() {
            0 => Ok(Vec::new()),
            count => Ok(self.top(&ops::rows(&x, config.hidden, &ends)?, count)?.to_vec()?),
        }
    }
}
