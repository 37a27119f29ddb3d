//! What a training can be told.

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::method::{LowRankSettings, Method};
use super::privacy::{Noise, Privacy, Promise};
use super::schedule::{self, Schedule, Warmup};
use crate::data::BatchRule;
use crate::models::device::Precision;

/// Settings of one training. The defaults suit LoRA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    pub epochs: usize,
    /// Ends the training earlier than the epochs would.
    pub steps_max: Option<usize>,
    /// Examples of one batch.
    pub batch_size: usize,
    /// A batch takes as many examples as have this many tokens together, in place of `batch_size`.
    pub batch_tokens: Option<usize>,
    /// Batches of one optimiser step. The loss of a step is the mean over the labels of all its batches.
    pub accumulate: usize,
    /// Examples of one batch are of similar length.
    pub group_by_length: bool,
    pub learning_rate: f64,
    pub schedule: Schedule,
    /// Part of all steps over which the learning rate rises from 0, where `warmup_steps` does not say how many.
    pub warmup_ratio: f64,
    pub warmup_steps: Option<usize>,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Gradients longer than this are scaled down to it; 0 leaves them.
    pub clip_norm: f64,
    /// What of the model is trained.
    pub method: Method,
    pub low_rank: LowRankSettings,
    /// Tokens an example is cut at.
    pub length_max: usize,
    /// Plain texts are laid one after the other and cut into blocks of `length_max`.
    pub pack: bool,
    pub seed: u64,
    pub rank: usize,
    pub alpha: f64,
    /// Part of the input that LoRA does not see in a step, drawn anew each time.
    pub dropout: f64,
    /// Linear modules that get LoRA: `q_proj`, or a whole module name.
    pub targets: Vec<String>,
    /// The held-out loss is measured after so many steps; 0 measures it before the first and after the last only.
    pub evaluate_every_steps: usize,
    /// Evaluations without an improvement after which the training ends.
    pub patience: Option<usize>,
    /// A lower loss is an improvement for `patience` if it is lower by more than this.
    pub min_delta: f64,
    /// What the best evaluation saw is handed out, in place of what the last step made.
    pub keep_best: bool,
    /// Activations are kept at block boundaries only and computed again in the backward pass. The result is the same.
    pub recompute: bool,
    /// Of the frozen weights and the activations; what is trained is kept in f32 always.
    pub precision: Option<Precision>,
    /// A checkpoint is written after so many steps; 0 writes one only when stopped.
    pub checkpoint_every_steps: usize,
    /// Each example's share of a step is bounded and drowned in noise; without it, nothing is promised.
    pub privacy: Option<Privacy>,
    /// Threads that compute; none means as many as the machine has processors. The result does not depend on it.
    #[serde(skip)]
    pub threads: Option<usize>,
}

/// All linear modules of a block.
pub const ALL_TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            epochs: 1,
            steps_max: None,
            batch_size: 16,
            batch_tokens: None,
            accumulate: 1,
            group_by_length: true,
            learning_rate: 3e-4,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.05,
            warmup_steps: None,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            method: Method::Lora,
            low_rank: LowRankSettings::default(),
            length_max: 512,
            pack: false,
            seed: 0,
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: ALL_TARGETS.map(String::from).to_vec(),
            evaluate_every_steps: 0,
            patience: None,
            min_delta: 0.0,
            keep_best: false,
            recompute: false,
            precision: None,
            checkpoint_every_steps: 50,
            privacy: None,
            threads: None,
        }
    }
}

impl TrainSettings {
    /// Refuses settings that cannot be trained with.
    pub fn check(&self) -> Result<(), TrainError> {
        let require = |fine: bool, setting, found: &dyn std::fmt::Display, expected| match fine {
            true => Ok(()),
            false => Err(TrainError::Setting { setting, found: found.to_string(), expected }),
        };
        require(self.epochs > 0, "epochs", &self.epochs, "at least 1")?;
        require(self.batch_size > 0, "batch_size", &self.batch_size, "at least 1")?;
        require(self.accumulate > 0, "accumulate", &self.accumulate, "at least 1")?;
        require(self.batch_tokens != Some(0), "batch_tokens", &0, "at least 1")?;
        require(self.rank > 0, "rank", &self.rank, "at least 1")?;
        require(self.length_max > 1, "length_max", &self.length_max, "at least 2")?;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        require(positive(self.learning_rate), "learning_rate", &self.learning_rate, "a positive number")?;
        self.check_method()?;
        require(positive(self.alpha), "alpha", &self.alpha, "a positive number")?;
        require(positive(self.epsilon), "epsilon", &self.epsilon, "a positive number")?;
        require(not_negative(self.weight_decay), "weight_decay", &self.weight_decay, "0 or a positive number")?;
        require(not_negative(self.clip_norm), "clip_norm", &self.clip_norm, "0 or a positive number")?;
        require((0.0..=1.0).contains(&self.warmup_ratio), "warmup_ratio", &self.warmup_ratio, "between 0 and 1")?;
        require(not_negative(self.min_delta), "min_delta", &self.min_delta, "0 or a positive number")?;
        require(self.patience != Some(0), "patience", &0, "at least 1 evaluation")?;
        let evaluates = self.evaluate_every_steps > 0;
        require(evaluates || self.patience.is_none(), "evaluate_every_steps", &0, "at least 1 where a patience is given")?;
        require(evaluates || !self.keep_best, "evaluate_every_steps", &0, "at least 1 where the best is to be kept")?;
        self.check_privacy()?;
        for (setting, beta) in [("beta1", self.beta1), ("beta2", self.beta2), ("dropout", self.dropout)] {
            require((0.0..1.0).contains(&beta), setting, &beta, "at least 0 and below 1")?;
        }
        Ok(())
    }

    /// What is promised is promised for each example of a step that was drawn by chance, and for nothing that is chosen by a
    /// look at held-out ones.
    fn check_privacy(&self) -> Result<(), TrainError> {
        let Some(Privacy { clip, noise, delta }) = self.privacy else { return Ok(()) };
        let refuse =
            |setting, found: &dyn std::fmt::Display, expected| Err(TrainError::Setting { setting, found: found.to_string(), expected });
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let (Noise::Multiplier(amount) | Noise::Epsilon(amount)) = noise;
        match () {
            () if !positive(clip) => refuse("privacy_clip", &clip, "a positive number"),
            () if !positive(amount) => refuse("privacy_epsilon or privacy_noise", &amount, "a positive number"),
            () if !(delta > 0.0 && delta < 1.0) => refuse("privacy_delta", &delta, "above 0 and below 1"),
            () if self.pack => refuse("pack", &true, "left out of a private training: blocks mix what is to be protected"),
            () if self.batch_tokens.is_some() => {
                refuse("batch_tokens", &"given", "left out of a private training: who takes part is drawn by chance")
            }
            () if self.patience.is_some() || self.keep_best => {
                refuse("patience or keep_best", &"given", "left out of a private training: held-out examples are not protected")
            }
            () => Ok(()),
        }
    }

    /// An example's chance to take part in a step of a private training.
    pub(super) fn chance(&self, examples: usize) -> f64 {
        ((self.batch_size * self.accumulate) as f64 / examples.max(1) as f64).min(1.0)
    }

    /// What so many steps on so many examples promise; `None` where nothing is asked for.
    ///
    /// # Errors
    /// An epsilon that no noise gives.
    pub fn promise(&self, examples: usize, steps: usize) -> Result<Option<Promise>, TrainError> {
        let Some(privacy) = &self.privacy else { return Ok(None) };
        let promise = privacy.promise(self.chance(examples), steps);
        promise.map(Some).ok_or(TrainError::Setting {
            setting: "privacy_epsilon",
            found: "too small".into(),
            expected: "one that some noise gives: for fewer epochs, smaller batches or more examples a smaller one is possible",
        })
    }

    /// How examples are put into steps.
    pub fn batch_rule(&self) -> BatchRule {
        let (batch_size, batch_tokens) = (self.batch_size, self.batch_tokens);
        BatchRule { batch_size, batch_tokens, accumulate: self.accumulate, group_by_length: self.group_by_length }
    }

    /// Learning rate of step `step` (from 0) of `steps`.
    pub fn learning_rate_at(&self, step: usize, steps: usize) -> f64 {
        let warmup = self.warmup_steps.map_or(Warmup::Ratio(self.warmup_ratio), Warmup::Steps);
        self.learning_rate * schedule::rate(self.schedule, warmup, step, steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let refuse = |settings: TrainSettings| settings.check().unwrap_err().to_string();
        let fine = TrainSettings::default;
        fine().check().unwrap();
        assert_eq!(refuse(TrainSettings { epochs: 0, ..fine() }), "epochs is 0, but must be at least 1");
        assert!(refuse(TrainSettings { learning_rate: f64::NAN, ..fine() }).starts_with("learning_rate is NaN"));
        assert!(refuse(TrainSettings { beta2: 1.0, ..fine() }).starts_with("beta2 is 1"));
        assert!(refuse(TrainSettings { dropout: 1.0, ..fine() }).starts_with("dropout is 1"));
        assert!(refuse(TrainSettings { batch_tokens: Some(0), ..fine() }).starts_with("batch_tokens is 0"));
        let blind = TrainSettings { patience: Some(2), ..fine() };
        assert_eq!(refuse(blind), "evaluate_every_steps is 0, but must be at least 1 where a patience is given");
        let blind = TrainSettings { keep_best: true, ..fine() };
        assert_eq!(refuse(blind), "evaluate_every_steps is 0, but must be at least 1 where the best is to be kept");
    }
}
