//! The least and the greatest values at every coordinate, kept as adapters arrive: with the sums, all that a trimmed mean
//! needs. What was pushed out of them is forgotten, so no adapter can be taken out again.

use crate::adapter::TensorList;

/// For each tensor `trim` planes of the least values, the least first, and `trim` of the greatest, the greatest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extremes {
    tensors: Vec<Planes>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Planes {
    least: Vec<Vec<i64>>,
    greatest: Vec<Vec<i64>>,
}

impl Extremes {
    /// Of nothing: 16 bytes an element for each of `trim`.
    pub fn new(tensors: &TensorList, trim: u32) -> Self {
        let planes = |elements: u64, nothing: i64| {
            let plane = vec![nothing; usize::try_from(elements).unwrap_or(usize::MAX)];
            (0..trim).map(|_| plane.clone()).collect()
        };
        let of = |elements| Planes { least: planes(elements, i64::MAX), greatest: planes(elements, i64::MIN) };
        Self { tensors: tensors.iter().map(|tensor| of(tensor.elements())).collect() }
    }

    /// Takes in the values of one adapter for the elements of a tensor from `first` on. `values` has no meaning afterwards.
    pub fn insert(&mut self, tensor: usize, first: usize, values: &mut [i64], spare: &mut Vec<i64>) {
        let Some(Planes { least, greatest }) = self.tensors.get_mut(tensor) else { return };
        spare.clear();
        spare.extend_from_slice(values);
        // Each plane keeps what is nearer to its end and hands the other on to the next.
        for plane in least {
            for (kept, value) in plane.iter_mut().skip(first).zip(&mut *values) {
                (*kept, *value) = ((*kept).min(*value), (*kept).max(*value));
            }
        }
        for plane in greatest {
            for (kept, value) in plane.iter_mut().skip(first).zip(&mut *spare) {
                (*kept, *value) = ((*kept).max(*value), (*kept).min(*value));
            }
        }
    }

    /// Takes them off the sums of a tensor's elements from `first` on.
    pub fn take_off(&self, tensor: usize, first: usize, sums: &mut [i64]) {
        let planes = self.tensors.get(tensor);
        for plane in planes.iter().flat_map(|planes| planes.least.iter().chain(&planes.greatest)) {
            for (sum, value) in sums.iter_mut().zip(plane.iter().skip(first)) {
                *sum = sum.wrapping_sub(*value);
            }
        }
    }
}
