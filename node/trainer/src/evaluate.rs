//! Room `evaluate`: what a model is worth, measured on examples it has not been trained on.
//!
//! Held-out loss and perplexity; multiple choice by log-likelihood; classification; exact match of greedy answers. What
//! lm-evaluation-harness or scikit-learn have a name for is computed as they compute it. The same model and data give the
//! same scores on any number of threads.
//!
//! One loaded base serves many adapters: `Adapter::apply` makes a decoder for each at the cost of the adapter alone.

mod answers;
pub mod benchmarks;
pub mod choices;
pub mod classification;
mod exact_match;
mod generate;
pub mod likelihood;
mod loss;

pub use benchmarks::{ChoicePrompt, GSM8K_STOPS, choice_prompts};
pub use choices::{ChoiceResults, ChoiceScores, choices};
pub use classification::{ClassResults, ClassScores, classify};
pub use exact_match::{AnswerEnd, AnswerPrompt, ExactMatch, exact_match, gsm8k_prompts, template_prompts};
pub use generate::{Generation, generate, generate_until};
pub use loss::{HeldOutLoss, held_out_loss};

use rayon::prelude::*;

use crate::models::{Decoder, ModelError};

/// Tokens computed together: on the CPU each thread takes such a batch.
const HOST_BATCH_TOKENS: usize = 768;
const DEVICE_BATCH_TOKENS: usize = 16_384;

fn batch_tokens(decoder: &Decoder) -> usize {
    if decoder.runs_on_host() { HOST_BATCH_TOKENS } else { DEVICE_BATCH_TOKENS }
}

/// Computes batch by batch, in order: on the CPU over the threads of the current pool, on an accelerator one at a time.
fn over_batches<B: Sync, T: Send>(
    decoder: &Decoder,
    batches: &[B],
    one: impl Fn(&B) -> Result<T, ModelError> + Send + Sync,
) -> Result<Vec<T>, ModelError> {
    match decoder.runs_on_host() {
        true => batches.par_iter().map(one).collect(),
        false => batches.iter().map(one).collect(),
    }
}

/// Told how much of the work is done, of how much; from any thread.
pub type Report<'a> = dyn Fn(usize, usize) + Sync + 'a;
