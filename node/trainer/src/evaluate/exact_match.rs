//! Exact match: how often the greedy answer is the wanted one.

use candle_transformers::generation::Sampling;
use rayon::prelude::*;
use serde::Serialize;

use super::generate::{Generation, generate};
use crate::data::{Record, Template, Tokens};
use crate::models::Decoder;
use crate::train::TrainError;

/// Answers compared, and how many agreed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExactMatch {
    pub correct: u64,
    pub examples: u64,
    /// `correct / examples`; 0 without examples.
    pub accuracy: f64,
}

/// The texts agree but for white space around them.
pub fn same_text(found: &str, wanted: &str) -> bool {
    found.trim() == wanted.trim()
}

/// What follows the last `####` agrees, as GSM8K marks its final answers; thousands separators are left out.
pub fn same_final_answer(found: &str, wanted: &str) -> bool {
    let last = |text: &str| text.rsplit_once("####").map(|(_, answer)| answer.trim().replace(',', ""));
    matches!((last(found), last(wanted)), (Some(found), Some(wanted)) if found == wanted)
}

/// Answers every record that has a prompt, greedily, at most `tokens_max` tokens each, and compares with `agrees`.
pub fn exact_match(
    decoder: &Decoder,
    tokens: &Tokens,
    records: &[Record],
    template: Template,
    tokens_max: usize,
    agrees: fn(&str, &str) -> bool,
) -> Result<ExactMatch, TrainError> {
    let greedy = Generation { sampling: Sampling::ArgMax, seed: 0, tokens_max };
    let one = |record: &Record| -> Result<Option<bool>, TrainError> {
        let Some((prompt, wanted)) = record.question_and_answer(template) else { return Ok(None) };
        let prompt = tokens.prompt(&prompt)?;
        let found = generate(decoder, &prompt, &greedy, |token| tokens.is_end(token))?;
        Ok(Some(agrees(&tokens.decode(&found)?, &wanted)))
    };
    let answers: Vec<Option<bool>> = records.par_iter().map(one).collect::<Result<_, _>>()?;
    let examples = answers.iter().flatten().count() as u64;
    let correct = answers.iter().flatten().filter(|agreed| **agreed).count() as u64;
    Ok(ExactMatch { correct, examples, accuracy: correct as f64 / examples.max(1) as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_answers_are_compared_after_the_mark() {
        assert!(same_final_answer("so 1,000\n#### 1000", "x #### 1,000 "));
        assert!(!same_final_answer("1000", "#### 1000"));
        assert!(!same_final_answer("#### 10", "#### 1000"));
        assert!(same_text(" 42\n", "42"));
    }
}
