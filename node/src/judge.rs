//! What an adapter does to data of this peer's own: the held-out loss with what the round starts from (its base, or its
//! parent's merge), with a merge, and with the adapter merged as well.
//!
//! The merges are made by the fold that every peer uses, written where nobody else looks, and loaded as people load them:
//! what is measured is what would be published. Losses are floats of this machine, and no peer has to find the same; what
//! it signs is its own word.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::receipt::{Receipt, set_root};
use mingle_protocol::round::{Manifest, MergeRule, Round};
use mingle_protocol::verdict::TrialLosses;

use crate::data::{self, FieldMap, Template, TokenizedExample, Tokens};
use crate::evaluate::held_out_loss;
use crate::merged::write_adapter;
use crate::merger::{Merger, Unusable};
use crate::models::device::{DeviceChoice, Precision};
use crate::models::{BaseModel, Decoder, ModelConfig};
use crate::peft::Update;
use crate::store::Store;
use crate::train::pool;

/// How much worse than the worse of base and merge a loss may be and still be approved: other members' data differ.
pub const TOLERANCE: f64 = 0.02;

/// What a member judges by; the base and the data are loaded when the first adapter comes.
pub struct Judge {
    pub base: PathBuf,
    pub device: DeviceChoice,
    pub precision: Option<Precision>,
    pub threads: Option<usize>,
    pub tolerance: f64,
    /// The adapter that the round starts from, if any.
    pub start: Box<dyn FnOnce() -> Result<Option<Update>> + Send>,
    /// Whether it measures what is merged, too, for people to look at.
    pub scores: bool,
    pub examples: Box<dyn FnOnce() -> Result<Vec<TokenizedExample>> + Send>,
}

/// Every example of these files, to judge by.
///
/// # Errors
/// Data that cannot be used with this base.
pub fn read(base: &Path, files: &[PathBuf], fields: &FieldMap, template: Template, length_max: usize) -> Result<Vec<TokenizedExample>> {
    let tokens = Tokens::read(base, &ModelConfig::read(base)?)?;
    let mut records = Vec::new();
    for path in files {
        records.extend(data::read_records(path, fields)?);
    }
    Ok(tokens.examples(&records, template, length_max)?)
}

/// What one trial found.
#[derive(Debug, PartialEq)]
pub enum Tried {
    Measured(Measured),
    /// Adapters that could not be merged.
    Unusable(Vec<Unusable>),
}

#[derive(Debug, PartialEq)]
pub struct Measured {
    pub approves: bool,
    pub losses: TrialLosses,
    pub examples: u64,
}

/// A base, data, and a running merge to try adapters in.
pub struct Bench {
    round: Round,
    /// The same, with the rule by which adapters are tried.
    trial: Round,
    base: BaseModel,
    examples: Vec<TokenizedExample>,
    threads: rayon::ThreadPool,
    tolerance: f64,
    base_loss: f64,
    merger: Merger,
    /// Where merges are written to be measured.
    folder: PathBuf,
    /// The loss with the merge that was measured last, by its set root.
    last: Option<(ContentHash, f64)>,
}

impl Bench {
    /// Loads the base and the data, and measures what the round starts from.
    ///
    /// # Errors
    /// A base, a start or data that cannot be used, in one sentence.
    pub fn open(judge: Judge, round: Round, store: Store, folder: PathBuf) -> Result<Self> {
        let examples = (judge.examples)()?;
        ensure!(!examples.is_empty(), "no example of the held-out data has a label within the length it is cut at");
        let base = BaseModel::load_on(&judge.base, &judge.device.open()?, judge.precision)?;
        let trial = trial_of(&round)?;
        let merger = Merger::new(trial.clone(), store);
        let (threads, tolerance) = (pool(judge.threads)?, judge.tolerance);
        let mut bench = Self { round, trial, base, examples, threads, tolerance, base_loss: 0.0, merger, folder, last: None };
        let begun = match (judge.start)()? {
            Some(start) => start.apply(&bench.base)?,
            None => bench.base.decoder(),
        };
        bench.base_loss = bench.loss(&begun)?;
        ensure!(bench.base_loss.is_finite(), "the held-out loss before any adapter is merged is {}", bench.base_loss);
        Ok(bench)
    }

    /// Measures `candidate` against `merged`, what counts now; its author's adapter is left out of that.
    ///
    /// # Errors
    /// Trouble of this machine.
    pub fn measure(&mut self, merged: &[Admitted], candidate: &Admitted) -> Result<Tried> {
        let mut set: Vec<Admitted> = merged.iter().filter(|entry| entry.member != candidate.member).cloned().collect();
        let before = match self.loss_with(&set)? {
            Ok(loss) => loss,
            Err(unusable) => return Ok(Tried::Unusable(unusable)),
        };
        set.push(candidate.clone());
        set.sort();
        let with = match self.loss_with(&set)? {
            Ok(loss) => loss.unwrap_or(f64::NAN),
            Err(unusable) => return Ok(Tried::Unusable(unusable)),
        };
        let losses = TrialLosses {
            base_micronats: micronats(self.base_loss).unwrap_or(u64::MAX),
            merged_micronats: before.and_then(micronats),
            with_micronats: micronats(with),
        };
        let approves = approves(self.base_loss, before, with, self.tolerance);
        Ok(Tried::Measured(Measured { approves, losses, examples: self.examples.len() as u64 }))
    }

    /// The loss with a merge, and with the base alone. The merge is in `folder` as long as it is the newest; after that it is
    /// made once more, where adapters are tried by the round's own rule.
    ///
    /// # Errors
    /// An older merge that cannot be made any more, or one that the model refuses.
    pub fn score(&mut self, receipt: &Receipt, folder: &Path) -> Result<(f64, f64)> {
        let loss = match Update::read(folder) {
            Ok(update) => self.loss(&update.apply(&self.base)?)?,
            Err(_) if self.trial.id() == self.round.id() => {
                let made = self.loss_with(&receipt.admitted)?.ok().flatten();
                made.context("an adapter of the merge is gone")?
            }
            Err(error) => return Err(error.into()),
        };
        Ok((loss, self.base_loss))
    }

    pub fn examples(&self) -> u64 {
        self.examples.len() as u64
    }

    /// The loss with the merge of a set; `None` for that of nothing.
    fn loss_with(&mut self, set: &[Admitted]) -> Result<Result<Option<f64>, Vec<Unusable>>> {
        if set.is_empty() {
            return Ok(Ok(None));
        }
        let root = set_root(self.round.id(), set);
        if let Some((_, loss)) = self.last.filter(|(measured, _)| *measured == root) {
            return Ok(Ok(Some(loss)));
        }
        let update = match self.merge(set)? {
            Ok(update) => update,
            Err(unusable) => return Ok(Err(unusable)),
        };
        let loss = self.loss(&update.apply(&self.base)?)?;
        self.last = Some((root, loss));
        Ok(Ok(Some(loss)))
    }

    /// The merge of a set as people would load it; or what of it cannot be merged.
    fn merge(&mut self, set: &[Admitted]) -> Result<Result<Update, Vec<Unusable>>> {
        let unusable = self.merger.step(set)?;
        if !unusable.is_empty() {
            return Ok(Err(unusable));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
        std::fs::create_dir_all(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        write_adapter(&self.folder, &self.trial, |sink| self.merger.write(sink))?;
        let update = Update::read(&self.folder)?;
        let _ = std::fs::remove_dir_all(&self.folder);
        Ok(Ok(update))
    }

    fn loss(&self, decoder: &Decoder) -> Result<f64> {
        Ok(self.threads.install(|| held_out_loss(decoder, &self.examples))?.loss)
    }
}

/// The round by whose rule adapters are tried: its own, or where that merges nothing before many are admitted, the mean. What is
/// asked is what one adapter does.
fn trial_of(round: &Round) -> Result<Round> {
    let manifest = round.manifest();
    if manifest.rule.needs() <= 1 {
        return Ok(round.clone());
    }
    Ok(Round::new(Manifest { rule: MergeRule::Mean, ..manifest.clone() })?)
}

/// Whether an adapter may count, by the losses at the round's start, with what was merged before, and with the adapter as well.
/// Nothing is approved with which the loss is no number.
fn approves(base: f64, merged: Option<f64>, with: f64, tolerance: f64) -> bool {
    // `max` passes over what is no number.
    with.is_finite() && with <= merged.map_or(base, |merged| merged.max(base)) * (1.0 + tolerance)
}

fn micronats(nats: f64) -> Option<u64> {
    nats.is_finite().then(|| (nats * 1e6).round().clamp(0.0, 1e15) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_both_base_and_merge_worse_is_not_approved_and_what_is_no_number_never() {
        assert!(approves(3.0, None, 3.05, 0.02) && !approves(3.0, None, 3.07, 0.02));
        // Where the merge is better than the base, an adapter may cost some of that, for others' data differ.
        assert!(approves(3.0, Some(2.0), 2.5, 0.02) && !approves(3.0, Some(2.0), 3.07, 0.02));
        // Where it is worse, no more than it is.
        assert!(approves(3.0, Some(3.5), 3.4, 0.02) && !approves(3.0, Some(3.5), 3.6, 0.02));
        assert!(!approves(3.0, Some(2.0), 2.001, -0.5));
        for with in [f64::NAN, f64::INFINITY] {
            assert!(!approves(3.0, None, with, 0.02) && !approves(3.0, Some(f64::INFINITY), with, 0.02));
        }
        assert!(!approves(3.0, Some(f64::NAN), 4.0, 0.02));
        assert_eq!([2.5, f64::NAN, f64::INFINITY].map(micronats), [Some(2_500_000), None, None]);
    }
}
