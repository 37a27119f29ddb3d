//! Held-out loss and perplexity over labelled tokens.

use serde::Serialize;

use super::{batch_tokens, over_batches};
use crate::data::{TokenizedExample, batch};
use crate::models::{Decoder, ModelError};

/// Mean cross entropy in nats over all labelled tokens of all examples; of a classifier, over the examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HeldOutLoss {
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Labelled tokens, or examples with a class.
    pub tokens: u64,
    pub examples: u64,
}

/// Measures `examples`, batch by batch over the threads of the current pool. The result does not depend on their number.
/// Without labelled tokens the loss is 0.
pub fn held_out_loss(decoder: &Decoder, examples: &[TokenizedExample]) -> Result<HeldOutLoss, ModelError> {
    let mut order: Vec<&TokenizedExample> = examples.iter().collect();
    order.sort_by_key(|example| example.tokens.len());
    let mut batches: Vec<Vec<&TokenizedExample>> = Vec::new();
    for example in order {
        match batches.last_mut() {
            // Sorted, so the newcomer is the longest.
            Some(batch) if (batch.len() + 1) * example.tokens.len() <= batch_tokens(decoder) => batch.push(example),
            _ => batches.push(vec![example]),
        }
    }
    let one = |examples: &Vec<&TokenizedExample>| -> Result<(f64, usize), ModelError> {
        let batch = batch(examples);
        let labels = batch.labelled();
        Ok((decoder.loss(&batch, 1.0)?, labels))
    };
    let parts = over_batches(decoder, &batches, one)?;
    let tokens: usize = parts.iter().map(|(_, labels)| labels).sum();
    let loss = parts.iter().map(|(sum, _)| sum).sum::<f64>() / tokens.max(1) as f64;
    Ok(HeldOutLoss { loss, perplexity: loss.exp(), tokens: tokens as u64, examples: examples.len() as u64 })
}
