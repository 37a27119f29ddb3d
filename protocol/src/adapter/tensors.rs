//! The tensors of an adapter file: names and dimensions, checked, in the one order every file of ours has.
//!
//! Everything that reads or merges a file takes a [`TensorList`], never a bare shape: whoever holds one knows that the
//! limits were checked.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ShapeError;
use super::header::HEADER_BYTES_MAX;
use super::shape::{A_SUFFIX, B_SUFFIX, DIMENSION_MAX, ELEMENTS_MAX};
use crate::number::MAGNITUDE_MAX;

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

/// Whether files hold tensors of exactly the listed dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ranks {
    Listed,
    /// A module's lora_A and lora_B may have any rank from 1 to the listed one.
    UpTo,
    /// They are a stack of members' matrices, whose elements carry their scales.
    Stacked,
}

/// Tensors whose limits were checked, in ascending order of their names' bytes, each name once. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorList {
    tensors: Arc<[Tensor]>,
    ranks: Ranks,
}

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
            None => Ok(Self { tensors: tensors.into(), ranks: Ranks::Listed }),
        }
    }

    /// Those of them that `keep` chooses.
    pub fn only(&self, keep: impl Fn(&Tensor) -> bool) -> Self {
        Self { tensors: self.iter().filter(|tensor| keep(tensor)).cloned().collect(), ranks: self.ranks }
    }

    /// The same, for files whose modules have any rank up to the listed one.
    ///
    /// # Errors
    /// A tensor that is no lora_A or lora_B with its other half.
    pub fn up_to(&self) -> Result<Self, ShapeError> {
        for (index, tensor) in self.iter().enumerate() {
            if self.other_half(index).is_none() || tensor.dims.len() != 2 {
                return Err(ShapeError::NoHalf { name: tensor.name.clone() });
            }
        }
        Ok(Self { ranks: Ranks::UpTo, ..self.clone() })
    }

    /// Whether files may have lower ranks than the listed ones.
    pub fn is_up_to(&self) -> bool {
        self.ranks == Ranks::UpTo
    }

    /// The tensors of a stack of `rank` rows of such files: every module has them all.
    ///
    /// # Errors
    /// More elements than any file may have.
    pub fn stacked(&self, rank: u64) -> Result<Self, ShapeError> {
        let of_rank = |tensor: &Tensor| {
            let mut tensor = tensor.clone();
            if let Some(place) = rank_place(&tensor.name)
                && let Some(dimension) = tensor.dims.get_mut(place)
            {
                *dimension = rank;
            }
            tensor
        };
        Ok(Self { ranks: Ranks::Stacked, ..Self::new(self.iter().map(of_rank).collect())? })
    }

    /// The tensors of one file of this list, of which it knows the dimensions now.
    pub(super) fn found(&self, dims: impl Iterator<Item = Vec<u64>>) -> Self {
        let tensors = self.iter().zip(dims).map(|(tensor, dims)| Tensor { name: tensor.name.clone(), dims });
        Self { tensors: tensors.collect(), ranks: Ranks::Listed }
    }

    /// Where the B of an A is, and the other way round.
    pub(crate) fn other_half(&self, index: usize) -> Option<usize> {
        let name = &self.get(index)?.name;
        let (module, other) = match (name.strip_suffix(A_SUFFIX), name.strip_suffix(B_SUFFIX)) {
            (Some(module), _) => (module, B_SUFFIX),
            (_, Some(module)) => (module, A_SUFFIX),
            _ => return None,
        };
        self.position(&format!("{module}{other}"))
    }

    /// The rank of the first module; 0 where there is none.
    pub fn rank(&self) -> u64 {
        let rank = |tensor: &Tensor| tensor.dims.get(rank_place(&tensor.name)?).copied();
        self.iter().find_map(rank).unwrap_or(0)
    }

    /// The largest magnitude of an element. A stack's B carry scales that no element alone may have.
    pub fn magnitude_max(&self) -> f32 {
        match self.ranks {
            Ranks::Listed | Ranks::UpTo => MAGNITUDE_MAX,
            Ranks::Stacked => f32::MAX,
        }
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
        &self.tensors
    }
}

/// Which dimension of a tensor of this name is the rank.
pub(super) fn rank_place(name: &str) -> Option<usize> {
    match name {
        name if name.ends_with(A_SUFFIX) => Some(0),
        name if name.ends_with(B_SUFFIX) => Some(1),
        _ => None,
    }
}
