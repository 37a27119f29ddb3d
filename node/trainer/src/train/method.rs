//! What of a model is trained: low-rank matrices, one of the two, sums within random subspaces, or every weight.

use serde::{Deserialize, Serialize};

use super::{TrainError, TrainSettings};
use crate::models::targets::first_key;
use crate::models::{LinearModule, ModelError};
use crate::peft::{Adapter, AdapterConfig, CAUSAL_LM, SEQ_CLS, Targets, target_names};

/// What is trained, and what stays as it was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A and B of every adapted module.
    #[default]
    Lora,
    /// B alone.
    FrozenA,
    /// B alone, in `seeds` blocks that take turns of `interval` steps (`subspace` says how).
    Subspace { seeds: usize, interval: usize },
    /// Every weight of the base.
    Full,
}

impl Method {
    /// Blocks that each module's matrices are made of, one below the other in A and side by side in B.
    pub fn blocks(self) -> usize {
        match self {
            Self::Subspace { seeds, .. } => seeds,
            _ => 1,
        }
    }
}

/// Settings of the low-rank parts beside rank, alpha and targets.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LowRankSettings {
    /// Scale by alpha / sqrt(rank) instead of alpha / rank.
    pub rslora: bool,
    /// Ranks of modules that differ, by expressions as PEFT matches them.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules that differ, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are trained whole, such as `classifier`.
    pub saved: Vec<String>,
}

impl TrainSettings {
    /// Refuses what the method cannot be told.
    pub(super) fn check_method(&self) -> Result<(), TrainError> {
        let refuse = |setting, found: String, expected| Err(TrainError::Setting { setting, found, expected });
        let low_rank = &self.low_rank;
        for (key, rank) in &low_rank.rank_pattern {
            first_key([key.as_str()].into_iter(), "")?;
            if *rank == 0 {
                return refuse("rank_pattern", format!("0 for \"{key}\""), "at least 1");
            }
        }
        for (key, alpha) in &low_rank.alpha_pattern {
            first_key([key.as_str()].into_iter(), "")?;
            if !(alpha.is_finite() && *alpha > 0.0) {
                return refuse("alpha_pattern", format!("{alpha} for \"{key}\""), "a positive number");
            }
        }
        let Method::Subspace { seeds, interval } = self.method else { return Ok(()) };
        match (seeds, interval) {
            (0, _) => refuse("the number of subspaces", "0".into(), "at least 1"),
            (_, 0) => refuse("the steps in one subspace", "0".into(), "at least 1"),
            _ if low_rank.rslora || !low_rank.rank_pattern.is_empty() || !low_rank.alpha_pattern.is_empty() => {
                refuse("the subspaces' scale", "set by module or by the root of the rank".into(), "alpha / rank for all of them")
            }
            _ => Ok(()),
        }
    }

    /// The configuration of the adapter these settings make. Of subspaces it is that of all of them together: K matrices of
    /// rank r side by side are one of rank K r, and alpha grows with it, so that the scale is the same.
    pub fn adapter_config(&self, modules: &[LinearModule]) -> AdapterConfig {
        let blocks = self.method.blocks();
        let names: Vec<String> = modules.iter().map(|module| module.name.clone()).collect();
        AdapterConfig {
            rslora: self.low_rank.rslora,
            rank_pattern: self.low_rank.rank_pattern.clone(),
            alpha_pattern: self.low_rank.alpha_pattern.clone(),
            saved: self.low_rank.saved.clone(),
            ..config_of(self.rank * blocks, self.alpha * blocks as f64, &names, &self.low_rank.saved)
        }
    }
}

/// Last parts of names of modules whose weights GPT-2 stores transposed.
const TRANSPOSED: [&str; 3] = ["c_attn", "c_proj", "c_fc"];
/// Heads of classifiers.
const CLASSIFIERS: [&str; 2] = ["classifier", "score"];

/// The configuration of an adapter of one rank and alpha: what follows from the names of its modules is filled in.
pub fn config_of(rank: usize, alpha: f64, modules: &[String], saved: &[String]) -> AdapterConfig {
    let transposed = |name: &String| name.rsplit('.').next().is_some_and(|last| TRANSPOSED.contains(&last));
    let head = |name: &String| name.split('.').any(|part| CLASSIFIERS.contains(&part));
    AdapterConfig {
        targets: Targets::List(target_names(modules)),
        saved: saved.to_vec(),
        task: Some(if saved.iter().any(head) { SEQ_CLS } else { CAUSAL_LM }.into()),
        fan_in_fan_out: modules.iter().any(transposed),
        ..AdapterConfig::plain(rank, alpha, Vec::new())
    }
}

/// Refuses an adapter to start from whose matrices these settings would read in another way.
pub(super) fn check_start(adapter: &Adapter, config: &AdapterConfig, modules: &[LinearModule]) -> Result<(), TrainError> {
    let differ = |setting, found: f64, expected: f64| match found == expected {
        true => Ok(()),
        false => Err(TrainError::Setting { setting, found: format!("{found} where the settings say {expected}"), expected: "the same" }),
    };
    for LinearModule { name, .. } in modules {
        differ("the starting adapter's rank", adapter.config.rank_of(name) as f64, config.rank_of(name) as f64)?;
        differ("the starting adapter's scale", adapter.config.scale_of(name), config.scale_of(name))?;
    }
    let known = |name: &String| modules.iter().any(|module| module.name == *name);
    match adapter.modules().iter().find(|name| !known(name)) {
        Some(name) => Err(ModelError::AdapterModule { name: name.clone() }.into()),
        None => Ok(()),
    }
}
