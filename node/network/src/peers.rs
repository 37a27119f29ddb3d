//! What is shown of the peers we are connected to.

use libp2p::PeerId;

pub use super::guard::Counts;

/// One connected peer, as of half a second ago at most.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerStatus {
    pub peer: PeerId,
    /// Whether at least one connection is not over a relay.
    pub direct: bool,
    /// Gossip's score of the peer, its blame among it: below zero, it is not in the mesh; far below, it is not heard.
    pub score: f64,
    /// What it did since it connected.
    pub counts: Counts,
}
