//! A PEFT directory on disk, and an adapter in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::{AdapterConfig, PeftError};
use crate::files;
use crate::models::weights::widen;
use crate::models::{BaseModel, Decoder, ModelError};

const PREFIX: &str = "base_model.model.";
pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// As PEFT names it: `base_model.model.<module>.lora_A.weight`.
    pub name: String,
    /// A: (rank, inputs). B: (outputs, rank).
    pub dims: [usize; 2],
    pub values: Vec<f32>,
}

/// A LoRA adapter in memory: it adds `(alpha / rank) B A` to each module's weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub rank: usize,
    pub alpha: f64,
    /// Sorted by name; for each module an A and a B.
    pub tensors: Vec<AdapterTensor>,
}

impl Adapter {
    /// PEFT's name of a module's tensor; `which` is `A` or `B`.
    pub fn tensor_name(module: &str, which: char) -> String {
        format!("{PREFIX}{module}.lora_{which}.weight")
    }

    /// The adapted modules, sorted.
    pub fn modules(&self) -> Vec<String> {
        let module = |tensor: &AdapterTensor| split_name(&tensor.name).map(|(module, _)| module.to_string());
        self.tensors.iter().filter_map(module).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Last name parts of the adapted modules, sorted: what PEFT calls target modules.
    pub fn targets(&self) -> Vec<String> {
        let last = |module: String| module.rsplit('.').next().unwrap_or_default().to_string();
        self.modules().into_iter().map(last).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The base with this adapter on it. Costs a copy of the adapter, not of the base.
    pub fn apply(&self, base: &BaseModel) -> Result<Decoder, ModelError> {
        base.with_lora(&self.lora_tensors(base.device())?)
    }

    /// A, B and alpha / rank by module.
    pub fn lora_tensors(&self, device: &Device) -> Result<BTreeMap<String, (Tensor, Tensor, f64)>, ModelError> {
        let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        for tensor in &self.tensors {
            let unknown = || ModelError::AdapterModule { name: tensor.name.clone() };
            let (module, which) = split_name(&tensor.name).ok_or_else(unknown)?;
            let values = Tensor::from_slice(&tensor.values, &tensor.dims, device)?;
            halves.entry(module.to_string()).or_default()[usize::from(which == 'B')] = Some(values);
        }
        let mut pairs = BTreeMap::new();
        for (module, [a, b]) in halves {
            let lacks = |which| ModelError::AdapterHalf { name: Self::tensor_name(&module, which) };
            let pair = (a.ok_or_else(|| lacks('A'))?, b.ok_or_else(|| lacks('B'))?, self.alpha / self.rank as f64);
            pairs.insert(module, pair);
        }
        Ok(pairs)
    }
}

/// Module and `A` or `B` of a PEFT tensor name.
fn split_name(name: &str) -> Option<(&str, char)> {
    let rest = name.strip_prefix(PREFIX)?;
    let half = |end, which| rest.strip_suffix(end).map(|module| (module, which));
    half(".lora_A.weight", 'A').or_else(|| half(".lora_B.weight", 'B'))
}

/// `adapter_config.json` of `dir`.
pub fn read_config(dir: &Path) -> Result<AdapterConfig, PeftError> {
    let path = dir.join(CONFIG);
    let explain = |error: &dyn std::fmt::Display| PeftError::File { path: path.clone(), reason: error.to_string() };
    let text = std::fs::read(&path).map_err(|error| explain(&error))?;
    let json = serde_json::from_slice(&text).map_err(|error| explain(&error))?;
    AdapterConfig::from_json(&path, &json)
}

/// Reads a PEFT directory made by any trainer; f16 and bf16 are widened to f32.
pub fn read(dir: &Path) -> Result<Adapter, PeftError> {
    let config = read_config(dir)?;
    let path = dir.join(WEIGHTS);
    if !path.exists() && dir.join("adapter_model.bin").exists() {
        return Err(PeftError::Pickle { path: dir.join("adapter_model.bin") });
    }
    let bytes = std::fs::read(&path).map_err(|error| PeftError::File { path: path.clone(), reason: error.to_string() })?;
    let file = SafeTensors::deserialize(&bytes);
    let file = file.map_err(|error| PeftError::File { path: path.clone(), reason: error.to_string() })?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let refuse = |reason: String| PeftError::Tensor { path: path.clone(), name: name.into(), reason };
        let Some((_, which)) = split_name(name) else {
            return Err(refuse("is neither lora_A nor lora_B of a module".into()));
        };
        let &[rows, columns] = view.shape() else {
            return Err(refuse(format!("has shape {:?}, but LoRA tensors have two dimensions", view.shape())));
        };
        let rank = if which == 'A' { rows } else { columns };
        if rank != config.rank {
            return Err(refuse(format!("has rank {rank}, but the configuration says {}", config.rank)));
        }
        let values =
            widen(view.dtype(), view.data()).ok_or_else(|| refuse(format!("has type {:?}, but must be F32, F16 or BF16", view.dtype())))?;
        tensors.push(AdapterTensor { name: name.into(), dims: [rows, columns], values });
    }
    if tensors.is_empty() {
        return Err(PeftError::File { path, reason: "holds no tensor".into() });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Adapter { rank: config.rank, alpha: config.alpha, tensors })
}

/// The adapter's `adapter_model.safetensors`, f32.
pub fn to_safetensors(adapter: &Adapter) -> Result<Vec<u8>, PeftError> {
    let explain = |error: safetensors::SafeTensorError| PeftError::File { path: WEIGHTS.into(), reason: error.to_string() };
    let little = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let bytes: Vec<Vec<u8>> = adapter.tensors.iter().map(|tensor| little(&tensor.values)).collect();
    let mut views = Vec::new();
    for (tensor, bytes) in adapter.tensors.iter().zip(&bytes) {
        views.push((&tensor.name, TensorView::new(Dtype::F32, tensor.dims.to_vec(), bytes).map_err(explain)?));
    }
    safetensors::serialize(views, Some([("format".to_string(), "pt".to_string())].into())).map_err(explain)
}

/// Writes `dir`, which may exist: the weights first, then the configuration, each by temporary file, fsync and rename. A
/// directory with a configuration is therefore complete.
pub fn write(dir: &Path, adapter: &Adapter, base: Option<&str>) -> Result<(), PeftError> {
    let explain = |path: &Path, error: std::io::Error| PeftError::File { path: path.into(), reason: error.to_string() };
    std::fs::create_dir_all(dir).map_err(|error| explain(dir, error))?;
    let config = AdapterConfig { rank: adapter.rank, alpha: adapter.alpha, targets: adapter.targets(), base: base.map(String::from) };
    let text = format!("{:#}\n", config.to_json());
    for (name, bytes) in [(WEIGHTS, to_safetensors(adapter)?), (CONFIG, text.into_bytes())] {
        let path = dir.join(name);
        files::replace(&path, &bytes, files::PUBLIC).map_err(|error| explain(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Adapter {
        let tensor = |which, dims: [usize; 2]| AdapterTensor {
            name: Adapter::tensor_name("model.layers.0.self_attn.q_proj", which),
            dims,
            values: (0..dims[0] * dims[1]).map(|i| i as f32 / 7.0).collect(),
        };
        Adapter { rank: 2, alpha: 4.0, tensors: vec![tensor('A', [2, 3]), tensor('B', [5, 2])] }
    }

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        write(&dir, &small(), Some("base")).unwrap();
        assert_eq!(read(&dir).unwrap(), small());
        let config = read_config(&dir).unwrap();
        assert_eq!((config.targets, config.base), (vec!["q_proj".to_string()], Some("base".to_string())));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn what_is_no_plain_lora_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut adapter = small();
        adapter.tensors[0].name = "base_model.model.q.lora_magnitude_vector".into();
        write(dir, &adapter, None).unwrap();
        assert!(read(dir).unwrap_err().to_string().contains("is neither lora_A nor lora_B"));
        let mut adapter = small();
        adapter.rank = 3;
        write(dir, &adapter, None).unwrap();
        assert!(read(dir).unwrap_err().to_string().contains("has rank 2, but the configuration says 3"));
        std::fs::rename(dir.join(WEIGHTS), dir.join("adapter_model.bin")).unwrap();
        assert!(read(dir).unwrap_err().to_string().contains("pickled weights"));
    }
}
