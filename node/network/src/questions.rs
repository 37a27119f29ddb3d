//! Questions of reconciliation on their way: those we asked, and those that wait for the driver's answer.
//!
//! What waits is bounded in number, in bytes and for each peer; beyond that the asker hears at once that we are busy.

use std::collections::HashMap;
use std::hash::Hash;

use libp2p::PeerId;
use libp2p::request_response::{InboundRequestId, OutboundRequestId, ResponseChannel};

use super::limits::{SYNC_WAITING_BYTES_MAX, SYNC_WAITING_MAX, SYNC_WAITING_PER_PEER_MAX};
use super::sync_codec::Answer;

/// A peer's question without an answer yet.
pub struct Waiting<C> {
    pub peer: PeerId,
    bytes: usize,
    pub channel: C,
}

pub struct Questions<I = InboundRequestId, C = ResponseChannel<Answer>> {
    /// Whom we asked.
    pub asked: HashMap<OutboundRequestId, PeerId>,
    waiting: HashMap<I, Waiting<C>>,
    bytes: usize,
}

impl<I: Hash + Eq, C> Questions<I, C> {
    pub fn new() -> Self {
        Self { asked: HashMap::new(), waiting: HashMap::new(), bytes: 0 }
    }

    /// Keeps the question's channel until it is answered; gives it back when there is no room.
    pub fn wait(&mut self, id: I, peer: PeerId, bytes: usize, channel: C) -> Result<(), C> {
        let of_peer = self.waiting.values().filter(|waiting| waiting.peer == peer).count();
        let full = self.waiting.len() >= SYNC_WAITING_MAX || self.bytes.saturating_add(bytes) > SYNC_WAITING_BYTES_MAX;
        if full || of_peer >= SYNC_WAITING_PER_PEER_MAX {
            return Err(channel);
        }
        self.bytes += bytes;
        self.waiting.insert(id, Waiting { peer, bytes, channel });
        Ok(())
    }

    /// The question, answered or given up.
    pub fn take(&mut self, id: &I) -> Option<Waiting<C>> {
        let waiting = self.waiting.remove(id)?;
        self.bytes = self.bytes.saturating_sub(waiting.bytes);
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_for_each_peer_in_number_and_in_bytes() {
        let mut questions: Questions<usize, usize> = Questions::new();
        let greedy = PeerId::random();
        let taken = (0..100).filter(|id| questions.wait(*id, greedy, 10, *id).is_ok()).count();
        assert_eq!(taken, SYNC_WAITING_PER_PEER_MAX);
        assert_eq!(questions.wait(100, PeerId::random(), SYNC_WAITING_BYTES_MAX, 100), Err(100));
        let others = (100..1000).filter(|id| questions.wait(*id, PeerId::random(), 10, *id).is_ok()).count();
        assert_eq!(others + taken, SYNC_WAITING_MAX);
        // What was answered makes room.
        assert_eq!(questions.take(&0).map(|waiting| waiting.peer), Some(greedy));
        assert!(questions.take(&0).is_none());
        assert_eq!(questions.wait(1000, greedy, 10, 1000), Ok(()));
        (0..1001).for_each(|id| _ = questions.take(&id));
        assert_eq!(questions.bytes, 0);
    }
}
