//! Training of every weight: of a base on data of one's own, and how this repository pre-trains the small bases it ships.

use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::lora::Trained;
use super::progress::{Control, Losses, Outcome, Progress, TrainData};
use super::session::Session;
use super::{TrainError, TrainSettings};
use crate::data::batches::Draw;
use crate::models::{BaseModel, Decoder, ModelConfig, ModelError};
use crate::peft::Difference;

/// Standard deviation of a fresh model's matrices, as transformers begins.
const INITIAL_DEVIATION: f64 = 0.02;

/// A finished training of all weights; [`Decoder::save`] writes it as a Hugging Face directory.
pub struct TrainedModel {
    pub losses: Losses,
    /// Loss of each step.
    pub step_losses: Vec<f64>,
    /// Tokens fed over all steps, padding not counted.
    pub tokens: u64,
    pub seconds: f64,
}

/// A fresh model: matrices normal with deviation 0.02, norms 1, drawn from `seed`. The variables are sorted by name.
pub fn random_decoder(config: ModelConfig, seed: u64, device: &Device) -> Result<(Decoder, Vec<(String, Var)>), TrainError> {
    let ones = 1.0 - config.norm_offset;
    let found = Decoder::all_variables(config, device, &mut |name, dims| {
        let mut draw = Draw::new(seed, name, 0);
        let count = dims.iter().product();
        let values = match dims.len() {
            1 if name.ends_with(".bias") => vec![0.0; count],
            1 => vec![ones; count],
            _ => (0..count).map(|_| (draw.normal() * INITIAL_DEVIATION) as f32).collect(),
        };
        Ok(Tensor::from_vec(values, dims, device)?)
    });
    Ok(found?)
}

/// Trains `variables`, the weights of `decoder` ([`random_decoder`], `BaseModel::trainable`), in place.
pub fn train_full(
    decoder: &Decoder,
    variables: &[(String, Var)],
    data: TrainData,
    settings: &TrainSettings,
    checkpoint: Option<&Path>,
    progress: &mut dyn FnMut(&Progress) -> Control,
) -> Result<Outcome<TrainedModel>, TrainError> {
    Ok(match Session::new(decoder, variables, data, settings, checkpoint).run(progress)? {
        Outcome::Finished(summary) => Outcome::Finished(TrainedModel {
            losses: summary.losses,
            step_losses: summary.steps,
            tokens: summary.tokens,
            seconds: summary.seconds,
        }),
        Outcome::Stopped { step, steps } => Outcome::Stopped { step, steps },
    })
}

/// Trains every weight of `base`, from `start` where a round before left a difference, and gives the difference.
///
/// # Errors
/// A difference of another base, and what any training refuses.
pub fn train_difference(
    base: &BaseModel,
    data: TrainData,
    settings: &TrainSettings,
    start: Option<&Difference>,
    checkpoint: Option<&Path>,
    progress: &mut dyn FnMut(&Progress) -> Control,
) -> Result<Outcome<Trained<Difference>>, TrainError> {
    let (decoder, variables) = base.trainable()?;
    if let Some(start) = start {
        let mut begin = start.added_to(base)?;
        for (name, variable) in &variables {
            let value = begin.remove(name).ok_or_else(|| ModelError::AdapterHalf { name: name.clone() })?;
            variable.set(&value)?;
        }
    }
    let summary = match Session::new(&decoder, &variables, data, settings, checkpoint).run(progress)? {
        Outcome::Finished(summary) => summary,
        Outcome::Stopped { step, steps } => return Ok(Outcome::Stopped { step, steps }),
    };
    let weights: Vec<(String, Tensor)> = variables.into_iter().map(|(name, variable)| (name, variable.as_tensor().clone())).collect();
    Ok(Outcome::Finished(Trained::new(Difference::between(base, &weights)?, summary, data)))
}
