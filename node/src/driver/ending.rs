//! When a run ends by itself, and what it has then.

use std::time::Instant;

use mingle_protocol::ledger::SlotState;

use super::{Driver, Event, Outcome, Phase, SETTLE_MAX};

impl<F: FnMut(&Event)> Driver<F> {
    pub(super) fn outcome(&self, reached: bool) -> Outcome {
        let withdrawn = matches!(self.own_slot(), Some(SlotState::Withdrawn));
        Outcome { merged: self.merged.clone(), reached, withdrawn }
    }

    pub(super) fn finished(&mut self) -> Option<Outcome> {
        let held = self.merged.as_ref().map_or(0, |(receipt, _)| receipt.admitted.len());
        if self.goal.deadline.is_some_and(|deadline| self.started.elapsed() >= deadline) {
            return Some(self.outcome(self.goal.adapters.is_some_and(|wanted| held >= wanted)));
        }
        if self.goal.offline {
            return self.finished_alone(held);
        }
        let wanted = self.goal.adapters?;
        let merged = self.merged.as_ref().is_some_and(|(receipt, _)| receipt.admitted == self.machine.merge_set());
        let current = merged || self.took_vouched();
        // What a home remembers from before may be superseded by now.
        if !self.machine.has_compared() || !current || held < wanted {
            self.enough_since = None;
            return None;
        }
        let since = *self.enough_since.get_or_insert_with(Instant::now);
        (self.machine.is_settled() || since.elapsed() >= SETTLE_MAX).then(|| self.outcome(true))
    }

    /// Nobody can tell more: what was said is on disk, and the merge holds what it can.
    fn finished_alone(&self, held: usize) -> Option<Outcome> {
        let merged = self.merged.as_ref().map_or(&[][..], |(receipt, _)| &receipt.admitted);
        let done = self.phase != Phase::Training && merged == self.machine.merge_set();
        done.then(|| self.outcome(held >= self.goal.adapters.unwrap_or_default()))
    }
}
