//! How a member comes by the one adapter it announces: by training it here, or from a PEFT directory made elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use mingle_protocol::hash::ContentHash;
use mingle_protocol::number::seeded_uniform;
use mingle_protocol::round::{Parent, Round};

use crate::data::{self, Template, TokenizedExample, Tokens};
use crate::driver::{Prepared, TrainingDesk, TrainingStatus};
use crate::home::Home;
use crate::merger::hash_of;
use crate::models::{BaseModel, base_digest};
use crate::peft::{self, Adapter};
use crate::train::{Control, Outcome, Progress, Start, TrainData, TrainSettings, TrainedAdapter, train_lora};

/// Examples kept from training, to measure it with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut(pub f64);

impl HeldOut {
    /// How many of `examples` are held out: the given part, at least one and never all.
    pub fn count(self, examples: usize) -> usize {
        if self.0 <= 0.0 || examples < 2 {
            return 0;
        }
        ((examples as f64 * self.0).round() as usize).clamp(1, examples - 1)
    }
}

/// A training as a member plans it; what the round pins is taken from the round.
#[derive(Clone, Debug)]
pub struct TrainingPlan {
    pub base: PathBuf,
    pub data: Vec<PathBuf>,
    pub held_out: HeldOut,
    pub template: Template,
    pub settings: TrainSettings,
    /// Start from this PEFT directory instead of the common start.
    pub start_from: Option<PathBuf>,
}

/// Training and held-out examples.
pub struct Examples {
    pub train: Vec<TokenizedExample>,
    pub held_out: Vec<TokenizedExample>,
}

impl TrainingPlan {
    /// Loads the base and reads the data, so that what is wrong with them is said before anything runs.
    ///
    /// # Errors
    /// A base or data that cannot be used, in one sentence each.
    pub fn load(&self) -> Result<(BaseModel, Examples)> {
        let base = BaseModel::load(&self.base, &Device::Cpu)?;
        let tokens = Tokens::read(&self.base, base.config())?;
        let mut records = Vec::new();
        for path in &self.data {
            records.extend(data::read_records(path)?);
        }
        let examples = tokens.examples(&records, self.template, self.settings.length_max)?;
        if examples.is_empty() {
            bail!("no example in the data has a label within {} tokens", self.settings.length_max);
        }
        let held_out = self.held_out.count(examples.len());
        let (train, held_out) = data::split_held_out(examples, held_out, self.settings.seed);
        Ok((base, Examples { train, held_out }))
    }

    /// The plan with the shape the round pins.
    pub fn for_round(mut self, round: &Round) -> Self {
        let shape = round.shape();
        self.settings.rank = shape.rank as usize;
        self.settings.alpha = f64::from(shape.alpha);
        self.settings.targets = shape.modules.iter().map(|module| module.name.clone()).collect();
        self
    }

    /// Trains for a round and leaves the adapter as a PEFT directory. The checkpoint stays until the adapter is announced.
    ///
    /// # Errors
    /// Another base than the round's, a start that is not the round's parent, data that cannot be used, or a training
    /// that was stopped.
    pub fn prepare(self, round: &Round, home: &Home, desk: &TrainingDesk) -> Result<Prepared> {
        let round_home = home.round(round.id());
        let plan = self.for_round(round);
        check_base(&plan.base, round)?;
        let start = match (&round.manifest().parent, &plan.start_from) {
            (Some(parent), from) => Some(parent_adapter(parent, from.as_deref(), home)?),
            (None, Some(from)) => {
                bail!("round \"{}\" has no parent, so its members may not start from {}", round.manifest().name, from.display())
            }
            (None, None) => None,
        };
        let (base, examples) = plan.load()?;
        let seed = round.shape().seed;
        let draw = |name: &str, count: usize, inputs: u64| seeded_uniform(&seed, name, count, inputs).collect::<Vec<f32>>();
        let start = start.as_ref().map_or(Start::Drawn(&draw), Start::Adapter);
        let checkpoint = round_home.training();
        let trained = train(&base, &examples, &plan.settings, start, Some(&checkpoint), |progress| {
            desk.report(status_of(progress));
            if desk.stopped() { Control::Stop } else { Control::Continue }
        })?;
        peft::write(&round_home.adapter(), &trained.adapter, Some(&round.manifest().base.name))?;
        Ok(Prepared {
            weights: round_home.adapter().join(peft::WEIGHTS),
            examples: trained.examples as u64,
            losses: Some((trained.losses.before, trained.losses.after)),
            seconds: trained.seconds,
        })
    }
}

/// Trains on loaded examples.
///
/// # Errors
/// What the training refuses, or that it was stopped.
pub fn train(
    base: &BaseModel,
    examples: &Examples,
    settings: &TrainSettings,
    start: Start,
    checkpoint: Option<&Path>,
    mut progress: impl FnMut(&Progress) -> Control,
) -> Result<TrainedAdapter> {
    let data = TrainData { train: &examples.train, held_out: &examples.held_out };
    match train_lora(base, data, settings, start, checkpoint, &mut progress)? {
        Outcome::Finished(trained) => Ok(trained),
        Outcome::Stopped { step, steps } => bail!("training was stopped after step {step} of {steps}; it goes on from there next time"),
    }
}

pub fn status_of(progress: &Progress) -> TrainingStatus {
    TrainingStatus {
        step: progress.step as u64,
        steps: progress.steps as u64,
        epoch: progress.epoch as u64,
        epochs: progress.epochs as u64,
        loss: f64::from(progress.loss),
        tokens_per_second: progress.tokens_per_second,
        seconds_left: progress.remaining.as_secs_f64(),
    }
}

/// Refuses a base with other weights than the round's.
///
/// # Errors
/// Both digests.
pub fn check_base(folder: &Path, round: &Round) -> Result<()> {
    let (found, expected) = (base_digest(folder)?, round.manifest().base.digest);
    anyhow::ensure!(
        found == expected,
        "{} holds a base with digest {found}, but round \"{}\" needs {expected} ({})",
        folder.display(),
        round.manifest().name,
        round.manifest().base.name
    );
    Ok(())
}

/// The merged adapter a chained round starts from: given, or left in this home by the parent round.
fn parent_adapter(parent: &Parent, given: Option<&Path>, home: &Home) -> Result<Adapter> {
    let folder = given.map_or_else(|| home.round(parent.round).merged_current(), Path::to_owned);
    let weights = folder.join(peft::WEIGHTS);
    let found: ContentHash =
        hash_of(&weights).with_context(|| format!("cannot read the parent round's merged adapter {}", weights.display()))?;
    anyhow::ensure!(found == parent.merged, "{} has hash {found}, but the round starts from {}", weights.display(), parent.merged);
    Ok(peft::read(&folder)?)
}

/// An adapter made by any trainer, checked against the round as far as its configuration goes; its tensors are checked
/// when it is announced.
///
/// # Errors
/// Rank or scaling other than the round's, or anything that is not plain LoRA, by name.
pub fn from_directory(folder: &Path, round: &Round, examples: u64) -> Result<Prepared> {
    let config = peft::read_config(folder)?;
    let shape = round.shape();
    let matches = |what: &str, found: f64, expected: f64| {
        anyhow::ensure!(
            found == expected,
            "{} has {what} {found}, but round \"{}\" needs {expected}",
            folder.display(),
            round.manifest().name
        );
        Ok(())
    };
    matches("rank", config.rank as f64, f64::from(shape.rank))?;
    matches("alpha", config.alpha, f64::from(shape.alpha))?;
    let weights = folder.join(peft::WEIGHTS);
    if !weights.exists() {
        // Says by name what is wrong with a directory of pickled or missing weights.
        peft::read(folder)?;
    }
    Ok(Prepared { weights, examples, losses: None, seconds: 0.0 })
}
