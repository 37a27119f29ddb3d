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
const READ_BYTES: usize = 1 << 20;

/// Where each tensor of a directory lies.
pub struct Weights {
    dir: PathBuf,
    places: BTreeMap<String, Place>,
}

struct Place {
    file: PathBuf,
    dtype: Dtype,
    dims: Vec<usize>,
    /// Bytes from the start of the file.
    start: u64,
    bytes: u64,
}

impl Weights {
    /// Whether every tensor is stored in f32.
    pub fn are_f32(&self) -> bool {
        self.places.values().all(|place| place.dtype == Dtype::F32)
    }

    /// Opens the directory's weights: reads every header, no tensor.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let mut places = BTreeMap::new();
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
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

    /// The tensor under any of the names that files have had for it: with or without the model's prefix, and norms as the
    /// first BERT files called theirs. A classification head the base does not have begins as [`fresh_head`].
    pub fn find(&self, name: &str, dims: &[usize], device: &Device) -> Result<Tensor, ModelError> {
        let short = name.split_once('.').map_or(name, |(_, short)| short);
        let old = |name: &str| name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let candidates = [name.to_string(), short.to_string(), old(name), old(short)];
        match candidates.iter().find(|candidate| self.places.contains_key(*candidate)) {
            Some(known) => self.read(known, dims, device),
            None if name.starts_with("classifier.") => Ok(Tensor::from_vec(fresh_head(name, dims), dims, device)?),
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
        place.stream(|part| bytes.extend_from_slice(part))?;
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
            place.stream(|part| {
                content.update(part);
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
    fn stream(&self, mut take: impl FnMut(&[u8])) -> Result<(), ModelError> {
        let explain = |error| ModelError::file(&self.file, error);
        let mut file = File::open(&self.file).map_err(explain)?;
        file.seek(SeekFrom::Start(self.start)).map_err(explain)?;
        let mut left = self.bytes;
        let mut buffer = vec![0; READ_BYTES.min(usize::try_from(left).unwrap_or(READ_BYTES)).max(1)];
        while left > 0 {
            let part = buffer.len().min(usize::try_from(left).unwrap_or(READ_BYTES));
            file.read_exact(&mut buffer[..part]).map_err(explain)?;
            take(&buffer[..part]);
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
