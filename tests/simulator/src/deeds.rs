//! What members do: announce an adapter, another one later, take it back. As the node does it, with its order of effects.

use mingle_protocol::ledger::SlotState;
use mingle_protocol::machine::Input;
use mingle_protocol::record::SignedRecord;

use crate::Name;
use crate::peer::{Origin, Presence, Waiting};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    Announce { file: usize, examples: u64 },
    Withdraw,
}

impl World {
    /// A member's institution decides something; a peer that is down does it when it is back.
    pub fn decide(&mut self, at: Name, deed: Deed) {
        let peer = &mut self.peers[at];
        peer.disk.wish = Some(deed);
        if peer.presence == Presence::Up {
            self.wait(at, Waiting::Deed(deed));
        }
    }

    pub fn act(&mut self, at: Name, deed: Deed) {
        let Some(key) = self.peers[at].key else { return };
        match deed {
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
            if !peer.disk.blobs.contains_key(&adapter) {
                peer.disk.blobs.insert(adapter, true);
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
        self.note(at, "says", record.record().sequence());
        self.last_word = self.agenda.now();
        let publish = Waiting::Input(Input::Publish(record), Origin::Nothing);
        self.peers[at].driver.inbox.push_front(publish);
    }
}
