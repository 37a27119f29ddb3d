//! A base: configuration and frozen weights of a Hugging Face directory, from which decoders are made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use mingle_protocol::hash::ContentHash;

use super::decoder::{BLOCK_MODULES, Block, Decoder};
use super::kernels::rope::RopeTable;
use super::linear::{Linear, Lora};
use super::weights::{Weights, to_bf16_safetensors};
use super::{ModelConfig, ModelError, targets};
use crate::files;

/// A linear module that can carry LoRA.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinearModule {
    /// As in the base's tensor names, without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub inputs: u64,
    pub outputs: u64,
}

/// Digest of the directory's weights: equal for the same tensors, whatever files they are split over.
pub fn base_digest(dir: &Path) -> Result<ContentHash, ModelError> {
    Weights::open(dir)?.digest()
}

/// A loaded base. Loaded once, it serves any number of adapters.
#[derive(Clone)]
pub struct BaseModel {
    dir: PathBuf,
    decoder: Decoder,
}

impl BaseModel {
    /// Reads `config.json` and the weights of `dir`, widened to f32.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let config = ModelConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        let decoder = Decoder::build(config, device, &mut |name, dims| weights.read(name, dims, device))?;
        Ok(Self { dir: dir.into(), decoder })
    }

    /// The directory it was loaded from: `tokenizer.json` lies there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    pub fn device(&self) -> &Device {
        self.decoder.device()
    }

    /// The base as it is, without an adapter.
    pub fn decoder(&self) -> Decoder {
        self.decoder.clone()
    }

    /// The linear modules whose last name part (`q_proj`), or whole name, is among `targets`; sorted by name. Targets
    /// that name nothing are refused.
    pub fn modules(&self, targets: &[String]) -> Result<Vec<LinearModule>, ModelError> {
        self.config().modules(targets)
    }

    /// The base with LoRA: `lora` gives, per module name, A `(rank, inputs)`, B `(outputs, rank)` and alpha / rank. The
    /// tensors may be variables.
    pub fn with_lora(&self, lora: &BTreeMap<String, (Tensor, Tensor, f64)>) -> Result<Decoder, ModelError> {
        let mut decoder = self.decoder.clone();
        for (name, (a, b, scale)) in lora {
            let unknown = || ModelError::AdapterModule { name: name.clone() };
            let linear = decoder.linear_mut(name).ok_or_else(unknown)?;
            let (outputs, inputs) = linear.weight.dims2()?;
            let rank = a.dims().first().copied().unwrap_or(0);
            for (which, tensor, expected) in [("lora_A", a, [rank, inputs]), ("lora_B", b, [outputs, rank])] {
                if tensor.dims() != expected {
                    let (name, found) = (format!("{name}.{which}"), tensor.dims().to_vec());
                    return Err(ModelError::AdapterShape { name, found, expected: expected.to_vec() });
                }
            }
            linear.lora = Some(Lora { a: a.clone(), b: b.clone(), scale: *scale as f32 });
        }
        Ok(decoder)
    }

    /// A model whose every weight is a variable, starting from this base; with the variables by tensor name.
    pub fn trainable(&self) -> Result<(Decoder, Vec<(String, Var)>), ModelError> {
        let mut values = self.decoder.weights().into_iter().collect::<BTreeMap<_, _>>();
        Decoder::all_variables(self.config().clone(), self.device(), &mut |name, _| {
            values.remove(name).ok_or_else(|| ModelError::MissingTensor { path: self.dir.clone(), name: name.into() })
        })
    }
}

impl ModelConfig {
    /// The linear modules whose last name part (`q_proj`), or whole name, is among `targets`; sorted by name. Needs no
    /// weights. Targets that name nothing are refused.
    pub fn modules(&self, targets: &[String]) -> Result<Vec<LinearModule>, ModelError> {
        targets::select(&all_modules(self), targets)
    }
}

/// Every linear module of the blocks, sorted by name.
fn all_modules(config: &ModelConfig) -> Vec<LinearModule> {
    let mut modules = Vec::new();
    for layer in 0..config.layers {
        for part in BLOCK_MODULES {
            let [outputs, inputs] = module_dims(config, part);
            let name = format!("model.layers.{layer}.{part}");
            modules.push(LinearModule { name, inputs: inputs as u64, outputs: outputs as u64 });
        }
    }
    modules.sort();
    modules
}

fn module_dims(config: &ModelConfig, part: &str) -> [usize; 2] {
    match part {
        "self_attn.q_proj" => [config.query_width(), config.hidden],
        "self_attn.k_proj" | "self_attn.v_proj" => [config.kv_width(), config.hidden],
        "self_attn.o_proj" => [config.hidden, config.query_width()],
        "mlp.down_proj" => [config.hidden, config.intermediate],
        _ => [config.intermediate, config.hidden],
    }
}

/// Gives a weight by tensor name and shape.
type Source<'a> = &'a mut dyn FnMut(&str, &[usize]) -> Result<Tensor, ModelError>;

impl Decoder {
    pub(crate) fn build(config: ModelConfig, device: &Device, read: Source) -> Result<Self, ModelError> {
        let hidden = config.hidden;
        let embedding = read("model.embed_tokens.weight", &[config.vocabulary, hidden])?;
        let frozen = |weight| Linear { weight, lora: None, trained: false };
        let mut blocks = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let mut linear = |part: &str| read(&format!("model.layers.{layer}.{part}.weight"), &module_dims(&config, part)).map(frozen);
            let (q, k) = (linear("self_attn.q_proj")?, linear("self_attn.k_proj")?);
            let (v, o) = (linear("self_attn.v_proj")?, linear("self_attn.o_proj")?);
            let (gate, up, down) = (linear("mlp.gate_proj")?, linear("mlp.up_proj")?, linear("mlp.down_proj")?);
            let mut norm = |part: &str| read(&format!("model.layers.{layer}.{part}.weight"), &[hidden]);
            let (attention_norm, feed_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
            blocks.push(Block { attention_norm, q, k, v, o, feed_norm, gate, up, down });
        }
        let norm = read("model.norm.weight", &[hidden])?;
        let head = match config.tied {
            true => embedding.clone(),
            false => read("lm_head.weight", &[config.vocabulary, hidden])?,
        };
        let rope = Arc::new(RopeTable::new(&config.rope_frequencies(), config.positions_max));
        let device = device.clone();
        Ok(Self { config: Arc::new(config), rope, embedding, blocks, norm, head: frozen(head), trained: false, device })
    }

    /// A decoder whose every weight is a variable with the value `start` gives for its name and shape.
    pub fn all_variables(config: ModelConfig, device: &Device, start: Source) -> Result<(Self, Vec<(String, Var)>), ModelError> {
        let mut variables = Vec::new();
        let mut decoder = Self::build(config, device, &mut |name, dims| {
            // A copy: training must not change the base it starts from.
            let variable = Var::from_tensor(&start(name, dims)?.copy()?)?;
            variables.push((name.to_string(), variable.clone()));
            Ok(variable.as_tensor().clone())
        })?;
        decoder.trained = true;
        decoder.head.trained = true;
        for block in &mut decoder.blocks {
            for part in BLOCK_MODULES {
                if let Some(linear) = block.linear_mut(part) {
                    linear.trained = true;
                }
            }
        }
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((decoder, variables))
    }

    fn linear_mut(&mut self, module: &str) -> Option<&mut Linear> {
        let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
        self.blocks.get_mut(layer.parse::<usize>().ok()?)?.linear_mut(part)
    }

    /// All weights by tensor name, adapters not among them. A tied head is not listed.
    pub fn weights(&self) -> Vec<(String, Tensor)> {
        let mut all =
            vec![("model.embed_tokens.weight".to_string(), self.embedding.clone()), ("model.norm.weight".to_string(), self.norm.clone())];
        if !self.config.tied {
            all.push(("lm_head.weight".to_string(), self.head.weight.clone()));
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut put = |part: &str, weight: &Tensor| {
                all.push((format!("model.layers.{layer}.{part}.weight"), weight.clone()));
            };
            put("input_layernorm", &block.attention_norm);
            put("post_attention_layernorm", &block.feed_norm);
            for (part, linear) in [("q", &block.q), ("k", &block.k), ("v", &block.v), ("o", &block.o)] {
                put(&format!("self_attn.{part}_proj"), &linear.weight);
            }
            for (part, linear) in [("gate", &block.gate), ("up", &block.up), ("down", &block.down)] {
                put(&format!("mlp.{part}_proj"), &linear.weight);
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// Writes `config.json` and `model.safetensors` (bf16) into `dir`, which must exist.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        let mut tensors = Vec::new();
        for (name, tensor) in self.weights() {
            tensors.push((name, tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1::<f32>()?));
        }
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            files::replace(&path, bytes, files::PUBLIC).map_err(|error| ModelError::file(&path, error))
        };
        write("model.safetensors", &to_bf16_safetensors(&tensors)?)?;
        let text = serde_json::to_string_pretty(&self.config.to_json()).map_err(|error| ModelError::file(dir, error))?;
        write("config.json", (text + "\n").as_bytes())
    }
}
