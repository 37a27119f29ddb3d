//! Room `train`: gradient steps on a base, as LoRA or on every weight.
//!
//! A batch is cut into slices, each slice runs forward and backward on one thread, and their gradients are added in
//! slice order: the same settings give the same adapter bit for bit on one machine, whatever the number of threads, and
//! so does a training that was interrupted and resumed from its checkpoint.
//!
//! It knows nothing of rounds or peers: the start of LoRA's A is handed in, and what is trained is handed out.

pub mod checkpoint;
pub mod diagnostics;
pub mod estimate;
mod full;
mod gradients;
mod lora;
pub mod memory;
mod method;
pub mod metrics;
mod optimiser;
mod presets;
pub mod privacy;
mod private;
mod progress;
#[cfg(test)]
mod reference;
pub mod resources;
mod schedule;
mod session;
pub mod settings;
mod steps;
mod stopping;
mod subspace;
mod tensorboard;
#[cfg(test)]
mod tests;

pub use full::{TrainedModel, random_decoder, train_difference, train_full};
pub use gradients::BatchGradients;
pub use gradients::pool;
pub use lora::{DrawTensor, Start, Trained, TrainedAdapter, seeded_draw, tensors_of, train_adapter};
pub use method::{LowRankSettings, Method, config_of};
pub use presets::Preset;
pub use privacy::{Noise, Privacy, Promise};
pub use progress::{Control, Losses, Moment, Outcome, Progress, Summary, TrainData};
pub use schedule::Schedule;
pub use session::Watch;
pub use settings::TrainSettings;
pub use steps::Steps;
pub use stopping::Evaluation;

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
    Diverged { step: usize, loss: f64 },
    #[error("there are no held-out examples, so no evaluation can say what is best or when to stop")]
    NothingHeldOut,
    #[error("{path}: {reason}")]
    Checkpoint { path: PathBuf, reason: String },
    #[error("{path} was made with other settings, data or start, so it cannot be resumed from")]
    OtherCheckpoint { path: PathBuf },
    #[error("metrics cannot be written to {path}: {reason}")]
    Metrics { path: PathBuf, reason: String },
    #[error("the draw of {name} gave {found} numbers instead of {expected}")]
    Draw { name: String, found: usize, expected: usize },
    #[error("this training needs about {} of memory, but {} are free", estimate::size(*.needed), estimate::size(*.available))]
    DoesNotFit { needed: u64, available: u64 },
    #[error("the device's memory is full: {0}")]
    OutOfMemory(String),
    #[error("no random numbers from the operating system: {0}")]
    Random(String),
    #[error("threads for training cannot be started: {0}")]
    Threads(String),
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(ModelError::Candle(error))
    }
}

impl TrainError {
    /// The same, with a GPU's failed allocation recognised by what its driver says.
    fn recognised(self) -> Self {
        let Self::Model(ModelError::Candle(error)) = &self else { return self };
        let text = error.to_string();
        match ["OUT_OF_MEMORY", "out of memory"].iter().any(|said| text.contains(said)) {
            true => Self::OutOfMemory(text.lines().next().unwrap_or_default().to_owned()),
            false => self,
        }
    }
}
