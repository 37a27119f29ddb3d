//! An adapter as the protocol sees it: which tensors a round's shape implies, and where they lie in a safetensors file.
//!
//! The file comes from a stranger. Nothing is allocated from a number in it before that number was compared with the
//! round's shape or a bound below. Refused: any tensor the shape does not name and any it names that is missing, any
//! other dtype or shape, gaps, overlaps, trailing bytes, and every element that is NaN, infinite or beyond
//! [`MAGNITUDE_MAX`]. Each refusal is one [`AdapterError`] with the facts.

mod error;
mod header;
mod kind;
mod layers;
mod layout;
mod shape;
mod tensors;
#[cfg(test)]
pub(crate) mod tests;
mod update;
mod values;

pub use error::{AdapterError, ShapeError};
pub use header::{HEADER_BYTES_MAX, canonical_header, header_length};
pub(crate) use kind::Source;
pub use kind::{AdapterKind, DrawnTensor, MergedFile};
pub use layers::{LAYER_MAX, Layers, LayersError, Slice, layer_of};
pub use layout::{Layout, Placed};
pub use shape::{FullShape, LoraShape, Module, Scaling, SubspaceShape};
pub use tensors::{Tensor, TensorList};
pub use update::Updates;
pub(crate) use update::{Half, Part};
pub use values::ValueScan;
pub(crate) use values::{Cursor, RUN_ELEMENTS_MAX, Run, check_largest};

pub use crate::number::{Dtype, MAGNITUDE_MAX};

/// Parses and checks a whole file held in memory: header, placement and every value.
pub fn check(file: &[u8], tensors: &TensorList) -> Result<Layout, AdapterError> {
    let layout = Layout::parse(file, file.len() as u64, tensors)?;
    let mut scan = layout.scan();
    scan.push(layout.data_of(file))?;
    scan.finish()?;
    Ok(layout)
}
