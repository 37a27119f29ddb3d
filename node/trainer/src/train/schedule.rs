//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    /// Down to 0 along a line.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
}

/// Over which steps the learning rate rises from 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    Steps(usize),
    /// Part of all steps, rounded up.
    Ratio(f64),
}

impl Warmup {
    fn steps(self, steps: usize) -> usize {
        match self {
            Self::Steps(warmup) => warmup,
            Self::Ratio(ratio) => (ratio * steps as f64).ceil() as usize,
        }
    }
}

/// Part of the highest learning rate that step `step` (from 0) of `steps` has. The first step of a warm-up has a share
/// already: a step at rate 0 would be thrown away.
pub fn rate(schedule: Schedule, warmup: Warmup, step: usize, steps: usize) -> f64 {
    let warmup = warmup.steps(steps);
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => (1.0 - progress).max(0.0),
        Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        for (schedule, warmup) in [(Schedule::Cosine, Warmup::Ratio(0.1)), (Schedule::Linear, Warmup::Steps(10))] {
            let rates: Vec<f64> = (0..100).map(|step| rate(schedule, warmup, step, 100)).collect();
            assert_eq!((rates[0], rates[9], rates[10]), (0.1, 1.0, 1.0));
            assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]) && rates[99] > 0.0 && rates[99] < 0.012, "{schedule:?}");
        }
        assert_eq!(rate(Schedule::Linear, Warmup::Steps(0), 25, 100), 0.75);
        assert_eq!(rate(Schedule::Constant, Warmup::Ratio(0.0), 99, 100), 1.0);
    }

    #[test]
    fn a_warm_up_longer_than_the_training_only_rises() {
        for step in 0..5 {
            assert_eq!(rate(Schedule::Linear, Warmup::Steps(10), step, 5), (step + 1) as f64 / 10.0);
        }
    }
}
