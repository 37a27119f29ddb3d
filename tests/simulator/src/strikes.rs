//! Faults as they strike, and how they end.

use std::collections::BTreeSet;

use mingle_protocol::machine::Input;
use mingle_protocol::record::{RecordId, SignedRecord};

use crate::Name;
use crate::peer::{Origin, Presence, Waiting};
use crate::plan::Strike;
use crate::world::{Event, World};

impl World {
    pub fn strike(&mut self, strike: Strike) {
        match strike {
            _ if self.healed => {}
            Strike::Crash { peer, after, away } => {
                if self.peers[peer].is_judged() {
                    self.peers[peer].dies_after = Some(after);
                    self.away[peer] = away;
                }
            }
            Strike::Pause { peer, for_ms } => self.pause(peer, for_ms),
            Strike::Split { which, active } => {
                self.note(0, if active { "the network splits" } else { "a split ends" }, which as u64);
                self.splits[which].active = active;
            }
            Strike::Cut { peer } => {
                let neighbours: Vec<Name> = self.peers[peer].neighbours.iter().copied().collect();
                if !neighbours.is_empty() {
                    let with = *self.dice.one_of(&neighbours);
                    let (one, other) = (self.dice.below(3_000) as u64, self.dice.below(15_000) as u64);
                    self.sever(peer, with, one, other);
                }
            }
            Strike::Damage { peer } => self.damage(peer),
            Strike::Join { peer } => self.start(peer),
            Strike::Leave { peer } => {
                if self.peers[peer].presence == Presence::Up {
                    self.note(peer, "leaves for good", 0);
                    self.stop(peer, Presence::Gone);
                }
            }
        }
    }

    fn pause(&mut self, at: Name, for_ms: u64) {
        let until = self.agenda.now() + for_ms;
        let peer = &mut self.peers[at];
        if peer.is_judged() && peer.paused_until < until {
            peer.paused_until = until;
            self.note(at, "stands still", for_ms);
            let visit = self.visit(at);
            self.agenda.at(until, Event::Drive(visit));
        }
    }

    /// Silent: whoever reads the blob next finds out. Not what its own member announced: nobody else may have that.
    fn damage(&mut self, at: Name) {
        let peer = &self.peers[at];
        let own = peer.key.map(|key| self.ground.keys[key].member());
        let announced: BTreeSet<_> =
            peer.machine.ledger().admitted().filter(|entry| Some(entry.member) == own).map(|entry| entry.adapter).collect();
        let others: Vec<_> = peer.disk.blobs.keys().copied().filter(|adapter| !announced.contains(adapter)).collect();
        if !others.is_empty() {
            let adapter = *self.dice.one_of(&others);
            self.note(at, "has a bad blob", u64::from(adapter.0[0]));
            self.peers[at].disk.blobs.insert(adapter, false);
        }
    }

    /// The process dies here and now. What the disk was at work on may or may not have got there.
    pub fn crash(&mut self, at: Name) {
        self.note(at, "dies", 0);
        if self.peers[at].driver.saving && self.dice.once_in(2) {
            let unsaved = std::mem::take(&mut self.peers[at].driver.unsaved);
            self.peers[at].disk.records.extend(unsaved.into_iter().map(|record| (record.id(), record)));
        }
        self.stop(at, Presence::Down);
        let away = self.away[at];
        self.agenda.after(away, Event::Start(at));
    }

    fn stop(&mut self, at: Name, presence: Presence) {
        self.end_transfers(at);
        self.vanish(at);
        let peer = &mut self.peers[at];
        peer.presence = presence;
        peer.life += 1;
        peer.dies_after = None;
        peer.driver = crate::peer::Driver::default();
        peer.neighbours.clear();
        peer.asked.clear();
        peer.serving = 0;
    }

    /// A process begins, as `Driver::start` does: with the records of its disk, then the blobs, then its own work.
    pub fn start(&mut self, at: Name) {
        if matches!(self.peers[at].presence, Presence::Up | Presence::Gone) {
            return;
        }
        self.note(at, "starts", self.peers[at].disk.records.len() as u64);
        let now = self.agenda.now();
        let mut records: Vec<SignedRecord> = self.peers[at].disk.records.values().cloned().collect();
        self.dice.shuffle(&mut records);
        let peer = &mut self.peers[at];
        peer.reborn(&self.ground.round, records, now);
        let kept: BTreeSet<RecordId> = peer.machine.ledger().records().map(SignedRecord::id).collect();
        peer.disk.records.retain(|id, _| kept.contains(id));
        if !peer.hostile
            && let Err(why) = self.checks.acknowledged.remembers(at, peer.machine.ledger())
        {
            self.fail(why);
        }
        let peer = &mut self.peers[at];
        let (blobs, wish): (Vec<_>, _) = (peer.disk.blobs.keys().copied().collect(), peer.disk.wish);
        for adapter in blobs {
            let size = self.ground.file(&adapter).map_or(0, |file| file.bytes.len() as u64);
            self.wait(at, Waiting::Input(Input::BlobStored { adapter, size }, Origin::Nothing));
        }
        if let Some(deed) = wish {
            self.wait(at, Waiting::Deed(deed));
        }
        self.wait(at, Waiting::CollectGarbage);
        self.begin_timers(at);
    }

    /// All faults are over: everybody who comes back is back, and reads what is on its disk.
    pub fn heal(&mut self) {
        self.note(0, "the faults are over", 0);
        self.healed = true;
        self.splits.iter_mut().for_each(|split| split.active = false);
        for at in 0..self.peers.len() {
            self.peers[at].dies_after = None;
            self.peers[at].paused_until = 0;
            if matches!(self.peers[at].presence, Presence::Down | Presence::Absent) {
                self.start(at);
            }
            let bad: Vec<_> = self.peers[at].disk.blobs.iter().filter(|(_, right)| !**right).map(|(adapter, _)| *adapter).collect();
            for adapter in bad {
                self.peers[at].disk.blobs.remove(&adapter);
                self.input(at, Input::BlobLost { adapter });
            }
            self.drive(at);
        }
        self.heal_at = self.agenda.now();
    }
}
