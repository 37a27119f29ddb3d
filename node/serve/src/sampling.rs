//! From logits to one token: the likeliest, or a drawn one. The same seed draws the same tokens from the same logits.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// Draws from the likeliest tokens that together have this part of all probability.
    pub top_p: f64,
    /// Draws from so many tokens at most.
    pub top_k: Option<usize>,
    pub seed: u64,
    /// Taken from the logit of a token that was said, ...
    pub presence_penalty: f32,
    /// ... and as often as it was said.
    pub frequency_penalty: f32,
    /// Added to logits of tokens.
    pub bias: Vec<(u32, f32)>,
    /// How many of the likeliest tokens are told with each that is chosen; without it no probability is told.
    pub logprobs: Option<usize>,
}

/// A chosen token. Log-probabilities are the model's own, before temperature, penalties and bias.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chosen {
    pub token: u32,
    /// Where asked for.
    pub logprob: f32,
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix,
    said: BTreeMap<u32, u32>,
}

/// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Another seed for each of several answers to one request; the first keeps its own.
pub fn seed_of(seed: u64, answer: usize) -> u64 {
    if answer == 0 { seed } else { SplitMix(seed ^ ((answer as u64) << 32)).next() }
}

/// The greater first, and the lower index of equals.
fn greater(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Self {
        Self { random: SplitMix(sampling.seed), sampling, said: BTreeMap::new() }
    }

    /// The next token; `None` where a logit is no number. The logits are changed.
    pub fn choose(&mut self, logits: &mut [f32]) -> Option<Chosen> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        let told = self.sampling.logprobs.map(|count| Told::of(logits, count));
        for (token, bias) in &self.sampling.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        let penalised = self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0;
        for (token, count) in self.said.iter().filter(|_| penalised) {
            logits[*token as usize] -= self.sampling.presence_penalty + *count as f32 * self.sampling.frequency_penalty;
        }
        let token = if self.sampling.temperature > 0.0 { self.draw(logits) } else { likeliest(logits) };
        *self.said.entry(token).or_default() += 1;
        let Some(told) = told else { return Some(Chosen { token, ..Chosen::default() }) };
        Some(Chosen { token, logprob: told.values[token as usize] - told.norm, top: told.top })
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, top_k, .. } = self.sampling;
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut weights: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|logit| ((logit - most) / temperature).exp())).collect();
        let mut total: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
        if top_p < 1.0 || top_k.is_some() {
            // What is lighter than this weighs less in all than what is left out: it need not be sorted.
            let least = ((1.0 - top_p) * total / weights.len() as f64) as f32;
            weights.retain(|(_, weight)| *weight >= least);
            weights.sort_unstable_by(greater);
            weights.truncate(top_k.unwrap_or(usize::MAX).max(1));
            let (wanted, mut sum) = (top_p * total, 0.0);
            let reached = weights.iter().position(|(_, weight)| {
                sum += f64::from(*weight);
                sum >= wanted
            });
            weights.truncate(reached.map_or(usize::MAX, |last| last + 1));
            total = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
        }
        let mut left = self.random.unit() * total;
        for (token, weight) in &weights {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding may leave a crumb beyond the last.
        weights.iter().rev().find(|(_, weight)| *weight > 0.0).map_or(0, |(token, _)| *token)
    }
}

/// Log-probabilities of a model's own logits.
struct Told {
    values: Vec<f32>,
    norm: f32,
    top: Vec<(u32, f32)>,
}

impl Told {
    fn of(logits: &[f32], count: usize) -> Self {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
        let norm = most + sum.ln() as f32;
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|logit| logit - norm)).collect();
        let count = count.min(all.len());
        if count > 0 && count < all.len() {
            all.select_nth_unstable_by(count - 1, greater);
        }
        all.truncate(count);
        all.sort_unstable_by(greater);
        Self { values: logits.to_vec(), norm, top: all }
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let better = |best: (u32, f32), next: (u32, f32)| if next.1 > best.1 { next } else { best };
    (0..).zip(logits.iter().copied()).fold((0, f32::NEG_INFINITY), better).0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn greedy() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: None,
            seed: 1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
            logprobs: None,
        }
    }

    fn drawn(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..count).map(|_| sampler.choose(&mut logits.to_vec()).unwrap().token).collect()
    }

    #[test]
    fn without_temperature_the_likeliest_is_taken_and_the_first_of_equals() {
        assert_eq!(drawn(greedy(), &[0.0, 3.0, 1.0, 3.0], 2), [1, 1]);
        let nothing = Sampler::new(greedy()).choose(&mut [0.0, f32::NAN]);
        assert_eq!(nothing, None);
        let penalised = Sampling { presence_penalty: 1.5, frequency_penalty: 0.5, ..greedy() };
        assert_eq!(drawn(penalised, &[0.0, 3.0, 1.5], 3), [1, 2, 1]);
        let bent = Sampling { bias: vec![(0, 10.0), (99, 1.0)], ..greedy() };
        assert_eq!(drawn(bent, &[0.0, 3.0], 1), [0]);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        let warm = Sampling { temperature: 1.0, ..greedy() };
        let found = drawn(warm.clone(), &logits, 20_000);
        for (token, expected) in [0.1, 0.2, 0.3, 0.4].iter().enumerate() {
            let part = found.iter().filter(|found| **found as usize == token).count() as f64 / 20_000.0;
            assert!((part - expected).abs() < 0.015, "{token}: {part}");
        }
        assert_eq!(drawn(warm.clone(), &logits, 50), drawn(warm.clone(), &logits, 50));
        assert_ne!(drawn(warm.clone(), &logits, 50), drawn(Sampling { seed: 2, ..warm.clone() }, &logits, 50));
        // At half the temperature probabilities are squared: 0.4² of 0.3 in all.
        let cool = drawn(Sampling { temperature: 0.5, ..warm }, &logits, 20_000);
        let part = cool.iter().filter(|token| **token == 3).count() as f64 / 20_000.0;
        assert!((part - 0.16 / 0.3).abs() < 0.015, "{part}");
        assert_ne!(seed_of(7, 1), seed_of(7, 2));
        assert_eq!(seed_of(7, 0), 7);
    }

    #[test]
    fn the_nucleus_is_the_least_that_reaches_its_part() {
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        let kept = |top_p, top_k| {
            let mut found = drawn(Sampling { temperature: 1.0, top_p, top_k, ..greedy() }, &logits, 3000);
            found.sort_unstable();
            found.dedup();
            found
        };
        assert_eq!(kept(0.39, None), [3]);
        assert_eq!(kept(0.41, None), [2, 3]);
        assert_eq!(kept(0.85, None), [1, 2, 3]);
        assert_eq!(kept(0.0, None), [3]);
        assert_eq!(kept(1.0, Some(2)), [2, 3]);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        let sampling = Sampling { logprobs: Some(2), temperature: 0.7, bias: vec![(0, 100.0)], ..greedy() };
        let chosen = Sampler::new(sampling).choose(&mut logits.to_vec()).unwrap();
        assert_eq!(chosen.token, 0);
        assert!((chosen.logprob - 0.1f32.ln()).abs() < 1e-5);
        assert_eq!(chosen.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [3, 2]);
        assert!((chosen.top[0].1 - 0.4f32.ln()).abs() < 1e-5);
    }
}
