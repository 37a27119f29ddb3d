//! Which blobs a peer asks for, in which order, and when again.
//!
//! Whoever announces what nobody hands over, lies about a size, stalls or connects again and again must not take from the
//! rest what they need: places, turns, and an end of waiting. So places and turns go to who has waited longest, a size that
//! others contradict has a short turn, and nothing a neighbour does makes any wait begin anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Machine, Millis, Output};
use crate::hash::ContentHash;
use crate::ledger::Admitted;

/// Blobs fetched at a time. Many enough that a few members who announce what nobody hands over do not hold up the rest:
/// each try for such a blob takes a place for some seconds.
pub const FETCHES_MAX: usize = 8;
/// First and longest wait before a blob is tried again.
const FETCH_RETRY_MS: u64 = 1_000;
const FETCH_RETRY_MS_MAX: u64 = 30_000;
/// The longest wait once a new neighbour has come. Not none: whoever connects again and again would have dead adapters
/// tried without pause.
const FETCH_PROMPTED_MS: u64 = 4_000;
/// A fetch may take longer than this only while no other waits for its place. Short, because all places may be held by
/// adapters that nobody hands over; what was verified is kept, so taking turns costs little.
const FETCH_TURN_MS: u64 = 15_000;
/// The first turn of one of several sizes that are announced for one blob; it doubles each time it was too short. Short,
/// because only one can be true, and a provider that stalls the others could hold up all; growing, because what came in an
/// earlier turn may be lost in that of another size.
const SIZE_TURN_MS: u64 = 3_000;
/// Failed tries, of each announced size, after which nobody seems to have a blob.
pub(super) const TRIES_SETTLED: u32 = 3;
/// New neighbours for each of which a blob that nobody seems to have is waited for once more.
const CHANCES_MAX: u32 = 8;

/// Blobs to be had, and the sizes they may have.
pub(super) type Missing = BTreeMap<ContentHash, BTreeSet<u64>>;

/// A size that was announced for a blob.
struct Claim {
    size: u64,
    /// How long its turn is while there are others.
    turn_ms: u64,
    /// Turns it has had, and those that failed and were not merely over: large blobs on slow lines need many.
    turns: u32,
    failures: u32,
}

impl Claim {
    fn new(size: u64) -> Self {
        Self { size, turn_ms: SIZE_TURN_MS, turns: 0, failures: 0 }
    }
}

/// A blob this peer wants to have.
pub(super) struct Want {
    /// Never empty. The first has its turn; a new one waits behind those that were there before it.
    claims: VecDeque<Claim>,
    in_flight: bool,
    /// Not asked for before this; while in flight, when that began.
    retry_at: Millis,
    /// How much of its turn the first claim had before it made room for another blob.
    spent_ms: u64,
    /// When a turn came to nothing last, and the wait after the next one.
    failed_at: Millis,
    wait_ms: u64,
    /// Failures that are waited for although it was tried often enough: a new neighbour may have it.
    owed: usize,
    chances: u32,
}

impl Want {
    fn new(sizes: &BTreeSet<u64>, now: Millis) -> Self {
        Self {
            claims: sizes.iter().copied().map(Claim::new).collect(),
            in_flight: false,
            retry_at: now,
            spent_ms: 0,
            failed_at: now,
            wait_ms: FETCH_RETRY_MS,
            owed: 0,
            chances: 0,
        }
    }

    /// Whether it was asked for in vain again and again.
    pub fn is_vain(&self) -> bool {
        self.owed == 0 && self.is_tried()
    }

    fn is_tried(&self) -> bool {
        self.claims.iter().all(|claim| claim.failures >= TRIES_SETTLED)
    }

    /// Takes in which sizes are announced now; whether the one under way is not any more.
    fn claim(&mut self, sizes: &BTreeSet<u64>, now: Millis) -> bool {
        let had = self.had_ms(now);
        let alone = self.claims.len() == 1;
        let first = self.claims.front().map(|claim| claim.size);
        self.claims.retain(|claim| sizes.contains(&claim.size));
        for size in sizes {
            if self.claims.iter().all(|claim| claim.size != *size) {
                self.claims.push_back(Claim::new(*size));
            }
        }
        let Some(claim) = self.claims.front_mut().filter(|claim| Some(claim.size) == first) else {
            self.spent_ms = 0;
            return true;
        };
        // What nobody contradicted until now and has not failed for long is likely to be coming.
        if alone {
            claim.turn_ms = claim.turn_ms.max(had.saturating_mul(2));
        }
        false
    }

    /// How much of its turn the first claim has had.
    fn had_ms(&self, now: Millis) -> u64 {
        let under_way = if self.in_flight { now.0.saturating_sub(self.retry_at.0) } else { 0 };
        self.spent_ms.saturating_add(under_way)
    }

    /// Whether another size should have its turn.
    fn is_size_over(&self, now: Millis) -> bool {
        let turn = self.claims.front().filter(|_| self.in_flight && self.claims.len() > 1).map(|claim| claim.turn_ms);
        turn.is_some_and(|turn| turn <= self.had_ms(now))
    }

    fn failed(&mut self, now: Millis) {
        self.owed = self.owed.saturating_sub(1);
        if let Some(claim) = self.claims.front_mut() {
            claim.failures = claim.failures.saturating_add(1);
        }
        self.turned(now);
    }

    fn size_over(&mut self, now: Millis) {
        if let Some(claim) = self.claims.front_mut() {
            claim.turn_ms = claim.turn_ms.saturating_mul(2);
        }
        self.turned(now);
    }

    /// The first claim's turn came to nothing. The others have theirs at once, and then all wait.
    fn turned(&mut self, now: Millis) {
        self.in_flight = false;
        self.spent_ms = 0;
        self.failed_at = now;
        self.retry_at = now;
        let Some(mut claim) = self.claims.pop_front() else { return };
        claim.turns = claim.turns.saturating_add(1);
        if self.claims.iter().all(|other| other.turns >= claim.turns) {
            self.retry_at = now.after(self.wait_ms);
            self.wait_ms = self.wait_ms.saturating_mul(2).min(FETCH_RETRY_MS_MAX);
        }
        self.claims.push_back(claim);
    }

    /// A new neighbour may hold what nobody had until now.
    fn prompted(&mut self, now: Millis) {
        self.wait_ms = self.wait_ms.min(FETCH_PROMPTED_MS);
        if !self.in_flight {
            self.retry_at = self.retry_at.min(self.failed_at.after(FETCH_PROMPTED_MS).max(now));
        }
        if self.is_vain() && self.chances < CHANCES_MAX {
            self.chances = self.chances.saturating_add(1);
            self.owed = self.claims.len();
        }
    }
}

impl<P: Clone + Ord> Machine<P> {
    pub(super) fn blob_failed(&mut self, adapter: ContentHash, now: Millis) {
        // What was called off in the same moment has had its turn already.
        let Some(want) = self.wants.get_mut(&adapter).filter(|want| want.in_flight) else { return };
        want.failed(now);
        // A reader that nobody hands the chosen merge may choose another.
        self.unsettled |= self.attested.quorum().is_some();
    }

    pub(super) fn prompt_wants(&mut self, now: Millis) {
        self.wants.values_mut().for_each(|want| want.prompted(now));
    }

    /// What is a candidate and neither stored nor found unfit, with the sizes that were announced.
    pub(super) fn missing(&self, candidates: impl Iterator<Item = Admitted>) -> Missing {
        let mut missing = Missing::new();
        for entry in candidates {
            if !self.stored.contains_key(&entry.adapter) && !self.refused.contains_key(&entry.adapter) {
                missing.entry(entry.adapter).or_default().insert(entry.size);
            }
        }
        missing
    }

    pub(super) fn settle_wants(&mut self, missing: Missing, now: Millis, out: &mut Vec<Output<P>>) {
        self.wants.retain(|adapter, want| {
            let sizes = missing.get(adapter);
            // Whoever takes a false size back and says another must not have the whole blob begin anew.
            let ends = sizes.is_none_or(|sizes| want.claim(sizes, now));
            if ends && want.in_flight {
                out.push(Output::CancelFetch(*adapter));
                want.in_flight = false;
                want.retry_at = now;
            }
            sizes.is_some()
        });
        for (adapter, sizes) in missing {
            self.wants.entry(adapter).or_insert_with(|| Want::new(&sizes, now));
        }
    }

    pub(super) fn start_fetches(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        if self.wants.is_empty() || self.neighbours.is_empty() {
            return;
        }
        self.take_turns(now, out);
        let free = self.free_places();
        let mut idle: Vec<_> = self.wants.iter_mut().filter(|(_, want)| !want.in_flight && want.retry_at <= now).collect();
        // Who has waited longest first: an order by hash would let a few dead adapters with small hashes starve the rest.
        idle.sort_by_key(|(_, want)| want.retry_at);
        for (adapter, want) in idle.into_iter().take(free) {
            let Some(claim) = want.claims.front() else { continue };
            out.push(Output::Fetch { adapter: *adapter, size: claim.size });
            want.in_flight = true;
            want.retry_at = now;
        }
    }

    /// Places that no fetch holds.
    fn free_places(&self) -> usize {
        FETCHES_MAX.saturating_sub(self.wants.values().filter(|want| want.in_flight).count())
    }

    /// A size that others contradict steps back after its turn, and when other blobs wait and no place is free, so do those
    /// that have been fetched longest; what they verified is kept. So a few providers that send next to nothing cannot hold
    /// all places for ever.
    fn take_turns(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        for (adapter, want) in self.wants.iter_mut().filter(|(_, want)| want.is_size_over(now)) {
            want.size_over(now);
            out.push(Output::CancelFetch(*adapter));
        }
        let waiting = self.wants.values().filter(|want| !want.in_flight && want.retry_at <= now).count();
        let lacking = waiting.saturating_sub(self.free_places());
        let mut over: Vec<_> =
            self.wants.iter_mut().filter(|(_, want)| want.in_flight && want.retry_at.after(FETCH_TURN_MS) <= now).collect();
        over.sort_by_key(|(_, want)| want.retry_at);
        for (adapter, want) in over.into_iter().take(lacking) {
            want.spent_ms = want.had_ms(now);
            want.in_flight = false;
            // Behind those that wait at this moment.
            want.retry_at = now.after(1);
            out.push(Output::CancelFetch(*adapter));
        }
    }
}
