//! What a training can be told, and the learning rate of each step.

use serde::{Deserialize, Serialize};

use super::TrainError;

/// Settings of one training. The defaults suit LoRA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    pub epochs: usize,
    /// Ends the training earlier than the epochs would.
    pub steps_max: Option<usize>,
    /// Examples of one step.
    pub batch_size: usize,
    pub learning_rate: f64,
    pub schedule: Schedule,
    /// Part of all steps over which the learning rate rises from 0.
    pub warmup_ratio: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Gradients longer than this are scaled down to it; 0 leaves them.
    pub clip_norm: f64,
    /// Tokens an example is cut at.
    pub length_max: usize,
    pub seed: u64,
    pub rank: usize,
    pub alpha: f64,
    /// Linear modules that get LoRA: `q_proj`, or a whole module name.
    pub targets: Vec<String>,
    /// A checkpoint is written after so many steps; 0 writes one only when stopped.
    pub checkpoint_every_steps: usize,
    /// Threads that compute; none means as many as the machine has processors. The result does not depend on it.
    #[serde(skip)]
    pub threads: Option<usize>,
}

/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    /// Down to 0 along half a cosine.
    Cosine,
}

/// All linear modules of a block.
pub const ALL_TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            epochs: 1,
            steps_max: None,
            batch_size: 16,
            learning_rate: 3e-4,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.05,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            length_max: 512,
            seed: 0,
            rank: 8,
            alpha: 16.0,
            targets: ALL_TARGETS.map(String::from).to_vec(),
            checkpoint_every_steps: 50,
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
        require(self.rank > 0, "rank", &self.rank, "at least 1")?;
        require(self.length_max > 1, "length_max", &self.length_max, "at least 2")?;
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        require(positive(self.learning_rate), "learning_rate", &self.learning_rate, "a positive number")?;
        require(positive(self.alpha), "alpha", &self.alpha, "a positive number")?;
        require(positive(self.epsilon), "epsilon", &self.epsilon, "a positive number")?;
        require(not_negative(self.weight_decay), "weight_decay", &self.weight_decay, "0 or a positive number")?;
        require(not_negative(self.clip_norm), "clip_norm", &self.clip_norm, "0 or a positive number")?;
        require((0.0..=1.0).contains(&self.warmup_ratio), "warmup_ratio", &self.warmup_ratio, "between 0 and 1")?;
        for (setting, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            require((0.0..1.0).contains(&beta), setting, &beta, "at least 0 and below 1")?;
        }
        Ok(())
    }

    /// Steps of a training on `examples` examples.
    pub fn steps(&self, examples: usize) -> usize {
        let steps = self.epochs * examples.div_ceil(self.batch_size.max(1));
        self.steps_max.map_or(steps, |max| max.min(steps))
    }

    /// Learning rate of step `step` (from 0) of `steps`.
    pub fn learning_rate_at(&self, step: usize, steps: usize) -> f64 {
        let warmup = (self.warmup_ratio * steps as f64).ceil() as usize;
        if step < warmup {
            return self.learning_rate * (step + 1) as f64 / warmup as f64;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let progress = (step - warmup) as f64 / (steps - warmup).max(1) as f64;
                self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let settings = TrainSettings { learning_rate: 1.0, warmup_ratio: 0.1, ..TrainSettings::default() };
        let rates: Vec<f64> = (0..100).map(|step| settings.learning_rate_at(step, 100)).collect();
        assert_eq!((rates[0], rates[9], rates[10]), (0.1, 1.0, 1.0));
        assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]) && rates[99] > 0.0 && rates[99] < 0.01);
        let constant = TrainSettings { schedule: Schedule::Constant, warmup_ratio: 0.0, ..settings };
        assert_eq!(constant.learning_rate_at(99, 100), 1.0);
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let refuse = |settings: TrainSettings| settings.check().unwrap_err().to_string();
        let fine = TrainSettings::default;
        fine().check().unwrap();
        assert_eq!(refuse(TrainSettings { epochs: 0, ..fine() }), "epochs is 0, but must be at least 1");
        assert!(refuse(TrainSettings { learning_rate: f64::NAN, ..fine() }).starts_with("learning_rate is NaN"));
        assert!(refuse(TrainSettings { beta2: 1.0, ..fine() }).starts_with("beta2 is 1"));
    }

    #[test]
    fn steps_count_the_last_smaller_batch() {
        let settings = TrainSettings { epochs: 2, batch_size: 16, ..TrainSettings::default() };
        assert_eq!(settings.steps(33), 6);
        assert_eq!(TrainSettings { steps_max: Some(4), ..settings }.steps(33), 4);
    }
}
