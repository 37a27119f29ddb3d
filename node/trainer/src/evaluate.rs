//! Room `evaluate`: what a model is worth, measured on examples it has not been trained on.
//!
//! One loaded base serves many adapters: `Adapter::apply` makes a decoder for each at the cost of the adapter alone.

mod exact_match;
mod generate;
mod loss;

pub use exact_match::{ExactMatch, exact_match, same_final_answer, same_text};
pub use generate::{Generation, generate};
pub use loss::{HeldOutLoss, held_out_loss};
