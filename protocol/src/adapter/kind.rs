//! What the members of a round train and send, and the file their merge becomes.
//!
//! Of some kinds part of the merged adapter is the same for everybody and follows from the round's seed: it never
//! travels, and whoever writes the merged file draws it again. So the merged file is whole by itself: PEFT reads it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::ShapeError;
use super::header::canonical_header;
use super::shape::{FullShape, LoraShape, Module, SubspaceShape};
use super::tensors::{Tensor, TensorList};
use crate::number::{Dtype, Spread, seeded_from};

/// What a member trains and sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdapterKind {
    /// A and B of every module, from the common start drawn from the seed.
    Lora(LoraShape),
    /// B of every module; A stays as it was drawn. Then the mean of the updates is the update of the mean
    /// (FFA-LoRA, arXiv 2403.12313).
    FrozenA(LoraShape),
    /// B of every module for each of K random subspaces.
    Subspace(SubspaceShape),
    /// The difference of every weight.
    Full(FullShape),
}

impl AdapterKind {
    /// As the command line and tables call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Lora(_) => "lora",
            Self::FrozenA(_) => "frozen-a",
            Self::Subspace(_) => "subspace",
            Self::Full(_) => "full",
        }
    }

    /// The low-rank shape, of kinds that have one. Of subspaces it is that of one of them.
    pub const fn low_rank(&self) -> Option<&LoraShape> {
        match self {
            Self::Lora(shape) | Self::FrozenA(shape) | Self::Subspace(SubspaceShape { lora: shape, .. }) => Some(shape),
            Self::Full(_) => None,
        }
    }

    /// Rank of each module's two matrices in the merged file; 0 where there are none.
    pub fn rank_in_all(&self) -> u64 {
        match self {
            Self::Lora(shape) | Self::FrozenA(shape) => u64::from(shape.rank),
            Self::Subspace(shape) => shape.rank_in_all(),
            Self::Full(_) => 0,
        }
    }

    /// The tensors that members send.
    ///
    /// # Errors
    /// The first limit that is broken.
    pub fn tensors(&self) -> Result<TensorList, ShapeError> {
        match self {
            Self::Lora(shape) => shape.tensors(),
            Self::FrozenA(shape) => shape.tensors_of_rank(u64::from(shape.rank), false),
            Self::Subspace(shape) => {
                shape.check_fields()?;
                shape.lora.tensors_of_rank(shape.rank_in_all(), false)
            }
            Self::Full(shape) => shape.tensors(),
        }
    }

    /// `lora_A` of every module as the seed gives it: where A is trained it starts so, elsewhere it stays so.
    pub fn drawn(&self) -> Vec<DrawnTensor> {
        let Some(shape) = self.low_rank() else { return Vec::new() };
        let spread = |module: &Module| match self {
            Self::Subspace(_) => Spread::Projection { rank: u64::from(shape.rank) },
            _ => Spread::Inputs(module.inputs),
        };
        let rows = self.rank_in_all();
        let of = |module: &Module| DrawnTensor {
            tensor: Tensor::new(module.a_name(), [rows, module.inputs]),
            seed: shape.seed,
            spread: spread(module),
        };
        shape.modules.iter().map(of).collect()
    }

    /// The merged file.
    ///
    /// # Errors
    /// The first limit that is broken.
    pub fn merged(&self) -> Result<MergedFile, ShapeError> {
        let sent = self.tensors()?;
        match self {
            Self::Lora(_) | Self::Full(_) => Ok(MergedFile::of_means(sent)),
            Self::FrozenA(_) | Self::Subspace(_) => MergedFile::new(&sent, self.drawn()),
        }
    }
}

/// A tensor that follows from a round's seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrawnTensor {
    pub tensor: Tensor,
    seed: [u8; 32],
    spread: Spread,
}

impl DrawnTensor {
    /// Its elements, row by row.
    pub fn values(&self) -> impl Iterator<Item = f32> + use<> {
        self.values_from(0, usize::try_from(self.tensor.elements()).unwrap_or(usize::MAX))
    }

    /// `count` of them, from the one at `first` on.
    pub fn values_from(&self, first: u64, count: usize) -> impl Iterator<Item = f32> + use<> {
        seeded_from(&self.seed, &self.tensor.name, first, count, self.spread)
    }
}

/// Where a tensor of the merged file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The mean of what members sent: its place among the sent tensors.
    Mean(usize),
    Drawn(DrawnTensor),
}

/// The tensors of a merged file, and where each comes from. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergedFile {
    sent: TensorList,
    tensors: TensorList,
    sources: Arc<[Source]>,
}

impl MergedFile {
    /// The means of what was sent, and nothing else.
    pub fn of_means(sent: TensorList) -> Self {
        let sources = (0..sent.len()).map(Source::Mean).collect();
        Self { tensors: sent.clone(), sent, sources }
    }

    /// A stack of `rank` rows of what was sent.
    pub(crate) fn stack(sent: TensorList, rank: u64) -> Result<Self, ShapeError> {
        let tensors = sent.stacked(rank)?;
        Ok(Self { sent, ..Self::of_means(tensors) })
    }

    fn new(sent: &TensorList, drawn: Vec<DrawnTensor>) -> Result<Self, ShapeError> {
        let all = sent.iter().cloned().chain(drawn.iter().map(|drawn| drawn.tensor.clone()));
        let tensors = TensorList::new(all.collect())?;
        let mut sources: Vec<(&str, Source)> =
            sent.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), Source::Mean(index))).collect();
        sources.extend(drawn.iter().map(|drawn| (drawn.tensor.name.as_str(), Source::Drawn(drawn.clone()))));
        // The order of the list: names differ, or the list would have been refused.
        sources.sort_by_key(|(name, _)| *name);
        Ok(Self { sent: sent.clone(), tensors, sources: sources.into_iter().map(|(_, source)| source).collect() })
    }

    /// All its tensors, in the order of the file.
    pub fn tensors(&self) -> &TensorList {
        &self.tensors
    }

    /// Those that members send.
    pub fn sent(&self) -> &TensorList {
        &self.sent
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        let header = canonical_header(&self.tensors, Dtype::F32).len() as u64;
        self.tensors.elements().saturating_mul(Dtype::F32.bytes() as u64).saturating_add(header)
    }

    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }
}
