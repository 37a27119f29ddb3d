//! Gossip: the mesh's settings, and messages that wait until somebody listens.
//!
//! Messages are anonymous to libp2p, because a record carries its author's signature and may be passed on by anyone; a
//! message is passed on only after the driver judged it. The same settings serve 3 and 10,000 peers: below `MESH` the
//! mesh is everyone, above it the degree is bounded.

use std::collections::VecDeque;
use std::time::Duration;

use libp2p::gossipsub::{
    Behaviour, ConfigBuilder, IdentTopic, Message, MessageAcceptance, MessageAuthenticity, MessageId, PeerScoreParams, PeerScoreThresholds,
    PublishError, TopicHash, TopicScoreParams, ValidationMode, score_parameter_decay,
};

use super::limits::{GOSSIP_BYTES_MAX, OUTBOX_MAX, Scoring};
use super::{NetworkError, Verdict};

/// Neighbours in the mesh: wanted, least, most, and of those opened by us. Each passes a message on, so each costs a
/// message's size for every member; three span a network of ten thousand in some dozen steps, and whoever is left out is
/// offered the message by name, or told of it by reconciliation.
const MESH: usize = 3;
const MESH_LOW: usize = 2;
const MESH_HIGH: usize = 4;
const MESH_OUTBOUND_MIN: usize = 1;
/// Neighbours outside the mesh that are offered what is new, by name, each heartbeat.
const OFFERED_TO: usize = 2;
/// Heartbeats a message stays in the cache: the driver's verdict must come within them.
const HISTORY: usize = 12;
/// Heartbeats a message is offered to peers outside the mesh.
const HISTORY_OFFERED: usize = 3;
const HEARTBEAT: Duration = Duration::from_secs(1);
const HEARTBEAT_FIRST: Duration = Duration::from_millis(500);
/// For so long a message seen before is dropped unread; the driver remembers for ever.
const DUPLICATES_REMEMBERED: Duration = Duration::from_secs(600);
/// Ours go to the mesh alone: sent to every neighbour, a message would arrive twice as often as it must.
const FLOOD_PUBLISH: bool = false;
/// From this size on neighbours are told that a message has come, which costs 30 bytes and may spare them 400.
const TOLD_FROM_BYTES: usize = 128;
/// Who offered a message must send it within so long, or it counts as a broken promise: long enough for a slow line and a
/// busy machine.
const PROMISE: Duration = Duration::from_secs(10);
const CONTROL_BYTES_MAX: usize = 64 * 1024;
const HANDLER_QUEUE: usize = 512;
const PUBLISH_PATIENCE: Duration = Duration::from_secs(20);
const FORWARD_PATIENCE: Duration = Duration::from_secs(5);
/// Enough to name every message ever gossiped in a network, half of what a hash takes.
const MESSAGE_ID_BYTES: usize = 20;

pub struct Gossip {
    topic: IdentTopic,
    /// Ours, not yet sent to anybody.
    outbox: VecDeque<Vec<u8>>,
}

/// The name of a message: its topic and bytes, whoever passed it on.
fn message_id(message: &Message) -> MessageId {
    let mut hasher = blake3::Hasher::new_derive_key("mingle 2026 gossip message id v1");
    hasher.update(message.topic.as_str().as_bytes()).update(&[0]).update(&message.data);
    let mut id = [0; MESSAGE_ID_BYTES];
    hasher.finalize_xof().fill(&mut id);
    MessageId::from(id.to_vec())
}

/// The topic on the wire: it goes with every message and every offer of one, so it is 16 letters whatever its name.
/// Should two rounds ever share them, records of the other are refused as what they are.
pub fn short_name(topic: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("mingle 2026 gossip topic v1");
    hasher.update(topic.as_bytes()).finalize().to_hex().chars().take(16).collect()
}

impl Gossip {
    /// The behaviour, subscribed to `topic`, and the outbox for it.
    pub fn new(topic: &str) -> Result<(Behaviour, Self), NetworkError> {
        let topic = IdentTopic::new(short_name(topic));
        let setup = |error: &dyn std::fmt::Display| NetworkError::Setup(error.to_string());
        let config = ConfigBuilder::default()
            .max_transmit_size(GOSSIP_BYTES_MAX)
            // Per topic as well: only then does `build` check the inequalities of the mesh.
            .max_transmit_size_for_topic(GOSSIP_BYTES_MAX, topic.hash())
            .validation_mode(ValidationMode::Anonymous)
            .validate_messages()
            .message_id_fn(message_id)
            .mesh_n_low(MESH_LOW)
            .mesh_n(MESH)
            .mesh_n_high(MESH_HIGH)
            .mesh_outbound_min(MESH_OUTBOUND_MIN)
            .gossip_lazy(OFFERED_TO)
            .gossip_factor(0.0)
            .idontwant_message_size_threshold(TOLD_FROM_BYTES)
            .iwant_followup_time(PROMISE)
            .history_length(HISTORY)
            .history_gossip(HISTORY_OFFERED)
            .heartbeat_interval(HEARTBEAT)
            .heartbeat_initial_delay(HEARTBEAT_FIRST)
            .duplicate_cache_time(DUPLICATES_REMEMBERED)
            .flood_publish(FLOOD_PUBLISH)
            .max_control_message_size(CONTROL_BYTES_MAX)
            .connection_handler_queue_len(HANDLER_QUEUE)
            .publish_queue_duration(PUBLISH_PATIENCE)
            .forward_queue_duration(FORWARD_PATIENCE)
            .build()
            .map_err(|error| setup(&error))?;
        let mut behaviour = Behaviour::new(MessageAuthenticity::Anonymous, config).map_err(|error| setup(&error))?;
        let (scores, thresholds) = scores(topic.hash());
        behaviour.with_peer_score(scores, thresholds).map_err(|error| setup(&error))?;
        behaviour.subscribe(&topic).map_err(|error| setup(&error))?;
        Ok((behaviour, Self { topic, outbox: VecDeque::new() }))
    }

    /// Sends ours now, or keeps it until somebody subscribes.
    pub fn publish(&mut self, behaviour: &mut Behaviour, bytes: Vec<u8>) {
        match behaviour.publish(self.topic.clone(), bytes.clone()) {
            Ok(_) => {}
            Err(PublishError::NoPeersSubscribedToTopic) => {
                if self.outbox.len() >= OUTBOX_MAX {
                    self.outbox.pop_front(); // Sync carries it.
                }
                self.outbox.push_back(bytes);
            }
            // Already in our neighbours' cache, or all of them are full: sync carries it.
            Err(PublishError::Duplicate | PublishError::AllQueuesFull(_)) => {}
            Err(error) => tracing::warn!(%error, "a message could not be gossiped"),
        }
    }

    /// Somebody listens now: sends what waited.
    pub fn subscribed(&mut self, behaviour: &mut Behaviour, topic: &TopicHash) {
        if *topic == self.topic.hash() {
            let waiting = std::mem::take(&mut self.outbox);
            waiting.into_iter().for_each(|bytes| self.publish(behaviour, bytes));
        }
    }
}

pub fn acceptance(verdict: Verdict) -> MessageAcceptance {
    match verdict {
        Verdict::Accept => MessageAcceptance::Accept,
        Verdict::Reject => MessageAcceptance::Reject,
        Verdict::Ignore => MessageAcceptance::Ignore,
    }
}

/// Below it nothing that a peer says in gossip is heard, so it is disconnected.
pub const GRAYLIST: f64 = -2500.0;

/// While scores are only observed, every peer has so much to its credit that nothing it does brings it below zero.
pub fn offset(scoring: Scoring) -> f64 {
    match scoring {
        Scoring::Observe => 1e9,
        Scoring::On => 0.0,
    }
}

/// Scores that only invalid messages and broken mesh rules can make negative: rates say nothing where a member
/// announces a few times a round, and institutions may share an address.
fn scores(topic: TopicHash) -> (PeerScoreParams, PeerScoreThresholds) {
    let hour = score_parameter_decay(Duration::from_secs(3600));
    let of_topic = TopicScoreParams {
        topic_weight: 1.0,
        // One point an hour, up to one.
        time_in_mesh_weight: 1.0 / 3600.0,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 3600.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_decay: hour,
        first_message_deliveries_cap: 20.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // Squared: one is pruned from the mesh, five are not heard any more.
        invalid_message_deliveries_weight: -100.0,
        invalid_message_deliveries_decay: hour,
        ..Default::default()
    };
    let of_peer = PeerScoreParams {
        topics: [(topic, of_topic)].into(),
        topic_score_cap: 20.0,
        // What blobs and frames have shown, as points.
        app_specific_weight: 1.0,
        ip_colocation_factor_weight: 0.0,
        // Broken promises and grafts come from busy machines as well: only many in a short time weigh something.
        behaviour_penalty_weight: -1.0,
        behaviour_penalty_threshold: 16.0,
        behaviour_penalty_decay: score_parameter_decay(Duration::from_secs(600)),
        decay_to_zero: 0.01,
        retain_score: Duration::from_secs(6 * 3600),
        ..Default::default()
    };
    let thresholds = PeerScoreThresholds {
        gossip_threshold: -500.0,
        publish_threshold: -1000.0,
        graylist_threshold: GRAYLIST,
        accept_px_threshold: 1000.0,
        opportunistic_graft_threshold: 0.5,
    };
    (of_peer, thresholds)
}
