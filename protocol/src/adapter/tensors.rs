//! The tensors of an adapter file: names and dimensions, checked, in the one order every file of ours has.
//!
//! Everything that reads or merges a file takes a [`TensorList`], never a bare shape: whoever holds one knows that the
//! limits were checked.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ShapeError;
use super::header::HEADER_BYTES_MAX;
use super::shape::{DIMENSION_MAX, ELEMENTS_MAX};

/// A matrix has two dimensions, a bias one, a convolution's kernel four.
pub const DIMENSIONS_MAX: usize = 4;

/// One tensor of a file, row-major.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
}

impl Tensor {
    pub fn new(name: impl Into<String>, dims: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dims: dims.into() }
    }

    pub fn elements(&self) -> u64 {
        self.dims.iter().fold(1, |product, dimension| product.saturating_mul(*dimension))
    }
}

/// Tensors whose limits were checked, in ascending order of their names' bytes, each name once. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorList(Arc<[Tensor]>);

impl TensorList {
    /// Sorts and checks the tensors. Their names are checked by the shape they come from.
    ///
    /// # Errors
    /// A dimension or a sum of elements out of bounds, or a name that is there twice.
    pub(super) fn new(mut tensors: Vec<Tensor>) -> Result<Self, ShapeError> {
        let mut elements: u64 = 0;
        for tensor in &tensors {
            if !(1..=DIMENSIONS_MAX).contains(&tensor.dims.len()) {
                return Err(ShapeError::Dimensions { name: tensor.name.clone(), found: tensor.dims.len() });
            }
            if let Some(found) = tensor.dims.iter().find(|dimension| !(1..=DIMENSION_MAX).contains(dimension)) {
                return Err(ShapeError::Dimension { name: tensor.name.clone(), found: *found });
            }
            elements = elements.saturating_add(tensor.elements());
        }
        if elements > ELEMENTS_MAX {
            return Err(ShapeError::Elements { found: elements });
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        match tensors.iter().zip(tensors.iter().skip(1)).find(|(a, b)| a.name == b.name) {
            Some((tensor, _)) => Err(ShapeError::Duplicate { name: tensor.name.clone() }),
            None => Ok(Self(tensors.into())),
        }
    }

    /// Those of them that `keep` chooses.
    pub fn only(&self, keep: impl Fn(&Tensor) -> bool) -> Self {
        Self(self.iter().filter(|tensor| keep(tensor)).cloned().collect())
    }

    /// Elements of all tensors together.
    pub fn elements(&self) -> u64 {
        self.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }

    /// The largest file that can hold them: the longest header, and every element in `f32`.
    pub fn file_bytes_max(&self) -> u64 {
        self.elements().saturating_mul(4).saturating_add(HEADER_BYTES_MAX).saturating_add(8)
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
