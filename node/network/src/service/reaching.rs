//! The service's share in reaching others: it tells `Paths` and `Reach` what the swarm says, and does what they want.

use std::collections::{BTreeSet, HashMap};

use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, DialError, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate, SwarmEvent};
use libp2p::{Multiaddr, PeerId, autonat, dcutr, identify, ping, relay, upnp};
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::behaviour::NetEvent;
use super::super::dialer::{believable, worth};
use super::super::limits::Limits;
use super::super::paths::{Paths, is_relayed};
use super::super::reach::{Reach, ReachConfig, Role, Step, is_global};
use super::super::sync_codec::SYNC_PROTOCOL;
use super::super::web::distrusted;
use super::super::{NetworkEvent, Observed, ReachStatus};
use super::Service;

pub struct Reaching {
    pub paths: Paths,
    reach: Reach,
    role: Role,
    /// Whether a seed announces where it listens: it does when it was told no address.
    announces: bool,
    /// Whether listening on this machine alone was asked for.
    on_loopback: bool,
    /// Where neighbours that we dialled see us, by connection.
    observed: HashMap<ConnectionId, Observed>,
    /// Bootstrap addresses whose certificates are not believed.
    distrusted: BTreeSet<Multiaddr>,
    shown: watch::Sender<ReachStatus>,
}

impl Reaching {
    pub fn new(config: &ReachConfig, listen: &[Multiaddr], limits: &Limits, shown: watch::Sender<ReachStatus>) -> Self {
        let mut reach = Reach::new(config.role, limits.settle);
        config.external.iter().for_each(|address| reach.confirmed(address.clone()));
        Self {
            paths: Paths::default(),
            reach,
            role: config.role,
            announces: config.role == Role::Public && config.external.is_empty(),
            on_loopback: listen.iter().any(is_loopback),
            observed: HashMap::new(),
            distrusted: BTreeSet::new(),
            shown,
        }
    }
}

impl Service {
    /// Hears every event before the rest of the service does.
    pub(super) fn hear(&mut self, event: &SwarmEvent<NetEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                if let Some(link) = self.reaching.paths.opened(*connection_id, *peer_id, endpoint, now) {
                    self.tell(NetworkEvent::Path(link));
                }
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.reaching.observed.remove(connection_id);
                if let Some(link) = self.reaching.paths.closed(*connection_id) {
                    self.tell(NetworkEvent::Path(link));
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => self.may_announce(address),
            SwarmEvent::ListenerClosed { listener_id, reason, .. } if self.reaching.reach.closed(*listener_id, now) => {
                tracing::debug!(?reason, "a relay let go of us");
            }
            // An operator's own addresses, so they are few.
            SwarmEvent::OutgoingConnectionError { connection_id, error: DialError::Transport(failed), .. }
                if self.dialer.is_bootstrap(*connection_id) =>
            {
                for (address, error) in failed {
                    if let Some(why) = distrusted(error)
                        && self.reaching.distrusted.insert(address.clone())
                    {
                        self.tell(NetworkEvent::Distrusted { address: address.clone(), why });
                    }
                }
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.leads_here(address.clone()),
            SwarmEvent::ExternalAddrExpired { address } => self.reaching.reach.expired(address),
            SwarmEvent::Behaviour(event) => self.hear_behaviour(event, now),
            _ => {}
        }
    }

    fn hear_behaviour(&mut self, event: &NetEvent, now: Instant) {
        match event {
            NetEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.observed(*connection_id, *peer_id, &info.observed_addr);
                if info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
                    self.may_relay(*connection_id, *peer_id, &info.listen_addrs, now);
                }
            }
            NetEvent::Ping(ping::Event { connection, result: Ok(round_trip), .. }) => self.reaching.paths.pinged(*connection, *round_trip),
            NetEvent::AutonatClient(autonat::v2::client::Event { tested_addr, result: Err(error), server, .. }) => {
                tracing::debug!(%tested_addr, %server, %error, "could not be dialled back");
                self.reaching.reach.undialable(tested_addr, now);
            }
            NetEvent::RelayClient(relay::client::Event::ReservationReqAccepted { relay_peer_id, .. }) => {
                self.reaching.reach.accepted(relay_peer_id);
            }
            NetEvent::Dcutr(dcutr::Event { remote_peer_id, result }) => match result {
                Ok(_) => tracing::debug!(peer = %remote_peer_id, "met directly"),
                Err(error) => tracing::debug!(peer = %remote_peer_id, %error, "could not be met directly"),
            },
            NetEvent::Upnp(upnp::Event::GatewayNotFound) => tracing::info!("no router here opens ports by UPnP"),
            NetEvent::Upnp(upnp::Event::NonRoutableGateway) => tracing::info!("the router itself is behind another one"),
            _ => {}
        }
    }

    pub(super) fn identified(&mut self, connection: ConnectionId, peer: PeerId, info: identify::Info) {
        let Some(remote) = self.swarm.behaviour().blobs.remote(connection).cloned() else { return };
        let mut addresses: Vec<Multiaddr> = info.listen_addrs.into_iter().filter(|address| believable(address, &remote)).collect();
        addresses.sort_by_cached_key(|address| (worth(address), address.clone()));
        self.dialer.learn(peer, addresses, Instant::now());
        // The others are only let in.
        if !info.protocols.contains(&SYNC_PROTOCOL) {
            return;
        }
        self.swarm.behaviour_mut().gate.greeted(peer);
        if self.ready.insert(peer) {
            self.show_connected();
            self.tell(NetworkEvent::PeerConnected(peer));
        }
    }

    /// Closes what is too much, reserves what is missing, and shows what changed.
    pub(super) fn tend(&mut self) {
        let now = Instant::now();
        for connection in self.reaching.paths.surplus(now) {
            self.swarm.close_connection(connection);
        }
        for step in self.reaching.reach.steps(now) {
            match step {
                Step::Release(listener) => _ = self.swarm.remove_listener(listener),
                Step::Reserve { relay, address } => {
                    let circuit = address.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
                    match self.swarm.listen_on(circuit) {
                        Ok(listener) => self.reaching.reach.listening(&relay, listener),
                        Err(error) => {
                            tracing::debug!(%relay, %error, "a relay's address is of no use");
                            self.reaching.reach.refused(&relay, now);
                        }
                    }
                }
            }
        }
        self.show_reach(now);
    }

    fn show_reach(&mut self, now: Instant) {
        let reachability = self.reaching.reach.reachability(now);
        let links = self.reaching.paths.links();
        let mut observed: Vec<Observed> = self.reaching.observed.values().cloned().collect();
        observed.sort_by(|a, b| (a.by, &a.address).cmp(&(b.by, &b.address)));
        let status = ReachStatus { reachability, links, observed };
        let before = self.reaching.shown.borrow().clone();
        if before == status {
            return;
        }
        if before.reachability != status.reachability {
            self.tell(NetworkEvent::Reachability(status.reachability.clone()));
        }
        self.reaching.shown.send_replace(status);
    }

    /// A seed takes where it listens for where it is dialled.
    fn may_announce(&mut self, address: &Multiaddr) {
        let here_only = is_loopback(address) && !self.reaching.on_loopback;
        // A certificate is for a host's name, which only the operator knows.
        let nameless = address.iter().any(|part| matches!(part, Protocol::Wss(_)));
        if self.reaching.announces && !here_only && !nameless && !is_relayed(address) {
            self.swarm.add_external_address(address.clone());
            self.leads_here(address.clone());
        }
    }

    fn leads_here(&mut self, address: Multiaddr) {
        let public = is_global(&address) && !is_relayed(&address);
        if public && self.reaching.role == Role::Auto && !self.swarm.behaviour().autonat_server.is_enabled() {
            // Whoever connects from now on can ask to be dialled back. A peer that is dialled only within its site
            // would answer for its site only.
            self.swarm.behaviour_mut().autonat_server = Some(autonat::v2::server::Behaviour::default()).into();
        }
        self.reaching.reach.confirmed(address);
    }

    /// Where a neighbour sees us. Identify replaces the port seen by the one we listen on, which is wrong behind a router
    /// that gives another; as we dial from the port we listen on, what is seen is the way in, and DCUtR needs it.
    fn observed(&mut self, connection: ConnectionId, by: PeerId, address: &Multiaddr) {
        let Some((_, true)) = self.reaching.paths.direct(connection) else { return };
        let is_web = |part| matches!(part, Protocol::Ws(_) | Protocol::Wss(_));
        if is_relayed(address) || address.iter().any(is_web) {
            return;
        }
        let candidate = FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr: address });
        self.swarm.behaviour_mut().dcutr.on_swarm_event(candidate);
        self.reaching.observed.insert(connection, Observed { by, address: address.clone() });
    }

    fn may_relay(&mut self, connection: ConnectionId, peer: PeerId, claimed: &[Multiaddr], now: Instant) {
        let Some((remote, dialled)) = self.reaching.paths.direct(connection) else { return };
        let address = match dialled {
            // It answered there.
            true => Some(remote.clone()),
            false => claimed.iter().filter(|address| !is_relayed(address) && believable(address, remote)).min_by_key(|a| worth(a)).cloned(),
        };
        let Some(mut address) = address else { return };
        if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
            address.pop();
        }
        self.reaching.reach.relay(peer, address, now);
    }
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}
