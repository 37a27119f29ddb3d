//! Qwen2: a Llama whose query, key and value have biases.

use super::{Family, llama};
use crate::models::ModelError;
use crate::models::config::{Fields, ModelConfig};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    if fields.flag("use_sliding_window", false) {
        return Err(fields.unsupported("use_sliding_window", "true", "false"));
    }
    Ok(ModelConfig { family: Family::Qwen2, biases: [true, false, false], ..llama::config(fields)? })
}
