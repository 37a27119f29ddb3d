//! Why a shape or an adapter is refused: one sentence each, with the facts in fields.

use thiserror::Error;

use super::header::HEADER_BYTES_MAX;
use super::shape::{ALPHA_MAX, DIMENSION_MAX, ELEMENTS_MAX, INTERVAL_MAX, MODULES_MAX, NAME_BYTES_MAX, RANK_MAX, SAVED_MAX, WEIGHTS_MAX};
use super::tensors::DIMENSIONS_MAX;
use crate::number::{Dtype, MAGNITUDE_MAX};

/// A shape that no round may have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShapeError {
    #[error("the rank is {found}, but it must be from 1 to {RANK_MAX}")]
    Rank { found: u32 },
    #[error("alpha is {found}, but it must be from 1 to {ALPHA_MAX}")]
    Alpha { found: u32 },
    #[error("the shape names {found} modules, but it must name from 1 to {MODULES_MAX}")]
    Modules { found: usize },
    #[error("the name {name:?} must be 1 to {NAME_BYTES_MAX} ASCII letters, digits, dots, dashes or underscores")]
    Name { name: String },
    #[error("the shape names {found} tensors to save whole, but at most {SAVED_MAX} are allowed")]
    Saved { found: usize },
    #[error("the shape names {found} weights, but it must name from 1 to {WEIGHTS_MAX}")]
    Weights { found: usize },
    #[error("there are {found} seeds of subspaces, but there must be from 1 to {RANK_MAX}")]
    Seeds { found: u32 },
    #[error("a subspace is trained for {found} steps at a time, but it must be from 1 to {INTERVAL_MAX}")]
    Interval { found: u32 },
    #[error("all subspaces together have rank {found}, but at most {RANK_MAX} is allowed")]
    RankInAll { found: u64 },
    #[error("subspaces are scaled by alpha / rank, not by its root")]
    SubspaceScaling,
    #[error("the tensor {name} has {found} dimensions, but it must have from 1 to {DIMENSIONS_MAX}")]
    Dimensions { name: String, found: usize },
    #[error("{name} is named twice")]
    Duplicate { name: String },
    #[error("{name} is no lora_A or lora_B with its other half, as a stack needs")]
    NoHalf { name: String },
    #[error("{name} has a dimension of {found}, but it must be from 1 to {DIMENSION_MAX}")]
    Dimension { name: String, found: u64 },
    #[error("the shape has {found} elements in all, but at most {ELEMENTS_MAX} are allowed")]
    Elements { found: u64 },
}

/// An adapter file that may not be merged.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum AdapterError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("the file is {found} bytes long, too short for the header length of a safetensors file")]
    NoHeader { found: u64 },
    #[error("the header is {found} bytes long, but at most {HEADER_BYTES_MAX} are allowed")]
    HeaderTooLong { found: u64 },
    #[error("the header needs {expected} bytes, but only {found} are there")]
    HeaderTruncated { expected: u64, found: u64 },
    #[error("the header is not that of a safetensors file: {reason}")]
    HeaderSyntax { reason: String },
    #[error("the header names {name:?} twice")]
    Duplicate { name: String },
    #[error("the tensor {name:?} is not part of the round's adapter shape")]
    UnknownTensor { name: String },
    #[error("the tensor {tensor} is missing")]
    MissingTensor { tensor: String },
    #[error("the tensor {tensor} has dtype {found:?}, but F32, BF16 or F16 is needed")]
    Dtype { tensor: String, found: String },
    #[error("the tensor {tensor} has shape {found:?}, but the round's adapter shape needs {expected:?}")]
    Shaped { tensor: String, expected: Vec<u64>, found: Vec<u64> },
    #[error("the tensor {tensor} has shape {found:?}, but it needs a rank from 1 to that of {most:?}, the same as its other half's")]
    Ranked { tensor: String, most: Vec<u64>, found: Vec<u64> },
    #[error("the tensor {tensor} covers {found} bytes, but its shape in {dtype} needs {expected}")]
    Extent { tensor: String, dtype: Dtype, expected: u64, found: i128 },
    #[error("the tensor {tensor} begins at byte {found} of the data, but the one before it ends at {expected}")]
    Placement { tensor: String, expected: u64, found: u64 },
    #[error("the file is {found} bytes long, but its header describes {expected}")]
    Size { expected: u64, found: u64 },
    #[error("element {index} of the tensor {tensor} is NaN")]
    Nan { tensor: String, index: u64 },
    #[error("element {index} of the tensor {tensor} is infinite")]
    Infinite { tensor: String, index: u64 },
    #[error("element {index} of the tensor {tensor} is {found}, but at most {MAGNITUDE_MAX} either way is allowed")]
    TooLarge { tensor: String, index: u64, found: f32 },
}
