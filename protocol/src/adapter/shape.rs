//! The shape of a LoRA adapter, as a round pins it, and the exact list of tensors that follows from it.
//!
//! A shape may come from a stranger's manifest: [`TensorList::of`] checks every limit before anything is allocated from
//! it, and everything behind it takes a `TensorList`, never a bare shape.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ShapeError;
use super::header::HEADER_BYTES_MAX;

pub const RANK_MAX: u32 = 1024;
pub const ALPHA_MAX: u32 = 65_536;
/// Enough for seven projections in each of 292 layers. With [`NAME_BYTES_MAX`] it keeps every header we write inside the
/// bound for headers we read.
pub const MODULES_MAX: usize = 2048;
pub const NAME_BYTES_MAX: usize = 128;
pub const DIMENSION_MAX: u64 = 1 << 20;
/// 8 GiB of `f32`, and 16 GiB of running sums.
pub const ELEMENTS_MAX: u64 = 1 << 31;

/// One linear layer that the adapter changes: `outputs x inputs` in the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// The layer's name in the base, for example `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub inputs: u64,
    pub outputs: u64,
}

/// What every adapter of a round looks like. The update of a module is `alpha / rank * B A`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraShape {
    pub rank: u32,
    pub alpha: u32,
    /// All members start from the same A, drawn from this; B starts at zero.
    #[serde(serialize_with = "crate::hash::serialize_key", deserialize_with = "crate::hash::deserialize_key")]
    pub seed: [u8; 32],
    pub modules: Vec<Module>,
}

impl LoraShape {
    /// Checks every limit. A manifest whose shape fails here is no round.
    ///
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), ShapeError> {
        check_limits(self)
    }

    /// The largest file an adapter of this shape can be: the longest header, and every element in `f32`.
    pub fn file_bytes_max(&self) -> u64 {
        let dimensions = self.modules.iter().fold(0u64, |sum, module| sum.saturating_add(module.inputs).saturating_add(module.outputs));
        let data = dimensions.saturating_mul(u64::from(self.rank)).saturating_mul(4);
        data.saturating_add(HEADER_BYTES_MAX).saturating_add(8)
    }
}

/// One tensor of an adapter: a row-major matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its full name in the file, as PEFT writes it.
    pub name: String,
    pub rows: u64,
    pub columns: u64,
}

impl Tensor {
    pub fn elements(&self) -> u64 {
        self.rows.saturating_mul(self.columns)
    }

    pub fn dims(&self) -> [u64; 2] {
        [self.rows, self.columns]
    }
}

/// The tensors of a shape whose limits were checked, in ascending order of their names' bytes. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorList(Arc<[Tensor]>);

impl TensorList {
    /// `lora_A` `[rank, inputs]` and `lora_B` `[outputs, rank]` of every module.
    pub fn of(shape: &LoraShape) -> Result<Self, ShapeError> {
        check_limits(shape)?;
        let rank = u64::from(shape.rank);
        let mut tensors: Vec<Tensor> = shape
            .modules
            .iter()
            .flat_map(|module| {
                let named = |factor| format!("base_model.model.{}.{factor}.weight", module.name);
                [
                    Tensor { name: named("lora_A"), rows: rank, columns: module.inputs },
                    Tensor { name: named("lora_B"), rows: module.outputs, columns: rank },
                ]
            })
            .collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self(tensors.into()))
    }

    /// Elements of all tensors together.
    pub fn elements(&self) -> u64 {
        self.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }

    /// Where in the list a tensor is.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }
}

impl Deref for TensorList {
    type Target = [Tensor];
    fn deref(&self) -> &[Tensor] {
        &self.0
    }
}

fn check_limits(shape: &LoraShape) -> Result<(), ShapeError> {
    if !(1..=RANK_MAX).contains(&shape.rank) {
        return Err(ShapeError::Rank { found: shape.rank });
    }
    if !(1..=ALPHA_MAX).contains(&shape.alpha) {
        return Err(ShapeError::Alpha { found: shape.alpha });
    }
    if !(1..=MODULES_MAX).contains(&shape.modules.len()) {
        return Err(ShapeError::Modules { found: shape.modules.len() });
    }
    let mut elements: u64 = 0;
    for Module { name, inputs, outputs } in &shape.modules {
        check_name(name)?;
        for found in [*inputs, *outputs] {
            if !(1..=DIMENSION_MAX).contains(&found) {
                return Err(ShapeError::Dimension { name: name.clone(), found });
            }
        }
        // Dimensions are at most 2^20 and the rank at most 2^10, so nothing saturates before it is refused.
        let of_module = inputs.saturating_add(*outputs).saturating_mul(u64::from(shape.rank));
        elements = elements.saturating_add(of_module);
    }
    if elements > ELEMENTS_MAX {
        return Err(ShapeError::Elements { found: elements });
    }
    let mut names: Vec<&str> = shape.modules.iter().map(|module| module.name.as_str()).collect();
    names.sort_unstable();
    match names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
        Some((name, _)) => Err(ShapeError::Duplicate { name: (*name).to_owned() }),
        None => Ok(()),
    }
}

/// Names go into file headers and onto terminals, so they hold nothing that either would have to escape.
fn check_name(name: &str) -> Result<(), ShapeError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain) {
        Ok(())
    } else {
        Err(ShapeError::Name { name: name.chars().take(NAME_BYTES_MAX).collect() })
    }
}
