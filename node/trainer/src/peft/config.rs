//! `adapter_config.json`: what of it is read, what is refused, what is written.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::PeftError;
use crate::models::targets::first_key;

/// The additive part of an `adapter_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Scaled by alpha / sqrt(rank) instead of alpha / rank.
    pub rslora: bool,
    /// Ranks of modules that differ from `rank`, by expressions as PEFT matches them; the first that fits counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules that differ from `alpha`, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Of the training; it changes nothing of what the adapter means.
    pub dropout: f64,
    pub targets: Targets,
    /// Modules that are trained and stored whole, such as `classifier`.
    pub saved: Vec<String>,
    /// PEFT's `task_type`: `CAUSAL_LM`, `SEQ_CLS`, or another.
    pub task: Option<String>,
    /// The base stores its weights transposed (GPT-2). The adapter's own tensors are as ever.
    pub fan_in_fan_out: bool,
    /// What the adapter says it was trained on; not to be trusted as more than a hint.
    pub base: Option<String>,
}

/// PEFT's `target_modules`.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Module names or ends of them.
    List(Vec<String>),
    /// A regular expression that matches whole names, or `all-linear`.
    Pattern(String),
}

/// The task of causal language models.
pub const CAUSAL_LM: &str = "CAUSAL_LM";
/// The task of classifiers of whole texts.
pub const SEQ_CLS: &str = "SEQ_CLS";

/// Options that make the adapter more than two matrices added to a weight, and why each is refused.
const SWITCHES: [(&str, &str); 5] = [
    ("use_dora", "DoRA adds magnitudes that two matrices do not hold"),
    ("lora_bias", "trained biases are no LoRA tensors"),
    ("use_qalora", "QALoRA pools the inputs"),
    ("use_bdlora", "block-diagonal matrices have other shapes"),
    ("trainable_token_indices", "trained embeddings are no LoRA tensors"),
];
const GROUPS: [(&str, &str); 9] = [
    ("layer_replication", "it changes the base"),
    ("megatron_config", "Megatron's parallel layers are not the base's"),
    ("target_parameters", "it adapts parameters that are no linear modules"),
    ("alora_invocation_tokens", "it acts on some tokens only"),
    ("arrow_config", "it routes between adapters"),
    ("loftq_config", "this start changes the base's own weights"),
    ("lora_ga_config", "this start changes the base's own weights"),
    ("kasa_config", "KaSA changes the base's own weights"),
    ("monteclora_config", "MonteCLoRA samples its matrices"),
];
/// Starts that leave the base as it is: what was trained from them is still added to it. PiSSA, OLoRA, CorDA, LoftQ and
/// LoRA-GA are not among them: they take their start out of the base's weights.
const STARTS: [&str; 4] = ["gaussian", "orthogonal", "eva", "mica"];
/// Options that leave out some of the modules that `target_modules` names.
const NARROWING: [&str; 2] = ["layers_to_transform", "exclude_modules"];

impl AdapterConfig {
    /// LoRA of one rank and alpha on these modules.
    pub fn plain(rank: usize, alpha: f64, targets: Vec<String>) -> Self {
        Self {
            rank,
            alpha,
            rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            dropout: 0.0,
            targets: Targets::List(targets),
            saved: Vec::new(),
            task: Some(CAUSAL_LM.into()),
            fan_in_fan_out: false,
            base: None,
        }
    }

    /// The rank of a module.
    pub fn rank_of(&self, module: &str) -> usize {
        of_pattern(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// What a module's `B A` is multiplied with.
    pub fn scale_of(&self, module: &str) -> f64 {
        let (rank, alpha) = (self.rank_of(module) as f64, of_pattern(&self.alpha_pattern, module).unwrap_or(self.alpha));
        if self.rslora { alpha / rank.sqrt() } else { alpha / rank }
    }

    /// Whether a tensor of this name (PEFT's prefix taken off) belongs to a module that is saved whole.
    pub fn saves(&self, tensor: &str) -> bool {
        let parts: Vec<&str> = tensor.split('.').collect();
        // PEFT looks for the name as whole parts anywhere in the module's name.
        let inside = |saved: &str| {
            let wanted: Vec<&str> = saved.split('.').collect();
            parts.windows(wanted.len()).any(|window| window == wanted) && wanted.len() < parts.len()
        };
        self.saved.iter().any(|saved| inside(saved))
    }

    /// `path` is used in errors only.
    pub fn from_json(path: &Path, json: &Value) -> Result<Self, PeftError> {
        let refuse = |option, found: &Value, why| PeftError::Option { path: path.into(), option, found: found.to_string(), why };
        let wrong = |field: &str, must: &str| PeftError::File { path: path.into(), reason: format!("{field} is missing or not {must}") };
        match json.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            _ => {
                return Err(refuse(
                    "peft_type",
                    json.get("peft_type").unwrap_or(&Value::Null),
                    "\"LORA\" alone is the product of two matrices",
                ));
            }
        }
        for (option, why) in SWITCHES {
            match json.get(option) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(found) => return Err(refuse(option, found, why)),
            }
        }
        for (option, why) in GROUPS {
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
            Some(Value::String(start)) if STARTS.contains(&start.as_str()) => {}
            Some(found) => return Err(refuse("init_lora_weights", found, "this start changes the base's own weights")),
        }
        let whole = |value: &Value| value.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| *r > 0);
        let texts = |value: &Value| value.as_array().map(|list| list.iter().filter_map(Value::as_str).map(String::from).collect());
        let text = |field: &str| json.get(field).and_then(Value::as_str).map(String::from);
        let targets = match json.get("target_modules") {
            Some(Value::String(pattern)) => Targets::Pattern(pattern.clone()),
            other => Targets::List(other.and_then(texts).unwrap_or_default()),
        };
        let mut saved: Vec<String> = json.get("modules_to_save").and_then(texts).unwrap_or_default();
        saved.sort();
        saved.dedup();
        Ok(Self {
            rank: json.get("r").and_then(whole).ok_or_else(|| wrong("r", "a positive whole number"))?,
            alpha: json.get("lora_alpha").and_then(Value::as_f64).ok_or_else(|| wrong("lora_alpha", "a number"))?,
            rslora: json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            rank_pattern: pattern(path, json, "rank_pattern", whole)?,
            alpha_pattern: pattern(path, json, "alpha_pattern", Value::as_f64)?,
            dropout: json.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
            targets,
            saved,
            task: text("task_type"),
            fan_in_fan_out: json.get("fan_in_fan_out").and_then(Value::as_bool).unwrap_or(false),
            base: text("base_model_name_or_path"),
        })
    }

    /// Whether the adapter's modules are fewer than its targets mean.
    pub(super) fn narrows(json: &Value) -> bool {
        NARROWING.iter().any(|option| !matches!(json.get(option), None | Some(Value::Null)))
    }

    /// The file as PEFT reads it.
    pub fn to_json(&self) -> Value {
        // PEFT's own files hold a whole number wherever it is one.
        let number = |value: f64| if value.fract() == 0.0 { json!(value as i64) } else { json!(value) };
        let targets = match &self.targets {
            Targets::List(list) => json!(list),
            Targets::Pattern(pattern) => json!(pattern),
        };
        let saved = if self.saved.is_empty() { Value::Null } else { json!(self.saved) };
        let ranks: Map<String, Value> = self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank))).collect();
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha))).collect();
        json!({
            "peft_type": "LORA", "task_type": self.task, "base_model_name_or_path": self.base, "r": self.rank,
            "lora_alpha": number(self.alpha), "lora_dropout": self.dropout, "target_modules": targets, "bias": "none",
            "fan_in_fan_out": self.fan_in_fan_out, "inference_mode": true, "init_lora_weights": true,
            "modules_to_save": saved, "rank_pattern": ranks, "alpha_pattern": alphas, "use_dora": false,
            "use_rslora": self.rslora,
        })
    }
}

/// A pattern of PEFT's: expressions and what the modules have that they mean. In the order of their bytes, which is how
/// PEFT writes them and how they are read here.
fn pattern<T>(path: &Path, json: &Value, field: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<(String, T)>, PeftError> {
    let wrong = |reason: String| PeftError::File { path: path.into(), reason };
    let entries = match json.get(field) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong(format!("{field} is {other}, but must be a map"))),
    };
    let mut found = Vec::new();
    for (key, value) in entries {
        first_key([key.as_str()].into_iter(), "").map_err(|error| wrong(format!("{field}: {error}")))?;
        let value = read(value).ok_or_else(|| wrong(format!("{field} gives \"{key}\" {value}, but a positive number is needed")))?;
        found.push((key.clone(), value));
    }
    Ok(found)
}

fn of_pattern<T: Copy>(pattern: &[(String, T)], module: &str) -> Option<T> {
    // Expressions were checked when they were read.
    let key = first_key(pattern.iter().map(|(key, _)| key.as_str()), module).ok().flatten()?;
    pattern.iter().find(|(one, _)| one == key).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Value {
        AdapterConfig::plain(4, 8.0, vec!["q_proj".into()]).to_json()
    }

    fn parse(json: &Value) -> Result<AdapterConfig, PeftError> {
        AdapterConfig::from_json(Path::new("adapter_config.json"), json)
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(parse(&plain()).unwrap().to_json(), plain());
        let mut rich = AdapterConfig::plain(4, 8.5, Vec::new());
        rich.targets = Targets::Pattern("all-linear".into());
        rich.rslora = true;
        rich.rank_pattern = vec![("k_proj".into(), 2)];
        rich.alpha_pattern = vec![("k_proj".into(), 3.0), ("v_proj".into(), 0.5)];
        rich.dropout = 0.1;
        rich.saved = vec!["classifier".into(), "score".into()];
        rich.task = Some(SEQ_CLS.into());
        rich.fan_in_fan_out = true;
        rich.base = Some("base".into());
        assert_eq!(parse(&rich.to_json()).unwrap(), rich);
    }

    #[test]
    fn every_option_that_is_not_additive_is_refused_by_name() {
        let cases = [
            ("use_dora", json!(true)),
            ("lora_bias", json!(true)),
            ("use_qalora", json!(true)),
            ("trainable_token_indices", json!([1])),
            ("target_parameters", json!(["experts.w1"])),
            ("layer_replication", json!([[0, 2]])),
            ("loftq_config", json!({ "loftq_bits": 4 })),
            ("bias", json!("all")),
            ("init_lora_weights", json!("pissa")),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("init_lora_weights", json!("olora")),
            ("init_lora_weights", json!("corda")),
            ("init_lora_weights", json!("loftq")),
            ("init_lora_weights", json!("lora_ga")),
            ("use_bdlora", json!({ "nblocks": 2 })),
            ("alora_invocation_tokens", json!([5])),
            ("arrow_config", json!({ "top_k": 3 })),
            ("lora_ga_config", json!({ "direction": "ArB2r" })),
            ("kasa_config", json!({ "beta": 0.1 })),
            ("monteclora_config", json!({ "num_samples": 2 })),
            ("megatron_config", json!({ "hidden_size": 8 })),
            ("peft_type", json!("IA3")),
            ("peft_type", json!("LOHA")),
            ("peft_type", json!("LOKR")),
            ("peft_type", Value::Null),
        ];
        for (option, value) in cases {
            let mut json = plain();
            json[option] = value;
            let error = parse(&json).unwrap_err().to_string();
            assert!(error.contains(&format!(": {option} is ")), "{error}");
        }
        // What PEFT writes of options that were not used, and starts that leave the base as it is, are no reason.
        for (option, value) in [
            ("loftq_config", json!({})),
            ("trainable_token_indices", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("eva_config", json!({ "rho": 2.0 })),
            ("init_lora_weights", json!("eva")),
            ("init_lora_weights", json!("mica")),
            ("init_lora_weights", json!(false)),
            ("use_dora", json!(false)),
        ] {
            let mut json = plain();
            json[option] = value;
            assert!(parse(&json).is_ok(), "{option}");
        }
        let mut json = plain();
        json["r"] = json!(0);
        assert!(parse(&json).unwrap_err().to_string().contains("r is missing"));
        let mut json = plain();
        json["rank_pattern"] = json!({ "(": 2 });
        assert!(parse(&json).unwrap_err().to_string().contains("rank_pattern: \"(.*\\.)?(()\" is no regular expression"));
        json["rank_pattern"] = json!({ "q_proj": 0 });
        assert!(parse(&json).unwrap_err().to_string().contains("rank_pattern gives \"q_proj\" 0"));
    }

    #[test]
    fn every_module_has_its_own_rank_and_scale() {
        let mut json = plain();
        json["rank_pattern"] = json!({ "layers.1.*q_proj": 16, "k_proj": 2 });
        json["alpha_pattern"] = json!({ "k_proj": 3 });
        let config = parse(&json).unwrap();
        let found = |module: &str| (config.rank_of(module), config.scale_of(module));
        assert_eq!(found("model.layers.0.self_attn.q_proj"), (4, 2.0));
        assert_eq!(found("model.layers.1.self_attn.q_proj"), (16, 0.5));
        assert_eq!(found("model.layers.1.self_attn.k_proj"), (2, 1.5));
        json["use_rslora"] = json!(true);
        assert_eq!(parse(&json).unwrap().scale_of("model.layers.1.self_attn.q_proj"), 2.0);
    }

    #[test]
    fn saved_modules_are_whole_parts_of_names() {
        let mut config = AdapterConfig::plain(4, 8.0, Vec::new());
        config.saved = vec!["classifier".into(), "pooler.dense".into()];
        assert!(config.saves("classifier.weight") && config.saves("classifier.out_proj.bias") && config.saves("bert.pooler.dense.bias"));
        assert!(!config.saves("classifiers.weight") && !config.saves("bert.dense.bias") && !config.saves("classifier"));
    }
}
