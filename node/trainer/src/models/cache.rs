//! Generation token by token: keys and values of what a sequence has so far.

use candle_core::{DType, Tensor};

use super::batch::TokenBatch;
use super::ops::{self, Array};
use super::transformer::Decoder;
use super::{ModelError, config::Mask};

/// Keys and values of the tokens a sequence has so far. Without gradients.
#[derive(Default)]
pub struct KvCache {
    /// Per block: keys and values, rows of `kv_heads * head_dim`.
    blocks: Vec<[Array; 2]>,
    tokens: usize,
}

impl KvCache {
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl Decoder {
    /// Appends `tokens` to one sequence and returns the logits after the last: `(vocabulary)`.
    ///
    /// # Errors
    /// A model that sees what comes after, tokens outside the vocabulary, or more of them than the model has positions.
    pub fn extend(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Tensor, ModelError> {
        let config = &self.config;
        if config.mask == Mask::Full {
            return Err(ModelError::Bidirectional);
        }
        let (past, count) = (cache.tokens, tokens.len());
        if past + count > config.positions_max {
            return Err(ModelError::TooLong { found: past + count, max: config.positions_max });
        }
        let batch = TokenBatch { lengths: vec![count], tokens: tokens.to_vec(), ..TokenBatch::default() };
        self.check(&batch)?;
        let positions: Vec<u32> = (past as u32..(past + count) as u32).collect();
        let mut x = self.embed(&batch, &positions)?.1;
        for (index, block) in self.blocks.iter().enumerate() {
            let heads = config.attention(index);
            let mut qkv = block.qkv.forward(&block.norms[0].forward(&x)?, count, None, None)?.0;
            if let Some(rope) = &self.rope {
                qkv = ops::rope(qkv, rope, &heads, &positions, 1.0)?;
            }
            let [q, k, v] = ops::split(&qkv, [heads.query_width(), config.kv_width(), config.kv_width()])?;
            let slot = match cache.blocks.get_mut(index) {
                Some(slot) => {
                    ops::append(&mut slot[0], k)?;
                    ops::append(&mut slot[1], v)?;
                    slot
                }
                None => {
                    cache.blocks.push([k, v]);
                    &mut cache.blocks[index]
                }
            };
            let attended = ops::extend(&q, &slot[0], &slot[1], &heads, past)?;
            let sum = block.output.forward(&attended, count, Some(x), None)?.0;
            let up = block.up.forward(&block.norms[1].forward(&sum)?, count, None, None)?.0;
            let activated = ops::activate(&up, config.activation, config.gated, config.intermediate)?;
            x = block.down.forward(&activated, count, Some(sum), None)?.0;
        }
        cache.tokens = past + count;
        let last = ops::rows(&x, config.hidden, &[count as u32 - 1])?;
        Ok(self.top(&last, 1)?.into_tensor(&[self.classes()], &self.device)?.to_dtype(DType::F32)?)
    }
}
