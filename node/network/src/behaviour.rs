//! Which protocols a peer speaks, and the swarm that carries them: TCP with noise and yamux, and QUIC.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, gossipsub, identify, kad, mdns, noise, ping, request_response, tcp, yamux};

use super::NetworkError;
use super::blob_streams;
use super::gate::Gate;
use super::guard::Guard;
use super::limits::{
    CONNECTIONS_PER_PEER_MAX, IDLE_TIMEOUT, INBOUND_CONNECTIONS_MAX, INBOUND_CONNECTIONS_SLACK, Limits, OUTBOUND_CONNECTIONS_MAX,
    PENDING_CONNECTIONS_MAX, SYNC_STREAMS_MAX, SYNC_TIMEOUT, YAMUX_STREAMS_MAX,
};
use super::lookups::Lookups;
use super::metered::Metered;
use super::quotas::Quota;
use super::sync_codec::{SYNC_PROTOCOL, SyncCodec};
use super::traffic::Meter;

const IDENTIFY_PROTOCOL: &str = "/mingle/1";
const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/mingle/kad/1");
const AGENT: &str = concat!("mingle/", env!("CARGO_PKG_VERSION"));

const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Peers told of in one answer: a few hundred bytes, and three answers name a whole neighbourhood.
const KAD_ANSWER: NonZeroUsize = NonZeroUsize::new(8).unwrap();
const KAD_QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Looks for peers that joined since.
const KAD_BOOTSTRAP_INTERVAL: Duration = Duration::from_secs(300);
/// QUIC's own keep-alive notices a dead peer before the idle timeout below does harm.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(5);
const QUIC_IDLE_MS_MAX: u32 = 15_000;
const QUIC_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The order matters: what denies connections comes before what remembers them.
#[derive(NetworkBehaviour)]
pub struct Net {
    pub gate: Gate,
    pub limits: connection_limits::Behaviour,
    pub identify: Metered<identify::Behaviour>,
    pub ping: ping::Behaviour,
    pub gossip: Metered<gossipsub::Behaviour>,
    pub kad: Metered<Lookups>,
    pub sync: request_response::Behaviour<SyncCodec>,
    pub blobs: blob_streams::Behaviour,
    pub mdns: Toggle<mdns::tokio::Behaviour>,
}

/// The swarm of one peer, not yet listening.
pub fn swarm(
    key: &Keypair,
    gossip: gossipsub::Behaviour,
    with_mdns: bool,
    guard: &Arc<Guard>,
    meter: &Meter,
    bounds: &Limits,
) -> Result<Swarm<Net>, NetworkError> {
    let setup = |error: &dyn std::fmt::Display| NetworkError::Setup(error.to_string());
    let local = key.public().to_peer_id();
    let mdns = match with_mdns {
        true => Some(mdns::tokio::Behaviour::new(mdns::Config::default(), local).map_err(|error| setup(&error))?),
        false => None,
    };
    let behaviour = Net {
        gate: Gate::new(guard.clone(), bounds.silent_patience),
        limits: connection_limits::Behaviour::new(connection_bounds()),
        identify: Metered::new(
            identify::Behaviour::new(
                identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), key.public())
                    .with_agent_version(AGENT.to_owned())
                    .with_push_listen_addr_updates(true),
            ),
            guard,
            Quota::Introductions,
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(crate::gossip::tune("PING",15))).with_timeout(PING_TIMEOUT)),
        gossip: Metered::new(gossip, guard, Quota::GossipFrames),
        kad: Metered::new(Lookups::new(kademlia(local)), guard, Quota::Lookups),
        sync: request_response::Behaviour::with_codec(
            SyncCodec::new(),
            [(SYNC_PROTOCOL, request_response::ProtocolSupport::Full)],
            request_response::Config::default().with_request_timeout(SYNC_TIMEOUT).with_max_concurrent_streams(SYNC_STREAMS_MAX),
        ),
        blobs: blob_streams::Behaviour::new(meter.clone()),
        mdns: mdns.into(),
    };
    let mut registry = meter.registry();
    let swarm = SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux_config)
        .map_err(|error| setup(&error))?
        .with_quic_config(|mut quic| {
            quic.keep_alive_interval = QUIC_KEEP_ALIVE;
            quic.max_idle_timeout = QUIC_IDLE_MS_MAX;
            quic.handshake_timeout = QUIC_HANDSHAKE_TIMEOUT;
            quic
        })
        .with_dns()
        .map_err(|error| setup(&error))?
        .with_bandwidth_metrics(&mut registry)
        .with_behaviour(|_| behaviour)
        .map_err(|error| setup(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .build();
    Ok(swarm)
}

fn connection_bounds() -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_CONNECTIONS_MAX))
        .with_max_pending_outgoing(Some(PENDING_CONNECTIONS_MAX))
        // The gate keeps them below the bound without the slack, by its own choice of whom.
        .with_max_established_incoming(Some(INBOUND_CONNECTIONS_MAX + INBOUND_CONNECTIONS_SLACK))
        .with_max_established_outgoing(Some(OUTBOUND_CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
}

/// Finds peers and keeps nothing for others: records put by strangers are refused.
fn kademlia(local: libp2p::PeerId) -> kad::Behaviour<kad::store::MemoryStore> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_query_timeout(KAD_QUERY_TIMEOUT)
        .set_replication_factor(NonZeroUsize::new(crate::gossip::tune("K",3) as usize).unwrap())
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_periodic_bootstrap_interval(Some(KAD_BOOTSTRAP_INTERVAL));
    let store = kad::store::MemoryStoreConfig { max_records: 0, max_provided_keys: 0, ..Default::default() };
    let store = kad::store::MemoryStore::with_config(local, store);
    let mut kad = kad::Behaviour::with_config(local, store, config);
    // A server always: without a probe of our reachability nothing would ever confirm an external address, and a
    // network of clients knows nobody.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

fn yamux_config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(YAMUX_STREAMS_MAX);
    config
}
