//! A base with what was trained merged into its weights, as a Hugging Face directory of its own.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::Update;
use crate::files;
use crate::models::weights::{Weights, to_bf16_safetensors};
use crate::models::{BaseModel, ModelError};
use crate::peft::{AdapterTensor, to_safetensors};

/// Files of a base that its weights do not touch.
const BESIDE: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
];

/// Writes the base of `base.dir()` with `update` into `out`, which must exist: in f32 where the base is stored so, else in
/// bf16.
///
/// # Errors
/// An update of another base, or a failed write.
pub fn export(base: &BaseModel, update: &Update, out: &Path) -> Result<(), ModelError> {
    let mut weights: BTreeMap<String, Tensor> = base.decoder().weights().into_iter().collect();
    match update {
        Update::Difference(difference) => weights.extend(difference.added_to(base)?),
        Update::Adapter(adapter) => {
            let parts = adapter.parts(base.device())?;
            for (module, parts) in parts.lora {
                let name = format!("{module}.weight");
                let mut sum = weights.get(&name).ok_or(ModelError::AdapterModule { name: module })?.clone();
                for part in parts {
                    sum = (sum + (part.b.matmul(&part.a)? * f64::from(part.scale))?)?;
                }
                weights.insert(name, sum);
            }
            weights.extend(parts.replaced);
        }
    }
    let mut tensors = Vec::with_capacity(weights.len());
    for (name, weight) in weights {
        let weight = if base.config().stores_transposed(&name) { weight.t()? } else { weight };
        let values = weight.contiguous()?.flatten_all()?.to_vec1()?;
        tensors.push(AdapterTensor { name, dims: weight.dims().to_vec(), values });
    }
    let bytes = if Weights::open(base.dir())?.are_f32() {
        to_safetensors(&tensors).map_err(|error| ModelError::file(out, error))?
    } else {
        let plain: Vec<_> = tensors.into_iter().map(|tensor| (tensor.name, tensor.dims, tensor.values)).collect();
        to_bf16_safetensors(&plain)?
    };
    let path = out.join("model.safetensors");
    files::replace(&path, &bytes, files::PUBLIC).map_err(|error| ModelError::file(&path, error))?;
    for name in BESIDE {
        let from = base.dir().join(name);
        if from.exists() {
            std::fs::copy(&from, out.join(name)).map_err(|error| ModelError::file(&from, error))?;
        }
    }
    Ok(())
}
