//! Room `data`: from JSON lines to token batches.
//!
//! Four forms are known, recognised line by line: Alpaca (`instruction`, `input`, `output`), `question` and `answer`,
//! `messages` (`role`, `content`), and `text`. Everything random here is drawn from a seed with BLAKE3, so that the same
//! settings give the same batches on every machine.
//!
//! It refuses a line it does not recognise, naming file and line, instead of skipping it.

pub mod batches;
pub mod record;
pub mod tokens;

pub use batches::{batch, epoch_batches, split_held_out};
pub use record::{Record, Segment, Template, read_jsonl};
pub use tokens::{TokenizedExample, Tokens};

use std::path::PathBuf;

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path}:{line}: {reason}")]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("{path} holds no example")]
    Empty { path: PathBuf },
    #[error("text cannot be tokenised: {reason}")]
    Tokenize { reason: String },
    #[error("the tokenizer gives token {token}, but the model's vocabulary ends at {vocabulary}")]
    Vocabulary { token: u32, vocabulary: usize },
}
