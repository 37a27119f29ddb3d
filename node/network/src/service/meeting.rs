//! How a peer comes by its neighbours: it dials whom it knows, and asks those it has for others.

use std::sync::Arc;

use libp2p::PeerId;
use libp2p::request_response::{Event, Message};
use mingle_protocol::round::RoundId;
use tokio::time::Instant;

use super::Service;
use crate::dialer::believable;
use crate::limits::ADDRESSES_PER_PEER_MAX;
use crate::quotas::Quota;
use crate::referrals::{self, Referral, choose};

impl Service {
    /// While neighbours are missing: dials who is known; when too few are, asks a neighbour.
    pub(super) fn discover(&mut self) {
        let now = Instant::now();
        self.referred.retain(|peer| self.ready.contains(peer));
        let missing = self.limits.peers_target.saturating_sub(self.ready.len());
        if missing == 0 {
            return;
        }
        let (swarm, dialer) = (&mut self.swarm, &mut self.dialer);
        let dials = dialer.neighbours(now, missing, |peer| swarm.is_connected(peer));
        let known = dials.len();
        for dial in dials {
            // Refused when it is being dialled already.
            let _ = swarm.dial(dial);
        }
        if known < missing
            && let Some(peer) = self.referred.next(self.ready.iter(), now)
        {
            self.swarm.behaviour_mut().referrals.send_request(&peer, ());
        }
    }

    pub(super) fn referral_event(&mut self, event: referrals::Event) {
        match event {
            // Who asks too often is not answered.
            Event::Message { peer, message: Message::Request { channel, .. }, .. } if self.guard.spend(&peer, Quota::Referrals, 1) => {
                let answer = self.referrals_for(&peer);
                // Who has gone meanwhile may ask again.
                let _ = self.swarm.behaviour_mut().referrals.send_response(channel, answer);
            }
            Event::Message { connection_id, message: Message::Response { response, .. }, .. } => {
                let Some(remote) = self.swarm.behaviour().blobs.remote(connection_id).cloned() else { return };
                for Referral { peer, mut addresses } in response {
                    // As with what a peer says of itself: nobody far away names a place on our own machine.
                    addresses.retain(|address| believable(address, &remote));
                    addresses.truncate(ADDRESSES_PER_PEER_MAX);
                    if self.guard.admits(&peer).is_ok() {
                        self.dialer.hear_of(peer, addresses, Instant::now());
                    }
                }
                self.discover();
            }
            Event::OutboundFailure { peer, error, .. } => tracing::debug!(%peer, %error, "a neighbour names no others"),
            _ => {}
        }
    }

    /// Neighbours whose addresses we know, without the one who asks.
    fn referrals_for(&self, asker: &PeerId) -> Vec<Referral> {
        let others = self.ready.iter().filter(|peer| *peer != asker);
        let known = others.filter_map(|peer| {
            let addresses = self.dialer.addresses(peer)?.to_vec();
            Some(Referral { peer: *peer, addresses })
        });
        let gate = &self.swarm.behaviour().gate;
        choose(known.collect(), |peer| gate.was_dialled(peer))
    }

    /// Who asks for the round's file has introduced itself by that: it speaks nothing else, and a long file takes time.
    pub(super) fn round_event(&mut self, event: Event<RoundId, Option<Arc<[u8]>>>) {
        let behaviour = self.swarm.behaviour_mut();
        if let Event::Message { peer, message: Message::Request { .. }, .. } = &event {
            behaviour.gate.greeted(*peer);
        }
        self.offer.event(&self.guard, &mut behaviour.rounds, event);
    }
}
