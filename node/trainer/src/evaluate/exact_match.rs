//! Exact match: how often the greedy answer is the wanted one, whole or by its final number.

use candle_transformers::generation::Sampling;
use rayon::prelude::*;
use serde::Serialize;

use super::Report;
use super::answers::{flexible, normalised, strict};
use super::benchmarks::gsm8k_prompt;
use super::generate::{Generation, generate_until};
use crate::data::{DataError, Record, Template, Tokens};
use crate::models::Decoder;
use crate::train::TrainError;

/// A question in tokens, and the answer that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerPrompt {
    pub tokens: Vec<u32>,
    pub wanted: String,
}

/// How long answers may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerEnd<'a> {
    pub tokens_max: usize,
    /// Texts that end an answer, beside the model's end of text.
    pub stops: &'a [&'a str],
}

/// Shares of right answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExactMatch {
    pub examples: u64,
    /// The whole answer is the wanted one, but for white space around it.
    pub whole: f64,
    /// The number after `####` is the wanted one; where the wanted answers have such numbers.
    pub strict_match: Option<f64>,
    /// The last number is the wanted one.
    pub flexible_extract: Option<f64>,
    #[serde(skip)]
    pub samples: Vec<AnswerSample>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnswerSample {
    pub answer: String,
    pub wanted: String,
    pub whole: bool,
    pub strict_match: bool,
    pub flexible_extract: bool,
}

/// The records that ask something, laid out as in training.
pub fn template_prompts(tokens: &Tokens, records: &[Record], template: Template) -> Result<Vec<AnswerPrompt>, DataError> {
    let asked = records.iter().filter_map(|record| record.question_and_answer(template));
    asked.map(|(prompt, wanted)| Ok(AnswerPrompt { tokens: tokens.prompt(&prompt)?, wanted })).collect()
}

/// The records as lm-evaluation-harness asks GSM8K, after the first `shots` of `examples`.
pub fn gsm8k_prompts(tokens: &Tokens, records: &[Record], examples: &[Record], shots: usize) -> Result<Vec<AnswerPrompt>, DataError> {
    let asked = records.iter().filter_map(|record| gsm8k_prompt(record, examples, shots));
    asked.map(|(prompt, wanted)| Ok(AnswerPrompt { tokens: tokens.encode_with_specials(&prompt)?, wanted })).collect()
}

/// Answers every prompt greedily and compares. Prompts are cut from the left where an answer would not fit behind them. One
/// prompt a thread: the cache of keys and values is of one sequence.
pub fn exact_match(
    decoder: &Decoder,
    tokens: &Tokens,
    prompts: &[AnswerPrompt],
    end: AnswerEnd,
    report: &Report,
) -> Result<ExactMatch, TrainError> {
    let greedy = Generation { sampling: Sampling::ArgMax, seed: 0, tokens_max: end.tokens_max };
    let room = decoder.config().positions_max.saturating_sub(end.tokens_max).max(1);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let one = |prompt: &AnswerPrompt| -> Result<AnswerSample, TrainError> {
        let asked = &prompt.tokens[prompt.tokens.len().saturating_sub(room)..];
        let stopped = |so_far: &[u32]| {
            // A stop is a few tokens at the end, so the rest need not be read again.
            let tail = tokens.decode(&so_far[so_far.len().saturating_sub(STOP_TOKENS)..]).unwrap_or_default();
            end.stops.iter().any(|stop| tail.contains(stop))
        };
        let found = generate_until(decoder, asked, &greedy, |token| tokens.is_end(token), stopped)?;
        let text = tokens.decode(&found)?;
        let cut = end.stops.iter().filter_map(|stop| text.find(stop)).min().unwrap_or(text.len());
        report(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, prompts.len());
        Ok(compare(&text[..cut], &prompt.wanted))
    };
    let samples: Vec<AnswerSample> = prompts.par_iter().map(one).collect::<Result<_, _>>()?;
    let share =
        |right: fn(&AnswerSample) -> bool| samples.iter().filter(|sample| right(sample)).count() as f64 / samples.len().max(1) as f64;
    let numbered = samples.iter().any(|sample| strict(&sample.wanted).is_some());
    Ok(ExactMatch {
        examples: samples.len() as u64,
        whole: share(|sample| sample.whole),
        strict_match: numbered.then(|| share(|sample| sample.strict_match)),
        flexible_extract: numbered.then(|| share(|sample| sample.flexible_extract)),
        samples,
    })
}

/// Tokens in which a stop is looked for.
const STOP_TOKENS: usize = 24;

fn compare(found: &str, wanted: &str) -> AnswerSample {
    let agrees = |number: Option<&str>| number.is_some_and(|number| normalised(number) == normalised(wanted));
    AnswerSample {
        answer: found.into(),
        wanted: wanted.into(),
        whole: found.trim() == wanted.trim(),
        strict_match: agrees(strict(found)),
        flexible_extract: agrees(flexible(found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_whole_and_by_their_number() {
        let found = |found: &str, wanted: &str| {
            let sample = compare(found, wanted);
            (sample.whole, sample.strict_match, sample.flexible_extract)
        };
        assert_eq!(found("so 1,000\n#### 1000", "x\n#### 1,000"), (false, true, true));
        assert_eq!(found("it is $1,000.", "#### 1000"), (false, false, true));
        assert_eq!(found("#### 10 or 11", "#### 10"), (false, true, false));
        assert_eq!(found(" #### 5\n", "#### 5"), (true, true, true));
        assert_eq!(found("yes", "yes"), (true, false, false));
    }
}
