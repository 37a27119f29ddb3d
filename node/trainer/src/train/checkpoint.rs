//! A training's state on disk: one safetensors file with the variables, their moments and what was measured so far. The
//! order of the data follows from the seed and the step, so the step is its position.
//!
//! The file is written and read tensor by tensor: a copy of everything at once would double what a full training needs.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::stopping::Evaluation;
use crate::files;
use crate::models::weights::widen;

/// File name of the checkpoint in its folder.
pub const FILE: &str = "checkpoint.safetensors";

/// What is not a tensor. Losses are kept as their bits, so that they read back exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: usize,
    /// Digest of settings, data and start: hex.
    pub digest: String,
    pub tokens: u64,
    pub seconds: f64,
    pub loss_before_bits: u64,
    /// The held-out losses so far: steps done and bits.
    pub evaluations: Vec<(usize, u64)>,
    /// Variables that were trained last, from and to; the moments are theirs.
    pub active: (usize, usize),
    /// Steps since these variables became active.
    pub active_steps: usize,
    /// The variables of the best evaluation are there too.
    pub best: bool,
}

impl State {
    pub fn history(&self) -> Vec<Evaluation> {
        self.evaluations.iter().map(|(step, bits)| Evaluation { step: *step, loss: f64::from_bits(*bits) }).collect()
    }
}

fn refuse(path: &Path, reason: impl ToString) -> TrainError {
    TrainError::Checkpoint { path: path.into(), reason: reason.to_string() }
}

/// A tensor to be written.
pub enum Part<'a> {
    Losses(&'a [f64]),
    Tensor(&'a Tensor),
}

impl Part<'_> {
    fn dtype_and_count(&self) -> (Dtype, usize) {
        match self {
            Self::Losses(losses) => (Dtype::F64, losses.len()),
            Self::Tensor(tensor) => (Dtype::F32, tensor.elem_count()),
        }
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Losses(losses) => losses.iter().try_for_each(|loss| to.write_all(&loss.to_le_bytes())),
            Self::Tensor(tensor) => {
                let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(io::Error::other)?;
                values.iter().try_for_each(|value| to.write_all(&value.to_le_bytes()))
            }
        }
    }
}

/// Writes the checkpoint of `dir` (created if missing) atomically.
pub fn write(dir: &Path, state: &State, parts: &[(String, Part)]) -> Result<PathBuf, TrainError> {
    let path = dir.join(FILE);
    std::fs::create_dir_all(dir).map_err(|error| refuse(dir, error))?;
    // Names in descending order of their type's size, as the format asks for aligned data.
    let mut order: Vec<&(String, Part)> = parts.iter().collect();
    order.sort_by_key(|(_, part)| std::cmp::Reverse(part.dtype_and_count().0));
    let (mut infos, mut end) = (Vec::new(), 0);
    for (name, part) in &order {
        let (dtype, count) = part.dtype_and_count();
        let start = end;
        end += count * if dtype == Dtype::F64 { 8 } else { 4 };
        infos.push((name.clone(), TensorInfo { dtype, shape: vec![count], data_offsets: (start, end) }));
    }
    let text = serde_json::to_string(state).map_err(|error| refuse(&path, error))?;
    let metadata = Metadata::new(Some([("state".to_string(), text)].into()), infos).map_err(|error| refuse(&path, error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| refuse(&path, error))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let written = files::replace_by(&path, files::PUBLIC, |file| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        order.iter().try_for_each(|(_, part)| part.write(&mut file))?;
        file.flush()
    });
    written.map_err(|error| refuse(&path, error))?;
    Ok(path)
}

/// An opened checkpoint.
pub struct Checkpoint {
    pub state: State,
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl Checkpoint {
    /// The checkpoint of `dir`, or `None` where there is none. One that belongs to another training is an error.
    pub fn open(dir: &Path, digest: &str) -> Result<Option<Self>, TrainError> {
        let path = dir.join(FILE);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(&path, error)),
        };
        let explain = |error: io::Error| refuse(&path, error);
        let length = file.metadata().map_err(explain)?.len();
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(explain)?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > length.saturating_sub(8) {
            return Err(refuse(&path, format!("its header claims {header_bytes} bytes, the file has {length}")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(explain)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| refuse(&path, error))?;
        let data = 8 + header_bytes;
        if data + metadata.data_len() as u64 != length {
            return Err(refuse(&path, format!("its header describes {} bytes, the file has {length}", data + metadata.data_len() as u64)));
        }
        let state = metadata.metadata().as_ref().and_then(|map| map.get("state")).ok_or_else(|| refuse(&path, "holds no state"))?;
        let state: State = serde_json::from_str(state).map_err(|error| refuse(&path, error))?;
        if state.digest != digest {
            return Err(TrainError::OtherCheckpoint { path });
        }
        Ok(Some(Self { state, path, file, metadata, data }))
    }

    pub fn refuse(&self, reason: &str) -> TrainError {
        refuse(&self.path, reason)
    }

    fn bytes(&mut self, name: &str, dtype: Dtype, count: usize) -> Result<Vec<u8>, TrainError> {
        let info = self.metadata.info(name).ok_or_else(|| refuse(&self.path, format!("holds no \"{name}\"")))?;
        if info.dtype != dtype || info.shape != [count] {
            let reason = format!("{name} has type {} and shape {:?}, but {dtype} and [{count}] are needed", info.dtype, info.shape);
            return Err(refuse(&self.path, reason));
        }
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let read = self.file.seek(SeekFrom::Start(self.data + start as u64)).and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|error| refuse(&self.path, error))?;
        Ok(bytes)
    }

    /// The loss of each step done.
    pub fn losses(&mut self) -> Result<Vec<f64>, TrainError> {
        let bytes = self.bytes("losses", Dtype::F64, self.state.step)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }

    /// A tensor of the shape and on the device of `like`.
    pub fn tensor(&mut self, name: &str, like: &Tensor) -> Result<Tensor, TrainError> {
        let bytes = self.bytes(name, Dtype::F32, like.elem_count())?;
        Ok(Tensor::from_vec(widen(Dtype::F32, &bytes).unwrap_or_default(), like.shape(), like.device())?)
    }

    /// Puts the saved values into the variables.
    pub fn restore(&mut self, variables: &[(String, Var)]) -> Result<(), TrainError> {
        for (name, variable) in variables {
            variable.set(&self.tensor(&format!("p.{name}"), variable)?)?;
        }
        Ok(())
    }
}

/// Removes the checkpoint of `dir` once its training is finished and what it made is safe.
pub fn remove(dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refuse(&path, error)),
        _ => Ok(()),
    }
}
