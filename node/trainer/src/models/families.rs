//! The model families. A family is a file that states how it differs: what its `config.json` means, and what its tensors
//! are called. Everything they share is [`super::transformer`].

mod bert;
mod gemma;
mod gpt2;
mod llama;
mod mistral;
mod qwen2;
mod roberta;

pub use llama::{llama_json, tiny_llama};

use super::config::{Fields, ModelConfig};
use super::{LinearModule, ModelError};

/// A family of models, by what `model_type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Gemma,
    Gpt2,
    Bert,
    Roberta,
}

const SUPPORTED: &str = "llama, mistral, qwen2, gemma, gpt2, bert and roberta";

/// Reads a configuration of any family.
pub(super) fn config(fields: &Fields) -> Result<ModelConfig, ModelError> {
    match fields.text("model_type") {
        Some("llama") => llama::config(fields),
        Some("mistral") => mistral::config(fields),
        Some("qwen2") => qwen2::config(fields),
        Some("gemma") => gemma::config(fields),
        Some("gpt2") => gpt2::config(fields),
        Some("bert") => bert::config(fields),
        Some("roberta" | "xlm-roberta") => roberta::config(fields),
        found => Err(fields.unsupported("model_type", &format!("\"{}\"", found.unwrap_or("missing")), SUPPORTED)),
    }
}

/// What a family calls its tensors. Names of linear maps and norms stand without `.weight` and `.bias`.
pub(super) struct Names {
    pub embedding: &'static str,
    /// Tables added to the token's embedding: of positions, of token types.
    pub positions: Option<&'static str>,
    pub types: Option<&'static str>,
    /// A norm of the embeddings (BERT).
    pub embedding_norm: Option<&'static str>,
    /// A block's name is this and its number; the parts' names follow after a dot.
    pub block: &'static str,
    /// Query, key and value; one name where one map makes all three.
    pub qkv: &'static [&'static str],
    pub output: &'static str,
    /// Of attention and of the feed-forward part: before them, or, with `post_norm`, behind.
    pub norms: [&'static str; 2],
    /// Gate and up-projection, or the one map into the feed-forward part.
    pub up: &'static [&'static str],
    pub down: &'static str,
    /// The last norm.
    pub norm: Option<&'static str>,
    /// The map of the first position before the classes (with `tanh` behind it), and that to the classes.
    pub pooler: Option<&'static str>,
    pub head: &'static str,
    /// What PEFT's `modules_to_save` calls the part on top that trains along.
    pub saved: Option<&'static str>,
    /// Weights of the blocks' linear maps are stored (inputs, outputs), as GPT-2's Conv1D.
    pub transposed: bool,
    /// Linear maps that can carry LoRA beside those of the blocks.
    pub others: &'static [&'static str],
}

impl Family {
    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Gemma => &llama::NAMES,
            Self::Gpt2 => &gpt2::NAMES,
            Self::Bert => &bert::NAMES,
            Self::Roberta => &roberta::NAMES,
        }
    }

    /// What PEFT calls the task.
    pub fn task_type(self) -> &'static str {
        match self {
            Self::Bert | Self::Roberta => "SEQ_CLS",
            _ => "CAUSAL_LM",
        }
    }

    /// Whether PEFT's `fan_in_fan_out` must be set: weights are stored (inputs, outputs).
    pub fn fan_in_fan_out(self) -> bool {
        self.names().transposed
    }

    /// Modules that train along with LoRA as a whole (`modules_to_save`).
    pub fn modules_to_save(self) -> Vec<String> {
        self.names().saved.iter().map(|name| (*name).to_string()).collect()
    }
}

impl ModelConfig {
    /// Name, inputs and outputs of each linear map of block `layer`, in the order query, key, value, output, gate, up, down.
    pub(super) fn block_linears(&self, layer: usize) -> Vec<LinearModule> {
        let names = self.family.names();
        let (query, kv) = (self.query_width(), self.kv_width());
        let mut maps = match names.qkv {
            [packed] => vec![(*packed, self.hidden, query + 2 * kv)],
            parts => parts.iter().zip([query, kv, kv]).map(|(name, width)| (*name, self.hidden, width)).collect(),
        };
        maps.push((names.output, query, self.hidden));
        maps.extend(names.up.iter().map(|name| (*name, self.hidden, self.intermediate)));
        maps.push((names.down, self.intermediate, self.hidden));
        let module = |(name, inputs, outputs): (&str, usize, usize)| LinearModule {
            name: format!("{}{layer}.{name}", names.block),
            inputs: inputs as u64,
            outputs: outputs as u64,
        };
        maps.into_iter().map(module).collect()
    }

    /// Every linear map that can carry LoRA, sorted by name.
    pub fn all_modules(&self) -> Vec<LinearModule> {
        let hidden = self.hidden as u64;
        let other = |name: &&str| LinearModule { name: (*name).to_string(), inputs: hidden, outputs: hidden };
        let mut all: Vec<_> = self.family.names().others.iter().map(other).collect();
        all.extend((0..self.layers).flat_map(|layer| self.block_linears(layer)));
        all.sort();
        all
    }
}
