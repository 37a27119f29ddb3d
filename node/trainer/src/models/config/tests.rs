use serde_json::json;

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
    assert_eq!(parse(&old).unwrap().rope_frequencies().unwrap()[0], 0.25);
}

#[test]
fn what_is_written_reads_back() {
    let mut json = small();
    json["rope_parameters"] = json!({ "rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64 });
    json["eos_token_id"] = json!([2]);
    let config = parse(&json).unwrap();
    assert_eq!(parse(&families::llama_json(&config)).unwrap(), config);
}

#[test]
fn what_would_be_computed_wrongly_is_refused_by_name() {
    let cases = [
        ("model_type", json!("phi3"), "model_type is \"phi3\""),
        ("hidden_act", json!("relu"), "hidden_act is \"relu\""),
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

/// What the families' own files say, in the words of their first releases.
#[test]
fn families_differ_as_their_files_say() {
    let mut json = small();
    json["attention_bias"] = json!(true);
    assert_eq!(parse(&json).unwrap().biases, [true, true, false]);
    json["model_type"] = json!("mistral");
    json["sliding_window"] = json!(4096);
    let mistral = parse(&json).unwrap();
    assert_eq!((mistral.mask, mistral.biases), (Mask::Window(4096), [false; 3]));
    json["sliding_window"] = Value::Null;
    assert_eq!(parse(&json).unwrap().mask, Mask::Causal);
    json["model_type"] = json!("qwen2");
    json["sliding_window"] = json!(8);
    assert_eq!(parse(&json).unwrap().mask, Mask::Causal);
    json["use_sliding_window"] = json!(true);
    json["max_window_layers"] = json!(1);
    let qwen = parse(&json).unwrap();
    assert_eq!((qwen.attention(0).mask, qwen.attention(1).mask), (Mask::Causal, Mask::Window(8)));
    json["model_type"] = json!("gemma");
    json["hidden_act"] = json!("gelu");
    let gemma = parse(&json).unwrap();
    assert_eq!((gemma.activation, gemma.tied, gemma.norm_offset), (Activation::GeluTanh, true, 1.0));
    let gpt2 = json!({ "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 9, "n_inner": null });
    let gpt2 = parse(&gpt2).unwrap();
    assert_eq!((gpt2.intermediate, gpt2.activation, gpt2.head), (32, Activation::GeluTanh, Head::Tokens));
    let names: Vec<String> = gpt2.all_modules().into_iter().map(|module| module.name).collect();
    assert_eq!(names, ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"].map(|part| format!("transformer.h.0.{part}")));
    let roberta = json!({ "model_type": "roberta", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9,
        "intermediate_size": 16, "max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1,
        "id2label": { "0": "a", "1": "b", "2": "c" } });
    let roberta = parse(&roberta).unwrap();
    assert_eq!((roberta.positions_max, roberta.positions, roberta.head), (512, Positions::Learned { first: 2 }, Head::Classes(3)));
}
