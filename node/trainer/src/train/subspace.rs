//! Full updates within random subspaces, as FedKRSO makes them (arXiv 2602.03019): which subspace each step trains.
//!
//! A module's update is `B_1 A_1 + ... + B_K A_K`. Every A_k is drawn once and stays. For `interval` steps one B_k is
//! trained, as if the weight were `W + B A_k` with B beginning at zero and W all that was learned before: what the other
//! B hold is part of W, and going on with B_k is the same as adding a new B to it. Then it is another one's turn, with
//! moments of its own from zero, since those of another subspace say nothing about this one. So the optimiser's memory is
//! that of one subspace, and after the last step the B_k are the accumulators that a member sends.
//!
//! Turns are taken in shuffled rounds of all K: each subspace is trained as often as any other, which drawing one at
//! random for each turn gives only in the long run. Members shuffle by their own seeds, for sums within subspaces may be
//! taken in any order.

use super::TrainSettings;
use super::method::Method;
use crate::data::batches::Draw;

/// Who is trained when.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    seeds: usize,
    interval: usize,
    seed: u64,
}

impl Turns {
    /// None for methods without subspaces.
    pub fn of(settings: &TrainSettings) -> Option<Self> {
        match settings.method {
            Method::Subspace { seeds, interval } => Some(Self { seeds, interval, seed: settings.seed }),
            _ => None,
        }
    }

    /// The subspace of step `step`, from 0.
    pub fn subspace(&self, step: usize) -> usize {
        let turn = step / self.interval;
        let (round, place) = (turn / self.seeds, turn % self.seeds);
        let mut order: Vec<usize> = (0..self.seeds).collect();
        Draw::new(self.seed, "subspaces", round as u64).shuffle(&mut order);
        order[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subspace_has_its_turn_in_every_round() {
        let turns = |seed| Turns { seeds: 5, interval: 3, seed };
        let order: Vec<usize> = (0..30).map(|step| turns(1).subspace(step)).collect();
        assert!(order.chunks(3).all(|turn| turn.iter().all(|one| *one == turn[0])), "{order:?}");
        for round in order.chunks(15) {
            let mut taken: Vec<usize> = round.iter().copied().step_by(3).collect();
            taken.sort_unstable();
            assert_eq!(taken, [0, 1, 2, 3, 4]);
        }
        assert_ne!(order[..15], order[15..], "rounds are shuffled anew");
        assert_ne!(order, (0..30).map(|step| turns(2).subspace(step)).collect::<Vec<_>>());
    }
}
