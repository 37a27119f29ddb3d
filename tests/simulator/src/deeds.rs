//! What members do: announce an adapter, another one later, take it back. As the node does it, with its order of effects.

use std::collections::btree_map::Entry;

use mingle_protocol::ledger::SlotState;
use mingle_protocol::machine::Input;
use mingle_protocol::record::{Record, SignedRecord};
use mingle_protocol::standing::Standing;

use crate::Name;
use crate::peer::{Origin, Presence, Waiting};
use crate::world::{Event, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Announce {
        file: usize,
        examples: u64,
    },
    Withdraw,
    /// Founders have agreed, and this peer tells of it.
    ChangeStanding {
        key: usize,
        becomes: Standing,
        without: usize,
    },
}

/// A member that is not one yet looks again after this whether it is.
const NOT_YET_MS: u64 = 500;

impl World {
    /// A member's institution decides something; a peer that is down does it when it is back.
    pub fn decide(&mut self, at: Name, deed: Deed) {
        let peer = &mut self.peers[at];
        if !matches!(deed, Deed::ChangeStanding { .. }) {
            peer.disk.wish = Some(deed);
        }
        if peer.presence == Presence::Up {
            self.wait(at, Waiting::Deed(deed));
        }
    }

    pub fn act(&mut self, at: Name, deed: Deed) {
        if let Deed::ChangeStanding { key, becomes, without } = deed {
            let subject = self.ground.keys[key].member();
            let sequence = self.peers[at].machine.ledger().standing_sequence(&subject) + 1;
            let record = self.ground.change_standing(key, sequence, becomes, without);
            return self.say(at, record);
        }
        let Some(key) = self.peers[at].key else { return };
        let member = self.ground.keys[key].member();
        if self.peers[at].machine.ledger().standing(&member) != Some(Standing::Member) {
            if self.peers[at].disk.wish == Some(deed) {
                self.agenda.after(NOT_YET_MS, Event::Deed(at, deed));
            }
            return;
        }
        match deed {
            Deed::ChangeStanding { .. } => {}
            Deed::Withdraw => self.peers[at].driver.withdrawing = true,
            Deed::Announce { file, examples } => self.announce(at, key, file, examples),
        }
    }

    /// Stores the adapter, signs for it, and tells the network; in this order.
    fn announce(&mut self, at: Name, key: usize, file: usize, examples: u64) {
        let (adapter, size) = (self.ground.files[file].hash, self.ground.files[file].bytes.len() as u64);
        let peer = &mut self.peers[at];
        peer.driver.withdrawing = false;
        let member = self.ground.keys[key].member();
        let ledger = peer.machine.ledger();
        let stored = Waiting::Input(Input::BlobStored { adapter, size }, Origin::Nothing);
        if let Some(SlotState::Adapter(said)) = ledger.slot(&member)
            && (said.adapter, said.examples) == (adapter, examples)
        {
            // It stands already; where the disk has lost it, it is stored once more.
            if let Entry::Vacant(place) = peer.disk.blobs.entry(adapter) {
                place.insert(true);
                peer.driver.inbox.push_front(stored);
            }
            return;
        }
        let sequence = ledger.sequence(&member) + 1;
        peer.disk.blobs.insert(adapter, true);
        let record = self.ground.announce(key, sequence, file, examples);
        self.say(at, record);
        self.peers[at].driver.inbox.push_front(stored);
    }

    /// A withdrawal waits until neighbours have told what this key said before; whether it went out.
    pub fn may_withdraw(&mut self, at: Name) -> bool {
        let peer = &mut self.peers[at];
        let (true, Some(key)) = (peer.driver.withdrawing, peer.key) else { return false };
        let member = self.ground.keys[key].member();
        let slot = peer.machine.ledger().slot(&member);
        if slot.is_none() && !peer.machine.has_compared() {
            return false;
        }
        peer.driver.withdrawing = false;
        if matches!(slot, Some(SlotState::Withdrawn)) {
            return true;
        }
        let sequence = peer.machine.ledger().sequence(&member) + 1;
        let record = self.ground.withdraw(key, sequence);
        self.say(at, record);
        true
    }

    fn say(&mut self, at: Name, record: SignedRecord) {
        let what = match record.record() {
            Record::Announcement(_) => "announces",
            Record::Withdrawal(_) => "withdraws",
            Record::Standing(_) => "tells who belongs",
            Record::Verdict(_) => "judges",
        };
        self.note(at, what, record.record().sequence());
        self.last_word = self.agenda.now();
        let publish = Waiting::Input(Input::Publish(record), Origin::Nothing);
        self.peers[at].driver.inbox.push_front(publish);
    }
}
