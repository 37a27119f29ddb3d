//! Room `peft`: adapters as PEFT directories, `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Written atomically, so that a reader never meets half of one. Reading refuses, by name, every PEFT option that would
//! make the adapter mean something else than `W + (alpha / r) B A`, and pickled weights.

mod config;
mod directory;

pub use config::AdapterConfig;
pub use directory::{Adapter, AdapterTensor, CONFIG, WEIGHTS, read, read_config, to_safetensors, write};

use std::path::PathBuf;

/// Why a PEFT directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PeftError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("{path}: {option} is {found}, and only plain LoRA can be merged: {why}")]
    Option { path: PathBuf, option: &'static str, found: String, why: &'static str },
    #[error("{path} holds pickled weights, which can run code when they are read: save the adapter as safetensors")]
    Pickle { path: PathBuf },
    #[error("{path}: tensor \"{name}\" {reason}")]
    Tensor { path: PathBuf, name: String, reason: String },
}
