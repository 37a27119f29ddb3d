//! Loss and gradients of one batch, slice by slice over threads.

use candle_core::Var;
use rayon::prelude::*;

use super::TrainError;
use crate::data::{TokenizedExample, batch};
use crate::models::backward::variable_indices;
use crate::models::decoder::TokenBatch;
use crate::models::kernels::sum::add_to;
use crate::models::{Decoder, ModelError};

/// Padded tokens a slice should have: enough for the GEMM to run well, few enough to stay in the processor's cache.
const SLICE_TOKENS: usize = 192;
/// Candle walks a graph recursively: its depth must fit the stack of the thread.
const STACK_BYTES: usize = 64 << 20;

/// Threads for training and evaluation, with stacks deep enough for any graph.
pub fn pool(threads: Option<usize>) -> Result<rayon::ThreadPool, TrainError> {
    let builder = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).num_threads(threads.unwrap_or(0));
    builder.build().map_err(|error| TrainError::Threads(error.to_string()))
}

/// Loss of one batch and its gradient for each variable, flat.
pub struct BatchGradients {
    /// Mean over the batch's labels.
    pub loss: f32,
    pub gradients: Vec<Vec<f32>>,
    /// Tokens fed, padding not counted.
    pub tokens: usize,
}

/// Cuts a batch into slices of neighbours. Depends on the examples alone, so that results do not depend on threads.
pub fn slices(examples: &[&TokenizedExample]) -> Vec<TokenBatch> {
    let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(1);
    let count = (longest * examples.len() / SLICE_TOKENS).clamp(1, examples.len().max(1));
    // An even count keeps two, four or eight threads busy to the end.
    let count = if count > 1 { count.next_multiple_of(2).min(examples.len()) } else { count };
    examples.chunks(examples.len().div_ceil(count).max(1)).map(batch).collect()
}

/// Runs forward and backward of `examples` on `pool`.
pub fn batch_gradients(
    pool: &rayon::ThreadPool,
    decoder: &Decoder,
    variables: &[(String, Var)],
    examples: &[&TokenizedExample],
) -> Result<BatchGradients, TrainError> {
    let slices = slices(examples);
    let labels: usize = slices.iter().map(TokenBatch::labelled).sum();
    let denominator = labels.max(1) as f64;
    let indices = variable_indices(variables);
    let one = |slice: &TokenBatch| decoder.loss_and_gradients(slice, denominator, &indices);
    let done: Vec<_> = pool.install(|| slices.par_iter().map(one).collect::<Result<_, ModelError>>())?;
    let mut total = BatchGradients {
        loss: 0.0,
        gradients: variables.iter().map(|(_, variable)| vec![0.0; variable.elem_count()]).collect(),
        tokens: examples.iter().map(|example| example.tokens.len()).sum(),
    };
    for (loss, gradients) in done {
        total.loss += loss;
        for (sum, gradient) in total.gradients.iter_mut().zip(gradients) {
            add_to(sum, gradient.as_deref().unwrap_or_default());
        }
    }
    Ok(total)
}
