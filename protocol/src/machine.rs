//! The peer's state machine: inputs in, outputs out. It never waits, never reads a clock and never touches a socket or
//! a file, so the same code runs in a node and in a simulation.
//!
//! The order of outputs is part of the contract: a record is kept (durably) before it is passed on, so nothing this
//! peer has vouched for is lost when it is killed.

mod messages;

use std::collections::{BTreeMap, BTreeSet};

use crate::hash::ContentHash;
use crate::ledger::{Admitted, Change, Ledger};
use crate::record::{RecordError, SignedRecord, UnverifiedRecord};
use crate::round::Round;
use crate::sync;
pub use messages::{Input, Notice, Output, Verdict};

/// Milliseconds since a moment of the driver's choosing. Only differences matter, and none enters a decision that two
/// peers could take differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl Millis {
    fn after(self, wait: u64) -> Self {
        Self(self.0.saturating_add(wait))
    }
}

/// How often a peer reconciles with some of its neighbours although nothing happened.
pub const SYNC_INTERVAL_MS: u64 = 30_000;
/// Neighbours it then reconciles with.
const SYNC_FANOUT: usize = 4;
/// Blobs fetched at a time.
pub const FETCHES_MAX: usize = 4;
/// First and longest wait before a blob is tried again.
const FETCH_RETRY_MS: u64 = 1_000;
const FETCH_RETRY_MS_MAX: u64 = 30_000;
/// A fetch may take longer than this only while no other waits for its place.
const FETCH_TURN_MS: u64 = 120_000;
/// Failed tries after which nobody seems to have a blob.
const TRIES_SETTLED: u32 = 3;

/// One peer in one round.
pub struct Machine<P> {
    round: Round,
    ledger: Ledger,
    neighbours: BTreeSet<P>,
    /// The neighbour after which the next periodic reconciliation starts.
    last_synced: Option<P>,
    next_sync: Millis,
    /// Stored blobs and their true sizes.
    stored: BTreeMap<ContentHash, u64>,
    refused: BTreeMap<ContentHash, String>,
    wants: BTreeMap<ContentHash, Want>,
    merged: Vec<Admitted>,
    compared: bool,
}

/// A blob this peer wants to have.
struct Want {
    size: u64,
    in_flight: bool,
    tries: u32,
    /// Not asked for before this; while in flight, when that began.
    retry_at: Millis,
}

impl<P: Clone + Ord> Machine<P> {
    /// A peer that remembers `records` and, through later [`Input::BlobStored`], the blobs it stored.
    pub fn new(round: Round, records: impl IntoIterator<Item = SignedRecord>) -> Self {
        let ledger = Ledger::holding(&round, records);
        Self {
            round,
            ledger,
            neighbours: BTreeSet::new(),
            last_synced: None,
            next_sync: Millis::default(),
            stored: BTreeMap::new(),
            refused: BTreeMap::new(),
            wants: BTreeMap::new(),
            merged: Vec::new(),
            compared: false,
        }
    }

    pub fn round(&self) -> &Round {
        &self.round
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Adapters that were fetched and found not to fit the round, with the reason.
    pub fn refused(&self) -> &BTreeMap<ContentHash, String> {
        &self.refused
    }

    /// The set the merge is meant to hold now.
    pub fn merge_set(&self) -> &[Admitted] {
        &self.merged
    }

    /// Whether every admitted adapter is stored or refused.
    pub fn is_complete(&self) -> bool {
        self.wants.is_empty()
    }

    /// Whether a reconciliation with any neighbour has come to its end since the start: before that, this peer knows only
    /// what it knew when it stopped.
    pub fn has_compared(&self) -> bool {
        self.compared
    }

    /// Whether all that can be had now is here: what is missing was asked for in vain again and again. Without this, one
    /// announced adapter that nobody hands over could keep readers waiting for ever.
    pub fn is_settled(&self) -> bool {
        self.wants.values().all(|want| want.tries >= TRIES_SETTLED)
    }

    /// Takes one input; pushes what has to be done to `out`.
    pub fn handle(&mut self, input: Input<P>, now: Millis, out: &mut Vec<Output<P>>) {
        match input {
            Input::Connected(peer) => self.connected(peer, now, out),
            Input::Disconnected(peer) => {
                self.neighbours.remove(&peer);
            }
            Input::Gossip { bytes } => self.gossip(&bytes, out),
            Input::SyncRequest { bytes } => self.sync_request(&bytes, out),
            Input::SyncResponse { from, bytes } => self.sync_response(from, &bytes, out),
            Input::Publish(record) => {
                self.admit(record.clone(), out);
                out.push(Output::Gossip(record.bytes().to_vec()));
            }
            Input::BlobStored { adapter, size } => {
                self.stored.insert(adapter, size);
            }
            Input::BlobFailed { adapter } => self.blob_failed(adapter, now),
            Input::BlobRefused { adapter, why } => {
                self.stored.remove(&adapter);
                // A merge that was under way may find it once more before it hears of the first time.
                if self.refused.insert(adapter, why.clone()).is_none() {
                    out.push(Output::Notice(Notice::AdapterRefused { adapter, why }));
                }
            }
            Input::BlobLost { adapter } => {
                self.stored.remove(&adapter);
            }
            Input::Tick => self.periodic_sync(now, out),
        }
        self.settle(now, out);
    }

    fn connected(&mut self, peer: P, now: Millis, out: &mut Vec<Output<P>>) {
        self.compare_with(peer.clone(), out);
        self.neighbours.insert(peer);
        // A new neighbour may hold what nobody had until now.
        for want in self.wants.values_mut() {
            want.tries = 0;
            want.retry_at = want.retry_at.min(now);
        }
    }

    fn gossip(&mut self, bytes: &[u8], out: &mut Vec<Output<P>>) {
        let verdict = match UnverifiedRecord(bytes).verify(&self.round) {
            Ok(record) => {
                if self.admit(record, out) {
                    Verdict::Accept
                } else {
                    Verdict::Ignore
                }
            }
            Err(error) => {
                out.push(Output::Notice(Notice::RecordRefused(error)));
                Verdict::Reject
            }
        };
        out.push(Output::Verdict(verdict));
    }

    /// Shows the ledger a verified record; whether it was news.
    fn admit(&mut self, record: SignedRecord, out: &mut Vec<Output<P>>) -> bool {
        let change = self.ledger.insert(record.clone());
        if matches!(change, Change::Kept { .. }) && record.standing().is_some() {
            // What was refused for want of this is asked for again at once.
            self.next_sync = Millis::default();
        }
        let (displaced, notice) = match change {
            Change::Kept { displaced } => (displaced, Notice::Recorded(record.clone())),
            Change::Conflict { displaced } => (displaced, Notice::Conflict(record.clone())),
            Change::NotInRoster => {
                let member = record.record().member();
                out.push(Output::Notice(Notice::RecordRefused(RecordError::NotInRoster { member })));
                return false;
            }
            Change::Known | Change::Stale { .. } | Change::Redundant | Change::Full => return false,
        };
        out.push(Output::Keep(record));
        out.extend(displaced.into_iter().map(Output::Forget));
        out.push(Output::Notice(notice));
        true
    }

    fn compare_with(&self, peer: P, out: &mut Vec<Output<P>>) {
        self.request(peer, &sync::Request::compare(self.round.id(), &self.ledger), out);
    }

    fn request(&self, to: P, request: &sync::Request, out: &mut Vec<Output<P>>) {
        match request.to_bytes() {
            Ok(bytes) => out.push(Output::Request { to, bytes }),
            Err(error) => out.push(Output::Notice(Notice::SyncRefused(error.to_string()))),
        }
    }

    fn sync_request(&mut self, bytes: &[u8], out: &mut Vec<Output<P>>) {
        let response = match sync::Request::from_bytes(bytes) {
            Ok(sync::Request::Compare { round, .. } | sync::Request::Exchange { round, .. }) if round != self.round.id() => {
                sync::Response::WrongRound(self.round.id())
            }
            Ok(sync::Request::Compare { count, fingerprint, .. }) => sync::compare(&self.ledger, count, fingerprint),
            Ok(sync::Request::Exchange { wanted, records, .. }) => {
                // Answer from what was held before: the asker need not be told what it has just said.
                let response = sync::supply(&self.ledger, &wanted);
                self.absorb(&records, out);
                response
            }
            Err(error) => {
                out.push(Output::Notice(Notice::SyncRefused(error.to_string())));
                sync::Response::Same
            }
        };
        out.push(Output::Respond(response.to_bytes().unwrap_or_default()));
    }

    fn sync_response(&mut self, from: P, bytes: &[u8], out: &mut Vec<Output<P>>) {
        match sync::Response::from_bytes(bytes) {
            Ok(sync::Response::Same) => self.compared = true,
            Ok(sync::Response::Ids(ids)) => match sync::exchange(self.round.id(), &self.ledger, &ids) {
                Some(request) => self.request(from, &request, out),
                None => self.compared = true,
            },
            Ok(sync::Response::Records(records)) => {
                // More may wait behind a full batch; a peer that sends little news is not asked again at once.
                if self.absorb(&records, out) >= sync::BATCH_MAX / 2 && records.len() >= sync::BATCH_MAX {
                    self.compare_with(from, out);
                } else {
                    self.compared = true;
                }
            }
            Ok(sync::Response::WrongRound(found)) => {
                out.push(Output::Notice(Notice::SyncRefused(format!("neighbour is in round {found}, not in this one"))));
            }
            Err(error) => out.push(Output::Notice(Notice::SyncRefused(error.to_string()))),
        }
    }

    /// Takes records from a reconciliation; how many were news. News is gossiped on, so that a member that was cut
    /// off reaches everybody through the first peer it meets.
    fn absorb(&mut self, records: &[sync::RawRecord], out: &mut Vec<Output<P>>) -> usize {
        let mut verified = Vec::new();
        for sync::RawRecord(bytes) in records {
            match UnverifiedRecord(bytes).verify(&self.round) {
                Ok(record) => verified.push(record),
                Err(error) => out.push(Output::Notice(Notice::RecordRefused(error))),
            }
        }
        // Who belongs first. Then the highest sequence: what it supersedes is stale by then and costs neither disk nor gossip.
        verified.sort_by_key(|record| (record.standing().is_none(), std::cmp::Reverse(record.record().sequence())));
        let mut news: usize = 0;
        for record in verified {
            let bytes = record.bytes().to_vec();
            if self.admit(record, out) {
                news = news.saturating_add(1);
                out.push(Output::Gossip(bytes));
            }
        }
        news
    }

    fn blob_failed(&mut self, adapter: ContentHash, now: Millis) {
        let sizes: BTreeSet<u64> = self.ledger.admitted().filter(|entry| entry.adapter == adapter).map(|entry| entry.size).collect();
        if let Some(want) = self.wants.get_mut(&adapter) {
            // Members may announce one adapter with several sizes, of which one is true: each has its turn.
            want.size = sizes.range(want.size.saturating_add(1)..).next().or(sizes.first()).copied().unwrap_or(want.size);
            want.in_flight = false;
            want.tries = want.tries.saturating_add(1);
            let wait = FETCH_RETRY_MS.checked_shl(want.tries.saturating_sub(1)).unwrap_or(FETCH_RETRY_MS_MAX);
            want.retry_at = now.after(wait.clamp(FETCH_RETRY_MS, FETCH_RETRY_MS_MAX));
        }
    }

    fn periodic_sync(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        if now < self.next_sync {
            return;
        }
        self.next_sync = now.after(SYNC_INTERVAL_MS);
        let ahead = self.neighbours.iter().filter(|peer| self.last_synced.as_ref().is_none_or(|last| *peer > last));
        let peers: Vec<P> = ahead.chain(&self.neighbours).take(SYNC_FANOUT.min(self.neighbours.len())).cloned().collect();
        self.last_synced = peers.last().cloned();
        for peer in peers {
            self.compare_with(peer, out);
        }
    }

    /// Brings wants, fetches and the merge set in step with ledger and store.
    fn settle(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        let admitted: Vec<Admitted> = self.ledger.admitted().collect();
        self.settle_wants(&admitted, now, out);
        self.start_fetches(now, out);
        let set: Vec<Admitted> = admitted.into_iter().filter(|entry| self.stored.get(&entry.adapter) == Some(&entry.size)).collect();
        if set != self.merged {
            self.merged.clone_from(&set);
            out.push(Output::Merge(set));
        }
    }

    fn settle_wants(&mut self, admitted: &[Admitted], now: Millis, out: &mut Vec<Output<P>>) {
        let mut missing: BTreeMap<ContentHash, BTreeSet<u64>> = BTreeMap::new();
        for entry in admitted {
            if !self.stored.contains_key(&entry.adapter) && !self.refused.contains_key(&entry.adapter) {
                missing.entry(entry.adapter).or_default().insert(entry.size);
            }
        }
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

    fn start_fetches(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        if self.neighbours.is_empty() {
            return;
        }
        self.take_turns(now, out);
        let busy = self.wants.values().filter(|want| want.in_flight).count();
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

#[cfg(test)]
#[path = "machine/tests.rs"]
mod tests;
