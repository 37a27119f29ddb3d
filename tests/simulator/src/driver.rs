//! The driver's loop, as the node has it: one input at a time, its outputs in their order, and a record on disk before
//! anybody is told of it. The disk may be slow, and the process may die between any two outputs.

use std::collections::BTreeSet;

use mingle_protocol::hash::ContentHash;
use mingle_protocol::machine::{Input, Output};

use crate::Name;
use crate::figures::INBOX_MAX;
use crate::peer::{Origin, Presence, Waiting};
use crate::setting::Planted;
use crate::world::{Event, World};

impl World {
    pub fn input(&mut self, at: Name, input: Input<Name>) {
        self.wait(at, Waiting::Input(input, Origin::Nothing));
    }

    /// Puts something before the driver; it takes it at once when it is free.
    pub fn wait(&mut self, at: Name, waiting: Waiting) {
        self.peers[at].driver.inbox.push_back(waiting);
        self.drive(at);
    }

    /// Whether sockets are read: beyond the bound they are not, until the driver has caught up.
    pub fn reads(&self, at: Name) -> bool {
        self.peers[at].driver.inbox.len() < INBOX_MAX
    }

    /// Works until there is nothing to do, the disk is awaited, the process stands still, or it dies.
    pub fn drive(&mut self, at: Name) {
        loop {
            let now = self.agenda.now();
            let peer = &mut self.peers[at];
            if peer.hostile || peer.presence != Presence::Up || peer.paused_until > now || peer.driver.saving {
                return;
            }
            if let Some(output) = peer.driver.pending.front() {
                let waits = !matches!(output, Output::Keep(_) | Output::Forget(_) | Output::Notice(_));
                if waits && !self.saved(at) {
                    return;
                }
                if self.dies_here(at) {
                    return;
                }
                if let Some(output) = self.peers[at].driver.pending.pop_front() {
                    self.perform(at, output);
                }
            } else if !self.saved(at) || !self.next_input(at) {
                return;
            }
        }
    }

    /// Whether nothing waits for the disk; begins to write otherwise.
    fn saved(&mut self, at: Name) -> bool {
        let driver = &self.peers[at].driver;
        if driver.unsaved.is_empty() && driver.forgotten.is_empty() {
            return true;
        }
        let takes = if self.healed { 0 } else { self.setting.disk.draw(&mut self.dice) };
        if takes > 0 {
            self.peers[at].driver.saving = true;
            let visit = self.visit(at);
            self.agenda.after(takes, Event::Saved(visit));
            return false;
        }
        self.commit(at)
    }

    /// Writes what is to be kept in one piece, and only then removes what it displaced; whether the process lived on.
    pub fn commit(&mut self, at: Name) -> bool {
        if self.dies_here(at) {
            return false;
        }
        let peer = &mut self.peers[at];
        for record in std::mem::take(&mut peer.driver.unsaved) {
            peer.disk.records.insert(record.id(), record);
        }
        if !peer.driver.forgotten.is_empty() && self.dies_here(at) {
            return false;
        }
        let peer = &mut self.peers[at];
        for id in std::mem::take(&mut peer.driver.forgotten) {
            peer.disk.records.remove(&id);
        }
        true
    }

    /// Counts down to a planned death.
    fn dies_here(&mut self, at: Name) -> bool {
        match &mut self.peers[at].dies_after {
            Some(0) => {
                self.crash(at);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Hands the machine its next input; whether there was anything to do.
    fn next_input(&mut self, at: Name) -> bool {
        if self.may_withdraw(at) {
            return true;
        }
        let Some(waiting) = self.peers[at].driver.inbox.pop_front() else { return false };
        match waiting {
            Waiting::Input(input, origin) => self.feed(at, input, origin),
            Waiting::Tick => {
                self.vouch(at);
                self.feed(at, Input::Tick, Origin::Nothing);
            }
            Waiting::Deed(deed) => self.act(at, deed),
            Waiting::Averaged(report) => self.averaged(at, report),
            Waiting::CollectGarbage => self.collect_garbage(at),
        }
        true
    }

    fn feed(&mut self, at: Name, input: Input<Name>, origin: Origin) {
        let now = self.agenda.now();
        let gossiped = matches!(origin, Origin::Gossip { .. });
        match &input {
            Input::BlobStored { adapter, .. } | Input::BlobFailed { adapter } => _ = self.peers[at].driver.fetching.remove(adapter),
            _ => {}
        }
        let peer = &mut self.peers[at];
        let mut outputs = Vec::new();
        peer.machine.handle(input, peer.clock.read(now), &mut outputs);
        if let Err(why) = self.checks.bounds.outputs(at, &outputs, gossiped) {
            self.fail(why);
        }
        match self.planted {
            Planted::GossipBeforeKeep => outputs.sort_by_key(|output| matches!(output, Output::Keep(_) | Output::Forget(_))),
            Planted::NoReconciliation => outputs.retain(|output| !matches!(output, Output::Request { .. })),
            Planted::Nothing | Planted::NoRetraction => {}
        }
        let driver = &mut self.peers[at].driver;
        driver.pending = outputs.into();
        driver.origin = Some(origin);
    }

    /// Drops blobs, whole or in part, that are neither admitted nor still in the merged adapter.
    fn collect_garbage(&mut self, at: Name) {
        let peer = &mut self.peers[at];
        let needed: BTreeSet<ContentHash> =
            peer.machine.ledger().admitted().map(|entry| entry.adapter).chain(peer.merging.in_merge().map(|entry| entry.adapter)).collect();
        let there: BTreeSet<ContentHash> = peer.disk.blobs.keys().chain(peer.disk.parts.keys()).copied().collect();
        for adapter in there.difference(&needed) {
            peer.disk.blobs.remove(adapter);
            peer.disk.parts.remove(adapter);
            let lost = Waiting::Input(Input::BlobLost { adapter: *adapter }, Origin::Nothing);
            peer.driver.inbox.push_front(lost);
        }
    }
}
