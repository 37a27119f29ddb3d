//! BERT with a classification head: attention in both directions, norms behind each part, learned positions, token types.

use super::{Family, Names};
use crate::models::ModelError;
use crate::models::config::{Fields, Head, Mask, ModelConfig, NormKind, Positions};

pub(super) const NAMES: Names = Names {
    embedding: "bert.embeddings.word_embeddings",
    positions: Some("bert.embeddings.position_embeddings"),
    types: Some("bert.embeddings.token_type_embeddings"),
    embedding_norm: Some("bert.embeddings.LayerNorm"),
    block: "bert.encoder.layer.",
    qkv: &["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    norms: ["attention.output.LayerNorm", "output.LayerNorm"],
    up: &["intermediate.dense"],
    down: "output.dense",
    norm: None,
    pooler: Some("bert.pooler.dense"),
    head: "classifier",
    saved: Some("classifier"),
    transposed: false,
    others: &["bert.pooler.dense"],
};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    if fields.flag("is_decoder", false) {
        return Err(fields.unsupported("is_decoder", "true", "false"));
    }
    match fields.text("position_embedding_type") {
        None | Some("absolute") => {}
        Some(other) => return Err(fields.unsupported("position_embedding_type", &format!("\"{other}\""), "\"absolute\"")),
    }
    let hidden = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    Ok(ModelConfig {
        family: Family::Bert,
        hidden,
        intermediate: fields.size("intermediate_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_dim: (hidden / heads).max(1),
        vocabulary: fields.size("vocab_size")?,
        positions_max: fields.optional_size("max_position_embeddings")?.unwrap_or(512),
        positions: Positions::Learned { first: 0 },
        norm: NormKind::Layer,
        norm_offset: 0.0,
        norm_eps: fields.number("layer_norm_eps", 1e-12),
        post_norm: true,
        mask: Mask::Full,
        unwindowed: 0,
        activation: fields.activation("hidden_act", "gelu")?,
        gated: false,
        biases: [true; 3],
        embedding_scale: 1.0,
        token_types: fields.optional_size("type_vocab_size")?.unwrap_or(2),
        head: Head::Classes(fields.classes()?),
        tied: false,
        bos: None,
        eos: fields.tokens("eos_token_id"),
        pad: fields.token("pad_token_id"),
    })
}
