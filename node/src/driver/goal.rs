//! When a run ends by itself, and how it ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mingle_protocol::ledger::{Ledger, SlotState};
use mingle_protocol::receipt::Receipt;

use super::{Driver, Event, Phase};

/// With enough adapters merged, those still missing are waited for no longer than this.
const SETTLE_MAX: Duration = Duration::from_secs(120);
/// After the first neighbour has what somebody came to say, others have so long to come and hear it too.
const FAREWELL: Duration = Duration::from_secs(1);

/// When a run ends by itself. Without a goal it runs until it is stopped.
#[derive(Clone, Debug, Default)]
pub struct Goal {
    /// As soon as the merged adapter holds this many and all that neighbours hand over.
    pub adapters: Option<usize>,
    /// At the latest after this.
    pub deadline: Option<Duration>,
    /// As soon as this member stands withdrawn and a neighbour knows.
    pub withdrawn: bool,
    /// As soon as this member's own work is done and all that is in its home is merged.
    pub offline: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub merged: Option<(Receipt, PathBuf)>,
    /// Whether the goal was reached, rather than the deadline or a signal.
    pub reached: bool,
    /// Whether this member stands withdrawn.
    pub withdrawn: bool,
    /// What this peer had heard by then.
    pub ledger: Ledger,
}

impl<F: FnMut(&Event)> Driver<F> {
    pub(super) fn outcome(&self, reached: bool) -> Outcome {
        let withdrawn = matches!(self.own_slot(), Some(SlotState::Withdrawn));
        Outcome { merged: self.merged.clone(), reached, withdrawn, ledger: self.machine.ledger().clone() }
    }

    pub(super) fn finished(&mut self) -> Option<Outcome> {
        let held = self.merged.as_ref().map_or(0, |(receipt, _)| receipt.admitted.len());
        if self.goal.deadline.is_some_and(|deadline| self.started.elapsed() >= deadline) {
            return Some(self.outcome(self.goal.adapters.is_some_and(|wanted| held >= wanted)));
        }
        if self.goal.offline {
            return self.finished_alone(held);
        }
        if self.telling || self.goal.withdrawn {
            return self.told();
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

    /// An errand ends when a neighbour has compared with it, and so has all it came to say.
    fn told(&mut self) -> Option<Outcome> {
        let said = !self.goal.withdrawn || matches!(self.own_slot(), Some(SlotState::Withdrawn));
        if !said || !self.machine.has_compared() {
            return None;
        }
        let since = *self.enough_since.get_or_insert_with(Instant::now);
        (since.elapsed() >= FAREWELL).then(|| self.outcome(true))
    }
}
