//! How a member comes by the one adapter it announces: by training it here, or from a PEFT directory made elsewhere.

mod brought;

pub use brought::from_directory;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mingle_protocol::adapter::{AdapterKind, Scaling};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::number::{Spread, seeded};
use mingle_protocol::record::Privacy;
use mingle_protocol::round::Round;

use crate::bases::Digests;
use crate::data::{self, FieldMap, Template, TokenizedExample, Tokens};
use crate::driver::{Prepared, TrainingDesk, TrainingStatus};
use crate::home::Home;
use crate::merged::module_of;
use crate::merger::hash_of;
use crate::models::device::{DeviceChoice, OpenedDevice};
use crate::models::weights::Weights;
use crate::models::{BaseModel, ModelConfig};
use crate::peft::{Difference, Update};
use crate::sent::{merged_file, write_sent};
use crate::train::diagnostics::{Diagnostics, Ends};
use crate::train::estimate::{Estimate, Trainable, estimate};
use crate::train::metrics::{Metrics, MetricsPlan};
use crate::train::{
    Control, DrawTensor, LowRankSettings, Method, Outcome, Progress, Promise, Start, TrainData, TrainSettings, Trained, TrainedAdapter,
    pool, train_adapter, train_difference,
};

/// Where a training begins: drawn, or where another ended.
#[derive(Clone, Copy)]
pub struct Beginning<'a> {
    pub draw: &'a DrawTensor<'a>,
    pub from: Option<&'a Update>,
}

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
    /// Which of the data's columns are what.
    pub fields: FieldMap,
    pub template: Template,
    pub settings: TrainSettings,
    /// Start from this PEFT directory instead of the common start.
    pub start_from: Option<PathBuf>,
    pub metrics: MetricsPlan,
    pub device: DeviceChoice,
    /// Train even if the estimate says that the memory will not do.
    pub ignore_memory: bool,
}

/// Training and held-out examples.
pub struct Examples {
    pub train: Vec<TokenizedExample>,
    pub held_out: Vec<TokenizedExample>,
}

impl TrainingPlan {
    /// Without data: for who only measures.
    pub fn of_base(base: PathBuf) -> Self {
        Self {
            base,
            data: Vec::new(),
            held_out: HeldOut(0.0),
            fields: FieldMap::default(),
            template: Template::default(),
            settings: TrainSettings::default(),
            start_from: None,
            metrics: MetricsPlan::default(),
            device: DeviceChoice::default(),
            ignore_memory: false,
        }
    }

    /// Loads the base and reads the data, so that what is wrong with them is said before anything runs.
    ///
    /// # Errors
    /// A base or data that cannot be used, or a training that needs more memory than there is, in one sentence each.
    pub fn load(&self, device: &OpenedDevice) -> Result<(BaseModel, Examples)> {
        let examples = self.examples()?;
        if !self.ignore_memory {
            self.estimate(&examples)?.check()?;
        }
        Ok((BaseModel::load_on(&self.base, device, self.settings.precision)?, examples))
    }

    /// Reads the data and splits it. Needs of the base its configuration and its tokenizer.
    ///
    /// # Errors
    /// As [`TrainingPlan::load`].
    pub fn examples(&self) -> Result<Examples> {
        let settings = &self.settings;
        let tokens = Tokens::read(&self.base, &ModelConfig::read(&self.base)?)?;
        let mut records = Vec::new();
        for path in &self.data {
            records.extend(data::read_records(path, &self.fields)?);
        }
        let (train, held_out) = if settings.pack {
            let held_out = self.held_out.count(records.len());
            data::packed(&tokens, records, self.template, settings.length_max, held_out, settings.seed)?
        } else {
            let examples = tokens.examples(&records, self.template, settings.length_max)?;
            let held_out = self.held_out.count(examples.len());
            data::split_held_out(examples, held_out, settings.seed)
        };
        if train.is_empty() {
            bail!("no example in the data has a label within {} tokens", settings.length_max);
        }
        Ok(Examples { train, held_out })
    }

    /// What this training will need. Reads no weights, only the headers of their files.
    ///
    /// # Errors
    /// A base that cannot be used, or targets that it does not have.
    pub fn estimate(&self, examples: &Examples) -> Result<Estimate> {
        let (settings, config) = (&self.settings, ModelConfig::read(&self.base)?);
        settings.check()?;
        let parameters = Weights::open(&self.base)?.elements();
        let trainable = trainable(&config, parameters, settings)?;
        let lengths: Vec<usize> = examples.train.iter().map(|example| example.tokens.len()).collect();
        Ok(estimate(&config, parameters, trainable, &lengths, settings))
    }

    /// The plan with the shape the round pins.
    pub fn for_round(mut self, round: &Round) -> Self {
        let kind = round.kind();
        self.settings.method = match kind {
            AdapterKind::Lora(_) => Method::Lora,
            AdapterKind::FrozenA(_) => Method::FrozenA,
            AdapterKind::Subspace(shape) => Method::Subspace { seeds: shape.seeds as usize, interval: shape.interval as usize },
            AdapterKind::Full(_) => Method::Full,
        };
        if let Some(shape) = kind.low_rank() {
            self.settings.rank = shape.rank as usize;
            self.settings.alpha = f64::from(shape.alpha);
            let saved: BTreeSet<String> = shape.saved.iter().map(|tensor| module_of(&tensor.name).to_owned()).collect();
            self.settings.low_rank =
                LowRankSettings { rslora: shape.scaling == Scaling::Rslora, saved: saved.into_iter().collect(), ..Default::default() };
            self.settings.targets = shape.modules.iter().map(|module| module.name.clone()).collect();
        }
        self
    }

    /// Trains for a round and leaves the adapter as a PEFT directory. The checkpoint stays until the adapter is announced.
    /// That the base is the round's was checked before ([`check_base`]): reading all of it once is enough.
    ///
    /// # Errors
    /// A start that is not the round's parent, data that cannot be used, or a training
    /// that was stopped.
    pub fn prepare(self, round: &Round, home: &Home, desk: &TrainingDesk) -> Result<Prepared> {
        let round_home = home.round(round.id());
        let plan = self.for_round(round);
        let start = start_of(round, home, plan.start_from.as_deref())?;
        let (base, examples) = plan.load(&plan.device.open()?)?;
        let seed = round.kind().low_rank().map_or([0; 32], |shape| shape.seed);
        let draw = |name: &str, count: usize, spread: Spread| seeded(&seed, name, count, spread).collect::<Vec<f32>>();
        let start = Beginning { draw: &draw, from: start.as_ref() };
        let checkpoint = round_home.training();
        let outcome = train(&base, &examples, &plan, start, Some(&checkpoint), |progress| {
            desk.report(status_of(progress));
            if desk.stopped() { Control::Stop } else { Control::Continue }
        })?;
        let mut trained = match outcome {
            Outcome::Finished(trained) => trained,
            Outcome::Stopped { step, steps } => {
                bail!("training was stopped after step {step} of {steps}; it goes on from there next time")
            }
        };
        name_base(&mut trained.adapter, Some(round.manifest().base.name.clone()));
        trained.adapter.write(&round_home.adapter())?;
        Ok(Prepared {
            weights: write_sent(&round_home.adapter(), &trained.adapter, round)?,
            examples: trained.examples as u64,
            // What they were measured on is not protected.
            losses: trained.promise.is_none().then_some((trained.losses.before, trained.losses.after)),
            privacy: trained.promise.map(promised),
            seconds: trained.seconds,
        })
    }
}

/// A promise as an announcement says it, rounded towards less of it.
fn promised(promise: Promise) -> Privacy {
    let of = |value: f64, units: f64| (value * units).ceil() as u64;
    Privacy {
        epsilon_millionths: of(promise.epsilon, 1e6),
        delta_trillionths: of(promise.delta, 1e12),
        clip_millionths: of(promise.clip, 1e6),
        noise_millionths: (promise.noise * 1e6).floor() as u64,
    }
}

/// Trains on loaded examples, and writes the metrics the plan asks for.
///
/// # Errors
/// What the training refuses, or metrics that cannot be written.
pub fn train(
    base: &BaseModel,
    examples: &Examples,
    plan: &TrainingPlan,
    start: Beginning,
    checkpoint: Option<&Path>,
    mut progress: impl FnMut(&Progress) -> Control,
) -> Result<Outcome<Trained<Update>>> {
    let data = TrainData { train: &examples.train, held_out: &examples.held_out };
    let mut metrics = Metrics::new(&plan.metrics)?;
    let mut failed = None;
    let mut told = |step: &Progress| {
        failed = metrics.record(step).err();
        let control = progress(step);
        if failed.is_some() { Control::Stop } else { control }
    };
    let settings = &plan.settings;
    let outcome = match (settings.method, start.from) {
        (Method::Full, None) => whole(train_difference(base, data, settings, None, checkpoint, &mut told)?),
        (Method::Full, Some(Update::Difference(from))) => whole(train_difference(base, data, settings, Some(from), checkpoint, &mut told)?),
        (Method::Full, Some(_)) => bail!("a full training goes on from a difference of all weights, not from an adapter"),
        (_, None) => low_rank(train_adapter(base, data, settings, Start::Drawn(start.draw), checkpoint, &mut told)?),
        (_, Some(Update::Adapter(from))) => low_rank(train_adapter(base, data, settings, Start::Adapter(from), checkpoint, &mut told)?),
        (_, Some(_)) => bail!("a training of low-rank matrices goes on from an adapter, not from a difference of all weights"),
    };
    failed.map_or(Ok(outcome), |error| Err(error.into()))
}

fn low_rank(outcome: Outcome<TrainedAdapter>) -> Outcome<Trained<Update>> {
    outcome.map(|trained| trained.map(Update::Adapter))
}

fn whole(outcome: Outcome<Trained<Difference>>) -> Outcome<Trained<Update>> {
    outcome.map(|trained| trained.map(Update::Difference))
}

/// Examples on which the smoothness of the loss is measured.
const DIAGNOSED_EXAMPLES: usize = 32;

/// Measures the quantities of the one-round theorem on a finished training.
///
/// # Errors
/// What the model refuses.
pub fn diagnose(
    base: &BaseModel,
    from: Option<&Update>,
    trained: &Trained<Update>,
    examples: &Examples,
    settings: &TrainSettings,
) -> Result<Diagnostics> {
    let start = from.map(|from| from.parts(base)).transpose()?.unwrap_or_default();
    let end = trained.adapter.parts(base)?;
    let measured = if examples.held_out.is_empty() { &examples.train } else { &examples.held_out };
    let measured: Vec<&TokenizedExample> = measured.iter().take(DIAGNOSED_EXAMPLES).collect();
    let ends = Ends { base, start: &start, end: &end, examples: &measured, steps: trained.step_losses.len() };
    Ok(ends.diagnose(&pool(settings.threads)?, settings.batch_size)?)
}

/// Says in an adapter's configuration what it was trained on.
pub fn name_base(update: &mut Update, name: Option<String>) {
    if let Update::Adapter(adapter) = update {
        adapter.config.base = name;
    }
}

pub fn status_of(progress: &Progress) -> TrainingStatus {
    TrainingStatus {
        step: progress.step as u64,
        steps: progress.steps as u64,
        epoch: progress.epoch as u64,
        epochs: progress.epochs as u64,
        loss: progress.loss,
        tokens_per_second: progress.tokens_per_second,
        seconds_left: progress.remaining.as_secs_f64(),
        learning_rate: progress.learning_rate,
        gradient_norm: progress.gradient_norm,
        resident_bytes: progress.memory.map(|memory| memory.resident),
        peak_bytes: progress.memory.map(|memory| memory.peak),
        held_out_loss: progress.held_out_loss,
    }
}

/// What a method trains of a base with so many numbers. Heads are few beside the rest.
fn trainable(config: &ModelConfig, parameters: u64, settings: &TrainSettings) -> Result<Trainable> {
    if settings.method == Method::Full {
        return Ok(Trainable { parameters, active: parameters, packed: 0, rank_per_block: 0 });
    }
    let modules = config.modules(&settings.targets)?;
    let adapter = settings.adapter_config(&modules);
    let (mut trained, mut ranks) = (0, 0);
    for module in &modules {
        let rank = adapter.rank_of(&module.name) as u64;
        let inputs = if settings.method == Method::Lora { module.inputs } else { 0 };
        trained += rank * (inputs + module.outputs);
        ranks += rank;
    }
    let active = trained / settings.method.blocks() as u64;
    let linear = config.modules(&["all-linear".to_owned()])?;
    let head = (config.vocabulary * config.hidden) as u64;
    let packed = head + linear.iter().map(|module| module.inputs * module.outputs).sum::<u64>();
    Ok(Trainable { parameters: trained, active, packed, rank_per_block: ranks / config.layers as u64 })
}

/// Refuses a base with other weights than the round's.
///
/// # Errors
/// Both digests.
pub fn check_base(folder: &Path, round: &Round, digests: &Digests) -> Result<()> {
    let (found, expected) = (digests.digest(folder)?, round.manifest().base.digest);
    anyhow::ensure!(
        found == expected,
        "{} holds a base with digest {found}, but round \"{}\" needs {expected} ({})",
        folder.display(),
        round.manifest().name,
        round.manifest().base.name
    );
    Ok(())
}

/// The merged adapter from which a round's members start, if it has a parent: the one in the folder that was given, or what the
/// parent round left in this home.
///
/// # Errors
/// Another adapter than the round's parent, or a folder that nobody asked for.
pub fn start_of(round: &Round, home: &Home, given: Option<&Path>) -> Result<Option<Update>> {
    let Some(parent) = &round.manifest().parent else {
        let name = &round.manifest().name;
        return match given {
            Some(folder) => bail!("round \"{name}\" has no parent, so its members may not start from {}", folder.display()),
            None => Ok(None),
        };
    };
    let folder = given.map_or_else(|| home.round(parent.round).merged_current(), Path::to_owned);
    let weights = merged_file(&folder, round.kind());
    let found: ContentHash =
        hash_of(&weights).with_context(|| format!("cannot read the parent round's merged adapter {}", weights.display()))?;
    anyhow::ensure!(found == parent.merged, "{} has hash {found}, but the round starts from {}", weights.display(), parent.merged);
    Ok(Some(Update::read(&folder)?))
}
