//! Which examples go into which step, drawn from a seed; and a batch's tokens and targets.

use blake3::OutputReader;

use super::tokens::TokenizedExample;
use crate::models::batch::{IGNORED, TokenBatch};

/// A stream of random numbers named by a seed and a purpose.
pub struct Draw(OutputReader);

impl Draw {
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("mingle 2026-11 training draw");
        hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(purpose.as_bytes());
        Self(hasher.finalize_xof())
    }

    /// Numbers that nobody can foresee who does not have the key.
    pub fn keyed(key: &[u8; 32]) -> Self {
        Self(blake3::Hasher::new_keyed(key).finalize_xof())
    }

    pub fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        self.0.fill(&mut word);
        u64::from_le_bytes(word)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = ((-2.0 * (1.0 - self.unit()).ln()).sqrt(), 2.0 * std::f64::consts::PI * self.unit());
        radius * angle.cos()
    }

    /// Uniform below `bound` (its bias, below 2⁻⁶⁴ times the bound, is of no consequence here).
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.word()) * bound as u128) >> 64) as usize
    }

    /// Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// Takes `held_out` items out of `items`, chosen by the seed; both parts keep their order. At least one item stays in
/// training.
pub fn split_held_out<T>(items: Vec<T>, held_out: usize, seed: u64) -> (Vec<T>, Vec<T>) {
    let mut order: Vec<usize> = (0..items.len()).collect();
    Draw::new(seed, "held out", 0).shuffle(&mut order);
    let held_out = held_out.min(items.len().saturating_sub(1));
    let mut is_held_out = vec![false; items.len()];
    order.iter().take(held_out).for_each(|index| is_held_out[*index] = true);
    let (held, kept): (Vec<_>, Vec<_>) = items.into_iter().zip(is_held_out).partition(|(_, held)| *held);
    (kept.into_iter().map(|(item, _)| item).collect(), held.into_iter().map(|(item, _)| item).collect())
}

/// Batches taken together when lengths are grouped: few enough to stay a shuffle.
const GROUP_BATCHES: usize = 8;

/// How an epoch is cut into batches, and batches put together into steps.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchRule {
    /// Examples of a batch.
    pub batch_size: usize,
    /// In place of `batch_size`: as many examples as have this many tokens together, and at least one.
    pub batch_tokens: Option<usize>,
    /// Batches of a step.
    pub accumulate: usize,
    /// Examples of one batch are of similar length: the work of a batch is then spread evenly over threads.
    pub group_by_length: bool,
}

impl BatchRule {
    /// Cuts `order` into runs of `batches` batches each.
    fn cut(&self, order: &[usize], lengths: &[usize], batches: usize) -> Vec<Vec<usize>> {
        let Some(tokens_max) = self.batch_tokens else {
            return order.chunks(self.batch_size.max(1) * batches).map(<[usize]>::to_vec).collect();
        };
        let (mut runs, mut tokens): (Vec<Vec<usize>>, usize) = (Vec::new(), 0);
        for index in order {
            tokens = tokens.saturating_add(lengths[*index]);
            match runs.last_mut() {
                Some(run) if tokens <= tokens_max.saturating_mul(batches) => run.push(*index),
                _ => {
                    runs.push(vec![*index]);
                    tokens = lengths[*index];
                }
            }
        }
        runs
    }

    /// The steps of one epoch, as indices of examples: shuffled, sorted by length within groups of [`GROUP_BATCHES`]
    /// batches if asked, then the batches shuffled. The last batch and the last step may be smaller.
    pub fn epoch(&self, lengths: &[usize], seed: u64, epoch: usize) -> Vec<Vec<usize>> {
        let mut draw = Draw::new(seed, "epoch order", epoch as u64);
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        draw.shuffle(&mut order);
        if self.group_by_length {
            let mut groups = self.cut(&order, lengths, GROUP_BATCHES);
            // Stable, so that equal lengths keep their drawn order.
            groups.iter_mut().for_each(|group| group.sort_by_key(|index| lengths[*index]));
            order = groups.concat();
        }
        let mut batches = self.cut(&order, lengths, 1);
        draw.shuffle(&mut batches);
        batches.chunks(self.accumulate.max(1)).map(<[Vec<usize>]>::concat).collect()
    }

    /// Steps of epoch `epoch`: without drawing the batches where their number does not depend on the draw.
    pub fn steps(&self, lengths: &[usize], seed: u64, epoch: usize) -> usize {
        match self.batch_tokens {
            Some(_) => self.epoch(lengths, seed, epoch).len(),
            None => lengths.len().div_ceil(self.batch_size.max(1)).div_ceil(self.accumulate.max(1)),
        }
    }
}

/// Lays examples one after the other and shifts their labels: position `i` predicts token `i + 1`. Nothing is padded, and no
/// example sees another. Examples with a class are fed whole and have it as their target.
pub fn batch(examples: &[&TokenizedExample]) -> TokenBatch {
    let mut batch = TokenBatch::default();
    let typed = examples.iter().any(|example| !example.types.is_empty());
    for example in examples {
        // A language model's last token predicts nothing, so it is not fed.
        let fed = if example.label.is_some() { example.tokens.len() } else { example.tokens.len().saturating_sub(1) };
        if fed == 0 {
            continue;
        }
        batch.lengths.push(fed);
        batch.tokens.extend(&example.tokens[..fed]);
        if typed {
            batch.types.extend((0..fed).map(|at| example.types.get(at).copied().unwrap_or(0)));
        }
        match example.label {
            Some(label) => batch.targets.push(i64::from(label)),
            None => {
                let target = |at: usize| if example.learned[at + 1] { i64::from(example.tokens[at + 1]) } else { IGNORED };
                batch.targets.extend((0..fed).map(target));
            }
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> BatchRule {
        BatchRule { batch_size: 8, batch_tokens: None, accumulate: 1, group_by_length: true }
    }

    #[test]
    fn an_epoch_takes_every_example_once_and_depends_on_seed_and_epoch() {
        let lengths: Vec<usize> = (0..103).map(|i| i % 17).collect();
        for rule in [rule(), BatchRule { batch_tokens: Some(60), accumulate: 3, ..rule() }, BatchRule { group_by_length: false, ..rule() }]
        {
            let plan = rule.epoch(&lengths, 5, 0);
            let mut all: Vec<usize> = plan.concat();
            all.sort();
            assert_eq!(all, (0..103).collect::<Vec<_>>(), "{rule:?}");
            assert_eq!(plan, rule.epoch(&lengths, 5, 0));
            assert_ne!(plan, rule.epoch(&lengths, 5, 1));
            assert_ne!(plan, rule.epoch(&lengths, 6, 0));
            assert_eq!(plan.len(), rule.steps(&lengths, 5, 0));
        }
    }

    #[test]
    fn a_step_takes_its_batches_together() {
        let lengths = vec![5; 50];
        let sizes = |rule: BatchRule| rule.epoch(&lengths, 1, 0).iter().map(Vec::len).collect::<Vec<_>>();
        let mut plain = sizes(rule());
        plain.sort();
        assert_eq!(plain, [2, 8, 8, 8, 8, 8, 8]);
        let together = sizes(BatchRule { accumulate: 3, ..rule() });
        assert_eq!((together.len(), together.iter().sum::<usize>()), (3, 50), "7 batches, three at a time");
        // The same examples in the same order, whatever is put together.
        assert_eq!(rule().epoch(&lengths, 1, 0).concat(), BatchRule { accumulate: 3, ..rule() }.epoch(&lengths, 1, 0).concat());
    }

    #[test]
    fn a_batch_of_tokens_is_as_full_as_it_can_be() {
        let lengths: Vec<usize> = (0..200).map(|i| 1 + i * 7 % 40).chain([500]).collect();
        let rule = BatchRule { batch_tokens: Some(100), ..rule() };
        let batches = rule.epoch(&lengths, 3, 0);
        let tokens = |batch: &Vec<usize>| batch.iter().map(|index| lengths[*index]).sum::<usize>();
        assert!(batches.iter().all(|batch| tokens(batch) <= 100 || batch.len() == 1), "{batches:?}");
        assert!(batches.iter().any(|batch| tokens(batch) == 500), "an example longer than the bound has a batch of its own");
        let mean = lengths[..200].iter().sum::<usize>() / (batches.len() - 1);
        assert!(mean > 75, "batches hold {mean} tokens of 100");
    }

    #[test]
    fn grouping_puts_similar_lengths_together() {
        let lengths: Vec<usize> = (0..512).map(|i| i * 37 % 101).collect();
        let spread = |group_by_length| {
            let batches = BatchRule { group_by_length, ..rule() }.epoch(&lengths, 1, 0);
            let width = |batch: &Vec<usize>| {
                let of = || batch.iter().map(|index| lengths[*index]);
                of().max().unwrap() - of().min().unwrap()
            };
            batches.iter().map(width).sum::<usize>()
        };
        assert!(spread(true) * 4 < spread(false), "{} {}", spread(true), spread(false));
    }

    #[test]
    fn the_held_out_part_is_the_same_for_the_same_seed() {
        let items: Vec<usize> = (0..50).collect();
        let (kept, held) = split_held_out(items.clone(), 10, 1);
        assert_eq!((kept.len(), held.len()), (40, 10));
        assert_eq!(held, split_held_out(items.clone(), 10, 1).1);
        assert_ne!(held, split_held_out(items, 10, 2).1);
        assert_eq!(split_held_out(vec![1], 5, 1), (vec![1], vec![]));
    }

    #[test]
    fn labels_are_shifted_and_nothing_is_padded() {
        let example = |tokens: &[u32], from: usize| TokenizedExample {
            tokens: tokens.to_vec(),
            learned: (0..tokens.len()).map(|i| i >= from).collect(),
            ..TokenizedExample::default()
        };
        let (a, b) = (example(&[1, 5, 6, 2], 2), example(&[1, 7], 1));
        let found = batch(&[&a, &b, &example(&[4], 0)]);
        assert_eq!(found.lengths, [3, 1]);
        assert_eq!(found.tokens, [1, 5, 6, 1]);
        assert_eq!(found.targets, [IGNORED, 6, 2, 7]);
        assert_eq!(found.labelled(), a.labels() + b.labels());
        let classified = TokenizedExample { tokens: vec![1, 8, 2], types: vec![0, 0, 1], label: Some(2), ..TokenizedExample::default() };
        let found = batch(&[&classified, &classified]);
        assert_eq!((found.lengths, found.targets), (vec![3, 3], vec![2, 2]));
        assert_eq!(found.types, [0, 0, 1, 0, 0, 1]);
    }
}
