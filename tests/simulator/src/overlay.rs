//! Gossip: one's own messages go to every neighbour, those of others to the mesh once they are judged, nothing twice.

use mingle_protocol::machine::Input;

use crate::Name;
use crate::figures::{INVALID_MAX, MESH, MESH_HIGH, MESH_LOW, OUTBOX_MAX};
use crate::ground::{Bytes, mark};
use crate::peer::{Origin, Waiting};
use crate::wire::{Mail, pair};
use crate::world::World;

impl World {
    /// One's own message, or news from a reconciliation.
    pub fn publish(&mut self, at: Name, bytes: Bytes) {
        let message = mark(&bytes);
        let peer = &mut self.peers[at];
        if peer.neighbours.is_empty() {
            // Nobody listens yet.
            if peer.outbox.len() >= OUTBOX_MAX {
                peer.outbox.pop_front();
            }
            peer.outbox.push_back(bytes);
            return;
        }
        if !peer.seen.insert(message) {
            return;
        }
        let neighbours: Vec<Name> = peer.neighbours.iter().copied().collect();
        for to in neighbours {
            self.send(at, to, Mail::Gossip { message, bytes: bytes.clone() });
        }
    }

    pub fn empty_outbox(&mut self, at: Name) {
        for bytes in std::mem::take(&mut self.peers[at].outbox) {
            self.publish(at, bytes);
        }
    }

    pub fn forward(&mut self, at: Name, from: Name, message: u64, bytes: Bytes) {
        let mesh: Vec<Name> = self.peers[at].mesh.iter().copied().filter(|to| *to != from).collect();
        for to in mesh {
            self.send(at, to, Mail::Gossip { message, bytes: bytes.clone() });
        }
    }

    pub fn heard(&mut self, at: Name, from: Name, message: u64, bytes: Bytes) {
        let peer = &mut self.peers[at];
        if peer.hostile {
            return self.overhear(at, bytes);
        }
        let blamed = peer.invalid.get(&from).is_some_and(|count| *count >= INVALID_MAX);
        if blamed || !peer.seen.insert(message) {
            return;
        }
        let input = Input::Gossip { bytes: bytes.to_vec() };
        self.wait(at, Waiting::Input(input, Origin::Gossip { from, message, bytes }));
    }

    /// Takes a link into the mesh where there is room for it.
    pub fn graft(&mut self, one: Name, other: Name, least: usize) {
        let (left, right) = (self.peers[one].mesh.len(), self.peers[other].mesh.len());
        if left.min(right) < least && left.max(right) < MESH_HIGH {
            self.peers[one].mesh.insert(other);
            self.peers[other].mesh.insert(one);
        }
    }

    /// The heartbeat: too thin a mesh takes links in.
    pub fn heartbeat(&mut self, at: Name) {
        if self.peers[at].mesh.len() >= MESH_LOW {
            return;
        }
        let neighbours: Vec<Name> = self.peers[at].neighbours.iter().copied().collect();
        for to in neighbours {
            if self.links.contains_key(&pair(at, to)) {
                self.graft(at, to, MESH);
            }
        }
    }
}
