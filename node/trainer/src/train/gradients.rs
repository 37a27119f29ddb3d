//! Loss and gradients of one batch. On the CPU it is cut into slices that run over threads.

use candle_core::{Tensor, Var};
use rayon::prelude::*;

use super::TrainError;
use crate::data::{TokenizedExample, batch};
use crate::models::kernels::serially;
use crate::models::ops::{Gradients, variable_indices};
use crate::models::{Decoder, ModelError, Pass, TokenBatch};

/// Tokens a slice should have: enough for the GEMM to run well, few enough to stay in the processor's cache.
const SLICE_TOKENS: usize = 256;
/// Slices share this many sums of gradients at most, so that each sum is added to by one thread at a time.
const LANES_MAX: usize = 8;
/// Memory that sums of gradients may take together, as long as there are two.
const LANES_BYTES: usize = 256 << 20;
/// A gradient so large is summed once, and the threads work within ops instead.
const SINGLE_LANE_BYTES: usize = 1 << 30;
const STACK_BYTES: usize = 16 << 20;

/// Threads for training and evaluation.
pub fn pool(threads: Option<usize>) -> Result<rayon::ThreadPool, TrainError> {
    let builder = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).num_threads(threads.unwrap_or(0));
    builder.build().map_err(|error| TrainError::Threads(error.to_string()))
}

/// Loss of one batch and its gradient for each variable.
pub struct BatchGradients {
    /// Mean over the batch's labels.
    pub loss: f64,
    /// In f32, of the variables' shapes; zeros where nothing flowed.
    pub gradients: Vec<Tensor>,
    /// Tokens fed.
    pub tokens: usize,
    pub labels: usize,
}

/// Cuts a batch into slices of neighbours with about the same number of tokens. Depends on the examples alone, so that
/// results do not depend on threads.
fn slices<'a>(examples: &'a [&'a TokenizedExample]) -> Vec<&'a [&'a TokenizedExample]> {
    let total: usize = examples.iter().map(|example| example.tokens.len()).sum();
    let count = (total / SLICE_TOKENS).clamp(1, examples.len().max(1));
    // An even count keeps two, four or eight threads busy to the end.
    let count = if count > 1 { count.next_multiple_of(2).min(examples.len()) } else { count };
    let (mut slices, mut start, mut tokens) = (Vec::with_capacity(count), 0, 0);
    for (index, example) in examples.iter().enumerate() {
        tokens += example.tokens.len();
        let full = tokens * count >= total * (slices.len() + 1);
        if full || index + 1 == examples.len() {
            slices.push(&examples[start..=index]);
            start = index + 1;
        }
    }
    slices
}

/// How many sums of gradients of so many bytes are kept side by side.
fn lanes(bytes: usize) -> usize {
    match bytes {
        SINGLE_LANE_BYTES.. => 1,
        _ => (LANES_BYTES / bytes.max(1)).clamp(2, LANES_MAX),
    }
}

/// Runs forward and backward of `examples` on `pool`; an accelerator takes `at_once` of them at a time. The same examples
/// give the same bits whatever the number of threads.
///
/// # Errors
/// What the model refuses.
pub fn batch_gradients(
    pool: &rayon::ThreadPool,
    decoder: &Decoder,
    variables: &[(String, Var)],
    examples: &[&TokenizedExample],
    at_once: usize,
    pass: &Pass,
) -> Result<BatchGradients, TrainError> {
    let slices = match decoder.runs_on_host() {
        true => slices(examples),
        false => examples.chunks(at_once.max(1)).collect(),
    };
    let slices: Vec<TokenBatch> = slices.into_iter().map(batch).collect();
    let labels: usize = slices.iter().map(TokenBatch::labelled).sum();
    let denominator = labels.max(1) as f64;
    let wanted = variable_indices(variables);
    let bytes = variables.iter().map(|(_, variable)| variable.elem_count() * 4).sum();
    let lanes = if decoder.runs_on_host() { lanes(bytes).min(slices.len()) } else { 1 };
    let lane = |lane: usize| -> Result<_, ModelError> {
        let (mut into, mut loss) = (Gradients::new(&wanted), 0.0);
        let mut run = || {
            for (index, slice) in slices.iter().enumerate().skip(lane).step_by(lanes.max(1)) {
                // Each slice draws its own masks.
                let dropout_seed = pass.dropout_seed.map(|seed| seed.rotate_left(17) ^ index as u64);
                loss += decoder.accumulate(slice, denominator, &Pass { dropout_seed, ..*pass }, &mut into)?;
            }
            Ok(())
        };
        if lanes >= rayon::current_num_threads() { serially(&mut run) } else { run() }.map(|()| (loss, into))
    };
    let done: Vec<_> = pool.install(|| (0..lanes).into_par_iter().with_max_len(1).map(lane).collect::<Result<_, ModelError>>())?;
    let (mut total, mut loss) = (Gradients::new(&wanted), 0.0);
    for (part, gradients) in done {
        loss += part;
        total.merge(gradients)?;
    }
    let mut gradients = Vec::with_capacity(variables.len());
    for (gradient, (_, variable)) in total.finish(variables, decoder.device())?.into_iter().zip(variables) {
        gradients.push(match gradient {
            Some(gradient) => gradient,
            None => variable.as_tensor().zeros_like()?,
        });
    }
    let tokens = slices.iter().map(|slice| slice.tokens.len()).sum();
    Ok(BatchGradients { loss, gradients, tokens, labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_hold_every_example_once_and_are_even() {
        let example = |tokens: usize| TokenizedExample { tokens: vec![0; tokens], ..TokenizedExample::default() };
        let examples: Vec<TokenizedExample> = (0..40).map(|i| example(60 + i % 9)).collect();
        let borrowed: Vec<&TokenizedExample> = examples.iter().collect();
        let found = slices(&borrowed);
        assert_eq!(found.concat(), borrowed);
        assert_eq!(found.len() % 2, 0);
        let sizes: Vec<usize> = found.iter().map(|slice| slice.iter().map(|example| example.tokens.len()).sum()).collect();
        assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() < 140, "{sizes:?}");
        assert_eq!(slices(&borrowed[..1]).len(), 1);
        assert!(slices(&[]).is_empty());
    }
}
