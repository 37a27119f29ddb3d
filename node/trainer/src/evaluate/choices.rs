//! Multiple choice by log-likelihood: `acc`, `acc_norm` and `acc_bytes` of lm-evaluation-harness.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Report;
use super::benchmarks::ChoicePrompt;
use super::likelihood::{Continuation, log_likelihoods};
use crate::data::Tokens;
use crate::models::Decoder;
use crate::train::TrainError;

/// How often the likeliest choice was the right one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ChoiceScores {
    pub questions: u64,
    /// By the summed log-likelihood of the choice.
    pub acc: f64,
    /// By that divided by the choice's length in characters.
    pub acc_norm: f64,
    /// By that divided by its length in UTF-8 bytes.
    pub acc_bytes: f64,
    /// Standard errors of the means.
    pub acc_stderr: f64,
    pub acc_norm_stderr: f64,
}

/// One question's outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceSample {
    pub group: String,
    pub answer: usize,
    /// Of each choice, in nats.
    pub log_likelihoods: Vec<f64>,
    /// The choices that `acc`, `acc_norm` and `acc_bytes` count.
    pub chosen: [usize; 3],
}

/// All questions, each group by itself, and every question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceResults {
    pub total: ChoiceScores,
    pub groups: BTreeMap<String, ChoiceScores>,
    #[serde(skip)]
    pub samples: Vec<ChoiceSample>,
}

/// Scores every choice of every prompt.
pub fn choices(decoder: &Decoder, tokens: &Tokens, prompts: &[ChoicePrompt], report: &Report) -> Result<ChoiceResults, TrainError> {
    let mut continuations = Vec::new();
    for prompt in prompts {
        for choice in &prompt.choices {
            continuations.push(Continuation::encode(tokens, &prompt.context, &format!(" {choice}"))?);
        }
    }
    let mut scores = log_likelihoods(decoder, &continuations, report)?.into_iter();
    let sample = |prompt: &ChoicePrompt| {
        let sums: Vec<f64> = scores.by_ref().take(prompt.choices.len()).map(|score| score.sum).collect();
        let best_by =
            |length: &dyn Fn(&str) -> usize| best(sums.iter().zip(&prompt.choices).map(|(sum, choice)| sum / length(choice) as f64));
        let chosen = [best_by(&|_| 1), best_by(&|choice| choice.chars().count()), best_by(&str::len)];
        ChoiceSample { group: prompt.group.clone(), answer: prompt.answer, log_likelihoods: sums, chosen }
    };
    let samples: Vec<ChoiceSample> = prompts.iter().map(sample).collect();
    let mut groups: BTreeMap<String, Vec<&ChoiceSample>> = BTreeMap::new();
    for sample in &samples {
        groups.entry(sample.group.clone()).or_default().push(sample);
    }
    let groups = groups.into_iter().map(|(name, samples)| (name, scores_of(&samples))).collect();
    Ok(ChoiceResults { total: scores_of(&samples.iter().collect::<Vec<_>>()), groups, samples })
}

/// The first of the largest.
fn best(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

fn scores_of(samples: &[&ChoiceSample]) -> ChoiceScores {
    let questions = samples.len();
    let share =
        |which: usize| samples.iter().filter(|sample| sample.chosen[which] == sample.answer).count() as f64 / questions.max(1) as f64;
    // Of a mean of zeros and ones, with the sample's variance.
    let stderr = |mean: f64| if questions > 1 { (mean * (1.0 - mean) / (questions - 1) as f64).sqrt() } else { 0.0 };
    let (acc, acc_norm) = (share(0), share(1));
    let (acc_stderr, acc_norm_stderr) = (stderr(acc), stderr(acc_norm));
    ChoiceScores { questions: questions as u64, acc, acc_norm, acc_bytes: share(2), acc_stderr, acc_norm_stderr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_their_errors() {
        let sample = |answer: usize, chosen: [usize; 3]| ChoiceSample { group: "g".into(), answer, log_likelihoods: vec![], chosen };
        let samples = [sample(0, [0, 1, 0]), sample(1, [1, 1, 0]), sample(2, [2, 2, 0]), sample(3, [0, 3, 0])];
        let found = scores_of(&samples.iter().collect::<Vec<_>>());
        assert_eq!((found.acc, found.acc_norm, found.acc_bytes), (0.75, 0.75, 0.25));
        // statistics.stdev([1, 1, 1, 0]) / 2
        assert!((found.acc_stderr - 0.25).abs() < 1e-12);
    }

    #[test]
    fn the_first_of_the_largest_is_chosen() {
        assert_eq!(best([-3.0, -1.0, -1.0].into_iter()), 1);
        assert_eq!(best([f64::NEG_INFINITY, f64::NAN].into_iter()), 0);
    }
}
