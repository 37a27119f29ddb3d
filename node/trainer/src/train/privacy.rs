//! Differential privacy of a training: noisy gradients (DP-SGD, arXiv 1607.00133), and what they promise.
//!
//! In every step each example takes part by chance, by itself; its gradient over all that is trained is scaled down to a
//! largest length; and normal noise is added to the sum. What the training hands out is then (epsilon, delta)-private for each
//! of its examples: whether one was there changes the odds of any outcome by a factor of at most e^epsilon, but for a chance of
//! delta. The promise is counted in Renyi divergences, of whole orders: composition and conversion as below.
//!
//! It holds for what was trained on. Held-out examples are only measured, and nothing that is handed out may depend on them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How private a training is to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// Largest length of one example's gradient.
    pub clip: f64,
    pub noise: Noise,
    pub delta: f64,
}

/// How much noise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// Its standard deviation, in lengths of `clip`.
    Multiplier(f64),
    /// As little as promises this epsilon.
    Epsilon(f64),
}

/// What a finished training promises for each of its examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    pub epsilon: f64,
    pub delta: f64,
    /// Standard deviation of the noise, in lengths of `clip`.
    pub noise: f64,
    pub clip: f64,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epsilon, delta, noise, clip } = self;
        write!(f, "private: ({epsilon:.2}, {delta:.0e}) for each training example, by noise of {noise:.2} times a clip of {clip}")
    }
}

/// Orders of Renyi divergence that are looked at.
const ORDERS: std::ops::RangeInclusive<u32> = 2..=256;
/// No noise beyond this is tried for an epsilon: nothing could be learned through it.
const NOISE_MAX: f64 = 1e4;

impl Privacy {
    /// What `steps` steps promise, in each of which an example takes part with this chance. `None` where no noise gives the
    /// epsilon that is asked for.
    pub fn promise(&self, chance: f64, steps: usize) -> Option<Promise> {
        let Self { clip, delta, .. } = *self;
        let of = |noise: f64| Promise { epsilon: epsilon(chance, noise, steps, delta), delta, noise, clip };
        match self.noise {
            Noise::Multiplier(noise) => Some(of(noise)),
            Noise::Epsilon(wanted) => {
                let (mut less, mut more) = (0.0, NOISE_MAX);
                if of(more).epsilon > wanted {
                    return None;
                }
                // As fine as anybody could want it; the side that keeps the promise is taken.
                while more - less > 1e-4 * more {
                    let middle = if less == 0.0 { more / 4.0 } else { (less * more).sqrt() };
                    if of(middle).epsilon > wanted {
                        less = middle;
                    } else {
                        more = middle;
                    }
                    if more < 1e-3 {
                        break;
                    }
                }
                Some(of(more))
            }
        }
    }
}

/// The least epsilon over all orders, by the conversion of arXiv 2004.00010 (proposition 12).
fn epsilon(chance: f64, noise: f64, steps: usize, delta: f64) -> f64 {
    let of = |order: u32| {
        let order_f = f64::from(order);
        let spent = steps as f64 * divergence(chance, noise, order);
        spent + ((order_f - 1.0) / order_f).ln() - (delta.ln() + order_f.ln()) / (order_f - 1.0)
    };
    ORDERS.map(of).fold(f64::INFINITY, f64::min).max(0.0)
}

/// Renyi divergence of one step: the Gaussian mechanism on examples that take part by chance (arXiv 1908.10530, theorem 4 and
/// 5, in logarithms).
///
/// 1 / (a - 1) ln sum over k of C(a, k) (1 - q)^(a - k) q^k e^((k^2 - k) / (2 s^2))
fn divergence(chance: f64, noise: f64, order: u32) -> f64 {
    let (mut choose, mut terms) = (0.0, Vec::with_capacity(order as usize + 1));
    for k in 0..=order {
        let (k_f, rest) = (f64::from(k), f64::from(order - k));
        let power = |base: f64, count: f64| if count == 0.0 { 0.0 } else { count * base.ln() };
        terms.push(choose + power(1.0 - chance, rest) + power(chance, k_f) + (k_f * k_f - k_f) / (2.0 * noise * noise));
        choose += rest.ln() - (k_f + 1.0).ln();
    }
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = terms.iter().map(|term| (term - largest).exp()).sum();
    (largest + sum.ln()) / f64::from(order - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Google's dp-accounting 0.6, `RdpAccountant` with orders 2 to 256.
    #[test]
    fn promises_are_those_of_a_kept_accountant() {
        let cases = [
            (256.0 / 60_000.0, 1.1, 14_100, 1e-5, 2.6007181389425194),
            (0.01, 1.0, 1_000, 1e-5, 2.1077530754515745),
            (0.1, 2.0, 90, 1e-5, 2.449397877135331),
            (1.0, 5.0, 10, 1e-6, 3.1345027119221234),
            (16.0 / 192.0, 0.8, 108, 1e-5, 11.605030125801171),
            (0.25, 8.0, 36, 1e-5, 0.7689140599729554),
        ];
        for (chance, noise, steps, delta, expected) in cases {
            let privacy = Privacy { clip: 1.0, noise: Noise::Multiplier(noise), delta };
            let found = privacy.promise(chance, steps).unwrap().epsilon;
            assert!((found / expected - 1.0).abs() < 1e-9, "{found} for {expected}");
        }
    }

    #[test]
    fn the_least_noise_that_keeps_an_epsilon_is_found() {
        for wanted in [0.5, 2.0, 8.0] {
            let privacy = |noise| Privacy { clip: 1.0, noise, delta: 1e-5 };
            let found = privacy(Noise::Epsilon(wanted)).promise(0.1, 90).unwrap();
            assert!(found.epsilon <= wanted && found.epsilon > wanted * 0.99, "{found:?}");
            let less = privacy(Noise::Multiplier(found.noise * 0.99)).promise(0.1, 90).unwrap();
            assert!(less.epsilon > wanted, "{less:?}");
        }
        assert_eq!(Privacy { clip: 1.0, noise: Noise::Epsilon(1e-9), delta: 1e-12 }.promise(1.0, 1_000_000), None);
    }
}
