//! Which blobs a peer asks for, in which order, and when again.

use std::collections::{BTreeMap, BTreeSet};

use super::{Machine, Millis, Output};
use crate::hash::ContentHash;
use crate::ledger::Admitted;

/// Blobs fetched at a time. Many enough that a few members who announce what nobody hands over do not hold up the rest:
/// each try for such a blob takes a place for some seconds.
pub const FETCHES_MAX: usize = 8;
/// First and longest wait before a blob is tried again.
const FETCH_RETRY_MS: u64 = 1_000;
const FETCH_RETRY_MS_MAX: u64 = 30_000;
/// A fetch may take longer than this only while no other waits for its place. Short, because all places may be held by
/// adapters that nobody hands over; what was verified is kept, so taking turns costs little.
const FETCH_TURN_MS: u64 = 15_000;
/// Failed tries after which nobody seems to have a blob.
pub(super) const TRIES_SETTLED: u32 = 3;

/// Blobs to be had, and the sizes they may have.
pub(super) type Missing = BTreeMap<ContentHash, BTreeSet<u64>>;

/// A blob this peer wants to have.
pub(super) struct Want {
    size: u64,
    in_flight: bool,
    pub tries: u32,
    /// Not asked for before this; while in flight, when that began.
    pub retry_at: Millis,
}

impl<P: Clone + Ord> Machine<P> {
    pub(super) fn blob_failed(&mut self, adapter: ContentHash, now: Millis) {
        let Some(want) = self.wants.get_mut(&adapter) else { return };
        let sizes: BTreeSet<u64> = self.ledger.admitted().filter(|entry| entry.adapter == adapter).map(|entry| entry.size).collect();
        // Members may announce one adapter with several sizes, of which one is true: each has its turn.
        want.size = sizes.range(want.size.saturating_add(1)..).next().or(sizes.first()).copied().unwrap_or(want.size);
        want.in_flight = false;
        want.tries = want.tries.saturating_add(1);
        let wait = FETCH_RETRY_MS.checked_shl(want.tries.saturating_sub(1)).unwrap_or(FETCH_RETRY_MS_MAX);
        want.retry_at = now.after(wait.clamp(FETCH_RETRY_MS, FETCH_RETRY_MS_MAX));
        // A reader that nobody hands the chosen merge may choose another.
        self.unsettled |= self.attested.quorum().is_some();
    }

    /// What is admitted and neither stored nor found unfit, with the sizes that were announced.
    pub(super) fn missing(&self, admitted: &[Admitted]) -> Missing {
        let mut missing = Missing::new();
        for entry in admitted {
            if !self.stored.contains_key(&entry.adapter) && !self.refused.contains_key(&entry.adapter) {
                missing.entry(entry.adapter).or_default().insert(entry.size);
            }
        }
        missing
    }

    pub(super) fn settle_wants(&mut self, missing: Missing, now: Millis, out: &mut Vec<Output<P>>) {
        self.wants.retain(|adapter, want| {
            let keep = missing.get(adapter).is_some_and(|sizes| sizes.contains(&want.size));
            if !keep && want.in_flight {
                out.push(Output::CancelFetch(*adapter));
            }
            keep
        });
        for (adapter, sizes) in missing {
            if let Some(size) = sizes.first() {
                self.wants.entry(adapter).or_insert(Want { size: *size, in_flight: false, tries: 0, retry_at: now });
            }
        }
    }

    pub(super) fn start_fetches(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        if self.wants.is_empty() || self.neighbours.is_empty() {
            return;
        }
        self.take_turns(now, out);
        let busy = self.wants.values().filter(|want| want.in_flight).count();
        if busy >= FETCHES_MAX {
            return;
        }
        let mut idle: Vec<_> = self.wants.iter_mut().filter(|(_, want)| !want.in_flight && want.retry_at <= now).collect();
        // Who has waited longest first: an order by hash would let a few dead adapters with small hashes starve the rest.
        idle.sort_by_key(|(_, want)| want.retry_at);
        for (adapter, want) in idle.into_iter().take(FETCHES_MAX.saturating_sub(busy)) {
            want.in_flight = true;
            want.retry_at = now;
            out.push(Output::Fetch { adapter: *adapter, size: want.size });
        }
    }

    /// When others wait, a fetch that has had its turn steps back; what it verified is kept. So a few providers that send
    /// next to nothing cannot hold all places for ever.
    fn take_turns(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        let waiting = self.wants.values().filter(|want| !want.in_flight && want.retry_at <= now).count();
        let over = self.wants.iter_mut().filter(|(_, want)| want.in_flight && want.retry_at.after(FETCH_TURN_MS) <= now);
        for (adapter, want) in over.take(waiting) {
            want.in_flight = false;
            want.retry_at = now;
            out.push(Output::CancelFetch(*adapter));
        }
    }
}
