//! The evaluations of a training, and what follows from them: which was the best, and whether it is time to stop. All
//! of it is read off the history, so that a resumed training decides as an unbroken one.

/// A measurement of the held-out examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Steps done when it was made.
    pub step: usize,
    /// Mean loss over labels.
    pub loss: f64,
}

/// The evaluation with the lowest loss; the earliest of equal ones.
pub fn best(history: &[Evaluation]) -> Option<Evaluation> {
    history.iter().copied().reduce(|best, next| if next.loss < best.loss || best.loss.is_nan() { next } else { best })
}

/// Evaluations since the last that was lower than all before it by more than `min_delta`. The first is one.
pub fn without_improvement(history: &[Evaluation], min_delta: f64) -> usize {
    let (mut lowest, mut stale) = (f64::INFINITY, 0);
    for evaluation in history {
        stale = if evaluation.loss < lowest - min_delta { 0 } else { stale + 1 };
        lowest = lowest.min(evaluation.loss);
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(losses: &[f64]) -> Vec<Evaluation> {
        losses.iter().enumerate().map(|(step, loss)| Evaluation { step, loss: *loss }).collect()
    }

    #[test]
    fn patience_counts_evaluations_that_brought_nothing() {
        let stale = |losses: &[f64], min_delta| without_improvement(&history(losses), min_delta);
        assert_eq!(stale(&[], 0.0), 0);
        assert_eq!(stale(&[3.0], 0.0), 0);
        assert_eq!(stale(&[3.0, 2.0, 2.5, 2.0], 0.0), 2);
        assert_eq!(stale(&[3.0, 2.0, 2.5, 1.9], 0.0), 0);
        // Small steps downwards: each is a new lowest, none is enough.
        assert_eq!(stale(&[3.0, 2.95, 2.9, 2.85], 0.1), 3);
        assert_eq!(stale(&[3.0, f64::NAN, 2.0, f64::NAN], 0.0), 1);
    }

    #[test]
    fn the_earliest_of_the_lowest_is_the_best() {
        assert_eq!(best(&history(&[3.0, 1.0, 2.0, 1.0])), Some(Evaluation { step: 1, loss: 1.0 }));
        assert_eq!(best(&history(&[f64::NAN, 4.0])).map(|best| best.step), Some(1));
        assert_eq!(best(&[]), None);
    }
}
