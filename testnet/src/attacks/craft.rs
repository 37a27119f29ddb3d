//! What attackers send in place of their training. All of it is in terms of what a training moved.

use crate::corpus::dice::Dice;

/// How attackers act. They see all honest adapters, and act together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Their own training times -4 (RSA, arXiv 1811.03761).
    SignFlip,
    /// Their own training times 100.
    Scaled,
    /// The honest mean less 1.5 standard deviations, coordinate by coordinate (arXiv 1902.06156).
    LittleIsEnough,
    /// The honest mean times -3 (inner-product manipulation, arXiv 1903.03936).
    InnerProduct,
    /// All send what the first honest member sends (arXiv 2006.09365).
    Mimic,
    /// Normal numbers of variance 1.
    Gaussian,
    /// What is no number.
    NotANumber,
    /// A training on wrong answers, its difference from an honest one times 8 (as LoBAM amplifies, arXiv 2411.16746).
    Amplified,
}

impl Attack {
    pub const ALL: [Self; 8] = [
        Self::SignFlip,
        Self::Scaled,
        Self::LittleIsEnough,
        Self::InnerProduct,
        Self::Mimic,
        Self::Gaussian,
        Self::NotANumber,
        Self::Amplified,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::SignFlip => "sign flip",
            Self::Scaled => "times 100",
            Self::LittleIsEnough => "a little is enough",
            Self::InnerProduct => "inner product",
            Self::Mimic => "mimic",
            Self::Gaussian => "gaussian",
            Self::NotANumber => "not a number",
            Self::Amplified => "amplified poison",
        }
    }
}

/// One attacker's update; `own` is what it would have sent, `poisoned` what wrong answers taught it.
pub fn craft(attack: Attack, honest: &[Vec<f32>], own: &[f32], poisoned: &[f32], seed: u64) -> Vec<f32> {
    let column = |place: usize| honest.iter().map(move |update| update[place]);
    let mean = |place: usize| column(place).sum::<f32>() / honest.len() as f32;
    let deviation = |place: usize| {
        let mean = mean(place);
        (column(place).map(|value| (value - mean).powi(2)).sum::<f32>() / honest.len() as f32).sqrt()
    };
    let each = |of: &dyn Fn(usize) -> f32| (0..own.len()).map(of).collect();
    match attack {
        Attack::SignFlip => each(&|place| -4.0 * own[place]),
        Attack::Scaled => each(&|place| 100.0 * own[place]),
        Attack::LittleIsEnough => each(&|place| mean(place) - 1.5 * deviation(place)),
        Attack::InnerProduct => each(&|place| -3.0 * mean(place)),
        Attack::Mimic => honest.first().cloned().unwrap_or_default(),
        Attack::Gaussian => normal(own.len(), seed),
        Attack::NotANumber => vec![f32::NAN; own.len()],
        Attack::Amplified => each(&|place| own[place] + 8.0 * (poisoned[place] - own[place])),
    }
}

/// Normal numbers, two from every two uniform ones (Box and Muller).
fn normal(count: usize, seed: u64) -> Vec<f32> {
    const STEPS: usize = 1 << 24;
    let mut dice = Dice::new(seed, "attacks/gaussian");
    let mut numbers = Vec::with_capacity(count + 1);
    while numbers.len() < count {
        let [first, second] = [(); 2].map(|()| (dice.below(STEPS) as f64 + 0.5) / STEPS as f64);
        let (length, angle) = ((-2.0 * first.ln()).sqrt(), std::f64::consts::TAU * second);
        numbers.extend([(length * angle.cos()) as f32, (length * angle.sin()) as f32]);
    }
    numbers.truncate(count);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attackers_send_what_the_papers_say() {
        let honest = [vec![1.0, 2.0], vec![3.0, 2.0]];
        let of = |attack| craft(attack, &honest, &[1.0, -1.0], &[1.5, -1.0], 1);
        assert_eq!(of(Attack::SignFlip), [-4.0, 4.0]);
        assert_eq!(of(Attack::Scaled), [100.0, -100.0]);
        assert_eq!(of(Attack::LittleIsEnough), [2.0 - 1.5, 2.0]);
        assert_eq!(of(Attack::InnerProduct), [-6.0, -6.0]);
        assert_eq!(of(Attack::Mimic), [1.0, 2.0]);
        assert!(of(Attack::NotANumber).iter().all(|value| value.is_nan()));
        assert_eq!(of(Attack::Amplified), [5.0, -1.0]);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let numbers = normal(100_001, 3);
        let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
        let variance = numbers.iter().map(|number| number * number).sum::<f32>() / numbers.len() as f32;
        assert!(numbers.len() == 100_001 && mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
