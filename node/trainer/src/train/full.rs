//! Training of every weight: how this repository pre-trains the small bases it ships.

use std::path::Path;

use candle_core::{Device, Tensor, Var};

use super::session::{Control, Losses, Outcome, Progress, Session, TrainData};
use super::{TrainError, TrainSettings};
use crate::data::batches::Draw;
use crate::models::{Decoder, ModelConfig};

/// Standard deviation of a fresh model's matrices, as transformers begins.
const INITIAL_DEVIATION: f64 = 0.02;

/// A finished training of all weights; [`Decoder::save`] writes it as a Hugging Face directory.
pub struct TrainedModel {
    pub losses: Losses,
    /// Loss of each step's batch.
    pub step_losses: Vec<f32>,
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
    let session = Session { decoder, variables, data, settings, checkpoint };
    Ok(match session.run(progress)? {
        Outcome::Finished(summary) => Outcome::Finished(TrainedModel {
            losses: summary.losses,
            step_losses: summary.steps,
            tokens: summary.tokens,
            seconds: summary.seconds,
        }),
        Outcome::Stopped { step, steps } => Outcome::Stopped { step, steps },
    })
}
