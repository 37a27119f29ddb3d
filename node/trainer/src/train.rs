//! Room `train`: gradient steps on a base, as LoRA or on every weight.
//!
//! A batch is cut into slices, each slice runs forward and backward on one thread, and their gradients are added in
//! slice order: the same settings give the same adapter bit for bit on one machine, whatever the number of threads, and
//! so does a training that was interrupted and resumed from its checkpoint.
//!
//! It knows nothing of rounds or peers: the start of LoRA's A is handed in, and what is trained is handed out.

pub mod checkpoint;
mod full;
mod gradients;
mod lora;
pub mod memory;
mod optimiser;
#[cfg(test)]
mod reference;
mod session;
pub mod settings;
#[cfg(test)]
mod tests;

pub use full::{TrainedModel, random_decoder, train_full};
pub use lora::{Start, TrainedAdapter, seeded_draw, train_lora};
pub use session::{Control, Losses, Outcome, Progress, TrainData};
pub use settings::{Schedule, TrainSettings};

use std::path::PathBuf;

use crate::data::DataError;
use crate::models::ModelError;
use crate::peft::PeftError;

/// Why a training cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Adapter(#[from] PeftError),
    #[error("there is nothing to learn: no example carries a label within {length_max} tokens")]
    NothingToLearn { length_max: usize },
    #[error("{setting} is {found}, but must be {expected}")]
    Setting { setting: &'static str, found: String, expected: &'static str },
    #[error("the loss became {loss} at step {step}: the learning rate is probably too high")]
    Diverged { step: usize, loss: f32 },
    #[error("{path}: {reason}")]
    Checkpoint { path: PathBuf, reason: String },
    #[error("{path} was made with other settings, data or start, so it cannot be resumed from")]
    OtherCheckpoint { path: PathBuf },
    #[error("the draw of {name} gave {found} numbers instead of {expected}")]
    Draw { name: String, found: usize, expected: usize },
    #[error("threads for training cannot be started: {0}")]
    Threads(String),
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(ModelError::Candle(error))
    }
}
