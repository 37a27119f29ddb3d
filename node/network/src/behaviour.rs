//! Which protocols a peer speaks, and the swarm that carries them over its transports and over circuits through relays.

use std::sync::Arc;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    Swarm, SwarmBuilder, autonat, dcutr, gossipsub, identify, mdns, memory_connection_limits, noise, ping, relay, request_response, upnp,
};

use super::blob_streams;
use super::gate::Gate;
use super::guard::Guard;
use super::limits::{
    CIRCUIT_BYTES_MAX, CIRCUIT_DURATION, CIRCUITS_MAX, CIRCUITS_PER_PEER_MAX, CONNECTIONS_PER_PEER_MAX, DIAL_TIMEOUT, GOSSIP_STREAMS_MAX,
    IDLE_TIMEOUT, INBOUND_CONNECTIONS_MAX, INBOUND_CONNECTIONS_SLACK, Limits, OUTBOUND_CONNECTIONS_MAX, PENDING_CONNECTIONS_MAX,
    RESERVATIONS_MAX, SEED_CONNECTIONS_MAX, SYNC_STREAMS_MAX, SYNC_TIMEOUT,
};
use super::memory;
use super::metered::Metered;
use super::quotas::Quota;
use super::reach::{ReachConfig, Role};
use super::sync_codec::{SYNC_PROTOCOL, SyncCodec};
use super::tls::Tls;
use super::traffic::Meter;
use super::transport::{transport, yamux_config};
use super::{NetworkError, referrals, rounds};

const IDENTIFY_PROTOCOL: &str = "/mingle/1";
const AGENT: &str = concat!("mingle/", env!("CARGO_PKG_VERSION"));

const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The order matters: what denies connections comes before what remembers them. DCUtR and the relays note a connection
/// when it is made and would never hear that a later behaviour denied it.
#[derive(NetworkBehaviour)]
pub struct Net {
    pub gate: Gate,
    pub limits: connection_limits::Behaviour,
    pub memory: memory_connection_limits::Behaviour,
    pub identify: Metered<identify::Behaviour>,
    pub ping: ping::Behaviour,
    pub gossip: Metered<gossipsub::Behaviour>,
    pub sync: request_response::Behaviour<SyncCodec>,
    pub blobs: blob_streams::Behaviour,
    pub rounds: rounds::Behaviour,
    pub referrals: referrals::Behaviour,
    pub relay_client: relay::client::Behaviour,
    /// Only in seeds.
    pub relay_server: Toggle<relay::Behaviour>,
    pub dcutr: dcutr::Behaviour,
    pub autonat_client: autonat::v2::client::Behaviour,
    /// In seeds, and in peers from when they are found to be public.
    pub autonat_server: Toggle<autonat::v2::server::Behaviour>,
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    pub upnp: Toggle<upnp::tokio::Behaviour>,
}

/// The swarm of one peer, not yet listening.
pub fn swarm(
    key: &Keypair,
    gossip: gossipsub::Behaviour,
    with_mdns: bool,
    guard: &Arc<Guard>,
    reach: &ReachConfig,
    meter: &Meter,
    bounds: &Limits,
) -> Result<Swarm<Net>, NetworkError> {
    let setup = |error: &dyn std::fmt::Display| NetworkError::Setup(error.to_string());
    let local = key.public().to_peer_id();
    let mdns = match with_mdns {
        true => Some(mdns::tokio::Behaviour::new(mdns::Config::default(), local).map_err(|error| setup(&error))?),
        false => None,
    };
    let is_seed = reach.role == Role::Public;
    let inbound = if is_seed { SEED_CONNECTIONS_MAX } else { INBOUND_CONNECTIONS_MAX };
    let autonat = autonat::v2::client::Config::default().with_probe_interval(bounds.probe_interval);
    let behaviour = |relay_client| Net {
        gate: Gate::new(guard.clone(), bounds.silent_patience, inbound),
        limits: connection_limits::Behaviour::new(connection_bounds(inbound)),
        memory: memory_connection_limits::Behaviour::with_max_bytes(reach.memory_max.unwrap_or_else(memory::default_max)),
        identify: Metered::new(
            identify::Behaviour::new(
                identify::Config::new(IDENTIFY_PROTOCOL.to_owned(), key.public())
                    .with_agent_version(AGENT.to_owned())
                    .with_push_listen_addr_updates(true),
            ),
            guard,
            Quota::Introductions,
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
        gossip: Metered::new(gossip, guard, Quota::GossipFrames).with_streams_max(GOSSIP_STREAMS_MAX),
        sync: request_response::Behaviour::with_codec(
            SyncCodec::new(),
            [(SYNC_PROTOCOL, request_response::ProtocolSupport::Full)],
            request_response::Config::default().with_request_timeout(SYNC_TIMEOUT).with_max_concurrent_streams(SYNC_STREAMS_MAX),
        ),
        blobs: blob_streams::Behaviour::new(meter.clone()),
        rounds: rounds::behaviour(request_response::ProtocolSupport::Full),
        referrals: referrals::behaviour(),
        relay_client,
        relay_server: is_seed.then(|| relay::Behaviour::new(local, circuits())).into(),
        dcutr: dcutr::Behaviour::new(local),
        autonat_client: autonat::v2::client::Behaviour::new(rand::make_rng(), autonat),
        autonat_server: is_seed.then(autonat::v2::server::Behaviour::default).into(),
        mdns: mdns.into(),
        upnp: reach.upnp.then(upnp::tokio::Behaviour::default).into(),
    };
    let mut registry = meter.registry();
    let transport = transport(key, &reach.web)?;
    let swarm = SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_other_transport(|_| transport)
        .map_err(|error| setup(&error))?
        .with_relay_client((Tls::new, noise::Config::new), yamux_config)
        .map_err(|error| setup(&error))?
        .with_bandwidth_metrics(&mut registry)
        .with_behaviour(|_, relay_client| behaviour(relay_client))
        .map_err(|error| setup(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .with_connection_timeout(DIAL_TIMEOUT)
        .build();
    Ok(swarm)
}

/// What a seed relays for others.
fn circuits() -> relay::Config {
    relay::Config {
        max_reservations: RESERVATIONS_MAX,
        max_circuits: CIRCUITS_MAX,
        max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
        max_circuit_bytes: CIRCUIT_BYTES_MAX,
        max_circuit_duration: CIRCUIT_DURATION,
        ..relay::Config::default()
    }
}

fn connection_bounds(inbound: u32) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_CONNECTIONS_MAX))
        .with_max_pending_outgoing(Some(PENDING_CONNECTIONS_MAX))
        // The gate keeps them below the bound without the slack, by its own choice of whom.
        .with_max_established_incoming(Some(inbound + INBOUND_CONNECTIONS_SLACK))
        .with_max_established_outgoing(Some(OUTBOUND_CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
}
