//! GPT-2: learned positions, layer norms, biases everywhere, one map for query, key and value, weights stored transposed.

use super::{Family, Names};
use crate::models::ModelError;
use crate::models::config::{Fields, Head, Mask, ModelConfig, NormKind, Positions};

pub(super) const NAMES: Names = Names {
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    types: None,
    embedding_norm: None,
    block: "transformer.h.",
    qkv: &["attn.c_attn"],
    output: "attn.c_proj",
    norms: ["ln_1", "ln_2"],
    up: &["mlp.c_fc"],
    down: "mlp.c_proj",
    norm: Some("transformer.ln_f"),
    pooler: None,
    head: "lm_head",
    saved: None,
    transposed: true,
    others: &[],
};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    for (field, default) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)] {
        let found = fields.flag(field, default);
        if found != default {
            return Err(fields.unsupported(field, &found.to_string(), if default { "true" } else { "false" }));
        }
    }
    let hidden = fields.size("n_embd")?;
    let heads = fields.size("n_head")?;
    Ok(ModelConfig {
        family: Family::Gpt2,
        hidden,
        intermediate: fields.optional_size("n_inner")?.unwrap_or(4 * hidden),
        layers: fields.size("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: (hidden / heads).max(1),
        vocabulary: fields.size("vocab_size")?,
        positions_max: fields.optional_size("n_positions")?.unwrap_or(1024),
        positions: Positions::Learned { first: 0 },
        norm: NormKind::Layer,
        norm_offset: 0.0,
        norm_eps: fields.number("layer_norm_epsilon", 1e-5),
        post_norm: false,
        mask: Mask::Causal,
        unwindowed: 0,
        activation: fields.activation("activation_function", "gelu_new")?,
        gated: false,
        biases: [true; 3],
        embedding_scale: 1.0,
        token_types: 0,
        head: Head::Tokens,
        tied: fields.flag("tie_word_embeddings", true),
        bos: fields.token("bos_token_id"),
        eos: fields.tokens("eos_token_id"),
        pad: fields.token("pad_token_id"),
    })
}
