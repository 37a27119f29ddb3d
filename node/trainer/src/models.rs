//! Room `models`: the trainable architectures, loaded from Hugging Face directories.
//!
//! One transformer ([`transformer`]) for every family; a family ([`families`]) is a file that states how it differs. Any of
//! its linear modules may carry LoRA, and any parameter may be trained. Forward and backward are written by hand over the
//! ops of [`ops`], because candle's fast ones have no gradient and its differentiable ones compute one for every frozen
//! weight.
//!
//! It refuses what it would compute wrongly: other model types, activations and rope types, and flags it does not know. It
//! knows nothing of rounds, peers or adapters on the wire.

pub mod backward;
pub mod batch;
mod cache;
pub mod config;
pub mod device;
pub mod families;
pub mod kernels;
pub mod ops;
mod parameters;
pub mod placement;
pub mod pretrained;
pub mod targets;
pub mod transformer;
pub mod weights;

pub use batch::TokenBatch;
pub use cache::{KvCache, Step};
pub use config::ModelConfig;
pub use kernels::packed::has_bf16_products;
pub use ops::Lora;
pub use pretrained::{Attached, BaseModel, LinearModule, base_digest};
pub use transformer::{Decoder, Pass};

use std::path::PathBuf;

/// Why a model cannot be read, built or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path}: {field} is {found}, but only {supported} can be trained")]
    Unsupported { path: PathBuf, field: &'static str, found: String, supported: &'static str },
    #[error("{path} holds no tensor \"{name}\"")]
    MissingTensor { path: PathBuf, name: String },
    #[error("tensor \"{name}\" has shape {found:?}, but the configuration asks for {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor \"{name}\" has type {found}, but weights must be F32, F16 or BF16")]
    Dtype { name: String, found: String },
    #[error("values of the tensor \"{name}\" are greater than {dtype}, the base's type, can hold")]
    Narrow { name: String, dtype: String },
    #[error("\"{target}\" names no linear module of this model, which has {known}")]
    UnknownTarget { target: String, known: String },
    #[error("\"{pattern}\" is no regular expression: {reason}")]
    TargetPattern { pattern: String, reason: String },
    #[error("the adapter's {name} has shape {found:?}, but this base asks for {expected:?}")]
    AdapterShape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("the adapter holds {name}, which names no module of this base")]
    AdapterModule { name: String },
    #[error("the adapter lacks {name}")]
    AdapterHalf { name: String },
    #[error("{found} tokens in one sequence, but the model's positions end at {max}")]
    TooLong { found: usize, max: usize },
    #[error("token {token} lies outside the vocabulary of {vocabulary}")]
    Token { token: u32, vocabulary: usize },
    #[error("a batch has {found} targets or tokens where its sequences ask for {expected}")]
    Targets { found: usize, expected: usize },
    #[error("this model sees a text from both sides, so it cannot continue one")]
    Bidirectional,
    #[error("this model continues texts, so it has no classes")]
    NoClasses,
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    #[error("tensor computation failed: {0}")]
    Candle(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn file(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::File { path: path.into(), reason: reason.to_string() }
    }
}
