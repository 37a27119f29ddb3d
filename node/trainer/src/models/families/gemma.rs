//! Gemma: a Llama whose norms store their weight less 1, with gated GELU, scaled embeddings and a tied head.

use super::{Family, llama};
use crate::models::ModelError;
use crate::models::config::{Activation, Fields, ModelConfig};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let config = llama::config(fields)?;
    // The first files said `hidden_act: gelu` and meant the form by tanh; `hidden_activation` came later to say so.
    let activation = match fields.text("hidden_activation") {
        Some(_) => fields.activation("hidden_activation", "gelu_pytorch_tanh")?,
        None => Activation::GeluTanh,
    };
    if fields.flag("use_bidirectional_attention", false) {
        return Err(fields.unsupported("use_bidirectional_attention", "true", "false"));
    }
    Ok(ModelConfig {
        family: Family::Gemma,
        activation,
        norm_offset: 1.0,
        embedding_scale: (config.hidden as f32).sqrt(),
        tied: fields.flag("tie_word_embeddings", true),
        ..config
    })
}
