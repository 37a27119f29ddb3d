//! Which examples each step of a training takes: a function of lengths, settings and seed, so that a step's number is
//! all that must be remembered to go on.

use super::TrainSettings;
use crate::data::BatchRule;

/// The steps of a whole training, drawn epoch by epoch.
pub struct Steps {
    lengths: Vec<usize>,
    rule: BatchRule,
    seed: u64,
    /// Steps done when each epoch ends; the last may be cut short by `steps_max`.
    ends: Vec<usize>,
    drawn: Option<(usize, Vec<Vec<usize>>)>,
}

impl Steps {
    /// `lengths` are the tokens of each example.
    pub fn new(lengths: Vec<usize>, settings: &TrainSettings) -> Self {
        let (rule, seed) = (settings.batch_rule(), settings.seed);
        let max = settings.steps_max.unwrap_or(usize::MAX);
        let (mut ends, mut done) = (Vec::new(), 0usize);
        for epoch in 0..settings.epochs {
            done = done.saturating_add(rule.steps(&lengths, seed, epoch)).min(max);
            ends.push(done);
            if done == max {
                break;
            }
        }
        Self { lengths, rule, seed, ends, drawn: None }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The epoch of step `step`, from 0.
    pub fn epoch(&self, step: usize) -> usize {
        self.ends.partition_point(|end| *end <= step)
    }

    /// Indices of the examples of step `step`.
    pub fn examples(&mut self, step: usize) -> &[usize] {
        let epoch = self.epoch(step);
        let begin = epoch.checked_sub(1).map_or(0, |before| self.ends[before]);
        if self.drawn.as_ref().is_none_or(|(drawn, _)| *drawn != epoch) {
            self.drawn = Some((epoch, self.rule.epoch(&self.lengths, self.seed, epoch)));
        }
        self.drawn.as_ref().and_then(|(_, steps)| steps.get(step - begin)).map_or(&[], Vec::as_slice)
    }

    /// Tokens of all steps together.
    pub fn tokens(&mut self) -> u64 {
        (0..self.count()).map(|step| self.examples(step).to_vec().into_iter().map(|index| self.lengths[index] as u64).sum::<u64>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> TrainSettings {
        TrainSettings { epochs: 2, batch_size: 16, ..TrainSettings::default() }
    }

    #[test]
    fn steps_count_the_last_smaller_batch() {
        let count = |settings: TrainSettings| Steps::new(vec![4; 33], &settings).count();
        assert_eq!(count(settings()), 6);
        assert_eq!(count(TrainSettings { steps_max: Some(4), ..settings() }), 4);
        assert_eq!(count(TrainSettings { accumulate: 2, ..settings() }), 4);
        assert_eq!(count(TrainSettings { batch_tokens: Some(40), ..settings() }), 8);
    }

    #[test]
    fn every_epoch_takes_every_example_once() {
        let lengths: Vec<usize> = (0..50).map(|i| 1 + i % 9).collect();
        for settings in [settings(), TrainSettings { batch_tokens: Some(30), epochs: 3, accumulate: 2, ..settings() }] {
            let mut steps = Steps::new(lengths.clone(), &settings);
            let mut seen = vec![vec![0; 50]; settings.epochs];
            for step in 0..steps.count() {
                let epoch = steps.epoch(step);
                steps.examples(step).iter().for_each(|index| seen[epoch][*index] += 1);
            }
            assert_eq!(seen, vec![vec![1; 50]; settings.epochs]);
            assert_eq!(steps.tokens(), settings.epochs as u64 * lengths.iter().sum::<usize>() as u64);
            // In any order, as a training that goes on from the middle asks for them.
            let last = steps.examples(steps.count() - 1).to_vec();
            assert_eq!(Steps::new(lengths.clone(), &settings).examples(steps.count() - 1), last);
        }
    }
}
