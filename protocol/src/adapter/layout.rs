//! Where each tensor of a shape lies in a file, after every claim of the header was checked against the shape.

use std::sync::Arc;

use super::error::AdapterError;
use super::header::{Entry, read_header, shown};
use super::tensors::{Tensor, TensorList};
use super::values::ValueScan;
use crate::number::Dtype;

/// One tensor's place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its index in the [`TensorList`].
    pub tensor: usize,
    pub dtype: Dtype,
    pub elements: usize,
}

/// A checked header: exactly the tensors of the shape, each once, back to back up to the end of the file. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: TensorList,
    placed: Arc<[Placed]>,
    data_start: u64,
    file_size: u64,
}

impl Layout {
    /// Parses the first bytes of a file of `file_size` bytes. `first` must reach to the end of the header
    /// ([`header_length`](super::header_length)); what lies behind it is not looked at.
    pub fn parse(first: &[u8], file_size: u64, tensors: &TensorList) -> Result<Self, AdapterError> {
        let (entries, data_start) = read_header(first, file_size)?;
        let mut found =
            entries.iter().map(|(name, entry)| match_entry(tensors, name, entry)).collect::<Result<Vec<Found>, AdapterError>>()?;
        // Entries are distinct and all known, so each tensor of the list is there once or not at all.
        found.sort_by_key(|found| found.placed.tensor);
        for (index, tensor) in tensors.iter().enumerate() {
            if found.get(index).is_none_or(|found| found.placed.tensor != index) {
                return Err(AdapterError::MissingTensor { tensor: tensor.name.clone() });
            }
        }
        found.sort_by_key(|found| found.begin);
        let mut end = 0;
        for Found { tensor, begin, bytes, .. } in &found {
            if *begin != end {
                return Err(AdapterError::Placement { tensor: tensor.name.clone(), expected: end, found: *begin });
            }
            end = end.saturating_add(*bytes);
        }
        let expected = data_start.saturating_add(end);
        if expected != file_size {
            return Err(AdapterError::Size { expected, found: file_size });
        }
        let placed = found.into_iter().map(|found| found.placed).collect();
        Ok(Self { tensors: tensors.clone(), placed, data_start, file_size })
    }

    /// The tensors of the shape this file was checked against.
    pub fn tensors(&self) -> &TensorList {
        &self.tensors
    }

    /// The tensors in the order of the file: each begins where the one before it ends, the first at
    /// [`Layout::data_start`].
    pub fn placed(&self) -> &[Placed] {
        &self.placed
    }

    /// The offset of the first tensor's first byte in the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Begins a check of every value, as the data arrives.
    pub fn scan(&self) -> ValueScan {
        ValueScan::new(self.clone())
    }

    /// The data of a file held in memory; empty when the slice is shorter than the header.
    pub fn data_of<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        usize::try_from(self.data_start).ok().and_then(|start| file.get(start..)).unwrap_or_default()
    }

    pub(super) fn name_of(&self, tensor: usize) -> String {
        self.tensors.get(tensor).map(|tensor| tensor.name.clone()).unwrap_or_default()
    }
}

/// An entry of the header that agrees with the shape.
struct Found<'a> {
    tensor: &'a Tensor,
    placed: Placed,
    begin: u64,
    bytes: u64,
}

fn match_entry<'a>(tensors: &'a TensorList, name: &str, entry: &Entry) -> Result<Found<'a>, AdapterError> {
    let known = tensors.position(name).and_then(|index| Some((index, tensors.get(index)?)));
    let (index, tensor) = known.ok_or_else(|| AdapterError::UnknownTensor { name: shown(name) })?;
    let dtype =
        Dtype::named(&entry.dtype).ok_or_else(|| AdapterError::Dtype { tensor: tensor.name.clone(), found: shown(&entry.dtype) })?;
    if entry.shape != tensor.dims {
        // Strangers may list many dimensions; a few show the mistake.
        let found = entry.shape.iter().copied().take(8).collect();
        return Err(AdapterError::Shaped { tensor: tensor.name.clone(), expected: tensor.dims.clone(), found });
    }
    let [begin, end] = entry.data_offsets;
    let expected = tensor.elements().saturating_mul(dtype.bytes() as u64);
    let found = i128::from(end).saturating_sub(i128::from(begin));
    let wrong = || AdapterError::Extent { tensor: tensor.name.clone(), dtype, expected, found };
    if found != i128::from(expected) {
        return Err(wrong());
    }
    let elements = usize::try_from(tensor.elements()).map_err(|_| wrong())?;
    Ok(Found { tensor, placed: Placed { tensor: index, dtype, elements }, begin, bytes: expected })
}
