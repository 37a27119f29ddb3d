//! The log-likelihood of a continuation after a context, as lm-evaluation-harness defines it (`LM._encode_pair`,
//! `HFLM._loglikelihood_tokens`).
//!
//! White space at the end of the context belongs to the continuation. Both are tokenised as one text; the continuation's
//! tokens are those after as many as the context has by itself. What exceeds the model's positions is cut from the left.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::Report;
use crate::data::{DataError, TokenizedExample, Tokens, batch};
use crate::models::{Decoder, ModelError};

/// Tokens of a context and of what may follow it; neither is empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Continuation {
    pub context: Vec<u32>,
    pub tokens: Vec<u32>,
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LogLikelihood {
    /// Summed over its tokens, in nats.
    pub sum: f64,
    /// Every token is the likeliest one at its place.
    pub greedy: bool,
}

impl Continuation {
    /// Tokenises both as one text.
    pub fn encode(tokens: &Tokens, context: &str, continuation: &str) -> Result<Self, DataError> {
        let nothing = |what: &str| DataError::Tokenize { reason: format!("{what:?} gives no token to score") };
        if context.is_empty() {
            let continued = tokens.encode(continuation)?;
            let prefix = tokens.prefix().ok_or_else(|| nothing(context))?;
            // A continuation that begins with the prefix itself is not given it twice.
            let skipped = usize::from(continued.first() == Some(&prefix));
            let tokens = continued.get(skipped..).filter(|rest| !rest.is_empty()).ok_or_else(|| nothing(continuation))?;
            return Ok(Self { context: vec![prefix], tokens: tokens.to_vec() });
        }
        let trimmed = context.trim_end();
        let whole = tokens.encode_with_specials(&(context.to_owned() + continuation))?;
        let context = tokens.encode_with_specials(trimmed)?;
        let continued = whole.get(context.len()..).filter(|rest| !rest.is_empty()).ok_or_else(|| nothing(continuation))?;
        if context.is_empty() {
            return Err(nothing(trimmed));
        }
        Ok(Self { tokens: continued.to_vec(), context })
    }

    /// What the model is fed: all but the last token, the newest `positions_max` of them.
    fn fed(&self, positions_max: usize) -> Vec<u32> {
        let mut all: Vec<u32> = self.context.iter().chain(&self.tokens).copied().collect();
        all.pop();
        all.split_off(all.len().saturating_sub(positions_max))
    }
}

/// Tokens computed together.
const BATCH_TOKENS: usize = 768;

/// Scores every continuation. Equal inputs are computed once, as those of MMLU's four letters. The result depends neither
/// on the order nor on the number of threads.
pub fn log_likelihoods(decoder: &Decoder, continuations: &[Continuation], report: &Report) -> Result<Vec<LogLikelihood>, ModelError> {
    let positions_max = decoder.config().positions_max;
    let mut inputs: BTreeMap<Vec<u32>, Vec<usize>> = BTreeMap::new();
    for (index, continuation) in continuations.iter().enumerate() {
        if continuation.tokens.len() > positions_max {
            return Err(ModelError::TooLong { found: continuation.tokens.len(), max: positions_max });
        }
        inputs.entry(continuation.fed(positions_max)).or_default().push(index);
    }
    let mut inputs: Vec<(Vec<u32>, Vec<usize>)> = inputs.into_iter().collect();
    // The longest first: memory runs out at once or never.
    inputs.sort_by_key(|(fed, _)| std::cmp::Reverse(fed.len()));
    let mut batches: Vec<&[(Vec<u32>, Vec<usize>)]> = Vec::new();
    let mut rest = inputs.as_slice();
    while let Some((longest, _)) = rest.first() {
        let (batch, others) = rest.split_at((BATCH_TOKENS / longest.len().max(1)).clamp(1, rest.len()));
        batches.push(batch);
        rest = others;
    }
    let done = std::sync::atomic::AtomicUsize::new(0);
    let one = |batch: &&[(Vec<u32>, Vec<usize>)]| -> Result<Vec<(usize, LogLikelihood)>, ModelError> {
        let scored = score(decoder, continuations, batch)?;
        let before = done.fetch_add(scored.len(), std::sync::atomic::Ordering::Relaxed);
        report(before + scored.len(), continuations.len());
        Ok(scored)
    };
    let mut scores: Vec<(usize, LogLikelihood)> = batches.par_iter().map(one).collect::<Result<Vec<_>, _>>()?.concat();
    scores.sort_by_key(|(index, _)| *index);
    Ok(scores.into_iter().map(|(_, score)| score).collect())
}

fn score(
    decoder: &Decoder,
    continuations: &[Continuation],
    inputs: &[(Vec<u32>, Vec<usize>)],
) -> Result<Vec<(usize, LogLikelihood)>, ModelError> {
    let fed: Vec<&[u32]> = inputs.iter().map(|(fed, _)| fed.as_slice()).collect();
    let last = |users: &[usize]| users.iter().map(|index| continuations[*index].tokens.len()).max().unwrap_or(0);
    let rows = last_logits(decoder, &fed, &inputs.iter().map(|(_, users)| last(users)).collect::<Vec<_>>())?;
    let mut scored = Vec::new();
    for ((_, users), rows) in inputs.iter().zip(&rows) {
        for index in users {
            let tokens = &continuations[*index].tokens;
            let places = rows[rows.len() - tokens.len()..].iter().zip(tokens);
            let (mut sum, mut greedy) = (0.0, true);
            for (logits, token) in places {
                let chosen = f64::from(logits[*token as usize]);
                let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
                sum += chosen - largest - total.ln();
                greedy &= chosen == largest;
            }
            scored.push((*index, LogLikelihood { sum, greedy }));
        }
    }
    Ok(scored)
}

/// The logits after each of the last `counts[i]` tokens of input `i`.
fn last_logits(decoder: &Decoder, inputs: &[&[u32]], counts: &[usize]) -> Result<Vec<Vec<Vec<f32>>>, ModelError> {
    // The last token of an example is not fed, so one is added for it.
    let example = |fed: &&[u32]| TokenizedExample::all_learned([*fed, &[0]].concat());
    let examples: Vec<TokenizedExample> = inputs.iter().map(example).collect();
    let batch = batch(&examples.iter().collect::<Vec<_>>());
    let logits = decoder.logits(&batch.tokens, batch.sequences)?;
    let rows = inputs.iter().zip(counts).enumerate().flat_map(|(index, (fed, count))| {
        let end = index * batch.length + fed.len();
        (end - count..end).map(|row| row as u32)
    });
    let rows: Vec<u32> = rows.collect();
    let rows = Tensor::from_slice(&rows, rows.len(), logits.device())?;
    let mut values = logits.index_select(&rows, 0)?.to_dtype(DType::F32)?.to_vec2::<f32>()?.into_iter();
    Ok(counts.iter().map(|count| values.by_ref().take(*count).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokens::tests::config;
    use crate::evaluate::held_out_loss;
    use crate::train::random_decoder;

    /// Words with the space before them, as SentencePiece has them; `<s>` begins every text.
    fn tokens(dir: &std::path::Path) -> Tokens {
        let words = ["<unk>", "<s>", "</s>", "▁", "▁one", "▁two", "▁three"];
        let vocabulary: serde_json::Map<_, _> = words.iter().enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
        let json = serde_json::json!({ "version": "1.0", "added_tokens": [],
            "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
            "post_processor": { "type": "TemplateProcessing", "pair": [], "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
                "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }] },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" } });
        std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
        Tokens::read(dir, &config(11)).unwrap()
    }

    #[test]
    fn white_space_after_the_context_belongs_to_the_continuation() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = tokens(dir.path());
        let expected = Continuation { context: vec![1, 4], tokens: vec![5, 6] };
        assert_eq!(Continuation::encode(&tokens, "one ", "two three").unwrap(), expected);
        assert_eq!(Continuation::encode(&tokens, "one", " two three").unwrap(), expected);
        // Without a context, begin-of-text is one, and it is not put before the continuation twice.
        assert_eq!(Continuation::encode(&tokens, "", "two").unwrap(), Continuation { context: vec![1], tokens: vec![5] });
        assert!(Continuation::encode(&tokens, "one", "").is_err());
    }

    #[test]
    fn likelihoods_are_the_loss_of_the_continuation_alone() {
        let (decoder, _) = random_decoder(config(11), 3, &candle_core::Device::Cpu).unwrap();
        let draw = |seed: usize, length: usize| (0..length).map(|i| ((seed * 7 + i * i * 3) % 11) as u32).collect::<Vec<_>>();
        let mut asked: Vec<Continuation> = (1..9).map(|i| Continuation { context: draw(i, 3 * i), tokens: draw(i + 9, i) }).collect();
        // The same input with another last token, and a context longer than the model's 64 positions.
        asked.push(Continuation { tokens: vec![9], ..asked[0].clone() });
        asked.push(Continuation { context: draw(5, 90), tokens: draw(6, 4) });
        let found = log_likelihoods(&decoder, &asked, &|_, _| {}).unwrap();
        assert_eq!(found.len(), asked.len());
        for (asked, found) in asked.iter().zip(found) {
            let all = [asked.context.as_slice(), &asked.tokens].concat();
            let kept = all[all.len().saturating_sub(65)..].to_vec();
            let first = kept.len() - asked.tokens.len();
            let example =
                TokenizedExample { learned: (0..kept.len()).map(|at| at >= first).collect(), ..TokenizedExample::all_learned(kept) };
            let expected = -held_out_loss(&decoder, &[example]).unwrap().loss * asked.tokens.len() as f64;
            assert!((found.sum - expected).abs() < 1e-5, "{} is not {expected}", found.sum);
        }
        let long = Continuation { context: vec![1], tokens: draw(1, 65) };
        assert!(log_likelihoods(&decoder, &[long], &|_, _| {}).is_err());
    }

    #[test]
    fn a_continuation_is_greedy_where_each_token_is_the_likeliest() {
        let (decoder, _) = random_decoder(config(11), 3, &candle_core::Device::Cpu).unwrap();
        let greedy =
            |tokens: Vec<u32>| log_likelihoods(&decoder, &[Continuation { context: vec![1, 4, 7], tokens }], &|_, _| {}).unwrap()[0].greedy;
        assert_eq!((0..11).filter(|token| greedy(vec![*token])).count(), 1);
    }
}
