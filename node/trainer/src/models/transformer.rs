//! The transformer: the one place where a model's blocks are put together, for every family.
//!
//! A [`Decoder`] is cheap to make and to clone: it shares the base's tensors. LoRA tensors and, in full training, the
//! weights themselves may be variables.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, TensorId};

use super::ModelError;
use super::batch::{IGNORED, TokenBatch};
use super::config::{Head, ModelConfig, Positions};
use super::kernels::rope::RopeTable;
use super::ops::{self, Array, Gradients, Group, Low, Norm};

/// One transformer block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Of attention and of the feed-forward part: before them, or behind.
    pub norms: [Norm; 2],
    pub qkv: Group,
    pub output: Group,
    pub up: Group,
    pub down: Group,
}

/// Tables whose rows are added, and the norm of their sum.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    /// (vocabulary, hidden).
    pub tokens: Tensor,
    pub positions: Option<Tensor>,
    pub types: Option<Tensor>,
    pub norm: Option<Norm>,
}

/// A model ready to run.
#[derive(Clone)]
pub struct Decoder {
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) rope: Option<Arc<RopeTable>>,
    pub(crate) embedding: Embedding,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Option<Norm>,
    /// A classifier's map of the first position, with `tanh` behind it.
    pub(crate) pooler: Option<Group>,
    pub(crate) head: Group,
    pub(crate) device: Device,
    /// Activations are plain vectors for the CPU's loops.
    pub(crate) host: bool,
    /// What they are held in elsewhere.
    pub(crate) dtype: DType,
}

/// How a training pass is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Keep only the input of each block and compute the rest again in the backward: less memory, more time.
    pub recompute: bool,
    /// Draws the masks of dropout; without it nothing is dropped.
    pub dropout_seed: Option<u64>,
}

impl Pass {
    /// The seed of one group's dropout: groups are numbered through the model.
    pub(crate) fn seed(&self, block: usize, group: u64) -> Option<u64> {
        self.dropout_seed.map(|seed| seed ^ (block as u64 * 4 + group + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// What a block's backward needs of its forward. What no wanted gradient needs is left empty.
pub(crate) struct Kept {
    pub x: Array,
    /// Input of query, key and value, where it is not `x`.
    pub normed_x: Option<Array>,
    pub qkv: Array,
    pub attended: Array,
    /// The first residual's sum.
    pub sum: Array,
    /// Its norm: input of the feed-forward part.
    pub normed: Array,
    pub up: Array,
    pub activated: Array,
    /// The second residual's sum, where a norm stands behind it.
    pub last: Option<Array>,
    pub low: [Low; 4],
}

fn nothing() -> Array {
    Array::Host(Vec::new())
}

impl Decoder {
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether it computes on the CPU.
    pub fn runs_on_host(&self) -> bool {
        self.host
    }

    /// Logits: of every token, `(tokens, vocabulary)`; of a classifier `(sequences, classes)`.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, sequences longer than the model's positions, or a failed computation.
    pub fn logits(&self, batch: &TokenBatch) -> std::result::Result<Tensor, ModelError> {
        let x = self.hidden(batch)?;
        let (rows, classes) = (self.scored_rows(batch), self.classes());
        let logits = self.top(&ops::rows(&x, self.config.hidden, &rows)?, rows.len())?;
        Ok(logits.into_tensor(&[rows.len(), classes], &self.device)?.to_dtype(DType::F32)?)
    }

    /// Cross entropy summed over the batch's targets and divided by `denominator`.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub fn loss(&self, batch: &TokenBatch, denominator: f64) -> std::result::Result<f64, ModelError> {
        let (rows, labels) = self.labels(batch)?;
        let x = self.hidden(batch)?;
        let mut loss = 0.0;
        for (rows, labels) in self.chunks(&rows, &labels) {
            let logits = self.top(&ops::rows(&x, self.config.hidden, rows)?, rows.len())?;
            loss += ops::cross_entropy(logits, self.classes(), labels, denominator)?.0;
        }
        Ok(loss)
    }

    /// Shows the logits after each of `rows`, tokens of the batch, in order: their index among the rows, and the logits. They
    /// are computed in parts, never whole.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub fn each_logits(&self, batch: &TokenBatch, rows: &[u32], mut see: impl FnMut(usize, &[f32])) -> std::result::Result<(), ModelError> {
        let x = self.hidden(batch)?;
        let mut index = 0;
        for (rows, _) in self.chunks(rows, rows) {
            let logits = self.top(&ops::rows(&x, self.config.hidden, rows)?, rows.len())?.to_vec()?;
            for logits in logits.chunks_exact(self.classes()) {
                see(index, logits);
                index += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn classes(&self) -> usize {
        match self.config.head {
            Head::Tokens => self.config.vocabulary,
            Head::Classes(classes) => classes,
        }
    }

    /// Rows of the last hidden state that the head looks at.
    fn scored_rows(&self, batch: &TokenBatch) -> Vec<u32> {
        match self.config.head {
            Head::Tokens => (0..batch.tokens.len() as u32).collect(),
            Head::Classes(_) => batch.starts().map(|start| start as u32).collect(),
        }
    }

    /// Rows that carry a target, and the targets.
    pub(crate) fn labels(&self, batch: &TokenBatch) -> std::result::Result<(Vec<u32>, Vec<u32>), ModelError> {
        let classes = self.classes();
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        let scored = self.scored_rows(batch);
        if scored.len() != batch.targets.len() {
            return Err(ModelError::Targets { found: batch.targets.len(), expected: scored.len() });
        }
        for (row, target) in scored.into_iter().zip(&batch.targets).filter(|(_, target)| **target != IGNORED) {
            let label = u32::try_from(*target).ok().filter(|label| (*label as usize) < classes);
            labels.push(label.ok_or(ModelError::Token { token: *target as u32, vocabulary: classes })?);
            rows.push(row);
        }
        Ok((rows, labels))
    }

    /// Labelled rows in parts whose logits stay small.
    pub(crate) fn chunks<'a>(&self, rows: &'a [u32], labels: &'a [u32]) -> impl Iterator<Item = (&'a [u32], &'a [u32])> + use<'a> {
        const LOGITS_MAX: usize = 1 << 22;
        // An accelerator wants larger parts.
        let most = if self.host { LOGITS_MAX } else { LOGITS_MAX << 5 };
        let count = (most / self.classes()).max(16);
        rows.chunks(count).zip(labels.chunks(count))
    }

    /// The head's output for rows of the last hidden state.
    pub(crate) fn top(&self, x: &Array, rows: usize) -> Result<Array> {
        match (&self.norm, &self.pooler) {
            (_, Some(pooler)) => Ok(self.head.forward(&ops::tanh(pooler.forward(x, rows, None, None)?.0)?, rows, None, None)?.0),
            (Some(norm), None) => Ok(self.head.forward(&norm.forward(x)?, rows, None, None)?.0),
            (None, None) => Ok(self.head.forward(x, rows, None, None)?.0),
        }
    }

    /// Refuses what the model's tables do not hold.
    pub(crate) fn check(&self, batch: &TokenBatch) -> std::result::Result<(), ModelError> {
        let config = &self.config;
        let tokens: usize = batch.lengths.iter().sum();
        if tokens != batch.tokens.len() || batch.lengths.contains(&0) || !(batch.types.is_empty() || batch.types.len() == tokens) {
            return Err(ModelError::Targets { found: batch.tokens.len(), expected: tokens });
        }
        let longest = batch.lengths.iter().max().copied().unwrap_or(0);
        if longest > config.positions_max {
            return Err(ModelError::TooLong { found: longest, max: config.positions_max });
        }
        let within = |ids: &[u32], count: usize| match ids.iter().find(|id| **id as usize >= count) {
            Some(id) => Err(ModelError::Token { token: *id, vocabulary: count }),
            None => Ok(()),
        };
        within(&batch.tokens, config.vocabulary)?;
        within(&batch.types, config.token_types)
    }

    /// The last block's output, before the final norm. Nothing is kept.
    fn hidden(&self, batch: &TokenBatch) -> std::result::Result<Array, ModelError> {
        self.check(batch)?;
        let positions = batch.positions();
        let mut x = self.embed(batch, &positions)?.1;
        for (index, block) in self.blocks.iter().enumerate() {
            x = self.block_forward(block, index, x, batch, &positions, &Pass::default(), None)?.0;
        }
        Ok(x)
    }

    /// Rows of the position table.
    pub(crate) fn position_rows(&self, positions: &[u32]) -> Option<Vec<u32>> {
        match self.config.positions {
            Positions::Learned { first } => Some(positions.iter().map(|position| position + first as u32).collect()),
            Positions::Rope { .. } => None,
        }
    }

    /// Rows of the table of token types.
    pub(crate) fn type_rows(&self, batch: &TokenBatch) -> Vec<u32> {
        if batch.types.is_empty() { vec![0; batch.tokens.len()] } else { batch.types.clone() }
    }

    /// The sum of the embeddings, and its norm (the same where there is none).
    pub(crate) fn embed(&self, batch: &TokenBatch, positions: &[u32]) -> Result<(Option<Array>, Array)> {
        let Embedding { tokens, positions: table, types, norm } = &self.embedding;
        let mut x = ops::embed(tokens, &batch.tokens, self.config.embedding_scale, self.host)?;
        if let (Some(table), Some(rows)) = (table, self.position_rows(positions)) {
            x = x.plus(&ops::embed(table, &rows, 1.0, self.host)?)?;
        }
        if let Some(types) = types {
            x = x.plus(&ops::embed(types, &self.type_rows(batch), 1.0, self.host)?)?;
        }
        let x = x.held_in(self.dtype)?;
        match norm {
            Some(norm) => norm.forward(&x).map(|normed| (Some(x), normed)),
            None => Ok((None, x)),
        }
    }

    /// A block's output, and what its backward needs where `wanted` says for which gradients.
    #[allow(clippy::too_many_arguments)] // A block needs its place, its input and the way the pass is made.
    pub(crate) fn block_forward(
        &self,
        block: &Block,
        index: usize,
        x: Array,
        batch: &TokenBatch,
        positions: &[u32],
        pass: &Pass,
        wanted: Option<&Gradients>,
    ) -> Result<(Array, Option<Kept>)> {
        let config = &self.config;
        let rows = batch.tokens.len();
        let normed_x = if config.post_norm { None } else { Some(block.norms[0].forward(&x)?) };
        let (mut qkv, low_qkv) = block.qkv.forward(normed_x.as_ref().unwrap_or(&x), rows, None, pass.seed(index, 0))?;
        if let Some(rope) = &self.rope {
            qkv = ops::rope(qkv, rope, &config.attention(index), positions, 1.0)?;
        }
        let attended = ops::attention(&qkv, &batch.lengths, &config.attention(index))?;
        let (sum, low_output) = block.output.forward(&attended, rows, Some(x.clone()), pass.seed(index, 1))?;
        let normed = block.norms[usize::from(!config.post_norm)].forward(&sum)?;
        let (up, low_up) = block.up.forward(&normed, rows, None, pass.seed(index, 2))?;
        let activated = ops::activate(&up, config.activation, config.gated, config.intermediate)?;
        let residual = if config.post_norm { &normed } else { &sum };
        let (mut out, low_down) = block.down.forward(&activated, rows, Some(residual.clone()), pass.seed(index, 3))?;
        let last = if config.post_norm {
            let normed = block.norms[1].forward(&out)?;
            Some(std::mem::replace(&mut out, normed))
        } else {
            None
        };
        let Some(into) = wanted else { return Ok((out, None)) };
        let keep = |group: &Group, input: Array| if group.is_wanted(into) { input } else { nothing() };
        let kept = Kept {
            normed_x: normed_x.map(|normed| keep(&block.qkv, normed)),
            x,
            qkv,
            attended: keep(&block.output, attended),
            sum,
            normed: keep(&block.up, normed),
            up,
            activated: keep(&block.down, activated),
            last,
            low: [low_qkv, low_output, low_up, low_down],
        };
        Ok((out, Some(kept)))
    }

    /// Every parameter of the embedding, for asking which are wanted.
    pub(crate) fn embedding_ids(&self) -> Vec<TensorId> {
        let Embedding { tokens, positions, types, norm } = &self.embedding;
        let norm = norm.iter().flat_map(|norm| norm.bias.iter().chain([&norm.weight]));
        [Some(tokens), positions.as_ref(), types.as_ref()].into_iter().flatten().chain(norm).map(Tensor::id).collect()
    }
}
