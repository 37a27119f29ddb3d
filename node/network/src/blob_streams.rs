//! Blob streams: a behaviour that opens and accepts raw streams of the blob protocol, addressed by connection.
//!
//! The caller names the connection, so a transfer knows what it runs over and can close it when it stalls. Every open
//! ends in an answer: a stream, or a reason (a connection that closes drops the reply, which is a reason too). Streams
//! that others open are bounded per connection and in all, the first of each connection always having a place; what is
//! beyond the bounds is dropped, never queued.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::blob_frames::BLOB_PROTOCOL;
use super::limits::{BLOB_OPEN_TIMEOUT, BLOB_STREAMS_FREE, BLOB_STREAMS_MAX, BLOB_STREAMS_PER_CONNECTION_MAX};
use super::paths::{far_end_of, is_quic, is_relayed};
use super::traffic::{Counted, Line, Meter};

/// A stream of the blob protocol, its bytes counted.
pub type Stream = Counted<libp2p::Stream>;

/// An open stream, or why there is none.
pub type Opened = Result<(ConnectionId, Stream), OpenError>;

/// Why a stream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    #[error("it is not connected")]
    NotConnected,
    #[error("it is connected only through a relay, which carries no blob")]
    OnlyRelayed,
    #[error("the stream could not be opened: {0}")]
    Failed(String),
}

/// A stream that another peer opened. Its places in the bounds are freed when it is dropped.
pub struct Inbound {
    pub peer: PeerId,
    pub stream: Stream,
    pub places: Places,
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a blob stream of {}", self.peer)
    }
}

/// The stream's place among those of its connection, and among all or the free ones.
pub struct Places {
    _of_connection: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

struct Connection {
    peer: PeerId,
    remote: Multiaddr,
    relayed: bool,
}

pub struct Behaviour {
    connections: HashMap<ConnectionId, Connection>,
    events: VecDeque<ToSwarm<Inbound, Open>>,
    all: Arc<Semaphore>,
    meter: Meter,
}

impl Behaviour {
    pub fn new(meter: Meter) -> Self {
        Self { connections: HashMap::new(), events: VecDeque::new(), all: Arc::new(Semaphore::new(BLOB_STREAMS_MAX)), meter }
    }

    /// The address at the other end of a live connection.
    pub fn remote(&self, connection: ConnectionId) -> Option<&Multiaddr> {
        self.connections.get(&connection).map(|connection| &connection.remote)
    }

    /// Opens a stream to `peer` over its best direct connection: QUIC first, because bulk both ways over one yamux
    /// connection can stall; then the oldest, because younger ones may be closed as surplus. A relay is never used.
    pub fn open(&mut self, peer: PeerId, reply: oneshot::Sender<Opened>) {
        let of_peer = self.connections.iter().filter(|(_, connection)| connection.peer == peer);
        let (relayed, direct): (Vec<_>, Vec<_>) = of_peer.partition(|(_, connection)| connection.relayed);
        let best = direct.into_iter().min_by_key(|(id, connection)| (!is_quic(&connection.remote), **id));
        match best.map(|(id, _)| *id) {
            None if relayed.is_empty() => drop(reply.send(Err(OpenError::NotConnected))),
            None => drop(reply.send(Err(OpenError::OnlyRelayed))),
            Some(connection) => self.events.push_back(ToSwarm::NotifyHandler {
                peer_id: peer,
                handler: NotifyHandler::One(connection),
                event: Open { connection, reply },
            }),
        }
    }

    fn admit(&mut self, id: ConnectionId, peer: PeerId, remote: Multiaddr) -> Handler {
        let relayed = is_relayed(&remote);
        self.connections.insert(id, Connection { peer, remote, relayed });
        // Whoever asks for a blob through a relay all the same finds no place.
        let places = if relayed { 0 } else { BLOB_STREAMS_PER_CONNECTION_MAX };
        Handler {
            opening: VecDeque::new(),
            accepted: VecDeque::new(),
            of_connection: Arc::new(Semaphore::new(places)),
            free: Arc::new(Semaphore::new(places.min(BLOB_STREAMS_FREE))),
            all: self.all.clone(),
            meter: self.meter.clone(),
            line: Arc::default(),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.admit(connection, peer, far_end_of(local, remote)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.admit(connection, peer, remote.clone()))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.connections.remove(&connection_id);
            }
            // A behaviour after this one may have denied it.
            FromSwarm::ListenFailure(failure) => {
                self.connections.remove(&failure.connection_id);
            }
            FromSwarm::DialFailure(failure) => {
                self.connections.remove(&failure.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        let Accepted { stream, places } = event;
        self.events.push_back(ToSwarm::GenerateEvent(Inbound { peer, stream, places }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Inbound, THandlerInEvent<Self>>> {
        // No waker: `open` is called by the task that polls the swarm, between two polls.
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// To the handler: open a stream.
pub struct Open {
    connection: ConnectionId,
    reply: oneshot::Sender<Opened>,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open a blob stream on connection {}", self.connection)
    }
}

/// From the handler: a stream was opened by the other side.
pub struct Accepted {
    stream: Stream,
    places: Places,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("accepted a blob stream")
    }
}

pub struct Handler {
    /// At most one of each running download.
    opening: VecDeque<Open>,
    /// At most as many as there are places.
    accepted: VecDeque<Accepted>,
    of_connection: Arc<Semaphore>,
    /// Places that this connection need not share.
    free: Arc<Semaphore>,
    all: Arc<Semaphore>,
    meter: Meter,
    line: Arc<Line>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Accepted;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(BLOB_PROTOCOL), ()).with_timeout(BLOB_OPEN_TIMEOUT)
    }

    fn on_behaviour_event(&mut self, open: Open) {
        self.opening.push_back(open);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Open, Accepted>> {
        if let Some(accepted) = self.accepted.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(accepted));
        }
        match self.opening.pop_front() {
            Some(open) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(BLOB_PROTOCOL), open).with_timeout(BLOB_OPEN_TIMEOUT),
            }),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, Self::InboundOpenInfo, Self::OutboundOpenInfo>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                let of_connection = self.of_connection.clone().try_acquire_owned();
                let of_all = self.free.clone().try_acquire_owned().or_else(|_| self.all.clone().try_acquire_owned());
                let (Ok(of_connection), Ok(of_all)) = (of_connection, of_all) else {
                    tracing::debug!("dropped a blob stream beyond the bounds");
                    return;
                };
                let places = Places { _of_connection: of_connection, _of_all: of_all };
                self.accepted.push_back(Accepted { stream: self.meter.counted(stream, &self.line), places });
            }
            // A caller that no longer waits drops the stream, which closes it.
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info }) => {
                let _ = info.reply.send(Ok((info.connection, self.meter.counted(stream, &self.line))));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let _ = info.reply.send(Err(OpenError::Failed(error.to_string())));
            }
            _ => {}
        }
    }
}
