//! What the tensors of an adapter mean: which of them make up the update of each module, and how it is scaled.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::kind::{AdapterKind, DrawnTensor};
use super::shape::{A_SUFFIX, B_SUFFIX, Scaling};
use super::tensors::{TensorList, rank_place};
use crate::number::scaling;

/// The update of one module.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// `scale * B A`.
    Product { a: Half, b: usize, scale: f64 },
    /// The tensor itself.
    Whole(usize),
}

/// Where the A of a module comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Half {
    /// Its place among the sent tensors.
    Sent(usize),
    Drawn(DrawnTensor),
}

/// The updates of all modules, in the order of their B, or of themselves, in a file. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct Updates(Arc<[Part]>);

impl Updates {
    /// Of the tensors that are sent, those named as PEFT names the halves of a module belong together.
    pub fn of_pairs(tensors: &TensorList, scale: impl Fn(&str) -> f64) -> Self {
        Self::new(tensors, Vec::new(), scale)
    }

    fn new(tensors: &TensorList, drawn: Vec<DrawnTensor>, scale: impl Fn(&str) -> f64) -> Self {
        let drawn: BTreeMap<String, DrawnTensor> = drawn.into_iter().map(|drawn| (drawn.tensor.name.clone(), drawn)).collect();
        let part = |(index, tensor): (usize, &super::Tensor)| {
            let product = |a| Part::Product { a, b: index, scale: scale(&tensor.name) };
            match (rank_place(&tensor.name), tensors.other_half(index)) {
                (Some(0), Some(_)) => None,
                (Some(1), Some(a)) => Some(product(Half::Sent(a))),
                (Some(1), None) => {
                    let a = tensor.name.strip_suffix(B_SUFFIX).and_then(|module| drawn.get(&format!("{module}{A_SUFFIX}")));
                    Some(a.map_or(Part::Whole(index), |a| product(Half::Drawn(a.clone()))))
                }
                _ => Some(Part::Whole(index)),
            }
        };
        Self(tensors.iter().enumerate().filter_map(part).collect())
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.0
    }

    /// Whether products and whole tensors are mixed. Of the latter only what they became is known, not how far they moved.
    pub fn are_mixed(&self) -> bool {
        let products = self.0.iter().filter(|part| matches!(part, Part::Product { .. })).count();
        products > 0 && products < self.0.len()
    }

    /// Whether clipping an update changes this tensor.
    pub(crate) fn clip(&self, tensor: usize) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Product { b: clipped, .. } | Part::Whole(clipped) if *clipped == tensor))
    }
}

impl AdapterKind {
    /// What the tensors that members send mean.
    pub fn updates(&self, sent: &TensorList) -> Updates {
        let scale = self.low_rank().map_or(1.0, |shape| scaling(shape.alpha, shape.rank, shape.scaling == Scaling::Rslora));
        let drawn = match self {
            Self::Lora(_) | Self::Full(_) => Vec::new(),
            Self::FrozenA(_) | Self::Subspace(_) => self.drawn(),
        };
        Updates::new(sent, drawn, |_| scale)
    }
}
