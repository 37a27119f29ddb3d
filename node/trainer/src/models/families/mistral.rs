//! Mistral: a Llama that may look back over a sliding window only.

use super::{Family, llama};
use crate::models::ModelError;
use crate::models::config::{Fields, Mask, ModelConfig};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let mask = fields.optional_size("sliding_window")?.map_or(Mask::Causal, Mask::Window);
    Ok(ModelConfig { family: Family::Mistral, mask, biases: [false; 3], ..llama::config(fields)? })
}
