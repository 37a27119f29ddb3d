//! What the service does about peers' conduct: verdicts, questions within their quotas, who is allowed, what is shown.

use std::collections::BTreeSet;

use libp2p::request_response::{Event, Message};
use libp2p::{PeerId, gossipsub};
use mingle_protocol::identity::MemberKey;
use tokio::time::Instant;

use super::{MessageId, NetworkEvent, Service, SyncToken, Verdict};
use crate::gossip::{GRAYLIST, acceptance, offset};
use crate::guard::Offence;
use crate::limits::Scoring;
use crate::peers::PeerStatus;
use crate::quotas::{Quota, kib};
use crate::sync_codec::{Answer, Question};

impl Service {
    /// A message that is new to us: to the driver, unless its sender says too much.
    pub(super) fn gossiped(&mut self, from: PeerId, id: MessageId, bytes: Vec<u8>) {
        self.guard.count(&from, |counts| {
            counts.messages += 1;
            counts.message_bytes += bytes.len() as u64;
        });
        if self.guard.spend(&from, Quota::GossipMessages, 1) && self.guard.spend(&from, Quota::GossipKib, kib(bytes.len())) {
            self.tell(NetworkEvent::Gossip { message_id: id, from, bytes });
        } else {
            // Not judged, so not passed on; what was worth hearing comes with reconciliation.
            let id = gossipsub::MessageId::from(id.0);
            self.swarm.behaviour_mut().gossip.report_message_validation_result(&id, &from, acceptance(Verdict::Ignore));
        }
    }

    pub(super) fn judge(&mut self, id: MessageId, from: PeerId, verdict: Verdict) {
        match verdict {
            Verdict::Accept => self.guard.count(&from, |counts| counts.accepted += 1),
            Verdict::Reject => self.guard.offence(&from, Offence::InvalidRecord),
            Verdict::Ignore => {}
        }
        let id = gossipsub::MessageId::from(id.0);
        if !self.swarm.behaviour_mut().gossip.report_message_validation_result(&id, &from, acceptance(verdict)) {
            tracing::debug!(%from, "a verdict came too late for its message");
        }
    }

    pub(super) fn ask(&mut self, peer: PeerId, bytes: Vec<u8>) {
        let why = match self.ready.contains(&peer) {
            false => "it is not connected",
            true if !self.guard.afford(&peer, Quota::SyncAsking, 1) => "we have asked it more than it allows; ask another peer, or later",
            true => {
                let id = self.swarm.behaviour_mut().sync.send_request(&peer, Question::Bytes(bytes));
                self.questions.asked.insert(id, peer);
                return;
            }
        };
        self.tell(NetworkEvent::SyncFailed { from: peer, why: why.to_owned() });
    }

    pub(super) fn respond(&mut self, token: SyncToken, bytes: Vec<u8>) {
        let Some(waiting) = self.questions.take(&token.0) else { return };
        let size = bytes.len();
        let answer = match self.guard.spend(&waiting.peer, Quota::SyncAnsweredKib, kib(size)) {
            true => Answer::Bytes(bytes),
            false => Answer::Busy,
        };
        self.guard.count(&waiting.peer, |counts| counts.answer_bytes += size as u64);
        // The peer may have given up: it asks again.
        let _ = self.swarm.behaviour_mut().sync.send_response(waiting.channel, answer);
    }

    pub(super) fn sync_event(&mut self, event: Event<Question, Answer>) {
        match event {
            Event::Message { peer, message: Message::Request { request: Question::TooLong(length), .. }, .. } => {
                tracing::debug!(%peer, length, "a sync request is too long");
                self.guard.offence(&peer, Offence::Malformed);
            }
            Event::Message { peer, message: Message::Request { request_id, request: Question::Bytes(request), channel }, .. } => {
                self.guard.count(&peer, |counts| counts.questions += 1);
                let channel = match self.guard.spend(&peer, Quota::SyncAsked, 1) {
                    true => self.questions.wait(request_id, peer, request.len(), channel),
                    false => Err(channel),
                };
                match channel {
                    Ok(()) => self.tell(NetworkEvent::SyncRequest { from: peer, token: SyncToken(request_id), bytes: request }),
                    Err(channel) => _ = self.swarm.behaviour_mut().sync.send_response(channel, Answer::Busy),
                }
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                if self.questions.asked.remove(&request_id).is_some() {
                    self.tell(match response {
                        Answer::Bytes(bytes) => NetworkEvent::SyncResponse { from: peer, bytes },
                        Answer::Busy => NetworkEvent::SyncFailed { from: peer, why: "it is busy; ask another peer, or later".to_owned() },
                    });
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                if self.questions.asked.remove(&request_id).is_some() {
                    self.tell(NetworkEvent::SyncFailed { from: peer, why: error.to_string() });
                }
            }
            Event::InboundFailure { peer, request_id, error, .. } => {
                tracing::debug!(%peer, %error, "a sync request failed");
                self.questions.take(&request_id);
            }
            Event::ResponseSent { .. } => {}
        }
    }

    /// From now on only these keys may be connected; all others are disconnected and forgotten.
    pub(super) fn set_allowed(&mut self, allowed: Option<&BTreeSet<MemberKey>>) {
        self.guard.set_allowed(allowed);
        let guard = self.guard.clone();
        let admits = |peer: &PeerId| guard.admits(peer).is_ok();
        self.dialer.retain(admits);
        self.warn_of_bootstrap();
    }

    pub(super) fn warn_of_bootstrap(&self) {
        for peer in self.dialer.bootstrap_peers().filter(|peer| self.guard.admits(peer).is_err()) {
            tracing::warn!(%peer, "a bootstrap peer is not among the keys that may take part and is not dialled; list it as a reader of the round, or take it out of the bootstrap addresses");
        }
    }

    /// What gossip needs to know beside what it sees: blame, and in observation a score that nothing can bring below zero.
    pub(super) fn score(&mut self, peer: &PeerId) {
        let score = offset(self.guard.scoring) + self.guard.blame(peer);
        self.swarm.behaviour_mut().gossip.set_application_score(peer, score);
    }

    /// Closes silent connections, hands blame to the scores, and shows how the peers stand.
    pub(super) fn watch_peers(&mut self) {
        self.swarm.behaviour_mut().gate.sweep(Instant::now());
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        peers.iter().for_each(|peer| self.score(peer));
        let behaviour = self.swarm.behaviour();
        let status = |peer: &PeerId| PeerStatus {
            peer: *peer,
            direct: behaviour.gate.is_direct(peer),
            score: behaviour.gossip.peer_score(peer).unwrap_or_default() - offset(self.guard.scoring),
            counts: self.guard.counts(peer),
        };
        let shown: Vec<PeerStatus> = peers.iter().map(status).collect();
        if self.guard.scoring == Scoring::On {
            shown.iter().filter(|status| status.score < GRAYLIST).for_each(|status| self.guard.offence(&status.peer, Offence::Unheard));
        }
        self.shown.send_replace(shown);
    }
}
