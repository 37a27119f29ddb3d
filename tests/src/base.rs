//! A Llama base of a few thousand numbers with its tokenizer, and data that it can learn in seconds.

use std::path::Path;

use candle_core::Device;
use mingle::models::ModelConfig;
use mingle::models::families::tiny_llama;
use mingle::train::random_decoder;
use serde_json::json;

use crate::Dice;

/// The words of a counting language.
const WORDS: [&str; 16] =
    ["<unk>", "<s>", "</s>", "count", "from", "to", "by", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
/// The first of [`WORDS`] that is a number.
const ONE: usize = 7;

/// Writes a Hugging Face directory: two layers of width 32, grouped heads, tied embeddings, weights drawn from `seed`.
pub fn write_base(folder: &Path, seed: u64) {
    let config = ModelConfig {
        hidden: 32,
        intermediate: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        vocabulary: WORDS.len(),
        positions_max: 64,
        tied: true,
        ..tiny_llama()
    };
    std::fs::create_dir_all(folder).expect("a folder for the base");
    let (decoder, _) = random_decoder(config, seed, &Device::Cpu).expect("a random model");
    decoder.save(folder).expect("a saved model");
    let vocabulary: serde_json::Map<_, _> = WORDS.iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
    let special = |id: usize| {
        json!({ "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true })
    };
    let tokenizer = json!({
        "version": "1.0", "padding": null, "normalizer": null, "post_processor": null, "decoder": null, "truncation": null,
        "added_tokens": [special(0), special(1), special(2)],
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
}

/// Writes `examples` JSON lines: count from one number to another.
pub fn write_data(path: &Path, examples: usize, seed: u64) {
    let mut dice = Dice::new(seed, "data");
    let mut lines = String::new();
    for _ in 0..examples {
        let first = dice.below(5);
        let last = first + 1 + dice.below(8 - first);
        let words = &WORDS[ONE + first..=ONE + last];
        let question = format!("count from {} to {}", words[0], words[words.len() - 1]);
        lines += &format!("{}\n", json!({ "question": question, "answer": words.join(" ") }));
    }
    std::fs::write(path, lines).expect("a data file");
}
