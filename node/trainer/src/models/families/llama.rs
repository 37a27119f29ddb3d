//! Llama 1 to 3 and TinyLlama: rotary positions, RMS norms, gated SiLU, grouped key-value heads.

use serde_json::{Value, json};

use super::{Family, Names};
use crate::models::ModelError;
use crate::models::config::{Activation, Fields, Head, Mask, ModelConfig, NormKind, Positions, RopeScaling};

/// Mistral, Qwen2 and Gemma are called the same.
pub(super) const NAMES: Names = Names {
    embedding: "model.embed_tokens",
    positions: None,
    types: None,
    embedding_norm: None,
    block: "model.layers.",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    output: "self_attn.o_proj",
    norms: ["input_layernorm", "post_attention_layernorm"],
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    norm: Some("model.norm"),
    pooler: None,
    head: "lm_head",
    saved: None,
    transposed: false,
    others: &[],
};

pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let hidden = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let attention_bias = fields.flag("attention_bias", false);
    Ok(ModelConfig {
        family: Family::Llama,
        hidden,
        intermediate: fields.size("intermediate_size")?,
        layers: fields.size("num_hidden_layers")?,
        heads,
        kv_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: match fields.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => (hidden / heads).max(1),
        },
        vocabulary: fields.size("vocab_size")?,
        positions_max: fields.optional_size("max_position_embeddings")?.unwrap_or(2048),
        positions: fields.rope()?,
        norm: NormKind::Rms,
        norm_offset: 0.0,
        norm_eps: fields.number("rms_norm_eps", 1e-6),
        post_norm: false,
        mask: Mask::Causal,
        unwindowed: 0,
        activation: fields.activation("hidden_act", "silu")?,
        gated: true,
        biases: [attention_bias, attention_bias, fields.flag("mlp_bias", false)],
        embedding_scale: 1.0,
        token_types: 0,
        head: Head::Tokens,
        tied: fields.flag("tie_word_embeddings", false),
        bos: fields.token("bos_token_id"),
        eos: fields.tokens("eos_token_id"),
        pad: fields.token("pad_token_id"),
    })
}

/// TinyLlama-1.1B's architecture: where others differ in sizes only, they say which.
pub fn tiny_llama() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        hidden: 2048,
        intermediate: 5632,
        layers: 22,
        heads: 32,
        kv_heads: 4,
        head_dim: 64,
        vocabulary: 32_000,
        positions_max: 2048,
        positions: Positions::Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        norm: NormKind::Rms,
        norm_offset: 0.0,
        norm_eps: 1e-5,
        post_norm: false,
        mask: Mask::Causal,
        unwindowed: 0,
        activation: Activation::Silu,
        gated: true,
        biases: [false; 3],
        embedding_scale: 1.0,
        token_types: 0,
        head: Head::Tokens,
        tied: false,
        bos: Some(1),
        eos: vec![2],
        pad: None,
    }
}

/// The configuration of a Llama as transformers 5 writes it, for a model saved in bf16.
pub fn llama_json(config: &ModelConfig) -> Value {
    let (theta, rope) = match &config.positions {
        Positions::Rope { theta, scaling } => (*theta, scaling),
        Positions::Learned { .. } => (10_000.0, &RopeScaling::Default),
    };
    let mut parameters = json!({ "rope_theta": theta, "rope_type": "default" });
    match rope {
        RopeScaling::Default => {}
        RopeScaling::Linear { factor } => {
            parameters["rope_type"] = json!("linear");
            parameters["factor"] = json!(factor);
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
            parameters = json!({
                "rope_theta": theta, "rope_type": "llama3", "factor": factor,
                "low_freq_factor": low_freq_factor, "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": *original_positions as u64,
            });
        }
    }
    // `rope_theta` stands at the top too: readers of the old form find it there, readers of the new ignore it.
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "torch_dtype": "bfloat16",
        "hidden_size": config.hidden, "intermediate_size": config.intermediate, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "vocab_size": config.vocabulary, "max_position_embeddings": config.positions_max,
        "rms_norm_eps": config.norm_eps, "rope_theta": theta, "rope_parameters": parameters,
        "tie_word_embeddings": config.tied, "hidden_act": if config.activation == Activation::Silu { "silu" } else { "gelu" },
        "attention_bias": config.biases[0], "mlp_bias": config.biases[2],
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": true,
        "bos_token_id": config.bos, "eos_token_id": config.eos.first(),
    })
}
