//! Qwen2: a Llama whose query, key and value have biases, and whose upper blocks may look back over a sliding window only.

use super::{Family, llama};
use crate::models::ModelError;
use crate::models::config::{Fields, Mask, ModelConfig};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let config = llama::config(fields)?;
    // `sliding_window` stands in many files that do not use it.
    let window = if fields.flag("use_sliding_window", false) { fields.optional_size("sliding_window")? } else { None };
    let unwindowed = fields.optional_count("max_window_layers")?.unwrap_or(28);
    Ok(ModelConfig {
        family: Family::Qwen2,
        biases: [true, false, false],
        mask: window.map_or(Mask::Causal, Mask::Window),
        unwindowed,
        ..config
    })
}
