//! What a training is given, what it tells while it runs, and how it ends.

use std::time::Duration;

use candle_core::Var;

use super::TrainError;
use super::gradients::BatchGradients;
use super::privacy::Promise;
use super::resources::Memory;
use super::stopping::Evaluation;
use crate::data::TokenizedExample;
use crate::models::Decoder;

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
    pub fn measured(&self) -> &'a [TokenizedExample] {
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
    /// Of this step's batches, before its update.
    pub loss: f64,
    pub learning_rate: f64,
    /// Length of the step's gradient, before clipping.
    pub gradient_norm: f64,
    /// Over all steps done, in this process and before it.
    pub tokens: u64,
    pub seconds: f64,
    /// Since this process began or resumed the training, evaluations included.
    pub tokens_per_second: f64,
    pub remaining: Duration,
    /// Of this process, where the system tells.
    pub memory: Option<Memory>,
    /// Held-out loss before the first step.
    pub loss_before: f64,
    /// Held-out loss after this step, where it was measured.
    pub held_out_loss: Option<f64>,
}

/// Answer to a [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Write a checkpoint, where there is a folder for it, and stop.
    Stop,
}

/// A training before its first step (`step` is 0) or after its last, for whoever measures more than losses. A resumed
/// training shows its beginning too: the variables have their starting values.
pub struct Moment<'a> {
    pub step: usize,
    pub steps: usize,
    pub decoder: &'a Decoder,
    pub variables: &'a [(String, Var)],
    pub train: &'a [TokenizedExample],
    /// Loss and gradients of examples at the variables' present values, without dropout.
    pub gradients: &'a dyn Fn(&[&TokenizedExample]) -> Result<BatchGradients, TrainError>,
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

impl<T> Outcome<T> {
    /// The same ending, what was made seen as something else.
    pub fn map<U>(self, into: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Finished(made) => Outcome::Finished(into(made)),
            Self::Stopped { step, steps } => Outcome::Stopped { step, steps },
        }
    }
}

/// Mean loss over labelled tokens, measured without training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    pub before: f64,
    /// Of what is handed out: the last step's variables, or the best evaluation's.
    pub after: f64,
}

/// What every training reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    pub losses: Losses,
    /// Loss of each step.
    pub steps: Vec<f64>,
    /// The held-out losses measured after steps.
    pub evaluations: Vec<Evaluation>,
    /// The step whose variables are handed out.
    pub chosen_step: usize,
    /// The patience ended it.
    pub stopped_early: bool,
    /// Tokens fed over all steps.
    pub tokens: u64,
    pub seconds: f64,
    /// Where it was private.
    pub promise: Option<Promise>,
}
