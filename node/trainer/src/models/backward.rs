//! Loss and gradients of a whole model, backward written by hand: the path that training takes.
//!
//! A graph that records itself allocates and adds a zero tensor for every gradient of every op, and computes gradients of
//! frozen weights; this computes what is wanted, and nothing below the lowest block that has it.

use candle_core::{Result, Var};

use super::batch::TokenBatch;
use super::ops::{self, Array, GradientList, Gradients};
use super::transformer::{Block, Decoder, Kept, Pass};
use super::{ModelError, ops::variable_indices};

/// A block's part of the forward, as the backward will use it.
enum Trace {
    Kept(Box<Kept>),
    /// The block's input, to compute the rest again.
    Input(Array),
}

impl Decoder {
    /// Loss of the batch (summed over its targets, divided by `denominator`) and the gradients of `variables`; `None`
    /// where nothing flowed.
    ///
    /// # Errors
    /// As [`Decoder::logits`].
    pub fn loss_and_gradients(
        &self,
        batch: &TokenBatch,
        denominator: f64,
        variables: &[(String, Var)],
        pass: &Pass,
    ) -> std::result::Result<(f64, GradientList), ModelError> {
        let wanted = variable_indices(variables);
        let mut into = Gradients::new(&wanted);
        let loss = self.accumulate(batch, denominator, pass, &mut into)?;
        Ok((loss, into.finish(variables, &self.device)?))
    }

    /// Adds the batch's gradients `into` and returns its loss.
    pub(crate) fn accumulate(
        &self,
        batch: &TokenBatch,
        denominator: f64,
        pass: &Pass,
        into: &mut Gradients,
    ) -> std::result::Result<f64, ModelError> {
        self.check(batch)?;
        let (rows, labels) = self.labels(batch)?;
        if labels.is_empty() {
            return Ok(0.0);
        }
        let lowest = self.lowest_wanted(into);
        let positions = batch.positions();
        let (embedded, mut x) = self.embed(batch, &positions)?;
        let mut traces = Vec::with_capacity(self.blocks.len());
        for (index, block) in self.blocks.iter().enumerate() {
            let traced = lowest.is_some_and(|lowest| index >= lowest);
            let input = (traced && pass.recompute).then(|| x.clone());
            let wanted = (traced && !pass.recompute).then_some(&*into);
            let (next, kept) = self.block_forward(block, index, x, batch, &positions, pass, wanted)?;
            x = next;
            traces.extend(kept.map(|kept| Trace::Kept(Box::new(kept))).or(input.map(Trace::Input)));
        }
        let (loss, top) = self.head_step(&x, &rows, &labels, denominator, lowest.is_some(), into)?;
        drop(x);
        let (Some(lowest), Some(top)) = (lowest, top) else { return Ok(loss) };
        let width = self.config.hidden;
        let mut g = ops::put_rows(&top, width, &rows, batch.tokens.len())?;
        let embedding_wanted = self.embedding_ids().iter().any(|id| into.wants_id(*id));
        for (index, block) in self.blocks.iter().enumerate().rev() {
            let kept = match traces.pop() {
                None => break,
                Some(Trace::Kept(kept)) => *kept,
                Some(Trace::Input(x)) => match self.block_forward(block, index, x, batch, &positions, pass, Some(into))?.1 {
                    Some(kept) => kept,
                    None => break,
                },
            };
            let input_wanted = index > lowest || embedding_wanted;
            match self.block_backward(block, index, kept, g, batch, &positions, pass, input_wanted, into)? {
                Some(next) => g = next,
                None => return Ok(loss),
            }
        }
        if embedding_wanted {
            self.embedding_backward(batch, &positions, embedded.as_ref(), g, into)?;
        }
        Ok(loss)
    }

    /// The lowest block through which a gradient must flow; `None` where only the head is trained.
    fn lowest_wanted(&self, into: &Gradients) -> Option<usize> {
        if self.embedding_ids().iter().any(|id| into.wants_id(*id)) {
            return Some(0);
        }
        self.blocks.iter().position(|block| {
            let Block { norms, qkv, output, up, down } = block;
            [qkv, output, up, down].iter().any(|group| group.is_wanted(into)) || norms.iter().any(|norm| norm.is_wanted(into))
        })
    }

    /// Head and loss of the labelled rows, part by part, so that the logits never exist for all of them; returns the loss
    /// and, where wanted, the gradient of the rows.
    fn head_step(
        &self,
        x: &Array,
        rows: &[u32],
        labels: &[u32],
        denominator: f64,
        input_wanted: bool,
        into: &mut Gradients,
    ) -> Result<(f64, Option<Array>)> {
        let mut loss = 0.0;
        let mut parts = Vec::new();
        for (rows, labels) in self.chunks(rows, labels) {
            let count = rows.len();
            let x = ops::rows(x, self.config.hidden, rows)?;
            let y = match (&self.norm, &self.pooler) {
                (_, Some(pooler)) => {
                    let (mapped, low) = pooler.forward(&x, count, None, None)?;
                    let y = ops::tanh(mapped)?;
                    let (part, dy) = self.classify(&y, labels, denominator, true, into)?;
                    loss += part;
                    let Some(dy) = dy else { continue };
                    let g = ops::tanh_backward(&y, &dy)?;
                    parts.extend(pooler.backward(&x, &low, &g, count, input_wanted, None, None, into)?);
                    continue;
                }
                (Some(norm), None) => norm.forward(&x)?,
                (None, None) => x.clone(),
            };
            let norm_wanted = self.norm.as_ref().is_some_and(|norm| norm.is_wanted(into));
            let (part, dy) = self.classify(&y, labels, denominator, input_wanted || norm_wanted, into)?;
            loss += part;
            match (&self.norm, dy) {
                (Some(norm), Some(dy)) => parts.push(norm.backward(&x, &dy, None, into)?),
                (None, Some(dy)) => parts.push(dy),
                (_, None) => {}
            }
        }
        Ok((loss, if input_wanted { Some(ops::stack(parts)?) } else { None }))
    }

    /// The last map and its loss for one part of the rows; returns the loss and the gradient of `y`.
    fn classify(&self, y: &Array, labels: &[u32], denominator: f64, wanted: bool, into: &mut Gradients) -> Result<(f64, Option<Array>)> {
        let (logits, low) = self.head.forward(y, labels.len(), None, None)?;
        let (loss, g) = ops::cross_entropy(logits, self.classes(), labels, denominator)?;
        Ok((loss, self.head.backward(y, &low, &g, labels.len(), wanted, None, None, into)?))
    }

    /// `g` is the gradient of the block's output; returns that of its input, where it is wanted.
    #[allow(clippy::too_many_arguments)] // As its forward, and the gradient.
    fn block_backward(
        &self,
        block: &Block,
        index: usize,
        kept: Kept,
        mut g: Array,
        batch: &TokenBatch,
        positions: &[u32],
        pass: &Pass,
        input_wanted: bool,
        into: &mut Gradients,
    ) -> Result<Option<Array>> {
        let config = &self.config;
        let rows = batch.tokens.len();
        let [low_qkv, low_output, low_up, low_down] = &kept.low;
        if let Some(last) = &kept.last {
            g = block.norms[1].backward(last, &g, None, into)?;
        }
        let Some(d_activated) = block.down.backward(&kept.activated, low_down, &g, rows, true, None, pass.seed(index, 3), into)? else {
            return Ok(None);
        };
        let d_up = ops::activate_backward(&kept.up, &d_activated, config.activation, config.gated, config.intermediate)?;
        drop(d_activated);
        // Behind a norm, the residual is the norm's output: what flows around the feed-forward part meets it there.
        let (around, through) = if config.post_norm { (None, Some(g)) } else { (Some(g), None) };
        let Some(d_normed) = block.up.backward(&kept.normed, low_up, &d_up, rows, true, through, pass.seed(index, 2), into)? else {
            return Ok(None);
        };
        drop(d_up);
        g = block.norms[usize::from(!config.post_norm)].backward(&kept.sum, &d_normed, around, into)?;

        let qkv_needs_input = input_wanted || (!config.post_norm && block.norms[0].is_wanted(into));
        if !qkv_needs_input && !block.qkv.is_wanted(into) {
            block.output.backward(&kept.attended, low_output, &g, rows, false, None, pass.seed(index, 1), into)?;
            return Ok(None);
        }
        let attended = block.output.backward(&kept.attended, low_output, &g, rows, true, None, pass.seed(index, 1), into)?;
        let Some(d_attended) = attended else { return Ok(None) };
        let mut d_qkv = ops::attention_backward(&kept.qkv, &d_attended, &batch.lengths, &config.attention(index))?;
        drop(d_attended);
        if let Some(rope) = &self.rope {
            d_qkv = ops::rope(d_qkv, rope, &config.attention(index), positions, -1.0)?;
        }
        let seed = pass.seed(index, 0);
        match &kept.normed_x {
            Some(normed) => match block.qkv.backward(normed, low_qkv, &d_qkv, rows, qkv_needs_input, None, seed, into)? {
                Some(dy) => block.norms[0].backward(&kept.x, &dy, Some(g), into).map(Some),
                None => Ok(None),
            },
            None => block.qkv.backward(&kept.x, low_qkv, &d_qkv, rows, input_wanted, Some(g), seed, into),
        }
    }

    fn embedding_backward(
        &self,
        batch: &TokenBatch,
        positions: &[u32],
        embedded: Option<&Array>,
        mut g: Array,
        into: &mut Gradients,
    ) -> Result<()> {
        let embedding = &self.embedding;
        if let (Some(norm), Some(x)) = (&embedding.norm, embedded) {
            g = norm.backward(x, &g, None, into)?;
        }
        let position_rows = self.position_rows(positions).unwrap_or_default();
        let type_rows = self.type_rows(batch);
        for (table, rows, scale) in [
            (Some(&embedding.tokens), &batch.tokens, self.config.embedding_scale),
            (embedding.positions.as_ref(), &position_rows, 1.0),
            (embedding.types.as_ref(), &type_rows, 1.0),
        ] {
            let Some((table, index)) = table.and_then(|table| Some((table, into.wants(table)?))) else { continue };
            into.add_rows(index, table.dims2()?, rows, &g, scale)?;
        }
        Ok(())
    }
}
