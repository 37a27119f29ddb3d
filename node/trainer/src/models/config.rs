//! What the transformer must know of a model, whatever family it is of: read from `config.json` in the form transformers 4
//! wrote (`rope_theta`, `rope_scaling`) and in the form transformers 5 writes (`rope_parameters`).

use std::path::Path;

use serde_json::Value;

use super::ModelError;
use super::families::{self, Family};
pub use super::kernels::activation::Activation;
use super::kernels::attention::Heads;
pub use super::kernels::attention::Mask;
pub use super::ops::NormKind;

/// A model's architecture. Lengths in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    /// The longest sequence.
    pub positions_max: usize,
    pub positions: Positions,
    pub norm: NormKind,
    /// Added to every norm's weight.
    pub norm_offset: f32,
    pub norm_eps: f64,
    /// Norms stand behind attention and feed-forward (BERT), not before them.
    pub post_norm: bool,
    pub mask: Mask,
    /// So many blocks, the lowest, look back as far as they like, whatever window the others have (Qwen2).
    pub unwindowed: usize,
    pub activation: Activation,
    /// The feed-forward part has a gate beside the up-projection.
    pub gated: bool,
    /// Biases of query, key and value; of attention's output; of the feed-forward part.
    pub biases: [bool; 3],
    /// Embeddings are multiplied by it.
    pub embedding_scale: f32,
    /// Kinds of token (BERT's segments); 0 where the family has none.
    pub token_types: usize,
    pub head: Head,
    /// The output head is the embedding itself.
    pub tied: bool,
    pub bos: Option<u32>,
    /// Tokens that end a text; the first is appended to training examples.
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

/// How a token's position enters.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are turned by it.
    Rope { theta: f64, scaling: RopeScaling },
    /// A learned vector is added; the first position has this index.
    Learned { first: usize },
}

/// How rotary frequencies are stretched beyond the original context.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    Default,
    /// All frequencies divided by the factor.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided, short ones kept, a smooth ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_positions: f64,
    },
}

/// What stands on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The next token, for every position.
    Tokens,
    /// One of so many classes, for the whole sequence, by its first position.
    Classes(usize),
}

impl ModelConfig {
    /// Reads `config.json` of `dir`.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).map_err(|error| ModelError::file(&path, error))?;
        let json: Value = serde_json::from_slice(&text).map_err(|error| ModelError::file(&path, error))?;
        Self::from_json(&path, &json)
    }

    /// `path` is used in errors only.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self, ModelError> {
        let fields = Fields { path, json };
        let config = families::config(&fields)?;
        if !config.heads.is_multiple_of(config.kv_heads) {
            let reason = format!("{} attention heads cannot share {} key-value heads evenly", config.heads, config.kv_heads);
            return Err(ModelError::file(path, reason));
        }
        if matches!(config.positions, Positions::Rope { .. }) && !config.head_dim.is_multiple_of(2) {
            let reason = format!("head_dim is {}, but rotary positions need an even one", config.head_dim);
            return Err(ModelError::file(path, reason));
        }
        Ok(config)
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together (the same for values).
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// How the attention of block `layer` reads queries, keys and values.
    pub(crate) fn attention(&self, layer: usize) -> Heads {
        let mask = match self.mask {
            Mask::Window(_) if layer < self.unwindowed => Mask::Causal,
            mask => mask,
        };
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        Heads { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim, scale, mask }
    }

    /// Radians a position adds, for each of the `head_dim / 2` rotated pairs; `None` without rotary positions.
    pub fn rope_frequencies(&self) -> Option<Vec<f64>> {
        let Positions::Rope { theta, scaling } = &self.positions else { return None };
        let pairs = self.head_dim / 2;
        let plain = (0..pairs).map(|i| theta.powf(-2.0 * i as f64 / self.head_dim as f64));
        Some(match *scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => plain
                .map(|frequency| {
                    let wavelength = 2.0 * std::f64::consts::PI / frequency;
                    if wavelength < original_positions / high_freq_factor {
                        frequency
                    } else if wavelength > original_positions / low_freq_factor {
                        frequency / factor
                    } else {
                        let smooth = (original_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                })
                .collect(),
        })
    }
}

/// The fields of a `config.json`, with errors that name them.
pub(super) struct Fields<'a> {
    pub path: &'a Path,
    pub json: &'a Value,
}

impl Fields<'_> {
    pub fn unsupported(&self, field: &'static str, found: &str, supported: &'static str) -> ModelError {
        ModelError::Unsupported { path: self.path.into(), field, found: found.into(), supported }
    }

    pub fn text(&self, field: &str) -> Option<&str> {
        self.json.get(field).and_then(Value::as_str)
    }

    pub fn flag(&self, field: &str, default: bool) -> bool {
        self.json.get(field).and_then(Value::as_bool).unwrap_or(default)
    }

    pub fn number(&self, field: &str, default: f64) -> f64 {
        self.json.get(field).and_then(Value::as_f64).unwrap_or(default)
    }

    pub fn optional_size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        match self.json.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(size) if size > 0 => Ok(Some(size)),
                _ => Err(ModelError::file(self.path, format!("{field} is {value}, but must be a positive whole number"))),
            },
        }
    }

    /// A size that may be 0.
    pub fn optional_count(&self, field: &str) -> Result<Option<usize>, ModelError> {
        match self.json.get(field).and_then(Value::as_u64) {
            Some(0) => Ok(Some(0)),
            _ => self.optional_size(field),
        }
    }

    pub fn size(&self, field: &str) -> Result<usize, ModelError> {
        self.optional_size(field)?.ok_or_else(|| ModelError::file(self.path, format!("{field} is missing")))
    }

    /// A token id, a list of them, or null.
    pub fn tokens(&self, field: &str) -> Vec<u32> {
        let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.json.get(field) {
            Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
            Some(id) => one(id).into_iter().collect(),
            None => Vec::new(),
        }
    }

    pub fn token(&self, field: &str) -> Option<u32> {
        self.tokens(field).first().copied()
    }

    /// The activation named by `field`.
    pub fn activation(&self, field: &'static str, default: &str) -> Result<Activation, ModelError> {
        match self.text(field).unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            other => Err(self.unsupported(field, &format!("\"{other}\""), "silu, gelu, gelu_new and gelu_pytorch_tanh")),
        }
    }

    /// Classes of a classification head: as many as the labels named, else two, as transformers takes them.
    pub fn classes(&self) -> Result<usize, ModelError> {
        let named = self.json.get("id2label").and_then(Value::as_object).map(serde_json::Map::len);
        Ok(self.optional_size("num_labels")?.or(named).unwrap_or(2))
    }

    /// Rotary positions: `rope_parameters` where present, else `rope_theta` and `rope_scaling`.
    pub fn rope(&self) -> Result<Positions, ModelError> {
        let nothing = Value::Null;
        let new = self.json.get("rope_parameters").filter(|value| value.is_object());
        let scaling = new.or_else(|| self.json.get("rope_scaling")).unwrap_or(&nothing);
        let theta = [scaling.get("rope_theta"), self.json.get("rope_theta")];
        let theta = theta.into_iter().flatten().find_map(Value::as_f64).unwrap_or(10_000.0);
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
        let number = |field: &str| match scaling.get(field).and_then(Value::as_f64) {
            Some(value) if value > 0.0 => Ok(value),
            _ => Err(ModelError::file(self.path, format!("{field} of the {kind} rope is missing or not a positive number"))),
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_positions: number("original_max_position_embeddings")?,
            },
            other => {
                let supported = "\"default\", \"linear\" and \"llama3\"";
                return Err(self.unsupported("rope_type", &format!("\"{other}\""), supported));
            }
        };
        Ok(Positions::Rope { theta, scaling })
    }
}

#[cfg(test)]
mod tests;
