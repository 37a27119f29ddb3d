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

/// Told how much of the work is done, of how much; from any thread.
pub type Report<'a> = dyn Fn(usize, usize) + Sync + 'a;
