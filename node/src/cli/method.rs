//! Options that say what of a model is trained, shared by `mingle round new` and `mingle train`.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use mingle_protocol::adapter::{AdapterKind, FullShape, LoraShape, Module, Scaling, SubspaceShape, Tensor};

use crate::models::LinearModule;
use crate::train::settings::ALL_TARGETS;
use crate::train::{LowRankSettings, Method, TrainSettings};

/// What is trained, and what travels.
#[derive(Args, Clone, Debug)]
pub struct MethodArgs {
    /// What is trained and sent [default: lora, or what a preset says]
    #[arg(long)]
    pub method: Option<MethodArg>,
    /// LoRA rank; of each subspace [default: 16, with subspaces 8]
    #[arg(long)]
    pub rank: Option<u32>,
    /// LoRA alpha [default: twice the rank; with subspaces the rank, which scales by 1]
    #[arg(long)]
    pub alpha: Option<u32>,
    /// Linear layers to adapt: ends of their names, `all-linear`, or `re:` and a regular expression for whole names
    #[arg(long, value_delimiter = ',', default_values_t = ALL_TARGETS.map(String::from))]
    pub targets: Vec<String>,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank
    #[arg(long)]
    pub rslora: bool,
    /// Modules that are trained and sent whole, such as `classifier`
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub save_modules: Vec<String>,
    /// Random subspaces that take turns
    #[arg(long, default_value_t = 8, value_name = "K")]
    pub subspaces: u32,
    /// Steps in one subspace before the next one's turn
    #[arg(long, default_value_t = 10, value_name = "STEPS")]
    pub interval: u32,
}

/// A method by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodArg {
    /// Both low-rank matrices
    Lora,
    /// B; A stays as the common seed draws it
    FrozenA,
    /// The sums of all steps within random subspaces (FedKRSO)
    Subspace,
    /// Every weight
    Full,
}

/// Ranks and alphas of single modules: for adapters outside a round, where all have one.
#[derive(Args, Clone, Debug, Default)]
pub struct PatternArgs {
    /// Rank of the modules an expression means, as PEFT matches it; given several times
    #[arg(long, value_name = "KEY=RANK", value_parser = keyed::<usize>)]
    pub rank_pattern: Vec<(String, usize)>,
    /// Alpha of the modules an expression means, likewise
    #[arg(long, value_name = "KEY=ALPHA", value_parser = keyed::<f64>)]
    pub alpha_pattern: Vec<(String, f64)>,
}

fn keyed<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let (key, value) = text.rsplit_once('=').ok_or("expected KEY=NUMBER, such as q_proj=8")?;
    Ok((key.into(), value.parse().map_err(|_| format!("{value:?} is not a number"))?))
}

impl PatternArgs {
    /// In the order of their bytes, in which PEFT reads them back.
    pub fn set(self, settings: &mut LowRankSettings) {
        (settings.rank_pattern, settings.alpha_pattern) = (self.rank_pattern, self.alpha_pattern);
        settings.rank_pattern.sort_by(|a, b| a.0.cmp(&b.0));
        settings.alpha_pattern.sort_by(|a, b| a.0.cmp(&b.0));
    }
}

impl MethodArgs {
    pub fn method(&self) -> MethodArg {
        self.method.unwrap_or(MethodArg::Lora)
    }

    fn rank(&self) -> u32 {
        self.rank.unwrap_or(if self.method() == MethodArg::Subspace { 8 } else { 16 })
    }

    fn alpha(&self) -> u32 {
        self.alpha.unwrap_or(if self.method() == MethodArg::Subspace { self.rank() } else { self.rank().saturating_mul(2) })
    }

    /// Puts the options into the settings of a training.
    pub fn set(&self, settings: &mut TrainSettings) {
        settings.method = match self.method {
            None => settings.method,
            Some(MethodArg::Lora) => Method::Lora,
            Some(MethodArg::FrozenA) => Method::FrozenA,
            Some(MethodArg::Subspace) => Method::Subspace { seeds: self.subspaces as usize, interval: self.interval as usize },
            Some(MethodArg::Full) => Method::Full,
        };
        settings.rank = self.rank() as usize;
        settings.alpha = f64::from(self.alpha());
        settings.targets = self.targets.clone();
        settings.low_rank = LowRankSettings { rslora: self.rslora, saved: self.save_modules.clone(), ..LowRankSettings::default() };
    }

    /// The kind of a round: over `modules`, with `saved` whole tensors beside them, or over all `weights`.
    ///
    /// # Errors
    /// Options that the method has no use for.
    pub fn kind(&self, modules: &[LinearModule], saved: Vec<Tensor>, weights: Vec<Tensor>, seed: [u8; 32]) -> Result<AdapterKind> {
        let module = |module: &LinearModule| Module { name: module.name.clone(), inputs: module.inputs, outputs: module.outputs };
        let low_rank = || LoraShape {
            scaling: if self.rslora { Scaling::Rslora } else { Scaling::Standard },
            saved,
            ..LoraShape::new(self.rank(), self.alpha(), seed, modules.iter().map(module).collect())
        };
        Ok(match self.method() {
            MethodArg::Lora => AdapterKind::Lora(low_rank()),
            MethodArg::FrozenA => AdapterKind::FrozenA(low_rank()),
            MethodArg::Subspace => {
                AdapterKind::Subspace(SubspaceShape { seeds: self.subspaces, interval: self.interval, lora: low_rank() })
            }
            MethodArg::Full if !self.save_modules.is_empty() => bail!("--save-modules: --method full trains every weight already"),
            MethodArg::Full => AdapterKind::Full(FullShape { weights }),
        })
    }
}
