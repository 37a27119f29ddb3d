//! What the network, the training and the merger report to the loop, and what becomes of it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::ledger::SlotState;
use mingle_protocol::machine::Input;
use mingle_protocol::merge::MergeError;
use mingle_protocol::record::{Announcement, Losses, Record, SignedRecord, Withdrawal};

use super::effects::Origin;
use super::{Driver, Event, Job, MergedStatus, Phase, Prepared, averaging};
use crate::merger::{CheckedAdapter, Unusable, hash_of};
use crate::network::NetworkEvent;

impl<F: FnMut(&Event)> Driver<F> {
    pub(super) fn event(&mut self, event: NetworkEvent) -> Result<()> {
        match event {
            NetworkEvent::Listening(address) => {
                let address = address.to_string();
                (self.observe)(&Event::Listening { address: address.clone() });
                self.listening.push(address);
            }
            NetworkEvent::PeerConnected(peer) => {
                let neighbours = self.network.connected_peers().len();
                (self.observe)(&Event::Connected { peer: peer.to_string(), neighbours });
                self.handle(Input::Connected(peer))?;
            }
            NetworkEvent::PeerDisconnected(peer) => {
                let neighbours = self.network.connected_peers().len();
                (self.observe)(&Event::Disconnected { peer: peer.to_string(), neighbours });
                self.handle(Input::Disconnected(peer))?;
            }
            NetworkEvent::Refused { peer, why } => (self.observe)(&Event::Refused { peer: peer.to_string(), why }),
            NetworkEvent::Distrusted { address, why } => {
                let why = format!("cannot connect to {address}: {why}; --tls-ca names an authority to be trusted");
                (self.observe)(&Event::Trouble { why });
            }
            NetworkEvent::Path(link) => (self.observe)(&Event::path(&link)),
            NetworkEvent::Reachability(reachability) => (self.observe)(&Event::reachability(&reachability)),
            NetworkEvent::Gossip { message_id, from, bytes } => {
                self.handle_from(Input::Gossip { bytes }, Some(Origin::Gossip { message: message_id, from }))?;
            }
            NetworkEvent::SyncRequest { from, token, bytes } => {
                self.handle_from(Input::SyncRequest { from, bytes }, Some(Origin::Question(token)))?
            }
            NetworkEvent::SyncResponse { from, bytes } => self.handle(Input::SyncResponse { from, bytes })?,
            NetworkEvent::SyncFailed { from, why } => {
                tracing::debug!(%from, why, "a question had no answer");
                self.handle(Input::SyncFailed { from })?;
            }
            NetworkEvent::BlobProgress { hash, have, size, .. } => {
                self.have.insert(hash, have);
                (self.observe)(&Event::Fetching { adapter: hash, have, size });
            }
            NetworkEvent::BlobFetched { hash } => {
                if let Some(size) = self.store.blob_size(hash)? {
                    self.have.insert(hash, size);
                    (self.observe)(&Event::Fetched { adapter: hash });
                    self.handle(Input::BlobStored { adapter: hash, size })?;
                    self.take_vouched()?;
                } else {
                    // Found damaged and dropped before we heard that it had come.
                    self.handle(Input::BlobFailed { adapter: hash })?;
                }
            }
            NetworkEvent::BlobPart { hash } => self.part_fetched(hash)?,
            NetworkEvent::BlobFailed { hash, why } => {
                tracing::debug!(%hash, why, "fetch failed");
                self.handle(Input::BlobFailed { adapter: hash })?;
            }
            NetworkEvent::BlobRefused { hash, why } => {
                self.have.remove(&hash);
                self.handle(Input::BlobRefused { adapter: hash, why })?;
            }
            NetworkEvent::BlobDamaged { hash } => self.lost(hash)?,
        }
        Ok(())
    }

    pub(super) fn lost(&mut self, adapter: ContentHash) -> Result<()> {
        self.have.remove(&adapter);
        self.vouching.lost(adapter);
        (self.observe)(&Event::Trouble { why: format!("the stored file of adapter {adapter} is gone or damaged; fetching it again") });
        self.handle(Input::BlobLost { adapter })
    }

    pub(super) fn job(&mut self, job: Job) -> Result<()> {
        match job {
            Job::Training(status) => {
                (self.observe)(&Event::Training(status.clone()));
                self.progress = Some(status);
                Ok(())
            }
            Job::Prepared(Ok(prepared)) => {
                let (loss_before, loss_after) = prepared.losses.unzip();
                (self.observe)(&Event::Trained { examples: prepared.examples, loss_before, loss_after, seconds: prepared.seconds });
                self.announce(prepared)
            }
            Job::Prepared(Err(error)) => {
                self.phase = Phase::Failed;
                self.write_status();
                Err(error.context("training failed"))
            }
            Job::Averaged(report) => self.averaged(report),
            Job::Served(stored) => self.served(stored),
            Job::Tried(candidate, tried) => self.tried(&candidate, tried),
            Job::Scored(scored) => {
                self.scored(scored);
                Ok(())
            }
            Job::Unable(why) => {
                self.unable_to_judge(&why);
                Ok(())
            }
        }
    }

    pub(super) fn averaged(&mut self, report: Result<averaging::Report>) -> Result<()> {
        let averaging::Report { unusable, merged, account } = report.context("merging failed")?;
        let merged = match merged {
            Ok(merged) => Some(merged),
            Err(MergeError::TooFew { rule, have, needs }) => {
                (self.observe)(&Event::TooFew { rule, have, needs });
                None
            }
            Err(_) => None,
        };
        if let Some((receipt, folder)) = &merged {
            self.judging.merged(receipt, folder);
            let status = MergedStatus::new(receipt, folder.clone(), &account);
            let MergedStatus { adapters, weight, merged_hash, set_root, folder, .. } = status;
            (self.observe)(&Event::Merged { adapters, weight, merged_hash, set_root, folder });
        }
        (self.merged, self.account) = (merged, account);
        self.vouching.changed();
        self.unusable(unusable)?;
        self.collect_garbage()?;
        self.write_status();
        Ok(())
    }

    /// Adapters that could not be merged are not merged again, or fetched again.
    pub(super) fn unusable(&mut self, unusable: Vec<Unusable>) -> Result<()> {
        for unusable in unusable {
            match unusable {
                Unusable::Refused { adapter, why } => {
                    self.have.remove(&adapter);
                    self.store.remove_blob(adapter)?;
                    self.handle(Input::BlobRefused { adapter, why })?;
                }
                Unusable::Lost { adapter } => self.lost(adapter)?,
            }
        }
        Ok(())
    }

    /// Takes this member's adapter back, for good: nothing that was trained is announced again by itself.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        let (round, member) = (self.machine.round().clone(), self.key.member());
        if let Some(SlotState::Withdrawn) = self.own_slot() {
            return Ok(());
        }
        let sequence = self.machine.ledger().sequence(&member) + 1;
        let record = SignedRecord::sign(&Record::Withdrawal(Withdrawal { round: round.id(), member, sequence }), &self.key, &round)?;
        self.said = Some(record.id());
        self.handle(Input::Publish(record))?;
        if let Some(SlotState::Withdrawn) = self.own_slot() {
            (self.observe)(&Event::Withdrawn { sequence });
        }
        self.write_status();
        Ok(())
    }

    /// Drops blobs, whole or in part, that are neither candidates nor, until the merger has taken them out, in the merged
    /// adapter. One's own stays even while it does not count: who is admitted again may be the only one to have it.
    pub(super) fn collect_garbage(&mut self) -> Result<()> {
        let in_merge = self.merged.iter().flat_map(|(receipt, _)| &receipt.admitted).map(|entry| entry.adapter);
        let served = self.vouching.needed().chain(self.machine.vouched().map(|vouched| vouched.merged));
        let own = match self.own_slot() {
            Some(SlotState::Adapter(said)) => Some(said.adapter),
            _ => None,
        };
        let candidates = self.machine.ledger().candidates().map(|entry| entry.adapter);
        let needed: BTreeSet<ContentHash> = candidates.chain(in_merge).chain(served).chain(own).collect();
        let whole = self.store.blobs()?.into_iter().map(|(adapter, _)| adapter);
        for adapter in whole.chain(self.store.partials()?).filter(|adapter| !needed.contains(adapter)) {
            self.store.remove_blob(adapter)?;
            self.handle(Input::BlobLost { adapter })?;
        }
        self.have.retain(|adapter, _| needed.contains(adapter));
        Ok(())
    }

    /// Stores what this member announced once more from its file, where the disk has lost it: nobody else may have it.
    pub(super) fn store_again(&mut self, weights: &Path) -> Result<()> {
        let Some(SlotState::Adapter(said)) = self.own_slot() else { return Ok(()) };
        let announced = said.adapter;
        if self.store.has_blob(announced)? || !weights.exists() || hash_of(weights)? != announced {
            return Ok(());
        }
        let (adapter, size) = tokio::task::block_in_place(|| self.store.put_blob_from_file(weights))?;
        self.have.insert(adapter, size);
        self.handle(Input::BlobStored { adapter, size })
    }

    /// Stores the adapter, signs for it, and tells the network; in this order.
    pub(super) fn announce(&mut self, prepared: Prepared) -> Result<()> {
        if !self.is_member() {
            self.wait_for_admission(prepared);
            return Ok(());
        }
        let Self { store, machine, key, .. } = self;
        let round = machine.round().clone();
        let file = std::fs::File::open(&prepared.weights).with_context(|| format!("cannot read {}", prepared.weights.display()))?;
        let checked = tokio::task::block_in_place(|| CheckedAdapter::read(file, round.tensors()))
            .with_context(|| format!("{} cannot be announced in round \"{}\"", prepared.weights.display(), round.manifest().name))?;
        let member = key.member();
        self.phase = Phase::Announced;
        if let Some(SlotState::Adapter(said)) = machine.ledger().slot(&member)
            && (said.adapter, said.examples) == (checked.hash, prepared.examples)
        {
            return self.store_again(&prepared.weights);
        }
        let (adapter, size) = tokio::task::block_in_place(|| store.put_blob_from_file(&prepared.weights))?;
        anyhow::ensure!(adapter == checked.hash, "{} changed while it was read", prepared.weights.display());
        let sequence = machine.ledger().sequence(&member) + 1;
        let weight = round.manifest().weight.weight(prepared.examples);
        let losses = prepared.losses.map(|(before, after)| Losses { before_micronats: micro(before), after_micronats: micro(after) });
        let base = round.manifest().base.digest;
        let announcement = Announcement {
            round: round.id(),
            member,
            sequence,
            adapter,
            size,
            weight,
            base,
            examples: prepared.examples,
            losses,
            privacy: prepared.privacy,
        };
        let record = SignedRecord::sign(&Record::Announcement(announcement), key, &round)?;
        self.have.insert(adapter, size);
        self.handle(Input::BlobStored { adapter, size })?;
        self.said = Some(record.id());
        self.handle(Input::Publish(record))?;
        (self.observe)(&Event::Announced { adapter, sequence, weight });
        self.write_status();
        self.forget_training()
    }

    /// A checkpoint is needed until the announcement is durable, and then no more.
    pub(super) fn forget_training(&self) -> Result<()> {
        Ok(crate::train::checkpoint::remove(&self.home.training())?)
    }
}

fn micro(nats: f64) -> u64 {
    (nats * 1e6).round().clamp(0.0, 1e15) as u64
}
