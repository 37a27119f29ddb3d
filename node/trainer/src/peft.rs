//! Room `peft`: adapters as PEFT directories, `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Written atomically, so that a reader never meets half of one. Reading refuses, by name, every PEFT option that would
//! make the adapter mean something else than `W + scale B A` and whole tensors in place of the base's, and pickled
//! weights. What a full training made is the difference of every weight, in a file of its own.

mod adapter;
mod config;
mod directory;
mod export;
mod plain;
mod shards;
mod truncate;
mod update;

pub use adapter::{Adapter, AdapterTensor, target_names};
pub use config::{AdapterConfig, CAUSAL_LM, SEQ_CLS, Targets};
pub use directory::{CONFIG, WEIGHTS, read, read_config, to_safetensors, write};
pub use export::{StoredUpdate, export};
pub use shards::{SHARD_BYTES, Split};
pub use truncate::{Truncated, truncate};
pub use update::{DIFFERENCE, Difference, Update};

use std::path::PathBuf;

/// Why a PEFT directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PeftError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path}: {option} is {found}, and only what adds to weights can be used: {why}")]
    Option { path: PathBuf, option: &'static str, found: String, why: &'static str },
    #[error("{path} holds pickled weights, which can run code when they are read: save the adapter as safetensors")]
    Pickle { path: PathBuf },
    #[error("{path}: tensor \"{name}\" {reason}")]
    Tensor { path: PathBuf, name: String, reason: String },
    #[error("the adapter lacks {name}")]
    Half { name: String },
    #[error("{module} has rank {found}, and there is room for {room}")]
    Rank { module: String, found: usize, room: usize },
    #[error("the update of {module} holds values that are no numbers")]
    NotFinite { module: String },
}
