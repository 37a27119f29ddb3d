//! Kademlia as an address book of the whole network: it asks those we are connected to and tells whom they know, and
//! never connects to anybody by itself.
//!
//! On its own, Kademlia connects to every peer on its way, and walks again whenever it learns of one: a hundred peers end
//! up as a full graph, and each connection is paid for with handshakes, introductions and gossip for ever. Here a peer to
//! be dialled is only told of; the dialler connects to as many as are missing.

use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::{self, store::MemoryStore};
use libp2p::swarm::behaviour::DialFailure;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

type Kad = kad::Behaviour<MemoryStore>;

#[derive(Debug)]
pub enum Looked {
    /// A peer that others know, and where.
    Found { peer: PeerId, addresses: Vec<Multiaddr> },
    /// Boxed, because it is large and rare.
    Kad(Box<kad::Event>),
}

pub struct Lookups {
    kad: Kad,
}

impl Lookups {
    pub fn new(kad: Kad) -> Self {
        Self { kad }
    }

    /// What is known of the peer Kademlia wants to dial; for its walk, the peer cannot be reached.
    fn instead_of_dialling(&mut self, connection: ConnectionId, peer: PeerId) -> Looked {
        let addresses = self.kad.handle_pending_outbound_connection(connection, Some(peer), &[], Endpoint::Dialer);
        let error = DialError::NoAddresses;
        self.kad.on_swarm_event(FromSwarm::DialFailure(DialFailure { peer_id: Some(peer), error: &error, connection_id: connection }));
        Looked::Found { peer, addresses: addresses.unwrap_or_default() }
    }
}

impl Deref for Lookups {
    type Target = Kad;

    fn deref(&self) -> &Kad {
        &self.kad
    }
}

impl DerefMut for Lookups {
    fn deref_mut(&mut self) -> &mut Kad {
        &mut self.kad
    }
}

impl NetworkBehaviour for Lookups {
    type ConnectionHandler = <Kad as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Looked;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.kad.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.kad.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_outbound_connection(id, peer, remote, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Looked, THandlerInEvent<Self>>> {
        loop {
            match std::task::ready!(self.kad.poll(context)) {
                ToSwarm::Dial { opts } => {
                    if let Some(peer) = opts.get_peer_id() {
                        return Poll::Ready(ToSwarm::GenerateEvent(self.instead_of_dialling(opts.connection_id(), peer)));
                    }
                }
                other => return Poll::Ready(other.map_out(|event| Looked::Kad(Box::new(event)))),
            }
        }
    }
}
