//! `adapter_config.json`: what of it is read, what is refused, what is written.

use std::path::Path;

use serde_json::{Value, json};

use super::PeftError;

/// The plain LoRA part of an `adapter_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    pub rank: usize,
    pub alpha: f64,
    /// As written: module names, last name parts, or one regular expression.
    pub targets: Vec<String>,
    /// What the adapter says it was trained on; not to be trusted as more than a hint.
    pub base: Option<String>,
}

/// Options that change what the two matrices mean, and why each is refused.
const SWITCHES: [(&str, &str); 7] = [
    ("use_dora", "DoRA adds magnitudes that two matrices do not hold"),
    ("use_rslora", "rank-stabilised scaling divides by the root of the rank"),
    ("lora_bias", "trained biases are no LoRA tensors"),
    ("use_qalora", "QALoRA pools the inputs"),
    ("use_bdlora", "block-diagonal matrices have other shapes"),
    ("fan_in_fan_out", "the base's weights would be transposed"),
    ("trainable_token_indices", "trained embeddings are no LoRA tensors"),
];
const LISTS: [(&str, &str); 6] = [
    ("rank_pattern", "ranks that differ between modules do not fit one shape"),
    ("alpha_pattern", "scalings that differ between modules do not fit one shape"),
    ("modules_to_save", "whole trained modules are no LoRA tensors"),
    ("layer_replication", "it changes the base"),
    ("target_parameters", "it adapts parameters that are no linear modules"),
    ("exclude_modules", "name the modules that are adapted instead"),
];

impl AdapterConfig {
    /// `path` is used in errors only.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self, PeftError> {
        let refuse = |option, found: &Value, why| PeftError::Option { path: path.into(), option, found: found.to_string(), why };
        let missing = |field: &str| PeftError::File { path: path.into(), reason: format!("{field} is missing or not a number") };
        match json.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            _ => return Err(refuse("peft_type", json.get("peft_type").unwrap_or(&Value::Null), "\"LORA\" is the one known")),
        }
        for (option, why) in SWITCHES {
            match json.get(option) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(found) => return Err(refuse(option, found, why)),
            }
        }
        for (option, why) in LISTS {
            match json.get(option) {
                None | Some(Value::Null) => {}
                Some(Value::Object(map)) if map.is_empty() => {}
                Some(Value::Array(list)) if list.is_empty() => {}
                Some(found) => return Err(refuse(option, found, why)),
            }
        }
        match json.get("bias") {
            None | Some(Value::Null) => {}
            Some(Value::String(none)) if none == "none" => {}
            Some(found) => return Err(refuse("bias", found, "trained biases are no LoRA tensors")),
        }
        match json.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(init)) if init == "gaussian" => {}
            Some(found) => return Err(refuse("init_lora_weights", found, "this start changes the base's own weights")),
        }
        let rank = json.get("r").and_then(Value::as_u64).and_then(|r| usize::try_from(r).ok()).filter(|r| *r > 0);
        let targets = match json.get("target_modules") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).map(String::from).collect(),
            Some(Value::String(pattern)) => vec![pattern.clone()],
            _ => Vec::new(),
        };
        Ok(Self {
            rank: rank.ok_or_else(|| missing("r"))?,
            alpha: json.get("lora_alpha").and_then(Value::as_f64).ok_or_else(|| missing("lora_alpha"))?,
            targets,
            base: json.get("base_model_name_or_path").and_then(Value::as_str).map(String::from),
        })
    }

    /// The file as PEFT reads it.
    pub fn to_json(&self) -> Value {
        // PEFT's own files hold a whole number wherever it is one.
        let alpha = if self.alpha.fract() == 0.0 { json!(self.alpha as i64) } else { json!(self.alpha) };
        json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": self.base, "r": self.rank,
            "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": self.targets, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "modules_to_save": null,
            "rank_pattern": {}, "alpha_pattern": {}, "use_dora": false, "use_rslora": false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Value {
        AdapterConfig { rank: 4, alpha: 8.0, targets: vec!["q_proj".into()], base: None }.to_json()
    }

    fn parse(json: &Value) -> Result<AdapterConfig, PeftError> {
        AdapterConfig::from_json(Path::new("adapter_config.json"), json)
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(parse(&plain()).unwrap().to_json(), plain());
    }

    #[test]
    fn every_option_that_changes_the_meaning_is_refused_by_name() {
        let cases = [
            ("use_dora", json!(true)),
            ("use_rslora", json!(true)),
            ("lora_bias", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("trainable_token_indices", json!([1])),
            ("rank_pattern", json!({ "q_proj": 8 })),
            ("alpha_pattern", json!({ "q_proj": 8 })),
            ("modules_to_save", json!(["lm_head"])),
            ("bias", json!("all")),
            ("init_lora_weights", json!("pissa")),
            ("init_lora_weights", json!("olora")),
            ("peft_type", json!("IA3")),
        ];
        for (option, value) in cases {
            let mut json = plain();
            json[option] = value;
            let error = parse(&json).unwrap_err().to_string();
            assert!(error.contains(&format!(": {option} is ")), "{error}");
        }
        let mut json = plain();
        json["r"] = json!(0);
        assert!(parse(&json).unwrap_err().to_string().contains("r is missing"));
    }
}
