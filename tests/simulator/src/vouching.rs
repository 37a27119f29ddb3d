//! Members vouch for their merges once these have been still, as the driver does; and hostile ones vouch for anything.

use mingle_protocol::attestation::{Attestation, Fault, RawAttestation, SignedAttestation};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::machine::Input;
use mingle_protocol::receipt::set_root;

use crate::Name;
use crate::figures::STILL;
use crate::ground::Ground;
use crate::peer::{Origin, Waiting};
use crate::world::World;

/// The merged adapter of a set.
#[derive(Clone, Copy)]
pub struct MergedAs {
    pub root: ContentHash,
    pub merged: ContentHash,
    pub size: u64,
}

impl Ground {
    fn attest(&self, key: usize, merged: MergedAs, excluded: Vec<mingle_protocol::record::RecordId>) -> Option<SignedAttestation> {
        let MergedAs { root, merged, size } = merged;
        let member = self.keys[key].member();
        let attestation = Attestation { round: self.round.id(), member, set_root: root, merged, size, excluded };
        SignedAttestation::sign(&attestation, &self.keys[key], &self.round).ok()
    }
}

impl World {
    /// The merge is another one now: it is vouched for when it has been still.
    pub fn merge_changed(&mut self, at: Name) {
        self.peers[at].vouch_at = Some(self.agenda.now() + STILL);
    }

    pub fn vouch(&mut self, at: Name) {
        let peer = &self.peers[at];
        let (Some(key), Some(due)) = (peer.key, peer.vouch_at) else { return };
        if due > self.agenda.now() || !peer.machine.has_word(&self.ground.keys[key].member()) {
            return;
        }
        let Some(merged) = peer.merging.published().filter(|_| peer.merging.is_at(peer.merge_set())) else { return };
        let Some(excluded) = peer.machine.attestable() else { return };
        let signed = self.ground.attest(key, merged, excluded).expect("an attestation within the rules");
        self.note(at, "vouches", u64::from(merged.root.0[0]));
        self.peers[at].vouch_at = None;
        self.peers[at].driver.inbox.push_front(Waiting::Input(Input::Attest(signed), Origin::Nothing));
    }

    /// Two members vouch for different merges of one set. Of those that keep the rules, none do.
    pub fn found_fault(&mut self, at: Name, fault: &Fault) {
        self.note(at, "sees merges contradict", 0);
        let members = [fault.one.attestation().member, fault.other.attestation().member];
        let keeps_rules = |member| self.voices.get(member).is_some_and(|name| !self.peers[*name].hostile);
        if members.iter().all(keeps_rules) {
            let [one, other] = members.map(|member| member.short());
            self.fail(format!("members {one} and {other} keep the rules, and vouch for different merges of one set"));
        }
    }

    /// The word of a hostile member for a set that somebody has, and bytes that nobody has; or no attestation at all.
    pub fn false_attestation(&mut self, at: Name) -> RawAttestation {
        let somebody = self.dice.below(self.peers.len());
        let root = set_root(self.ground.round.id(), self.peers[somebody].merge_set());
        let merged = MergedAs { root, merged: ContentHash::of(&self.dice.number().to_le_bytes()), size: 100 };
        let signed = self.peers[at].key.filter(|_| self.dice.once_in(2)).and_then(|key| self.ground.attest(key, merged, Vec::new()));
        signed.map_or_else(|| RawAttestation(self.drawn(300)), |signed| signed.raw().clone())
    }
}
