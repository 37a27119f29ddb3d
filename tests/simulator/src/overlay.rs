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
        let in_mesh = |to: &Name| self.links.get(&pair(at, *to)).is_some_and(|link| link.mesh);
        let neighbours: Vec<Name> = self.peers[at].neighbours.iter().copied().filter(|to| *to != from).filter(in_mesh).collect();
        for to in neighbours {
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

    fn mesh_of(&self, at: Name) -> usize {
        self.peers[at].neighbours.iter().filter(|to| self.links.get(&pair(at, **to)).is_some_and(|link| link.mesh)).count()
    }

    /// Whether a new link becomes part of the mesh.
    pub fn grafts(&self, one: Name, other: Name) -> bool {
        let (left, right) = (self.mesh_of(one), self.mesh_of(other));
        left.min(right) < MESH && left.max(right) < MESH_HIGH
    }

    /// The heartbeat: too thin a mesh takes links in.
    pub fn heartbeat(&mut self, at: Name) {
        if self.mesh_of(at) >= MESH_LOW {
            return;
        }
        let neighbours: Vec<Name> = self.peers[at].neighbours.iter().copied().collect();
        for to in neighbours {
            if self.mesh_of(to) < MESH_HIGH
                && let Some(link) = self.links.get_mut(&pair(at, to))
            {
                link.mesh = true;
            }
        }
    }
}
