//! A training's state on disk: one safetensors file with the variables, their moments and the losses so far. The order of
//! the data follows from the seed and the step, so the step is its position.

use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::TrainError;
use crate::files;
use crate::models::weights::widen;

/// File name of the checkpoint in its folder.
pub const FILE: &str = "checkpoint.safetensors";

/// What is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: usize,
    /// Digest of settings, data and start: hex.
    pub digest: String,
    pub tokens: u64,
    pub seconds: f64,
    /// Bits of the loss before the first step, so that it reads back exactly.
    pub loss_before_bits: u64,
}

/// Variables and optimiser as a checkpoint holds them.
pub struct Saved {
    pub state: State,
    pub losses: Vec<f32>,
    /// Per variable: value, first and second moment.
    pub variables: Vec<[Vec<f32>; 3]>,
}

fn refuse(path: &Path, reason: impl ToString) -> TrainError {
    TrainError::Checkpoint { path: path.into(), reason: reason.to_string() }
}

/// Writes the checkpoint of `dir` (created if missing) atomically.
pub fn write(
    dir: &Path,
    state: &State,
    losses: &[f32],
    variables: &[(String, Var)],
    moments: &[(Vec<f32>, Vec<f32>)],
) -> Result<PathBuf, TrainError> {
    let path = dir.join(FILE);
    std::fs::create_dir_all(dir).map_err(|error| refuse(dir, error))?;
    let little = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut parts = vec![("losses".to_string(), little(losses))];
    for ((name, variable), (m, v)) in variables.iter().zip(moments) {
        let value = variable.flatten_all()?.to_vec1::<f32>()?;
        parts.extend([(format!("p.{name}"), little(&value)), (format!("m.{name}"), little(m)), (format!("v.{name}"), little(v))]);
    }
    let mut views = Vec::new();
    for (name, bytes) in &parts {
        views.push((name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map_err(|e| refuse(&path, e))?));
    }
    let text = serde_json::to_string(state).map_err(|error| refuse(&path, error))?;
    let bytes = safetensors::serialize(views, Some([("state".to_string(), text)].into())).map_err(|e| refuse(&path, e))?;
    files::replace(&path, &bytes, files::PUBLIC).map_err(|error| refuse(&path, error))?;
    Ok(path)
}

/// The checkpoint of `dir`, or `None` where there is none. One that belongs to another training is an error.
pub fn read(dir: &Path, digest: &str, variables: &[(String, Var)]) -> Result<Option<Saved>, TrainError> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse(&path, error)),
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| refuse(&path, error))?;
    let state = header.metadata().as_ref().and_then(|map| map.get("state")).ok_or_else(|| refuse(&path, "holds no state"))?;
    let state: State = serde_json::from_str(state).map_err(|error| refuse(&path, error))?;
    if state.digest != digest {
        return Err(TrainError::OtherCheckpoint { path });
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| refuse(&path, error))?;
    let values = |name: &str, count: Option<usize>| -> Result<Vec<f32>, TrainError> {
        let view = file.tensor(name).map_err(|error| refuse(&path, error))?;
        let values = widen(view.dtype(), view.data()).ok_or_else(|| refuse(&path, format!("{name} is not f32")))?;
        match count {
            Some(count) if count != values.len() => Err(refuse(&path, format!("{name} holds {} values", values.len()))),
            _ => Ok(values),
        }
    };
    let mut saved = Saved { losses: values("losses", Some(state.step))?, state, variables: Vec::new() };
    for (name, variable) in variables {
        let count = Some(variable.elem_count());
        let part = |kind: char| values(&format!("{kind}.{name}"), count);
        saved.variables.push([part('p')?, part('m')?, part('v')?]);
    }
    Ok(Some(saved))
}

/// Removes the checkpoint of `dir` once its training is finished and what it made is safe.
pub fn remove(dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(refuse(&path, error)),
        _ => Ok(()),
    }
}

/// Puts saved values into the variables.
pub fn restore(saved: &Saved, variables: &[(String, Var)]) -> Result<(), TrainError> {
    for ((_, variable), [value, _, _]) in variables.iter().zip(&saved.variables) {
        variable.set(&Tensor::from_slice(value, variable.shape(), variable.device())?)?;
    }
    Ok(())
}
