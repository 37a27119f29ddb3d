//! The door: a behaviour that refuses connections before anything is spent on them, and closes those that do not belong.
//!
//! It comes first among the behaviours. It refuses keys that are not allowed or barred, addresses that try too often or
//! hold too many places, and closes a connection whose other end says nothing. When every place is taken, one who has
//! proven useful is never sent away for a newcomer; a silent one always is.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dummy;
use libp2p::swarm::{
    CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, ListenError, ListenFailure, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

use super::guard::{Guard, Refusal};
use super::limits::{INBOUND_PER_ADDRESS_MAX, PENDING_PER_ADDRESS_MAX};
use super::quotas::{ATTEMPTS, Buckets, FAILED_ATTEMPT_COSTS};

/// One peer's knocking is told once in so long.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// Peers whose knocking was told lately; when more knock than fit, only these are known.
const TOLD_MAX: usize = 256;

/// Somebody was refused at the door.
#[derive(Debug)]
pub struct Knock {
    pub peer: PeerId,
    pub why: Refusal,
}

struct Connection {
    peer: PeerId,
    /// `None` over a relay, whose address says nothing about the peer.
    address: Option<IpAddr>,
    inbound: bool,
    relayed: bool,
    since: Instant,
}

/// What a peer is worth to us when places are scarce; the least is sent away first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Worth {
    Silent,
    Known,
    Useful,
}

pub struct Gate {
    guard: Arc<Guard>,
    silent_patience: Duration,
    inbound_max: usize,
    attempts: Buckets<IpAddr>,
    pending: HashMap<ConnectionId, IpAddr>,
    connections: HashMap<ConnectionId, Connection>,
    /// Peers that have introduced themselves as ours, while they are connected.
    known: HashMap<PeerId, Instant>,
    told: HashMap<PeerId, Instant>,
    events: VecDeque<ToSwarm<Knock, Infallible>>,
}

impl Gate {
    pub fn new(guard: Arc<Guard>, silent_patience: Duration, inbound_max: u32) -> Self {
        Self {
            guard,
            silent_patience,
            inbound_max: inbound_max as usize,
            attempts: Buckets::new(ATTEMPTS),
            pending: HashMap::new(),
            connections: HashMap::new(),
            known: HashMap::new(),
            told: HashMap::new(),
            events: VecDeque::new(),
        }
    }

    /// The peer has introduced itself as one of ours.
    pub fn greeted(&mut self, peer: PeerId) {
        self.known.entry(peer).or_insert_with(Instant::now);
    }

    /// Whether the peer is connected otherwise than over a relay.
    pub fn is_direct(&self, peer: &PeerId) -> bool {
        self.connections.values().any(|connection| connection.peer == *peer && !connection.relayed)
    }

    /// Whether we reached the peer ourselves, so that others can, too.
    pub fn was_dialled(&self, peer: &PeerId) -> bool {
        self.connections.values().any(|connection| connection.peer == *peer && !connection.inbound && !connection.relayed)
    }

    /// Closes what has been silent for too long.
    pub fn sweep(&mut self, now: Instant) {
        let (known, patience) = (&self.known, self.silent_patience);
        let silent = |connection: &Connection| !known.contains_key(&connection.peer) && now.duration_since(connection.since) >= patience;
        for (id, connection) in self.connections.iter().filter(|(_, connection)| silent(connection)) {
            tracing::debug!(peer = %connection.peer, "a connection is closed, because its other end does not introduce itself");
            self.events.push_back(close(connection.peer, *id));
        }
    }

    fn admit(&mut self, peer: PeerId) -> Result<(), ConnectionDenied> {
        self.guard.admits(&peer).map_err(|why| self.refuse(peer, why))
    }

    fn refuse(&mut self, peer: PeerId, why: Refusal) -> ConnectionDenied {
        let now = Instant::now();
        self.told.retain(|_, at| now.duration_since(*at) < TOLD_AGAIN);
        if self.told.len() < TOLD_MAX && !self.told.contains_key(&peer) {
            self.told.insert(peer, now);
            self.events.push_back(ToSwarm::GenerateEvent(Knock { peer, why: why.clone() }));
        }
        ConnectionDenied::new(why)
    }

    /// A place for an inbound connection, if need be somebody else's.
    fn place(&mut self, peer: PeerId, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let address = address_of(remote);
        let from = |address: Option<IpAddr>| self.inbound().filter(|(_, other)| address.is_some() && other.address == address).count();
        let beside = from(address);
        let full = self.inbound().count() >= self.inbound_max;
        let crowded = beside >= INBOUND_PER_ADDRESS_MAX;
        if !full && !crowded {
            return Ok(());
        }
        // Whoever is worth least; of those, from where most come; of those, the last to come.
        let candidates = self.inbound().filter(|(_, other)| full || other.address == address);
        let least = candidates.map(|(id, other)| (self.worth(&other.peer), std::cmp::Reverse(from(other.address)), *id, other));
        let least = least.min_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)).then(other.3.since.cmp(&one.3.since)));
        match least {
            Some((worth, std::cmp::Reverse(crowd), id, other))
                if worth == Worth::Silent || (worth == Worth::Known && crowd > beside + 1) =>
            {
                let leaving = close(other.peer, id);
                self.events.push_back(leaving);
                Ok(())
            }
            _ => Err(self.refuse(peer, if crowded { Refusal::Crowded } else { Refusal::Full })),
        }
    }

    fn inbound(&self) -> impl Iterator<Item = (&ConnectionId, &Connection)> {
        self.connections.iter().filter(|(_, connection)| connection.inbound)
    }

    fn worth(&self, peer: &PeerId) -> Worth {
        let counts = self.guard.counts(peer);
        match self.known.contains_key(peer) {
            false => Worth::Silent,
            true if counts.accepted > 0 => Worth::Useful,
            true => Worth::Known,
        }
    }
}

fn close(peer: PeerId, connection: ConnectionId) -> ToSwarm<Knock, Infallible> {
    ToSwarm::CloseConnection { peer_id: peer, connection: CloseConnection::One(connection) }
}

fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whose address it is: a host's in IPv4, a network's of 64 bits in IPv6, where one host has as many as it likes.
fn address_of(address: &Multiaddr) -> Option<IpAddr> {
    if is_relayed(address) {
        return None;
    }
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(match ip.to_ipv4_mapped() {
            Some(ip) => ip.into(),
            None => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        }),
        _ => None,
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Knock;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(address) = address_of(remote) else { return Ok(()) };
        let shaking_hands = self.pending.values().filter(|other| **other == address).count();
        if shaking_hands >= PENDING_PER_ADDRESS_MAX || !self.attempts.take(&address, 1) {
            return Err(ConnectionDenied::new(Refusal::Crowded));
        }
        self.pending.insert(connection, address);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(peer)?;
        self.place(peer, remote)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        // Our own dials are no knocking: they are refused silently.
        match peer.map_or(Ok(()), |peer| self.guard.admits(&peer)) {
            Ok(()) => Ok(Vec::new()),
            Err(why) => Err(ConnectionDenied::new(why)),
        }
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(peer)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.pending.remove(&established.connection_id);
                let remote = established.endpoint.get_remote_address();
                let connection = Connection {
                    peer: established.peer_id,
                    address: address_of(remote),
                    inbound: established.endpoint.is_listener(),
                    relayed: established.endpoint.is_relayed(),
                    since: Instant::now(),
                };
                self.connections.insert(established.connection_id, connection);
                self.guard.connected(established.peer_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, peer_id, remaining_established, .. }) => {
                self.connections.remove(&connection_id);
                if remaining_established == 0 {
                    self.known.remove(&peer_id);
                    self.guard.disconnected(&peer_id);
                }
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, error, .. }) => {
                let address = self.pending.remove(&connection_id);
                if let (Some(address), ListenError::Transport(_)) = (address, error) {
                    // What cannot be paid for any more is refused already.
                    let _ = self.attempts.take(&address, FAILED_ATTEMPT_COSTS);
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Knock, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        self.guard.poll_leaving(context).map(|peer| ToSwarm::CloseConnection { peer_id: peer, connection: CloseConnection::All })
    }
}
