//! The tensors of a Hugging Face directory: one `model.safetensors`, or shards named by `model.safetensors.index.json`.
//!
//! Headers are read and checked on opening; tensor bytes only when asked for, one tensor at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use mingle_protocol::hash::{ContentHash, DomainHasher};
use safetensors::tensor::{Dtype, Metadata, TensorView};

use super::ModelError;
use crate::data::batches::Draw;

/// The bound the safetensors library puts on a header too.
const HEADER_BYTES_MAX: u64 = 100_000_000;
pub(crate) const READ_BYTES: usize = 1 << 20;

/// The file of weights that are not split, and the index of those that are.
pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Where each tensor of a directory lies.
pub struct Weights {
    dir: PathBuf,
    places: BTreeMap<String, Place>,
}

/// Where a tensor lies.
#[derive(Clone)]
pub(crate) struct Place {
    pub file: PathBuf,
    pub dtype: Dtype,
    pub dims: Vec<usize>,
    /// Bytes from the start of the file.
    pub start: u64,
    pub bytes: u64,
}

impl Weights {
    /// The tensors of one file.
    pub(crate) fn of_file(path: &Path) -> Result<Self, ModelError> {
        Ok(Self { dir: path.into(), places: read_header(path)?.into_iter().collect() })
    }

    /// All tensors, sorted by name.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.places.iter().map(|(name, place)| (name.as_str(), place))
    }

    pub(crate) fn place(&self, name: &str) -> Option<&Place> {
        self.places.get(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// No such tensor.
    pub(crate) fn dims(&self, name: &str) -> Result<&[usize], ModelError> {
        let missing = || ModelError::MissingTensor { path: self.dir.clone(), name: name.into() };
        Ok(&self.places.get(name).ok_or_else(missing)?.dims)
    }

    /// Whether the tensor is one that no file needs to hold: a head begins as [`fresh_head`].
    pub(crate) fn begins(&self, name: &str) -> bool {
        name.starts_with("classifier.")
    }

    /// Whether the weights lie in several files, which an index names.
    pub(crate) fn are_sharded(&self) -> bool {
        self.places.values().any(|place| !place.file.ends_with(SINGLE))
    }

    /// Opens the directory's weights: reads every header, no tensor.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let mut places = BTreeMap::new();
        let single = dir.join(SINGLE);
        let index = dir.join(INDEX);
        if single.exists() {
            for (name, place) in read_header(&single)? {
                places.insert(name, place);
            }
        } else if index.exists() {
            let named = read_index(&index)?;
            let mut files: Vec<&String> = named.values().collect();
            files.sort();
            files.dedup();
            let mut found = BTreeMap::new();
            for file in files {
                for (name, place) in read_header(&dir.join(file))? {
                    found.insert((file.clone(), name), place);
                }
            }
            for (name, file) in &named {
                let place = found.remove(&(file.clone(), name.clone()));
                let place = place.ok_or_else(|| ModelError::MissingTensor { path: dir.join(file), name: name.clone() })?;
                places.insert(name.clone(), place);
            }
        } else {
            return Err(ModelError::file(dir, "holds neither model.safetensors nor model.safetensors.index.json"));
        }
        Ok(Self { dir: dir.into(), places })
    }

    /// All tensor names, sorted by bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Numbers in all tensors together.
    pub fn elements(&self) -> u64 {
        self.places.values().map(|place| place.dims.iter().map(|dim| *dim as u64).product::<u64>()).sum()
    }

    /// The name of those that files have had for a tensor under which it is here: with or without the model's prefix, and
    /// norms as the first BERT files called theirs.
    pub(crate) fn known(&self, name: &str) -> Option<&str> {
        let short = name.split_once('.').map_or(name, |(_, short)| short);
        let old = |name: &str| name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let candidates = [name.to_string(), short.to_string(), old(name), old(short)];
        candidates.iter().find_map(|candidate| Some(self.places.get_key_value(candidate)?.0.as_str()))
    }

    /// The tensor under any of its names. A classification head the base does not have begins as [`fresh_head`].
    pub fn find(&self, name: &str, dims: &[usize], device: &Device) -> Result<Tensor, ModelError> {
        match self.known(name) {
            Some(known) => self.read(known, dims, device),
            None if self.begins(name) => Ok(Tensor::from_vec(fresh_head(name, dims), dims, device)?),
            None => self.read(name, dims, device),
        }
    }

    /// The tensor's values widened to f32, or an error if its shape is not `dims`.
    pub fn read(&self, name: &str, dims: &[usize], device: &Device) -> Result<Tensor, ModelError> {
        let missing = || ModelError::MissingTensor { path: self.dir.clone(), name: name.into() };
        let place = self.places.get(name).ok_or_else(missing)?;
        if place.dims != dims {
            return Err(ModelError::Shape { name: name.into(), found: place.dims.clone(), expected: dims.to_vec() });
        }
        let mut bytes = Vec::new();
        place.stream(READ_BYTES, |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        let values =
            widen(place.dtype, &bytes).ok_or_else(|| ModelError::Dtype { name: name.into(), found: format!("{:?}", place.dtype) })?;
        Ok(Tensor::from_vec(values, dims, device)?)
    }

    /// The digest by which a round names its base: every tensor's name, type, shape and content in the order of names,
    /// whatever files they lie in.
    pub fn digest(&self) -> Result<ContentHash, ModelError> {
        let mut hasher = DomainHasher::new("base/1");
        hasher.count(self.places.len());
        for (name, place) in &self.places {
            let mut content = blake3::Hasher::new();
            place.stream(READ_BYTES, |part| {
                content.update(part);
                Ok(())
            })?;
            hasher.string(name).string(&format!("{:?}", place.dtype)).count(place.dims.len());
            for dim in &place.dims {
                hasher.u64(*dim as u64);
            }
            hasher.hash(content.finalize().as_bytes());
        }
        Ok(hasher.finish())
    }
}

impl Place {
    /// The tensor's bytes, in pieces of `piece` bytes but for the last.
    pub fn stream(&self, piece: usize, mut take: impl FnMut(&[u8]) -> Result<(), ModelError>) -> Result<(), ModelError> {
        let explain = |error| ModelError::file(&self.file, error);
        let mut file = File::open(&self.file).map_err(explain)?;
        file.seek(SeekFrom::Start(self.start)).map_err(explain)?;
        let mut left = self.bytes;
        let mut buffer = vec![0; piece.min(usize::try_from(left).unwrap_or(piece)).max(1)];
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(piece));
            file.read_exact(&mut buffer[..part]).map_err(explain)?;
            take(&buffer[..part])?;
            left -= part as u64;
        }
        Ok(())
    }
}

/// The start of a classification head that no file holds: weights normal with deviation 0.02, as transformers begins, and
/// biases 0. Drawn from the name alone, so that all members of a round begin the same.
fn fresh_head(name: &str, dims: &[usize]) -> Vec<f32> {
    const DEVIATION: f64 = 0.02;
    let mut draw = Draw::new(0, name, 0);
    let value = |_| if dims.len() > 1 { (draw.normal() * DEVIATION) as f32 } else { 0.0 };
    (0..dims.iter().product()).map(value).collect()
}

/// Little-endian elements to f32; `None` for types that are no weights.
pub fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

/// Values as little-endian elements, rounded to the nearest; `None` for types that are no weights, and for values that the
/// type has no room for.
pub fn narrow(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    let kept = |value: f32, narrow: f32| (narrow.is_finite() || !value.is_finite()).then_some(());
    match dtype {
        Dtype::F32 => Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::F16 | Dtype::BF16 => {
            let mut bytes = Vec::with_capacity(2 * values.len());
            for value in values {
                let (low, element) = match dtype {
                    Dtype::F16 => (f16::from_f32(*value).to_f32(), f16::from_f32(*value).to_le_bytes()),
                    _ => (bf16::from_f32(*value).to_f32(), bf16::from_f32(*value).to_le_bytes()),
                };
                kept(*value, low)?;
                bytes.extend(element);
            }
            Some(bytes)
        }
        _ => None,
    }
}

fn read_header(path: &Path) -> Result<Vec<(String, Place)>, ModelError> {
    let explain = |error: std::io::Error| ModelError::file(path, error);
    let mut file = File::open(path).map_err(explain)?;
    let length = file.metadata().map_err(explain)?.len();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(explain)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > HEADER_BYTES_MAX || header_bytes > length.saturating_sub(8) {
        return Err(ModelError::file(path, format!("its header claims {header_bytes} bytes, the file has {length}")));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(explain)?;
    // Deserialising checks that offsets are contiguous, and sizes agree with shapes and types.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| ModelError::file(path, error))?;
    let data = 8 + header_bytes;
    if data + metadata.data_len() as u64 != length {
        let expected = data + metadata.data_len() as u64;
        return Err(ModelError::file(path, format!("its header describes {expected} bytes, the file has {length}")));
    }
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (start, end) = info.data_offsets;
        let bytes = (end - start) as u64;
        (name, Place { file: path.into(), dtype: info.dtype, dims: info.shape.clone(), start: data + start as u64, bytes })
    };
    Ok(metadata.tensors().into_iter().map(place).collect())
}

/// Tensor name to file name. Names that leave the directory are refused: an index comes from strangers too.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let text = std::fs::read(path).map_err(|error| ModelError::file(path, error))?;
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|error| ModelError::file(path, error))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| ModelError::file(path, "weight_map is missing"))?;
    let entry = |(name, file): (&String, &serde_json::Value)| match file.as_str() {
        Some(file) if !file.contains(['/', '\\']) => Ok((name.clone(), file.to_string())),
        _ => Err(ModelError::file(path, format!("weight_map names {file} for {name}, which is no file of this directory"))),
    };
    map.iter().map(entry).collect()
}

/// Writes `tensors` (name, shape, f32 values) as bf16 safetensors bytes.
pub fn to_bf16_safetensors(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Result<Vec<u8>, ModelError> {
    let narrow = |values: &[f32]| values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| narrow(values)).collect();
    let explain = |error| ModelError::file("model.safetensors", error);
    let mut views = Vec::new();
    for ((name, dims, _), bytes) in tensors.iter().zip(&bytes) {
        views.push((name, TensorView::new(Dtype::BF16, dims.clone(), bytes).map_err(explain)?));
    }
    let format = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize(views, Some(format)).map_err(explain)
}
