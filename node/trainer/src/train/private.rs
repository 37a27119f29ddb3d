//! Gradients of private steps: who takes part, each example's share bounded, and noise on the sum.

use candle_core::{Device, Tensor, Var};

use super::TrainError;
use super::gradients::{BatchGradients, batch_gradients};
use super::privacy::Promise;
use super::settings::TrainSettings;
use crate::data::TokenizedExample;
use crate::data::batches::Draw;
use crate::models::{Decoder, Pass, ops};

/// What every private step draws from. It is secret and new in each process: who knew it could take the noise away again. So a
/// private training that is resumed does not end with the same bytes, and promises the same.
pub(super) struct Private {
    secret: Draw,
    chance: f64,
    promise: Promise,
}

impl Private {
    /// # Errors
    /// An epsilon that no noise gives, or no random numbers from the operating system.
    pub fn new(settings: &TrainSettings, examples: usize, steps: usize) -> Result<Option<Self>, TrainError> {
        let Some(promise) = settings.promise(examples, steps)? else { return Ok(None) };
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| TrainError::Random(error.to_string()))?;
        Ok(Some(Self { secret: Draw::keyed(&key), chance: settings.chance(examples), promise }))
    }

    /// What the whole training promises.
    pub fn promise(&self) -> Promise {
        self.promise
    }

    /// Who takes part in the next step: each by its own chance, so now and then nobody.
    pub fn sample<'a>(&mut self, examples: &'a [TokenizedExample]) -> Vec<&'a TokenizedExample> {
        let chance = self.chance;
        examples.iter().filter(|_| self.secret.unit() < chance).collect()
    }

    /// The sum of the examples' gradients, each of length `clip` at most, with noise, over the examples that were to be
    /// expected.
    ///
    /// # Errors
    /// What the model refuses.
    pub fn gradients(
        &mut self,
        pool: &rayon::ThreadPool,
        decoder: &Decoder,
        variables: &[(String, Var)],
        examples: &[&TokenizedExample],
        of: usize,
        pass: &Pass,
    ) -> Result<BatchGradients, TrainError> {
        let Promise { clip, noise, .. } = self.promise;
        let mut sums = variables.iter().map(|(_, variable)| variable.as_tensor().zeros_like()).collect::<Result<Vec<_>, _>>()?;
        let (mut loss, mut tokens, mut labels) = (0.0, 0, 0);
        for example in examples {
            let one = batch_gradients(pool, decoder, variables, std::slice::from_ref(example), 1, pass)?;
            let squares = one.gradients.iter().map(ops::squared_norm).sum::<Result<f64, _>>()?;
            let scale = if squares > clip * clip { clip / squares.sqrt() } else { 1.0 };
            // A gradient that is no number would take the sum with it, and with it every other example's.
            if squares.is_finite() {
                for (sum, gradient) in sums.iter_mut().zip(&one.gradients) {
                    *sum = (&*sum + (gradient * scale)?)?;
                }
            }
            loss += one.loss;
            tokens += one.tokens;
            labels += one.labels;
        }
        let expected = self.chance * of as f64;
        let mut gradients = Vec::with_capacity(sums.len());
        for sum in sums {
            let noise = self.normal(&sum, noise * clip)?;
            gradients.push(((sum + noise)? / expected)?);
        }
        Ok(BatchGradients { loss: loss / examples.len().max(1) as f64, gradients, tokens, labels })
    }

    /// Normal numbers in the shape of `like`.
    fn normal(&mut self, like: &Tensor, deviation: f64) -> Result<Tensor, TrainError> {
        let numbers: Vec<f32> = (0..like.elem_count()).map(|_| (deviation * self.secret.normal()) as f32).collect();
        Ok(Tensor::from_vec(numbers, like.shape(), &Device::Cpu)?.to_device(like.device())?)
    }
}
