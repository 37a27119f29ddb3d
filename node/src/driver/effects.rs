//! From an input of the machine to effects: what it asks for is carried out in its order, and a record is on disk before
//! anybody is told of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::{Admitted, Ledger};
use mingle_protocol::machine::{Input, Millis, Notice, Output, Reception};
use mingle_protocol::record::{RecordId, SignedRecord};

use super::heads::AdapterHead;
use super::{Driver, Event, LinkStatus, MergedStatus, Status, averaging, belonging, refusals, status};
use crate::network::{self, HeadCheck, NetworkHandle, PeerId};
use crate::rule;

/// What a reception or an answer is for.
pub(super) enum Origin {
    Gossip { message: network::MessageId, from: PeerId },
    Question(network::SyncToken),
}

fn verdict_of(reception: Reception) -> network::Verdict {
    match reception {
        Reception::Accept => network::Verdict::Accept,
        Reception::Reject => network::Verdict::Reject,
        Reception::Ignore => network::Verdict::Ignore,
    }
}

/// The records that admit this set: its announcements, the verdicts that count on them, and what makes their authors members.
fn admitting(ledger: &Ledger, set: &[Admitted]) -> Vec<SignedRecord> {
    let mut ids: BTreeSet<RecordId> = set.iter().map(|entry| entry.record).collect();
    let mut members: BTreeSet<MemberKey> = set.iter().map(|entry| entry.member).collect();
    for verdict in set.iter().flat_map(|entry| ledger.verdicts(entry)) {
        ids.insert(verdict.id());
        members.insert(verdict.record().author());
    }
    let admits = |record: &&SignedRecord| match record.standing() {
        Some(change) => members.contains(&change.subject),
        None => ids.contains(&record.id()),
    };
    ledger.records().filter(admits).cloned().collect()
}

impl<F: FnMut(&Event)> Driver<F> {
    pub(super) fn handle(&mut self, input: Input<PeerId>) -> Result<()> {
        self.handle_from(input, None)
    }

    /// `origin` is what a reception or an answer is for.
    pub(super) fn handle_from(&mut self, input: Input<PeerId>, origin: Option<Origin>) -> Result<()> {
        let mut outputs = Vec::new();
        let now = Millis(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.machine.handle(input, now, &mut outputs);
        self.access_due |= outputs.iter().any(belonging::is_change);
        for output in outputs {
            self.perform(output, origin.as_ref())?;
        }
        self.save()?;
        // A fetch that could not even start has failed, and is tried again after a pause.
        match self.unstarted.pop() {
            Some(adapter) => self.handle(Input::BlobFailed { adapter }),
            None => Ok(()),
        }
    }

    pub(super) fn perform(&mut self, output: Output<PeerId>, origin: Option<&Origin>) -> Result<()> {
        // Only more records to keep or to forget, and words for people, may come before the disk has what was kept.
        if !matches!(output, Output::Keep(_) | Output::Forget(_) | Output::Notice(_)) {
            self.save()?;
        }
        match output {
            Output::Keep(record) => self.unsaved.push(record),
            Output::Forget(id) => self.forgotten.push(id.0.0),
            Output::Reception(reception) => {
                if let Some(Origin::Gossip { message, from }) = origin {
                    self.send(|network| network.report(message.clone(), *from, verdict_of(reception)));
                }
            }
            Output::Gossip(bytes) => _ = self.send(|network| network.publish(bytes)),
            Output::Request { to, bytes } => _ = self.send(|network| network.sync_request(to, bytes)),
            Output::Respond(bytes) => {
                if let Some(Origin::Question(token)) = origin {
                    self.send(|network| network.sync_respond(*token, bytes));
                }
            }
            Output::Fetch { adapter, size } => {
                let announcers = self.machine.ledger().candidates().filter(|entry| (entry.adapter, entry.size) == (adapter, size));
                let vouched = self.machine.vouched().filter(|vouched| vouched.merged == adapter);
                let vouching = vouched.iter().flat_map(|vouched| &vouched.attestations).map(|signed| signed.attestation().member);
                let announcers: Vec<MemberKey> = announcers.map(|entry| entry.member).collect();
                // Judged by its header before the rest of it comes. A merge of one adapter may be that adapter.
                let head: Option<Arc<dyn HeadCheck>> = match vouched.map(|vouched| vouched.merged) {
                    Some(merged) => Some(Arc::new(self.vouching.believe(&self.store, self.machine.round(), merged, size)?)),
                    None if announcers.is_empty() => None,
                    None => Some(Arc::new(AdapterHead(self.machine.round().tensors().clone()))),
                };
                let providers = announcers.into_iter().chain(vouching).filter_map(|member| network::peer_of(&member)).collect();
                let fetched = self.send(|network| match head {
                    Some(head) => network.fetch_checked(adapter, size, providers, head),
                    None => network.fetch(adapter, size, providers),
                });
                if !fetched {
                    self.unstarted.push(adapter);
                }
            }
            Output::CancelFetch(adapter) => _ = self.send(|network| network.cancel_fetch(adapter)),
            Output::Misled { by, times } => _ = self.send(|network| network.misled(by, times)),
            Output::Merge(_) if self.role == super::work::SEED => {}
            Output::Merge(set) => {
                let records = admitting(self.machine.ledger(), &set);
                self.orders.send_replace(averaging::Order { set, records });
            }
            Output::Notice(notice) => {
                // What is told as refused stays refused, whatever happens next.
                if let Notice::AdapterRefused { .. } = notice {
                    self.remember_refusals()?;
                }
                self.notice(notice);
            }
        }
        Ok(())
    }

    fn remember_refusals(&self) -> Result<()> {
        let candidates: BTreeSet<ContentHash> = self.machine.ledger().candidates().map(|entry| entry.adapter).collect();
        let refused = self.machine.refused().iter().filter(|(adapter, _)| candidates.contains(adapter));
        tokio::task::block_in_place(|| refusals::remember(&self.store, refused))
    }

    /// Makes what is to be kept durable, in one commit, and only then forgets what it displaced.
    pub(super) fn save(&mut self) -> Result<()> {
        if !self.unsaved.is_empty() {
            let records: Vec<([u8; 32], &[u8])> = self.unsaved.iter().map(|record| (record.id().0.0, record.bytes())).collect();
            tokio::task::block_in_place(|| self.store.put_records(&records))?;
            self.unsaved.clear();
        }
        if !self.forgotten.is_empty() {
            tokio::task::block_in_place(|| self.store.remove_records(&self.forgotten))?;
            self.forgotten.clear();
        }
        Ok(())
    }

    /// Whether the network has taken the command. Records and questions it does not take now are caught up with by
    /// reconciliation.
    pub(super) fn send(&mut self, command: impl FnOnce(&NetworkHandle) -> Result<(), network::NetworkError>) -> bool {
        match command(&self.network) {
            Ok(()) => true,
            Err(error) => {
                (self.observe)(&Event::Trouble { why: error.to_string() });
                false
            }
        }
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        if let Notice::Recorded(_) | Notice::Conflict(_) = notice {
            self.vouching.changed();
        }
        let event = match notice {
            // Its own record is told of when it is made.
            Notice::Recorded(record) if Some(record.id()) == self.said => return,
            Notice::Recorded(record) | Notice::Conflict(record)
                if self.said.is_some()
                    && record.record().author() == self.key.member()
                    && !(record.standing().is_some() || record.verdict().is_some()) =>
            {
                let sequence = record.record().sequence();
                let why =
                    format!("this key has said something else from another home (sequence {sequence}); publish again to supersede it");
                Event::Trouble { why }
            }
            Notice::Recorded(record) => Event::heard(&record),
            Notice::Conflict(record) => Event::Conflict { member: record.record().member(), sequence: record.record().sequence() },
            Notice::RecordRefused(error) => Event::RecordRefused { why: error.to_string() },
            Notice::SyncRefused(why) => Event::Trouble { why },
            Notice::NotKept(_) => {
                let why = "what this member says has no place in the round and was told to nobody: the round is full, or its roster does \
                           not have this member now";
                Event::Trouble { why: why.into() }
            }
            Notice::AdapterRefused { adapter, why } => Event::AdapterRefused { adapter, why },
            Notice::Fault(fault) => return self.fault(&fault),
        };
        (self.observe)(&event);
    }

    pub(super) fn write_status(&mut self) {
        let ledger = self.machine.ledger();
        let receipt = self.merged.as_ref().map(|(receipt, _)| receipt);
        let manifest = self.machine.round().manifest();
        let reach = self.network.reachability().borrow().clone();
        let status = Status {
            updated_unix_ms: status::unix_ms(),
            process: std::process::id(),
            role: self.role.into(),
            member: self.key.member(),
            peer: self.network.local_peer().to_string(),
            round: self.machine.round().id().to_string(),
            name: manifest.name.clone(),
            listening: self.listening.clone(),
            neighbours: self.network.connected_peers().len(),
            reachability: reach.reachability.name().into(),
            reached_at: reach.reachability.addresses().iter().map(ToString::to_string).collect(),
            links: reach.links.iter().map(LinkStatus::from).collect(),
            phase: self.phase,
            training: self.progress.clone(),
            slots: status::slots(ledger, receipt, &self.have, self.machine.refused()),
            standings: ledger.standing_records().filter_map(SignedRecord::standing).map(Into::into).collect(),
            roster: status::roster(manifest, ledger),
            merged: self.merged.as_ref().map(|(receipt, folder)| MergedStatus::new(receipt, folder.clone(), &self.account)),
            rule: receipt.map_or_else(|| rule::pinned(manifest), |receipt| rule::among(manifest, receipt.admitted.len())),
            vouching: receipt.map_or(0, |receipt| self.machine.vouching(receipt.set_root, receipt.merged)),
            faults: self.vouching.faults.clone(),
            traffic: self.network.traffic().into(),
            conduct: self.network.peers().into_iter().map(Into::into).collect(),
            transfers: self.network.transfers().into_iter().map(Into::into).collect(),
            uploads: self.network.uploads().into_iter().map(Into::into).collect(),
            home: self.home.folder().to_owned(),
        };
        // A status is for looking at: a full disk must not stop the peer for its sake.
        if let Err(error) = status.write(&self.home.status_path()) {
            tracing::warn!(%error, "cannot write the status");
        }
        let history = self.chronicle.keep(false);
        if let Some(show) = &mut self.show {
            show(&status, &history);
        }
    }
}
