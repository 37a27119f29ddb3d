//! `config.json` of a Llama-family model, in the form transformers 4 wrote (`rope_theta`, `rope_scaling`) and in the form
//! transformers 5 writes (`rope_parameters`).

use std::path::Path;

use serde_json::{Value, json};

use super::ModelError;

/// What the decoder must know. Lengths in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocabulary: usize,
    pub positions_max: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub rope: RopeScaling,
    /// The output head is the embedding itself.
    pub tied: bool,
    pub bos: Option<u32>,
    /// Tokens that end a text; the first is appended to training examples.
    pub eos: Vec<u32>,
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
        fields.must_be("model_type", &["llama"], "\"llama\"", None)?;
        fields.must_be("hidden_act", &["silu"], "\"silu\"", Some("silu"))?;
        for (field, supported) in [("attention_bias", "false"), ("mlp_bias", "false")] {
            if json.get(field).and_then(Value::as_bool).unwrap_or(false) {
                return Err(fields.unsupported(field, "true", supported));
            }
        }
        let hidden = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let kv_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("{heads} attention heads cannot share {kv_heads} key-value heads evenly");
            return Err(ModelError::file(path, reason));
        }
        let head_dim = fields.optional_size("head_dim")?.unwrap_or(hidden / heads);
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(ModelError::file(path, format!("head_dim is {head_dim}, but rotary positions need an even one")));
        }
        let (rope_theta, rope) = fields.rope()?;
        Ok(Self {
            hidden,
            intermediate: fields.size("intermediate_size")?,
            layers: fields.size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocabulary: fields.size("vocab_size")?,
            positions_max: fields.optional_size("max_position_embeddings")?.unwrap_or(2048),
            norm_eps: json.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6),
            rope_theta,
            rope,
            tied: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            bos: tokens(json.get("bos_token_id")).first().copied(),
            eos: tokens(json.get("eos_token_id")),
        })
    }

    /// The configuration as transformers 5 writes it, for a model saved in bf16.
    pub fn to_json(&self) -> Value {
        let mut rope = json!({ "rope_theta": self.rope_theta, "rope_type": "default" });
        match &self.rope {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => {
                rope["rope_type"] = json!("linear");
                rope["factor"] = json!(factor);
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                rope = json!({
                    "rope_theta": self.rope_theta, "rope_type": "llama3", "factor": factor,
                    "low_freq_factor": low_freq_factor, "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": *original_positions as u64,
                });
            }
        }
        // `rope_theta` stands at the top too: readers of the old form find it there, readers of the new ignore it.
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "torch_dtype": "bfloat16",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocabulary, "max_position_embeddings": self.positions_max,
            "rms_norm_eps": self.norm_eps, "rope_theta": self.rope_theta, "rope_parameters": rope,
            "tie_word_embeddings": self.tied, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
            "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": true,
            "bos_token_id": self.bos, "eos_token_id": self.eos.first(),
        })
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together (the same for values).
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Radians a position adds, for each of the `head_dim / 2` rotated pairs.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let pairs = self.head_dim / 2;
        let plain = (0..pairs).map(|i| self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64));
        match self.rope {
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
        }
    }
}

/// A token id, a list of them, or null.
fn tokens(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
        Some(id) => one(id).into_iter().collect(),
        None => Vec::new(),
    }
}

struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    fn unsupported(&self, field: &'static str, found: &str, supported: &'static str) -> ModelError {
        ModelError::Unsupported { path: self.path.into(), field, found: found.into(), supported }
    }

    fn must_be(&self, field: &'static str, known: &[&str], supported: &'static str, default: Option<&str>) -> Result<(), ModelError> {
        match self.json.get(field).and_then(Value::as_str).or(default) {
            Some(found) if known.contains(&found) => Ok(()),
            found => Err(self.unsupported(field, &format!("\"{}\"", found.unwrap_or("missing")), supported)),
        }
    }

    fn optional_size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        match self.json.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(size) if size > 0 => Ok(Some(size)),
                _ => Err(ModelError::file(self.path, format!("{field} is {value}, but must be a positive whole number"))),
            },
        }
    }

    fn size(&self, field: &str) -> Result<usize, ModelError> {
        self.optional_size(field)?.ok_or_else(|| ModelError::file(self.path, format!("{field} is missing")))
    }

    /// Base and scaling: `rope_parameters` where present, else `rope_theta` and `rope_scaling`.
    fn rope(&self) -> Result<(f64, RopeScaling), ModelError> {
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
        let rope = match kind {
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
        Ok((theta, rope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Value {
        json!({ "model_type": "llama", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
                "num_attention_heads": 4, "vocab_size": 96, "rms_norm_eps": 1e-6 })
    }

    fn parse(json: &Value) -> Result<ModelConfig, ModelError> {
        ModelConfig::from_json(Path::new("config.json"), json)
    }

    #[test]
    fn old_and_new_rope_forms_agree() {
        let (mut old, mut new) = (small(), small());
        old["rope_theta"] = json!(500000.0);
        old["rope_scaling"] = json!({ "type": "linear", "factor": 4.0 });
        new["rope_parameters"] = json!({ "rope_theta": 500000.0, "rope_type": "linear", "factor": 4.0 });
        assert_eq!(parse(&old).unwrap(), parse(&new).unwrap());
        assert_eq!(parse(&old).unwrap().rope_frequencies()[0], 0.25);
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut json = small();
        json["rope_parameters"] = json!({ "rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64 });
        json["eos_token_id"] = json!([2]);
        let config = parse(&json).unwrap();
        assert_eq!(parse(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused_by_name() {
        let cases: [(&str, Value, &str); 6] = [
            ("model_type", json!("qwen2"), "model_type is \"qwen2\""),
            ("attention_bias", json!(true), "attention_bias is true"),
            ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
            ("rope_parameters", json!({ "rope_type": "yarn" }), "rope_type is \"yarn\""),
            ("num_key_value_heads", json!(3), "4 attention heads cannot share 3"),
            ("hidden_size", json!(0), "hidden_size is 0"),
        ];
        for (field, value, expected) in cases {
            let mut json = small();
            json[field] = value;
            let error = parse(&json).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
