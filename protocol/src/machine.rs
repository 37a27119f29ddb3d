//! The peer's state machine: inputs in, outputs out. It never waits, never reads a clock and never touches a socket or
//! a file, so the same code runs in a node and in a simulation.
//!
//! The order of outputs is part of the contract: a record is kept (durably) before it is passed on, so nothing this
//! peer has vouched for is lost when it is killed.

mod attested;
mod fetches;
mod messages;
mod reconcile;

use std::collections::BTreeMap;

use crate::hash::ContentHash;
use crate::ledger::{Admitted, Change, Ledger};
use crate::record::{RecordError, RecordId, SignedRecord, UnverifiedRecord};
use crate::round::Round;
use crate::sync::Catalogue;
use attested::Attested;
pub use attested::{Quorum, Vouched};
pub use fetches::FETCHES_MAX;
use fetches::Want;
pub use messages::{Input, Notice, Output, Reception};
pub use reconcile::SYNC_INTERVAL_MS;
use reconcile::{Neighbour, Pace, SILENT_MS_MAX};

/// Milliseconds since a moment of the driver's choosing. Only differences matter, and none enters a decision that two
/// peers could take differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl Millis {
    fn after(self, wait: u64) -> Self {
        Self(self.0.saturating_add(wait))
    }
}

/// One peer in one round.
pub struct Machine<P> {
    round: Round,
    ledger: Ledger,
    /// Signatures of the records in the ledger: what is held already need not be verified again.
    held: BTreeMap<RecordId, [u8; 64]>,
    /// The ledger by names; `None` since it changed.
    catalogue: Option<Catalogue>,
    neighbours: BTreeMap<P, Neighbour>,
    pace: Pace<P>,
    /// Stored blobs and their true sizes.
    stored: BTreeMap<ContentHash, u64>,
    refused: BTreeMap<ContentHash, String>,
    wants: BTreeMap<ContentHash, Want>,
    merged: Vec<Admitted>,
    /// Whether ledger, stored or refused blobs have changed since wants and merge set were brought in step.
    unsettled: bool,
    compared: bool,
    attested: Attested,
}

/// A record that is right.
enum Heard {
    /// It is in the ledger.
    Before(RecordId),
    Now(Box<SignedRecord>),
}

impl<P: Clone + Ord> Machine<P> {
    /// A peer that remembers `records` and, through later [`Input::BlobStored`], the blobs it stored.
    pub fn new(round: Round, records: impl IntoIterator<Item = SignedRecord>) -> Self {
        let ledger = Ledger::holding(&round, records);
        let held = ledger.records().map(|record| (record.id(), record.signature())).collect();
        Self {
            round,
            ledger,
            held,
            catalogue: None,
            neighbours: BTreeMap::new(),
            pace: Pace::default(),
            stored: BTreeMap::new(),
            refused: BTreeMap::new(),
            wants: BTreeMap::new(),
            merged: Vec::new(),
            unsettled: true,
            compared: false,
            attested: Attested::default(),
        }
    }

    /// Remembers adapters that were found not to fit the round before this start.
    pub fn remember_refused(mut self, refused: impl IntoIterator<Item = (ContentHash, String)>) -> Self {
        self.refused.extend(refused);
        self
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

    /// Whether every adapter that counts or may come to count is stored or refused.
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
        self.wants.values().all(Want::is_vain)
    }

    /// Takes one input; pushes what has to be done to `out`.
    pub fn handle(&mut self, input: Input<P>, now: Millis, out: &mut Vec<Output<P>>) {
        match input {
            Input::Connected(peer) => self.connected(peer, now, out),
            Input::Disconnected(peer) => {
                self.neighbours.remove(&peer);
            }
            Input::Gossip { bytes } => self.gossip(&bytes, now, out),
            Input::SyncRequest { from, bytes } => self.sync_request(&from, &bytes, now, out),
            Input::SyncResponse { from, bytes } => self.sync_response(&from, &bytes, now, out),
            Input::SyncFailed { from } => self.unanswered(&from, SILENT_MS_MAX, now),
            Input::Publish(record) => self.publish(record, now, out),
            Input::Attest(attestation) => self.attest(attestation, now, out),
            Input::BlobStored { adapter, size } => {
                self.unsettled |= self.stored.insert(adapter, size) != Some(size);
            }
            Input::BlobFailed { adapter } => self.blob_failed(adapter, now),
            Input::BlobRefused { adapter, why } => {
                self.unsettled = true;
                self.stored.remove(&adapter);
                // A merge that was under way may find it once more before it hears of the first time.
                if self.refused.insert(adapter, why.clone()).is_none() {
                    out.push(Output::Notice(Notice::AdapterRefused { adapter, why }));
                }
            }
            Input::BlobLost { adapter } => {
                self.unsettled |= self.stored.remove(&adapter).is_some();
            }
            Input::Tick => self.reconcile(now, out),
        }
        self.settle(now, out);
    }

    fn publish(&mut self, record: SignedRecord, now: Millis, out: &mut Vec<Output<P>>) {
        self.admit(record.clone(), now, out);
        // What is not kept must not be told: after a restart this peer would say something else in its place.
        out.push(if self.held.contains_key(&record.id()) {
            Output::Gossip(record.bytes().to_vec())
        } else {
            Output::Notice(Notice::NotKept(record))
        });
    }

    fn gossip(&mut self, bytes: &[u8], now: Millis, out: &mut Vec<Output<P>>) {
        let reception = match self.recognise(bytes) {
            Ok(Heard::Now(record)) => {
                if self.admit(*record, now, out) {
                    Reception::Accept
                } else {
                    Reception::Ignore
                }
            }
            Ok(Heard::Before(_)) => Reception::Ignore,
            Err(error) => {
                out.push(Output::Notice(Notice::RecordRefused(error)));
                Reception::Reject
            }
        };
        out.push(Output::Reception(reception));
    }

    /// Verifies a record, unless these very bytes were verified before and are held.
    fn recognise(&self, bytes: &[u8]) -> Result<Heard, RecordError> {
        let record = UnverifiedRecord(bytes);
        match record.claims() {
            Some((id, signature)) if self.held.get(&id) == Some(&signature) => Ok(Heard::Before(id)),
            _ => Ok(Heard::Now(Box::new(record.verify(&self.round)?))),
        }
    }

    /// Shows the ledger a verified record; whether it was news.
    fn admit(&mut self, record: SignedRecord, now: Millis, out: &mut Vec<Output<P>>) -> bool {
        let (displaced, notice) = match self.ledger.insert(record.clone()) {
            Change::Kept { displaced } => (displaced, Notice::Recorded(record.clone())),
            Change::Conflict { displaced } => (displaced, Notice::Conflict(record.clone())),
            Change::NotInRoster => {
                let subject = record.verdict().map(|said| said.subject).filter(|key| self.ledger.standing(key).is_none());
                let member = subject.unwrap_or(record.record().member());
                out.push(Output::Notice(Notice::RecordRefused(RecordError::NotInRoster { member })));
                return false;
            }
            Change::Known | Change::Stale { .. } | Change::Redundant | Change::Full => return false,
        };
        self.held.insert(record.id(), record.signature());
        for id in &displaced {
            self.held.remove(id);
        }
        self.catalogue = None;
        self.unsettled = true;
        self.pace.stir(now);
        out.push(Output::Keep(record));
        out.extend(displaced.into_iter().map(Output::Forget));
        out.push(Output::Notice(notice));
        true
    }

    fn catalogue(&mut self) -> &Catalogue {
        self.catalogue.get_or_insert_with(|| Catalogue::of(&self.ledger))
    }

    /// Brings wants, fetches and the merge set in step with ledger and store.
    fn settle(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        if !std::mem::take(&mut self.unsettled) {
            self.start_fetches(now, out);
            return;
        }
        if self.attested.quorum().is_some() {
            let admitted: Vec<Admitted> = self.ledger.admitted().collect();
            self.settle_vouched(&admitted, now, out);
            return;
        }
        // What does not count yet is needed too: others cannot approve what they do not have.
        self.settle_wants(self.missing(self.ledger.candidates()), now, out);
        self.start_fetches(now, out);
        let set: Vec<Admitted> = self.ledger.admitted().filter(|entry| self.stored.get(&entry.adapter) == Some(&entry.size)).collect();
        if set != self.merged {
            self.merged.clone_from(&set);
            out.push(Output::Merge(set));
        }
    }
}

#[cfg(test)]
#[path = "machine/attested_tests.rs"]
mod attested_tests;
#[cfg(test)]
#[path = "machine/blame_tests.rs"]
mod blame_tests;
#[cfg(test)]
#[path = "machine/fetch_tests.rs"]
mod fetch_tests;
#[cfg(test)]
#[path = "machine/pace_tests.rs"]
mod pace_tests;
#[cfg(test)]
#[path = "machine/tests.rs"]
mod tests;
#[cfg(test)]
#[path = "machine/verdict_tests.rs"]
mod verdict_tests;
