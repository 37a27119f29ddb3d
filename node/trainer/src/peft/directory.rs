//! A PEFT directory on disk.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use super::adapter::{base_name, split_name};
use super::{Adapter, AdapterConfig, AdapterTensor, PeftError};
use crate::files;
use crate::models::weights::widen;

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Tensors that some kinds of adapters hold beside A and B, or in their place.
const REFUSED: [(&str, &str); 5] = [
    ("lora_magnitude_vector", "is DoRA's: magnitudes are not added to weights"),
    ("lora_embedding_", "adapts an embedding, and only linear modules can be used"),
    ("lora_A.bias", "is a trained bias (lora_bias), which is no LoRA tensor"),
    ("lora_B.bias", "is a trained bias (lora_bias), which is no LoRA tensor"),
    ("trainable_tokens_", "is a trained embedding of some tokens (trainable_token_indices), which is no LoRA tensor"),
];

/// `adapter_config.json` of `dir`.
pub fn read_config(dir: &Path) -> Result<AdapterConfig, PeftError> {
    AdapterConfig::from_json(&dir.join(CONFIG), &read_json(dir)?)
}

fn read_json(dir: &Path) -> Result<Value, PeftError> {
    let path = dir.join(CONFIG);
    let explain = |error: &dyn std::fmt::Display| PeftError::File { path: path.clone(), reason: error.to_string() };
    let text = std::fs::read(&path).map_err(|error| explain(&error))?;
    serde_json::from_slice(&text).map_err(|error| explain(&error))
}

/// Reads a PEFT directory made by any trainer; f16 and bf16 are widened to f32.
pub fn read(dir: &Path) -> Result<Adapter, PeftError> {
    let json = read_json(dir)?;
    let config = AdapterConfig::from_json(&dir.join(CONFIG), &json)?;
    let path = dir.join(WEIGHTS);
    if !path.exists() && dir.join("adapter_model.bin").exists() {
        return Err(PeftError::Pickle { path: dir.join("adapter_model.bin") });
    }
    let tensors = read_tensors(&path)?;
    for AdapterTensor { name, dims, .. } in &tensors {
        let refuse = |reason: String| PeftError::Tensor { path: path.clone(), name: name.clone(), reason };
        match split_name(name) {
            None if config.saves(base_name(name)) => {}
            None => {
                let known = REFUSED.iter().find(|(part, _)| name.contains(part)).map(|(_, why)| *why);
                return Err(refuse(known.unwrap_or("is neither lora_A nor lora_B of a module, nor of a module in modules_to_save").into()));
            }
            Some((module, which)) => {
                let &[rows, columns] = dims.as_slice() else {
                    return Err(refuse(format!("has shape {dims:?}, but LoRA tensors have two dimensions")));
                };
                let (rank, expected) = (if which == 'A' { rows } else { columns }, config.rank_of(module));
                if rank != expected {
                    return Err(refuse(format!("has rank {rank}, but the configuration says {expected}")));
                }
            }
        }
    }
    let mut adapter = Adapter { config, tensors };
    for module in adapter.modules() {
        adapter.halves(&module)?;
    }
    if AdapterConfig::narrows(&json) {
        adapter.name_targets();
    }
    Ok(adapter)
}

/// All tensors of a file, sorted by name, widened to f32.
pub(super) fn read_tensors(path: &Path) -> Result<Vec<AdapterTensor>, PeftError> {
    let explain = |error: &dyn std::fmt::Display| PeftError::File { path: path.into(), reason: error.to_string() };
    let bytes = std::fs::read(path).map_err(|error| explain(&error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| explain(&error))?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let refuse = || {
            let reason = format!("has type {:?}, but must be F32, F16 or BF16", view.dtype());
            PeftError::Tensor { path: path.into(), name: name.into(), reason }
        };
        let values = widen(view.dtype(), view.data()).ok_or_else(refuse)?;
        tensors.push(AdapterTensor { name: name.into(), dims: view.shape().to_vec(), values });
    }
    if tensors.is_empty() {
        return Err(explain(&"holds no tensor"));
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

/// Tensors as a safetensors file, f32.
pub fn to_safetensors(tensors: &[AdapterTensor]) -> Result<Vec<u8>, PeftError> {
    let explain = |error: safetensors::SafeTensorError| PeftError::File { path: WEIGHTS.into(), reason: error.to_string() };
    let little = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|tensor| little(&tensor.values)).collect();
    let mut views = Vec::new();
    for (tensor, bytes) in tensors.iter().zip(&bytes) {
        views.push((&tensor.name, TensorView::new(Dtype::F32, tensor.dims.clone(), bytes).map_err(explain)?));
    }
    safetensors::serialize(views, Some([("format".to_string(), "pt".to_string())].into())).map_err(explain)
}

/// Writes `dir`, which may exist: the weights first, then the configuration, each by temporary file, fsync and rename. A
/// directory with a configuration is therefore complete.
pub fn write(dir: &Path, adapter: &Adapter) -> Result<(), PeftError> {
    let explain = |path: &Path, error: std::io::Error| PeftError::File { path: path.into(), reason: error.to_string() };
    std::fs::create_dir_all(dir).map_err(|error| explain(dir, error))?;
    let text = format!("{:#}\n", adapter.config.to_json());
    for (name, bytes) in [(WEIGHTS, to_safetensors(&adapter.tensors)?), (CONFIG, text.into_bytes())] {
        let path = dir.join(name);
        files::replace(&path, &bytes, files::PUBLIC).map_err(|error| explain(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Targets;
    use super::*;

    fn small() -> Adapter {
        let tensor = |name: String, dims: &[usize]| AdapterTensor {
            name,
            dims: dims.to_vec(),
            values: (0..dims.iter().product()).map(|i| i as f32 / 7.0).collect(),
        };
        let half = |which, dims: &[usize]| tensor(Adapter::tensor_name("model.layers.0.self_attn.q_proj", which), dims);
        let mut config = AdapterConfig::plain(2, 4.0, vec!["q_proj".into()]);
        config.saved = vec!["score".into()];
        config.base = Some("base".into());
        let tensors = vec![half('A', &[2, 3]), half('B', &[5, 2]), tensor("base_model.model.score.bias".into(), &[4])];
        Adapter { config, tensors }
    }

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        write(&dir, &small()).unwrap();
        assert_eq!(read(&dir).unwrap(), small());
        assert_eq!(read_config(&dir).unwrap(), small().config);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "no temporary file is left");
        assert_eq!(small().saved().map(|(name, _)| name).collect::<Vec<_>>(), ["score.bias"]);
    }

    #[test]
    fn what_is_not_additive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for (name, why) in [
            ("q.lora_magnitude_vector", "is DoRA's"),
            ("q.lora_magnitude_vector.weight", "is DoRA's"),
            ("q.lora_B.bias", "is a trained bias (lora_bias)"),
            ("wte.lora_embedding_A", "adapts an embedding"),
            ("wte.token_adapter.trainable_tokens_delta", "is a trained embedding of some tokens"),
            ("q.other", "is neither lora_A nor lora_B"),
        ] {
            let mut adapter = small();
            adapter.tensors[0].name = format!("base_model.model.{name}");
            write(dir, &adapter).unwrap();
            let refused = read(dir).unwrap_err().to_string();
            assert!(refused.contains(&format!("tensor \"base_model.model.{name}\" {why}")), "{refused}");
        }
        let mut adapter = small();
        adapter.tensors.remove(1);
        write(dir, &adapter).unwrap();
        let half = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
        assert_eq!(read(dir).unwrap_err().to_string(), format!("the adapter lacks {half}"));
        let mut adapter = small();
        adapter.config.saved.clear();
        write(dir, &adapter).unwrap();
        assert!(read(dir).unwrap_err().to_string().contains("score.bias\" is neither lora_A nor lora_B"));
        let mut adapter = small();
        adapter.config.rank_pattern = vec![("q_proj".into(), 3)];
        write(dir, &adapter).unwrap();
        assert!(read(dir).unwrap_err().to_string().contains("has rank 2, but the configuration says 3"));
        std::fs::rename(dir.join(WEIGHTS), dir.join("adapter_model.bin")).unwrap();
        assert!(read(dir).unwrap_err().to_string().contains("pickled weights"));
    }

    /// What leaves modules out is not written again, so the modules that are there are named.
    #[test]
    fn targets_mean_the_modules_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &small()).unwrap();
        for (option, value) in [("layers_to_transform", json!([0])), ("exclude_modules", json!(["v_proj"]))] {
            let mut config = small().config.to_json();
            config[option] = value;
            std::fs::write(dir.join(CONFIG), config.to_string()).unwrap();
            assert_eq!(read(dir).unwrap().config.targets, Targets::List(vec!["model.layers.0.self_attn.q_proj".into()]), "{option}");
        }
    }

    /// Directories that PEFT 0.21 wrote: GPT-2's transposed base, rank-stabilised scaling, heads that are saved whole.
    #[test]
    fn what_peft_wrote_is_read() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference"));
        let read = |case: &str| read(&folder.join(case).join("adapter_end")).unwrap();
        let gpt2 = read("gpt2");
        assert!(gpt2.config.fan_in_fan_out);
        let b = gpt2.tensor("base_model.model.transformer.h.0.attn.c_attn.lora_B.weight").unwrap();
        assert_eq!((b.dims.as_slice(), gpt2.modules().len()), (&[48, 2][..], 8));
        let rslora = read("llama-rslora");
        assert_eq!(rslora.config.scale_of("model.layers.0.self_attn.q_proj"), 4.0 / 2f64.sqrt());
        for (case, saved) in [("bert", 2), ("roberta", 4)] {
            let adapter = read(case);
            assert_eq!((adapter.config.task.as_deref(), adapter.saved().count()), (Some("SEQ_CLS"), saved));
            assert!(adapter.saved().any(|(name, tensor)| name.ends_with(".bias") && tensor.dims.len() == 1));
        }
    }
}
