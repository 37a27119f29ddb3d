//! What a training made of a base: an adapter, or the difference of every weight.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::{Adapter, AdapterTensor, PeftError, directory};
use crate::files;
use crate::models::{Attached, BaseModel, Decoder, ModelError};

/// The file a difference lies in.
pub const DIFFERENCE: &str = "difference.safetensors";

/// What is added to every weight, by the weights' names and in the shapes in which the model holds them.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Sorted by name.
    pub tensors: Vec<AdapterTensor>,
}

/// Either of the two.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    Adapter(Adapter),
    Difference(Difference),
}

impl Update {
    /// Reads a directory: of a difference where there is one, else PEFT's.
    ///
    /// # Errors
    /// A directory that holds neither.
    pub fn read(dir: &Path) -> Result<Self, PeftError> {
        match dir.join(DIFFERENCE).exists() {
            true => Ok(Self::Difference(Difference { tensors: directory::read_tensors(&dir.join(DIFFERENCE))? })),
            false => directory::read(dir).map(Self::Adapter),
        }
    }

    /// Writes it into `dir`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, dir: &Path) -> Result<(), PeftError> {
        match self {
            Self::Adapter(adapter) => directory::write(dir, adapter),
            Self::Difference(difference) => {
                let path = dir.join(DIFFERENCE);
                let explain = |error: std::io::Error| PeftError::File { path: path.clone(), reason: error.to_string() };
                std::fs::create_dir_all(dir).map_err(explain)?;
                files::replace(&path, &directory::to_safetensors(&difference.tensors)?, files::PUBLIC).map_err(explain)
            }
        }
    }

    /// The base with this on it.
    ///
    /// # Errors
    /// Modules or weights that the base does not have.
    pub fn apply(&self, base: &BaseModel) -> Result<Decoder, ModelError> {
        base.attach(&self.parts(base)?)
    }

    /// What is laid over the base.
    ///
    /// # Errors
    /// As [`Update::apply`].
    pub fn parts(&self, base: &BaseModel) -> Result<Attached, ModelError> {
        match self {
            Self::Adapter(adapter) => adapter.parts(base.device()),
            Self::Difference(difference) => Ok(Attached { replaced: difference.added_to(base)?, ..Attached::default() }),
        }
    }

    pub fn tensors(&self) -> &[AdapterTensor] {
        match self {
            Self::Adapter(adapter) => &adapter.tensors,
            Self::Difference(difference) => &difference.tensors,
        }
    }

    pub fn tensor(&self, name: &str) -> Option<&AdapterTensor> {
        self.tensors().iter().find(|tensor| tensor.name == name)
    }
}

impl Difference {
    /// What must be added to the base's weights to have these.
    ///
    /// # Errors
    /// Weights that the base does not have.
    pub fn between(base: &BaseModel, weights: &[(String, Tensor)]) -> Result<Self, ModelError> {
        let before: BTreeMap<String, Tensor> = base.decoder().weights().into_iter().collect();
        let one = |(name, after): &(String, Tensor)| {
            let before = before.get(name).ok_or_else(|| ModelError::AdapterModule { name: name.clone() })?;
            let values = (after - before)?.flatten_all()?.to_vec1()?;
            Ok(AdapterTensor { name: name.clone(), dims: after.dims().to_vec(), values })
        };
        let mut tensors = weights.iter().map(one).collect::<Result<Vec<_>, ModelError>>()?;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { tensors })
    }

    /// The base's weights with this added, by name.
    ///
    /// # Errors
    /// Weights that the base does not have.
    pub fn added_to(&self, base: &BaseModel) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let before: BTreeMap<String, Tensor> = base.decoder().weights().into_iter().collect();
        let one = |tensor: &AdapterTensor| {
            let name = tensor.name.clone();
            let before = before.get(&name).ok_or_else(|| ModelError::AdapterModule { name: name.clone() })?;
            if before.dims() != tensor.dims {
                return Err(ModelError::AdapterShape { name, found: tensor.dims.clone(), expected: before.dims().to_vec() });
            }
            Ok((name, (before + Tensor::from_slice(&tensor.values, tensor.dims.as_slice(), base.device())?)?))
        };
        self.tensors.iter().map(one).collect()
    }
}
