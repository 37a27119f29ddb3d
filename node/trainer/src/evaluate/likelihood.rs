//! The log-likelihood of a continuation after a context, as lm-evaluation-harness defines it (`LM._encode_pair`,
//! `HFLM._loglikelihood_tokens`).
//!
//! White space at the end of the context belongs to the continuation. Both are tokenised as one text; the continuation's
//! tokens are those after as many as the context has by itself. What exceeds the model's positions is cut from the left.

use std::collections::BTreeMap;

use super::{Report, batch_tokens, over_batches};
use crate::data::{DataError, Tokens};
use crate::models::config::Head;
use crate::models::{Decoder, ModelError, TokenBatch};

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

/// Scores every continuation. Equal inputs are computed once, as those of MMLU's four letters. The result depends neither
/// on the order nor on the number of threads.
pub fn log_likelihoods(decoder: &Decoder, continuations: &[Continuation], report: &Report) -> Result<Vec<LogLikelihood>, ModelError> {
    if decoder.config().head != Head::Tokens {
        return Err(ModelError::Bidirectional);
    }
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
        let (batch, others) = rest.split_at((batch_tokens(decoder) / longest.len().max(1)).clamp(1, rest.len()));
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
    let mut scores: Vec<(usize, LogLikelihood)> = over_batches(decoder, &batches, one)?.concat();
    scores.sort_by_key(|(index, _)| *index);
    Ok(scores.into_iter().map(|(_, score)| score).collect())
}

fn score(
    decoder: &Decoder,
    continuations: &[Continuation],
    inputs: &[(Vec<u32>, Vec<usize>)],
) -> Result<Vec<(usize, LogLikelihood)>, ModelError> {
    let mut batch = TokenBatch::default();
    // Rows that predict a continuation's token, with the input they belong to and how many rows follow in it.
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    for (index, (fed, users)) in inputs.iter().enumerate() {
        batch.lengths.push(fed.len());
        batch.tokens.extend(fed);
        let longest = users.iter().map(|user| continuations[*user].tokens.len()).max().unwrap_or(0);
        for left in (0..longest).rev() {
            rows.push((batch.tokens.len() - 1 - left) as u32);
            places.push((index, left));
        }
    }
    let mut scores: Vec<Vec<LogLikelihood>> =
        inputs.iter().map(|(_, users)| vec![LogLikelihood { sum: 0.0, greedy: true }; users.len()]).collect();
    decoder.each_logits(&batch, &rows, |row, logits| {
        let (input, left) = places[row];
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
        for (user, score) in inputs[input].1.iter().zip(&mut scores[input]) {
            let tokens = &continuations[*user].tokens;
            if left < tokens.len() {
                let own = f64::from(logits[tokens[tokens.len() - 1 - left] as usize]);
                score.sum += own - largest - total.ln();
                score.greedy &= own == largest;
            }
        }
    })?;
    Ok(inputs.iter().zip(scores).flat_map(|((_, users), scores)| users.iter().copied().zip(scores)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TokenizedExample;
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
