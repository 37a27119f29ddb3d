//! Room `data`: from files to token batches.
//!
//! Five forms of JSON lines are known, recognised line by line: Alpaca (`instruction`, `input`, `output`), `question` and
//! `answer`, `messages` (`role`, `content`), `text`, and `text` with a `label`; and tab-separated texts with a class. The
//! same fields are known as columns of CSV with a header and of Parquet; columns of other names are mapped to them.
//! Questions to measure with are read as MMLU and ARC publish them. Everything random here is drawn from a seed with BLAKE3, so that the same
//! settings give the same batches on every machine.
//!
//! It refuses a line it does not recognise, naming file and line, instead of skipping it.

pub mod batches;
pub mod choices;
pub mod classes;
mod csv;
pub mod fields;
pub mod packing;
mod parquet;
pub mod record;
pub mod tokens;
mod tsv;

pub use batches::{BatchRule, batch, split_held_out};
pub use choices::{ChoiceForm, ChoiceQuestion, read_choices};
pub use classes::Classes;
pub use fields::{Field, FieldMap};
pub use packing::packed;
pub use record::{Label, Record, Segment, Template, read_jsonl, read_records};
pub use tokens::{TokenizedExample, Tokens};

use std::path::PathBuf;

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path}:{line}: {reason}")]
    Line { path: PathBuf, line: usize, reason: String },
    /// As `Line`, in a published form whose every line is known beforehand.
    #[error("{path}:{line}: {reason}")]
    Form { path: PathBuf, line: usize, reason: String },
    #[error("{path} holds no example")]
    Empty { path: PathBuf },
    #[error("text cannot be tokenised: {reason}")]
    Tokenize { reason: String },
    #[error("the tokenizer gives token {token}, but the model's vocabulary ends at {vocabulary}")]
    Vocabulary { token: u32, vocabulary: usize },
    #[error("{label:?} is no class of this model: the model's classes are {known}")]
    UnknownClass { label: String, known: String },
    #[error("{group:?} has {found} solved examples to show, but {wanted} are asked for")]
    Shots { group: String, found: usize, wanted: usize },
    #[error("the data has {found}, but this model {wanted}")]
    Kind { found: &'static str, wanted: &'static str },
}
