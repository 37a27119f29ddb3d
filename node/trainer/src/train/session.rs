//! The training loop, for any set of variables.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::Var;

use super::checkpoint::{self, State};
use super::gradients::{batch_gradients, pool};
use super::memory::keep_freed_memory;
use super::optimiser::Optimiser;
use super::{TrainError, TrainSettings};
use crate::data::{TokenizedExample, epoch_batches};
use crate::evaluate::held_out_loss;
use crate::models::{Decoder, Pass};

/// What is trained on, and what is only measured on. Without held-out examples the losses before and after are measured
/// on the first training examples.
#[derive(Clone, Copy)]
pub struct TrainData<'a> {
    pub train: &'a [TokenizedExample],
    pub held_out: &'a [TokenizedExample],
}

/// Training examples that stand in for missing held-out ones.
const STAND_IN_EXAMPLES: usize = 64;

impl<'a> TrainData<'a> {
    fn measured(&self) -> &'a [TokenizedExample] {
        match self.held_out.is_empty() {
            true => &self.train[..self.train.len().min(STAND_IN_EXAMPLES)],
            false => self.held_out,
        }
    }
}

/// Where a training stands, after each step.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Steps done, of `steps`.
    pub step: usize,
    pub steps: usize,
    /// The epoch the step belongs to, from 1, of `epochs`.
    pub epoch: usize,
    pub epochs: usize,
    /// Of this step's batch, before its update.
    pub loss: f32,
    pub learning_rate: f64,
    /// Since this process began or resumed the training; padding not counted.
    pub tokens_per_second: f64,
    pub remaining: Duration,
}

/// Answer to a [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Write a checkpoint, where there is a folder for it, and stop.
    Stop,
}

/// How a training ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome<T> {
    Finished(T),
    /// Stopped when asked; a later call with the same arguments goes on from the checkpoint.
    Stopped {
        step: usize,
        steps: usize,
    },
}

/// Mean loss over labelled tokens, measured without training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    pub before: f64,
    pub after: f64,
}

/// What every training reports.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Summary {
    pub losses: Losses,
    /// Of each step.
    pub steps: Vec<f32>,
    pub tokens: u64,
    pub seconds: f64,
}

pub(super) struct Session<'a> {
    pub decoder: &'a Decoder,
    pub variables: &'a [(String, Var)],
    pub data: TrainData<'a>,
    pub settings: &'a TrainSettings,
    /// Folder of the checkpoint; without one nothing can be resumed.
    pub checkpoint: Option<&'a Path>,
}

impl Session<'_> {
    pub fn run(&self, progress: &mut dyn FnMut(&Progress) -> Control) -> Result<Outcome<Summary>, TrainError> {
        let settings = self.settings;
        settings.check()?;
        if self.data.train.is_empty() {
            return Err(TrainError::NothingToLearn { length_max: settings.length_max });
        }
        keep_freed_memory();
        let pool = pool(settings.threads)?;
        let measure = || pool.install(|| held_out_loss(self.decoder, self.data.measured())).map(|found| found.loss);
        let lengths: Vec<usize> = self.data.train.iter().map(|example| example.tokens.len()).collect();
        let steps = settings.steps(lengths.len());
        let steps_per_epoch = lengths.len().div_ceil(settings.batch_size);

        let digest = self.digest()?;
        let mut optimiser = Optimiser::new(self.variables)?;
        let saved = match self.checkpoint {
            Some(dir) => checkpoint::read(dir, &digest, self.variables)?,
            None => None,
        };
        let (mut state, mut losses) = match saved {
            Some(saved) => {
                checkpoint::restore(&saved, self.variables)?;
                optimiser.import(saved.variables.into_iter().map(|[_, m, v]| (m, v)))?;
                (saved.state, saved.losses)
            }
            None => {
                let loss_before_bits = measure()?.to_bits();
                (State { step: 0, digest, tokens: 0, seconds: 0.0, loss_before_bits }, Vec::new())
            }
        };
        let (began, seconds_before, tokens_before, step_before) = (Instant::now(), state.seconds, state.tokens, state.step);
        let mut plan = (usize::MAX, Vec::new());
        while state.step < steps {
            let epoch = state.step / steps_per_epoch;
            if plan.0 != epoch {
                plan = (epoch, epoch_batches(&lengths, settings.batch_size, settings.seed, epoch));
            }
            let indices = &plan.1[state.step % steps_per_epoch];
            let examples: Vec<&TokenizedExample> = indices.iter().map(|index| &self.data.train[*index]).collect();
            let batch = batch_gradients(&pool, self.decoder, self.variables, &examples, settings.batch_size, &Pass::default())?;
            let loss = batch.loss as f32;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step: state.step, loss });
            }
            optimiser.step(self.variables, &batch.gradients, settings, state.step, steps)?;
            losses.push(loss);
            let learning_rate = settings.learning_rate_at(state.step, steps);
            state.step += 1;
            state.tokens += batch.tokens as u64;
            let elapsed = began.elapsed().as_secs_f64();
            state.seconds = seconds_before + elapsed;
            let per_step = elapsed / (state.step - step_before) as f64;
            let control = progress(&Progress {
                step: state.step,
                steps,
                epoch: epoch + 1,
                epochs: settings.epochs,
                loss,
                learning_rate,
                tokens_per_second: (state.tokens - tokens_before) as f64 / elapsed.max(1e-9),
                remaining: Duration::from_secs_f64(per_step * (steps - state.step) as f64),
            });
            let stop = control == Control::Stop && state.step < steps;
            let every = settings.checkpoint_every_steps;
            let due = every > 0 && state.step.is_multiple_of(every) && state.step < steps;
            if let Some(dir) = self.checkpoint.filter(|_| stop || due) {
                checkpoint::write(dir, &state, &losses, self.variables, &optimiser.export()?)?;
            }
            if stop {
                return Ok(Outcome::Stopped { step: state.step, steps });
            }
        }
        let measured = Losses { before: f64::from_bits(state.loss_before_bits), after: measure()? };
        Ok(Outcome::Finished(Summary { losses: measured, steps: losses, tokens: state.tokens, seconds: state.seconds }))
    }

    /// Names what is trained: settings, data and start. A checkpoint of anything else is not resumed from.
    fn digest(&self) -> Result<String, TrainError> {
        let mut hasher = blake3::Hasher::new_derive_key("mingle 2026-11 training checkpoint");
        let settings = TrainSettings { checkpoint_every_steps: 0, threads: None, ..self.settings.clone() };
        hasher.update(format!("{settings:?}").as_bytes());
        for example in self.data.train.iter().chain(self.data.measured()) {
            hasher.update(&(example.tokens.len() as u64).to_le_bytes());
            for (token, learned) in example.tokens.iter().zip(&example.learned) {
                hasher.update(&token.to_le_bytes()).update(&[u8::from(*learned)]);
            }
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
