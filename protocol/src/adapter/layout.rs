//! Where each tensor of a shape lies in a file, after every claim of the header was checked against the shape.

use std::sync::Arc;

use super::error::AdapterError;
use super::header::{Entry, read_header, shown};
use super::tensors::{Tensor, TensorList, rank_place};
use super::values::ValueScan;
use crate::number::Dtype;

/// One tensor's place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its index in the [`TensorList`].
    pub tensor: usize,
    pub dtype: Dtype,
    pub elements: usize,
    /// Where in the data its first byte is.
    pub begin: u64,
}

/// A checked header: exactly the tensors of the shape, each once, back to back up to the end of the file; where the shape
/// leaves ranks free, with the ranks that this file has. Cheap to clone.
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
        let tensors = if tensors.is_up_to() { with_ranks(tensors, &found)? } else { tensors.clone() };
        found.sort_by_key(|found| found.placed.begin);
        let mut end = 0;
        for Found { tensor, placed: Placed { begin, .. }, bytes, .. } in &found {
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
        Ok(Self { tensors, placed, data_start, file_size })
    }

    /// The tensors of this file: those of the shape it was checked against.
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

    /// Where a tensor of the list is in the file.
    pub(crate) fn place_of(&self, tensor: usize) -> Option<Placed> {
        let found = |placed: &&Placed| placed.tensor == tensor;
        // Where a file is canonical it is at its own place.
        self.placed.get(tensor).filter(found).or_else(|| self.placed.iter().find(found)).copied()
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
    dims: &'a [u64],
    bytes: u64,
}

/// The tensors with the ranks that were found, which the two halves of each module share. `found` is in the order of the list.
fn with_ranks(tensors: &TensorList, found: &[Found<'_>]) -> Result<TensorList, AdapterError> {
    let list = tensors.found(found.iter().map(|found| found.dims.to_vec()));
    for (index, tensor) in list.iter().enumerate() {
        let rank = |tensor: &Tensor| tensor.dims.get(rank_place(&tensor.name)?).copied();
        let other = list.other_half(index).and_then(|other| list.get(other));
        if other.is_none_or(|other| rank(other) != rank(tensor)) {
            let most = tensors.get(index).map(|most| most.dims.clone()).unwrap_or_default();
            return Err(AdapterError::Ranked { tensor: tensor.name.clone(), most, found: tensor.dims.clone() });
        }
    }
    Ok(list)
}

/// Whether dimensions are the listed ones, but for a rank that may be less.
fn fits_up_to(name: &str, most: &[u64], found: &[u64]) -> bool {
    let fits = |(place, (most, found)): (usize, (&u64, &u64))| {
        if rank_place(name) == Some(place) { (1..=*most).contains(found) } else { most == found }
    };
    most.len() == found.len() && most.iter().zip(found).enumerate().all(fits)
}

fn match_entry<'a>(tensors: &'a TensorList, name: &str, entry: &'a Entry) -> Result<Found<'a>, AdapterError> {
    let known = tensors.position(name).and_then(|index| Some((index, tensors.get(index)?)));
    let (index, tensor) = known.ok_or_else(|| AdapterError::UnknownTensor { name: shown(name) })?;
    let dtype =
        Dtype::named(&entry.dtype).ok_or_else(|| AdapterError::Dtype { tensor: tensor.name.clone(), found: shown(&entry.dtype) })?;
    // Strangers may list many dimensions; a few show the mistake.
    let found = || entry.shape.iter().copied().take(8).collect();
    if tensors.is_up_to() && !fits_up_to(&tensor.name, &tensor.dims, &entry.shape) {
        return Err(AdapterError::Ranked { tensor: tensor.name.clone(), most: tensor.dims.clone(), found: found() });
    }
    if !tensors.is_up_to() && entry.shape != tensor.dims {
        let found = found();
        return Err(AdapterError::Shaped { tensor: tensor.name.clone(), expected: tensor.dims.clone(), found });
    }
    let [begin, end] = entry.data_offsets;
    let elements = entry.shape.iter().fold(1_u64, |product, dimension| product.saturating_mul(*dimension));
    let expected = elements.saturating_mul(dtype.bytes() as u64);
    let found = i128::from(end).saturating_sub(i128::from(begin));
    let wrong = || AdapterError::Extent { tensor: tensor.name.clone(), dtype, expected, found };
    if found != i128::from(expected) {
        return Err(wrong());
    }
    let elements = usize::try_from(elements).map_err(|_| wrong())?;
    Ok(Found { tensor, placed: Placed { tensor: index, dtype, elements, begin }, dims: &entry.shape, bytes: expected })
}
