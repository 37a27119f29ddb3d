//! A base with what was trained merged into its weights, as a Hugging Face directory of its own.
//!
//! It is copied tensor by tensor under the names and in the types that the base's own files have, and what was trained is
//! added on the way, some rows at a time: memory holds the adapter, not the model. Of a full training, whose differences
//! are as large as the base, it holds one tensor.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::tensor::Dtype;

use super::shards::{self, Planned, SHARD_BYTES, Shard, Sink, Split};
use super::{Adapter, AdapterTensor, DIFFERENCE, PeftError, directory};
use crate::models::weights::{Place, READ_BYTES, SINGLE, Weights, narrow, widen};
use crate::models::{ModelConfig, ModelError};

/// Elements of a weight in memory at a time.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// Files of a base that its weights do not touch.
const BESIDE: [&str; 15] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
];

/// What was trained, to be taken tensor by tensor.
pub struct StoredUpdate(Parts);

enum Parts {
    Adapter(Adapter),
    /// The file of a full training's differences.
    Difference(Weights),
}

impl StoredUpdate {
    /// Opens a directory: of a difference where there is one, else PEFT's.
    ///
    /// # Errors
    /// A directory that holds neither.
    pub fn open(dir: &Path) -> Result<Self, PeftError> {
        let path = dir.join(DIFFERENCE);
        if !path.exists() {
            return Ok(Self(Parts::Adapter(directory::read(dir)?)));
        }
        let explain = |error: ModelError| PeftError::File { path: path.clone(), reason: error.to_string() };
        Ok(Self(Parts::Difference(Weights::of_file(&path).map_err(explain)?)))
    }

    /// The base that an adapter says it was trained on.
    pub fn base(&self) -> Option<&str> {
        match &self.0 {
            Parts::Adapter(adapter) => adapter.config.base.as_deref(),
            Parts::Difference(_) => None,
        }
    }
}

/// What becomes of a tensor of the base. Names are those in the adapter.
enum Change {
    /// The product of a module's two matrices is added.
    Product(String),
    /// The adapter's own takes its place.
    Whole(String),
    /// A difference is added.
    Sum(String),
}

/// A change to a tensor that the base may store transposed.
struct Changed {
    change: Change,
    transposed: bool,
}

/// Writes the base in `base` with what was trained into `out`, which must exist, in the types of the base.
///
/// # Errors
/// What was trained on another base, values that the base's type has no room for, or a failed read or write.
pub fn export(base: &Path, StoredUpdate(trained): &StoredUpdate, out: &Path, split: Split) -> Result<(), ModelError> {
    let (weights, config) = (Weights::open(base)?, ModelConfig::read(base)?);
    let job = Job { changes: changes(trained, &weights, &config)?, weights, trained };
    let tensors = job.planned(&config)?;
    shards::write(out, job.shards(tensors, split), &mut |tensor, sink| job.pour(tensor, sink))?;
    for name in BESIDE {
        let from = base.join(name);
        if from.exists() {
            std::fs::copy(&from, out.join(name)).map_err(|error| ModelError::file(&from, error))?;
        }
    }
    Ok(())
}

/// By the name that the tensor has in the base's files; of one that these lack, by the model's.
fn changes(trained: &Parts, weights: &Weights, config: &ModelConfig) -> Result<BTreeMap<String, Changed>, ModelError> {
    let mut changes = BTreeMap::new();
    let mut put = |name: &str, change: Change, may_lack: bool| {
        let known = weights.known(name).map(str::to_owned);
        if config.is_tied_head(name) || (known.is_none() && !may_lack) {
            return Err(ModelError::AdapterModule { name: name.to_owned() });
        }
        let transposed = config.stores_transposed(name);
        changes.insert(known.unwrap_or_else(|| name.to_owned()), Changed { change, transposed });
        Ok(())
    };
    match trained {
        Parts::Adapter(adapter) => {
            for module in adapter.modules() {
                put(&format!("{module}.weight"), Change::Product(module), false)?;
            }
            for (name, tensor) in adapter.saved() {
                put(name, Change::Whole(tensor.name.clone()), true)?;
            }
        }
        Parts::Difference(differences) => {
            for (name, _) in differences.places() {
                // A head that the base lacks began as all members' did.
                put(name, Change::Sum(name.into()), weights.begins(name))?;
            }
        }
    }
    Ok(changes)
}

struct Job<'a> {
    weights: Weights,
    trained: &'a Parts,
    changes: BTreeMap<String, Changed>,
}

impl Job<'_> {
    /// All tensors to write, in the order of the base's files.
    fn planned(&self, config: &ModelConfig) -> Result<Vec<Planned>, ModelError> {
        let mut places: Vec<(&str, &Place)> = self.weights.places().filter(|(name, _)| !config.is_tied_head(name)).collect();
        places.sort_by(|(_, a), (_, b)| (&a.file, a.start).cmp(&(&b.file, b.start)));
        let dtype = places.iter().max_by_key(|(_, place)| place.bytes).map_or(Dtype::F32, |(_, place)| place.dtype);
        let held = |(name, place): (&str, &Place)| {
            let Place { dtype, dims, bytes, .. } = place.clone();
            Planned { name: name.into(), dtype, dims, bytes }
        };
        let mut planned: Vec<Planned> = places.into_iter().map(held).collect();
        for (name, Changed { change, transposed }) in &self.changes {
            let mut dims = self.dims(change)?;
            if *transposed {
                dims.reverse();
            }
            match planned.iter().find(|tensor| tensor.name == *name) {
                Some(tensor) if tensor.dims == dims => {}
                Some(Planned { dims: expected, .. }) => {
                    return Err(ModelError::AdapterShape { name: name.clone(), found: dims, expected: expected.clone() });
                }
                None => {
                    let bytes = dims.iter().product::<usize>() * dtype.bitsize() / 8;
                    planned.push(Planned { name: name.clone(), dtype, dims, bytes: bytes as u64 });
                }
            }
        }
        Ok(planned)
    }

    /// The shape of what was trained, as a model holds it.
    fn dims(&self, change: &Change) -> Result<Vec<usize>, ModelError> {
        match (change, self.trained) {
            (Change::Product(module), Parts::Adapter(adapter)) => {
                let (a, b) = halves(adapter, module)?;
                Ok(vec![b.dims[0], a.dims[1]])
            }
            (Change::Whole(name), Parts::Adapter(adapter)) => Ok(whole(adapter, name)?.dims.clone()),
            (Change::Sum(name), Parts::Difference(differences)) => Ok(differences.dims(name)?.to_vec()),
            _ => Err(unknown(change)),
        }
    }

    fn shards(&self, tensors: Vec<Planned>, split: Split) -> Vec<Shard> {
        match split {
            Split::Bytes(most) => shards::split(tensors, most),
            Split::AsBase if !self.weights.are_sharded() => shards::split(tensors, SHARD_BYTES),
            Split::AsBase => {
                let mut found: Vec<Shard> = Vec::new();
                for tensor in tensors {
                    let file =
                        self.weights.place(&tensor.name).and_then(|place| Some(place.file.file_name()?.to_string_lossy().into_owned()));
                    match (found.iter_mut().find(|shard| file.as_ref().is_none_or(|file| shard.file == *file)), file) {
                        (Some(shard), _) => shard.tensors.push(tensor),
                        (None, file) => found.push(Shard { file: file.unwrap_or_else(|| SINGLE.into()), tensors: vec![tensor] }),
                    }
                }
                found
            }
        }
    }

    fn pour(&self, tensor: &Planned, sink: Sink) -> Result<(), ModelError> {
        let name = &tensor.name;
        let place = self.weights.place(name);
        let mut narrowed = |values: &[f32]| {
            let missing = || ModelError::Narrow { name: name.clone(), dtype: format!("{:?}", tensor.dtype) };
            sink(&narrow(tensor.dtype, values).ok_or_else(missing)?)
        };
        match (self.changes.get(name), self.trained, place) {
            (None, _, Some(place)) => place.stream(READ_BYTES, sink),
            (Some(Changed { change: Change::Product(module), transposed }), Parts::Adapter(adapter), Some(place)) => {
                let (a, b) = halves(adapter, module)?;
                let scale = adapter.config.scale_of(module) as f32;
                let (a, b) = (matrix(a)?, matrix(b)?);
                let (left, right) = if *transposed { (a.t()?.contiguous()?, b.t()?.contiguous()?) } else { (b, a) };
                let columns = right.dim(1)?;
                let rows = (BLOCK_ELEMENTS / columns.max(1)).max(1);
                let mut row = 0;
                place.stream(rows * columns * place.dtype.bitsize() / 8, |piece| {
                    let wrong = || ModelError::Dtype { name: name.clone(), found: format!("{:?}", place.dtype) };
                    let weight = widen(place.dtype, piece).ok_or_else(wrong)?;
                    let count = weight.len() / columns.max(1);
                    let product = (left.narrow(0, row, count)?.matmul(&right)? * f64::from(scale))?;
                    let sum = (Tensor::from_vec(weight, (count, columns), &Device::Cpu)? + product)?;
                    row += count;
                    narrowed(&sum.flatten_all()?.to_vec1()?)
                })
            }
            (Some(Changed { change: Change::Whole(of), transposed }), Parts::Adapter(adapter), _) => {
                let AdapterTensor { dims, values, .. } = whole(adapter, of)?;
                match transposed {
                    true => narrowed(&flat(&Tensor::from_slice(values, dims.as_slice(), &Device::Cpu)?.t()?)?),
                    false => narrowed(values),
                }
            }
            (Some(Changed { change: Change::Sum(of), transposed }), Parts::Difference(differences), _) => {
                let difference = differences.read(of, differences.dims(of)?, &Device::Cpu)?;
                let difference = if *transposed { difference.t()? } else { difference };
                narrowed(&flat(&(self.weights.find(name, &tensor.dims, &Device::Cpu)? + difference)?)?)
            }
            (Some(Changed { change, .. }), ..) => Err(unknown(change)),
            (None, _, None) => Err(ModelError::AdapterModule { name: name.clone() }),
        }
    }
}

fn unknown(change: &Change) -> ModelError {
    let (Change::Product(name) | Change::Whole(name) | Change::Sum(name)) = change;
    ModelError::AdapterModule { name: name.clone() }
}

fn halves<'a>(adapter: &'a Adapter, module: &str) -> Result<(&'a AdapterTensor, &'a AdapterTensor), ModelError> {
    adapter.halves(module).map_err(|_| ModelError::AdapterHalf { name: module.into() })
}

fn whole<'a>(adapter: &'a Adapter, name: &str) -> Result<&'a AdapterTensor, ModelError> {
    adapter.tensor(name).ok_or_else(|| ModelError::AdapterModule { name: name.into() })
}

fn matrix(tensor: &AdapterTensor) -> Result<Tensor, ModelError> {
    Ok(Tensor::from_slice(&tensor.values, tensor.dims.as_slice(), &Device::Cpu)?)
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests;
