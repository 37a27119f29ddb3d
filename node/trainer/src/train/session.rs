//! The training loop, for any set of variables.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Tensor, Var};

use super::checkpoint::{self, Checkpoint, Part, State};
use super::gradients::{batch_gradients, pool};
use super::memory::keep_freed_memory;
use super::optimiser::{Moments, Optimiser};
use super::private::Private;
use super::progress::{Control, Losses, Moment, Outcome, Progress, Summary, TrainData};
use super::steps::Steps;
use super::stopping::{self, Evaluation};
use super::{TrainError, TrainSettings, resources};
use crate::data::TokenizedExample;
use crate::data::batches::Draw;
use crate::evaluate::held_out_loss;
use crate::models::{Decoder, Pass};

/// Is shown a training's beginning and end.
pub type Watch<'a> = dyn FnMut(&Moment) -> Result<(), TrainError> + 'a;

pub(super) struct Session<'a> {
    pub decoder: &'a Decoder,
    pub variables: &'a [(String, Var)],
    pub data: TrainData<'a>,
    pub settings: &'a TrainSettings,
    /// Folder of the checkpoint; without one nothing can be resumed.
    pub checkpoint: Option<&'a Path>,
    /// Which variables step `step` trains; without it, all. Where this changes from one step to the next, the moments of
    /// the variables that became active begin anew.
    pub active: Option<&'a dyn Fn(usize) -> Range<usize>>,
    /// Variables that every step trains beside those, with moments that go on.
    pub always: Range<usize>,
    pub watch: Option<&'a mut Watch<'a>>,
}

/// What changes from step to step, beside the variables.
struct Running {
    state: State,
    /// Of the active variables.
    optimiser: Optimiser,
    losses: Vec<f64>,
    history: Vec<Evaluation>,
    /// Values of the variables at the best evaluation, where they are wanted.
    best: Option<Vec<Tensor>>,
}

impl<'a> Session<'a> {
    pub fn new(
        decoder: &'a Decoder,
        variables: &'a [(String, Var)],
        data: TrainData<'a>,
        settings: &'a TrainSettings,
        checkpoint: Option<&'a Path>,
    ) -> Self {
        Self { decoder, variables, data, settings, checkpoint, active: None, always: 0..0, watch: None }
    }

    pub fn run(self, progress: &mut dyn FnMut(&Progress) -> Control) -> Result<Outcome<Summary>, TrainError> {
        self.steps(progress).map_err(TrainError::recognised)
    }

    fn steps(mut self, progress: &mut dyn FnMut(&Progress) -> Control) -> Result<Outcome<Summary>, TrainError> {
        let settings = self.settings;
        settings.check()?;
        if self.data.train.is_empty() {
            return Err(TrainError::NothingToLearn { length_max: settings.length_max });
        }
        if self.data.held_out.is_empty() && (settings.patience.is_some() || settings.keep_best) {
            return Err(TrainError::NothingHeldOut);
        }
        keep_freed_memory();
        let pool = pool(settings.threads)?;
        let mut steps = Steps::new(self.data.train.iter().map(|example| example.tokens.len()).collect(), settings);
        let count = steps.count();
        let digest = self.digest()?;
        let mut private = Private::new(settings, self.data.train.len(), count)?;
        self.show(0, count, &pool)?;
        let mut now = match self.resumed(&digest)? {
            Some(running) => running,
            None => self.fresh(digest, self.held_out_loss(&pool)?)?,
        };
        let (began, seconds_before, tokens_before, step_before) = (Instant::now(), now.state.seconds, now.state.tokens, now.state.step);
        let ended_early = |history: &[Evaluation]| {
            settings.patience.is_some_and(|patience| stopping::without_improvement(history, settings.min_delta) >= patience)
        };
        while now.state.step < count && !ended_early(&now.history) {
            let step = now.state.step;
            self.enter(step, &mut now)?;
            let active = self.trained(now.state.active);
            let pass = Pass { recompute: settings.recompute, dropout_seed: self.dropout_seed(step) };
            let batch = match &mut private {
                Some(private) => {
                    let examples = private.sample(self.data.train);
                    private.gradients(&pool, self.decoder, &active, &examples, self.data.train.len(), &pass)?
                }
                None => {
                    let examples: Vec<&TokenizedExample> = steps.examples(step).iter().map(|index| &self.data.train[*index]).collect();
                    batch_gradients(&pool, self.decoder, &active, &examples, settings.batch_size, &pass)?
                }
            };
            let loss = batch.loss;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step, loss });
            }
            let learning_rate = settings.learning_rate_at(step, count);
            let gradient_norm = now.optimiser.step(&active, &batch.gradients, settings, learning_rate)?;
            now.losses.push(loss);
            now.state.step += 1;
            now.state.active_steps += 1;
            now.state.tokens += batch.tokens as u64;
            drop(batch);
            let held_out_loss = self.evaluate(&mut now, count, &pool)?;
            let elapsed = began.elapsed().as_secs_f64();
            now.state.seconds = seconds_before + elapsed;
            let per_step = elapsed / (now.state.step - step_before) as f64;
            let control = progress(&Progress {
                step: now.state.step,
                steps: count,
                epoch: steps.epoch(step) + 1,
                epochs: settings.epochs,
                loss,
                learning_rate,
                gradient_norm,
                tokens: now.state.tokens,
                seconds: now.state.seconds,
                tokens_per_second: (now.state.tokens - tokens_before) as f64 / elapsed.max(1e-9),
                remaining: Duration::from_secs_f64(per_step * (count - now.state.step) as f64),
                memory: resources::memory(),
                loss_before: f64::from_bits(now.state.loss_before_bits),
                held_out_loss,
            });
            let ends = now.state.step == count || ended_early(&now.history);
            let stop = control == Control::Stop && !ends;
            let every = settings.checkpoint_every_steps;
            let due = every > 0 && now.state.step.is_multiple_of(every) && !ends;
            if let Some(dir) = self.checkpoint.filter(|_| stop || due) {
                self.save(dir, &mut now)?;
            }
            if stop {
                return Ok(Outcome::Stopped { step: now.state.step, steps: count });
            }
        }
        let promise = private.map(|private| private.promise());
        self.finish(now, count, &pool).map(|summary| Outcome::Finished(Summary { promise, ..summary }))
    }

    fn held_out_loss(&self, pool: &rayon::ThreadPool) -> Result<f64, TrainError> {
        let (decoder, examples) = (self.decoder, self.data.measured());
        Ok(pool.install(|| held_out_loss(decoder, examples))?.loss)
    }

    fn show(&mut self, step: usize, steps: usize, pool: &rayon::ThreadPool) -> Result<(), TrainError> {
        let Some(watch) = self.watch.as_mut() else { return Ok(()) };
        let pass = Pass { recompute: self.settings.recompute, dropout_seed: None };
        let (decoder, variables, at_once) = (self.decoder, self.variables, self.settings.batch_size);
        let gradients = |examples: &[&TokenizedExample]| batch_gradients(pool, decoder, variables, examples, at_once, &pass);
        watch(&Moment { step, steps, decoder, variables, train: self.data.train, gradients: &gradients })
    }

    fn fresh(&self, digest: String, loss_before: f64) -> Result<Running, TrainError> {
        let active = self.active(0);
        let state = State {
            step: 0,
            digest,
            tokens: 0,
            seconds: 0.0,
            loss_before_bits: loss_before.to_bits(),
            evaluations: Vec::new(),
            active: (active.start, active.end),
            active_steps: 0,
            best: false,
        };
        let optimiser = Optimiser::new(&self.trained(state.active))?;
        Ok(Running { state, optimiser, losses: Vec::new(), history: Vec::new(), best: None })
    }

    fn active(&self, step: usize) -> Range<usize> {
        self.active.map_or(0..self.variables.len(), |active| active(step))
    }

    /// The active variables, and behind them those that every step trains.
    fn trained(&self, (start, end): (usize, usize)) -> Vec<(String, Var)> {
        let always = self.variables.get(self.always.clone()).unwrap_or_default();
        self.variables.get(start..end).unwrap_or_default().iter().chain(always).cloned().collect()
    }

    /// Makes the variables of step `step` active, with new moments if others were.
    fn enter(&self, step: usize, now: &mut Running) -> Result<(), TrainError> {
        let active = self.active(step);
        if now.state.active != (active.start, active.end) {
            now.state.active = (active.start, active.end);
            now.state.active_steps = 0;
            let mut always = std::mem::take(&mut now.optimiser.moments);
            always.drain(..always.len() - self.always.len());
            now.optimiser = Optimiser::new(&self.variables[active])?;
            now.optimiser.moments.append(&mut always);
        }
        Ok(())
    }

    /// Another for each step; the same when a resumed training comes to it.
    fn dropout_seed(&self, step: usize) -> Option<u64> {
        (self.settings.dropout > 0.0).then(|| Draw::new(self.settings.seed, "dropout", step as u64).word())
    }

    /// Measures the held-out examples if it is time to, and keeps the variables if they are the best so far.
    fn evaluate(&self, now: &mut Running, count: usize, pool: &rayon::ThreadPool) -> Result<Option<f64>, TrainError> {
        let (every, step) = (self.settings.evaluate_every_steps, now.state.step);
        if every == 0 || !(step.is_multiple_of(every) || step == count) {
            return Ok(None);
        }
        let loss = self.held_out_loss(pool)?;
        now.history.push(Evaluation { step, loss });
        if self.settings.keep_best && stopping::best(&now.history).is_some_and(|best| best.step == step) {
            now.best = Some(self.variables.iter().map(|(_, variable)| variable.copy()).collect::<Result<_, _>>()?);
        }
        Ok(Some(loss))
    }

    fn finish(&mut self, now: Running, count: usize, pool: &rayon::ThreadPool) -> Result<Summary, TrainError> {
        let step = now.state.step;
        let best = stopping::best(&now.history).filter(|_| self.settings.keep_best);
        if let (Some(best), Some(values)) = (best, &now.best)
            && best.step != step
        {
            for ((_, variable), value) in self.variables.iter().zip(values) {
                variable.set(value)?;
            }
        }
        let measured = best.or_else(|| now.history.last().copied().filter(|last| last.step == step));
        let after = measured.map_or_else(|| self.held_out_loss(pool), |measured| Ok(measured.loss))?;
        self.show(step, count, pool)?;
        Ok(Summary {
            losses: Losses { before: f64::from_bits(now.state.loss_before_bits), after },
            steps: now.losses,
            chosen_step: best.map_or(step, |best| best.step),
            stopped_early: step < count,
            evaluations: now.history,
            tokens: now.state.tokens,
            seconds: now.state.seconds,
            promise: None,
        })
    }

    fn save(&self, dir: &Path, now: &mut Running) -> Result<(), TrainError> {
        now.state.evaluations = now.history.iter().map(|evaluation| (evaluation.step, evaluation.loss.to_bits())).collect();
        now.state.best = now.best.is_some();
        let mut parts = vec![("losses".to_string(), Part::Losses(&now.losses))];
        parts.extend(self.variables.iter().map(|(name, variable)| (format!("p.{name}"), Part::Tensor(variable.as_tensor()))));
        for ((name, _), moments) in self.trained(now.state.active).iter().zip(&now.optimiser.moments) {
            parts.extend([(format!("m.{name}"), Part::Tensor(&moments.first)), (format!("v.{name}"), Part::Tensor(&moments.second))]);
        }
        for ((name, _), value) in self.variables.iter().zip(now.best.iter().flatten()) {
            parts.push((format!("b.{name}"), Part::Tensor(value)));
        }
        checkpoint::write(dir, &now.state, &parts)?;
        Ok(())
    }

    /// What the checkpoint holds, its values put into the variables.
    fn resumed(&self, digest: &str) -> Result<Option<Running>, TrainError> {
        let Some(dir) = self.checkpoint else { return Ok(None) };
        let Some(mut saved) = Checkpoint::open(dir, digest)? else { return Ok(None) };
        let (losses, history) = (saved.losses()?, saved.state.history());
        let (start, end) = saved.state.active;
        self.variables.get(start..end).ok_or_else(|| saved.refuse("its active variables are not of this training"))?;
        let mut optimiser = Optimiser { moments: Vec::new() };
        for (index, (name, variable)) in self.trained((start, end)).iter().enumerate() {
            let (first, second) = (saved.tensor(&format!("m.{name}"), variable)?, saved.tensor(&format!("v.{name}"), variable)?);
            let steps = if index < end - start { saved.state.active_steps } else { saved.state.step };
            optimiser.moments.push(Moments { first, second, steps });
        }
        let mut best = None;
        if saved.state.best {
            let mut values = Vec::with_capacity(self.variables.len());
            for (name, variable) in self.variables {
                values.push(saved.tensor(&format!("b.{name}"), variable)?);
            }
            best = Some(values);
        }
        saved.restore(self.variables)?;
        Ok(Some(Running { state: saved.state, optimiser, losses, history, best }))
    }

    /// Names what is trained: settings, data and start. A checkpoint of anything else is not resumed from.
    fn digest(&self) -> Result<String, TrainError> {
        let mut hasher = blake3::Hasher::new_derive_key("mingle 2026-11 training checkpoint");
        // These change nothing of the result.
        let settings = TrainSettings { checkpoint_every_steps: 0, recompute: false, threads: None, ..self.settings.clone() };
        hasher.update(format!("{settings:?}").as_bytes());
        for example in self.data.train.iter().chain(self.data.measured()) {
            hasher.update(&(example.tokens.len() as u64).to_le_bytes());
            for (token, learned) in example.tokens.iter().zip(&example.learned) {
                hasher.update(&token.to_le_bytes()).update(&[u8::from(*learned)]);
            }
            hasher.update(format!("{:?} {:?}", example.types, example.label).as_bytes());
        }
        for (name, variable) in self.variables {
            hasher.update(name.as_bytes());
            for value in variable.flatten_all()?.to_vec1::<f32>()? {
                hasher.update(&value.to_le_bytes());
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}
