//! The shapes that rounds pin: which modules are adapted, and how wide the two matrices are.
//!
//! A shape may come from a stranger's manifest: every limit is checked before anything is allocated from it.

use serde::{Deserialize, Serialize};

use super::error::ShapeError;
use super::tensors::{Tensor, TensorList};

pub const RANK_MAX: u32 = 1024;
pub const ALPHA_MAX: u32 = 65_536;
/// Enough for seven projections in each of 292 layers. With [`NAME_BYTES_MAX`] it keeps every header we write inside the
/// bound for headers we read.
pub const MODULES_MAX: usize = 2048;
/// Whole tensors beside the adapted modules: a head or two.
pub const SAVED_MAX: usize = 64;
/// Weights of a model that is trained as a whole.
pub const WEIGHTS_MAX: usize = 4096;
pub const NAME_BYTES_MAX: usize = 128;
pub const DIMENSION_MAX: u64 = 1 << 20;
/// 8 GiB of `f32`, and 16 GiB of running sums.
pub const ELEMENTS_MAX: u64 = 1 << 31;
/// Steps a subspace is trained for before the next one's turn.
pub const INTERVAL_MAX: u32 = 1 << 20;

/// What PEFT puts before every name.
const PREFIX: &str = "base_model.model.";
/// And behind a module's.
pub(super) const A_SUFFIX: &str = ".lora_A.weight";
pub(super) const B_SUFFIX: &str = ".lora_B.weight";

/// One linear layer that the adapter changes: it takes `inputs` numbers and gives `outputs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// The layer's name in the base, for example `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub inputs: u64,
    pub outputs: u64,
}

impl Module {
    /// Its lora_A as PEFT names it.
    pub fn a_name(&self) -> String {
        format!("{PREFIX}{}{A_SUFFIX}", self.name)
    }

    /// Its lora_B as PEFT names it.
    pub fn b_name(&self) -> String {
        format!("{PREFIX}{}{B_SUFFIX}", self.name)
    }
}

/// What the product of the two matrices is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// alpha / rank.
    #[default]
    Standard,
    /// alpha / sqrt(rank): rank-stabilised, arXiv 2312.03732.
    Rslora,
}

impl Scaling {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Rslora => "rslora",
        }
    }

    fn is_standard(&self) -> bool {
        *self == Self::Standard
    }
}

/// Low-rank parts of a round's modules. The update of a module is `scaling * B A`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraShape {
    pub rank: u32,
    pub alpha: u32,
    #[serde(default, skip_serializing_if = "Scaling::is_standard")]
    pub scaling: Scaling,
    /// A is drawn from this, the same for all members; B starts at zero.
    #[serde(serialize_with = "crate::hash::serialize_key", deserialize_with = "crate::hash::deserialize_key")]
    pub seed: [u8; 32],
    pub modules: Vec<Module>,
    /// Tensors of the base that are trained and sent whole, such as `classifier.weight`: what PEFT calls modules to save.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saved: Vec<Tensor>,
}

impl LoraShape {
    /// Standard scaling, and nothing but low-rank parts.
    pub fn new(rank: u32, alpha: u32, seed: [u8; 32], modules: Vec<Module>) -> Self {
        Self { rank, alpha, scaling: Scaling::Standard, seed, modules, saved: Vec::new() }
    }

    /// Whether the shape says no more than rank, alpha, seed and modules.
    pub fn is_plain(&self) -> bool {
        self.scaling.is_standard() && self.saved.is_empty()
    }

    /// Checks every limit. A manifest whose shape fails here is no round.
    ///
    /// # Errors
    /// The first limit that is broken.
    pub fn check(&self) -> Result<(), ShapeError> {
        self.tensors().map(|_| ())
    }

    /// `lora_A` `[rank, inputs]` and `lora_B` `[outputs, rank]` of every module, and the saved tensors.
    ///
    /// # Errors
    /// The first limit that is broken.
    pub fn tensors(&self) -> Result<TensorList, ShapeError> {
        self.tensors_of_rank(u64::from(self.rank), true)
    }

    /// As [`LoraShape::tensors`], for matrices of another rank, and the A left out where nobody sends them.
    pub(super) fn tensors_of_rank(&self, rank: u64, with_a: bool) -> Result<TensorList, ShapeError> {
        self.check_fields()?;
        if rank > u64::from(RANK_MAX) {
            return Err(ShapeError::RankInAll { found: rank });
        }
        let a = |module: &Module| with_a.then(|| Tensor::new(module.a_name(), [rank, module.inputs]));
        let b = |module: &Module| Tensor::new(module.b_name(), [module.outputs, rank]);
        let low_rank = self.modules.iter().flat_map(|module| [a(module), Some(b(module))]).flatten();
        let saved = self.saved.iter().map(|tensor| Tensor::new(format!("{PREFIX}{}", tensor.name), tensor.dims.clone()));
        TensorList::new(low_rank.chain(saved).collect())
    }

    fn check_fields(&self) -> Result<(), ShapeError> {
        if !(1..=RANK_MAX).contains(&self.rank) {
            return Err(ShapeError::Rank { found: self.rank });
        }
        if !(1..=ALPHA_MAX).contains(&self.alpha) {
            return Err(ShapeError::Alpha { found: self.alpha });
        }
        if !(1..=MODULES_MAX).contains(&self.modules.len()) {
            return Err(ShapeError::Modules { found: self.modules.len() });
        }
        if self.saved.len() > SAVED_MAX {
            return Err(ShapeError::Saved { found: self.saved.len() });
        }
        for Module { name, inputs, outputs } in &self.modules {
            check_name(name)?;
            if let Some(found) = [*inputs, *outputs].into_iter().find(|dimension| !(1..=DIMENSION_MAX).contains(dimension)) {
                return Err(ShapeError::Dimension { name: name.clone(), found });
            }
        }
        self.saved.iter().try_for_each(|tensor| check_name(&tensor.name))?;
        let mut names: Vec<&str> = self.modules.iter().map(|module| module.name.as_str()).collect();
        names.sort_unstable();
        match names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
            Some((name, _)) => Err(ShapeError::Duplicate { name: (*name).to_owned() }),
            None => Ok(()),
        }
    }
}

/// Full updates within random subspaces (FedKRSO, arXiv 2602.03019). Seed k of `seeds` gives each module a fixed random
/// matrix `A_k` of `lora.rank` rows; what is trained and sent is the sum `B_k` of all steps taken within it. The update of
/// a module is `alpha / rank * (B_1 A_1 + ... + B_K A_K)`: a LoRA of rank `seeds * rank`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubspaceShape {
    /// K.
    pub seeds: u32,
    /// Steps a member trains within one subspace before it goes on to another.
    pub interval: u32,
    pub lora: LoraShape,
}

impl SubspaceShape {
    /// Rank of all subspaces together.
    pub fn rank_in_all(&self) -> u64 {
        u64::from(self.seeds).saturating_mul(u64::from(self.lora.rank))
    }

    pub(super) fn check_fields(&self) -> Result<(), ShapeError> {
        if !(1..=RANK_MAX).contains(&self.seeds) {
            return Err(ShapeError::Seeds { found: self.seeds });
        }
        if !(1..=INTERVAL_MAX).contains(&self.interval) {
            return Err(ShapeError::Interval { found: self.interval });
        }
        match self.lora.scaling {
            Scaling::Standard => Ok(()),
            Scaling::Rslora => Err(ShapeError::SubspaceScaling),
        }
    }
}

/// Every weight of the base: members send the difference each training made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullShape {
    /// The weights by their names in the base.
    pub weights: Vec<Tensor>,
}

impl FullShape {
    /// # Errors
    /// The first limit that is broken.
    pub fn tensors(&self) -> Result<TensorList, ShapeError> {
        if !(1..=WEIGHTS_MAX).contains(&self.weights.len()) {
            return Err(ShapeError::Weights { found: self.weights.len() });
        }
        self.weights.iter().try_for_each(|tensor| check_name(&tensor.name))?;
        TensorList::new(self.weights.clone())
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
