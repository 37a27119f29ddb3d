//! One peer's connections: gossip, sync messages, verified blob transfer, discovery. libp2p types stop here.
//!
//! The room moves bytes and decides nothing about them: records are opaque (the driver verifies them and answers with a
//! [`Verdict`]), sync messages are opaque, and a blob is whatever hashes to its name. It refuses to buffer more than
//! the named bounds of `network/limits.rs`, to serve a byte that does not verify, and to wait for the driver: when
//! events are not taken, the sockets are not read.
//!
//! A peer's libp2p identity is its member key, so a [`PeerId`] and a [`MemberKey`] name the same institution.

mod bars;
mod behaviour;
mod blob_frames;
mod blob_serve;
mod blob_streams;
mod buffered;
mod dialer;
mod download;
mod downloads;
mod extent;
mod gate;
mod gossip;
mod guard;
mod head;
mod limits;
mod link;
mod memory;
mod metered;
mod names;
mod paths;
mod peers;
mod pieces;
mod providers;
mod questions;
mod quotas;
mod rate;
mod reach;
mod referrals;
mod round_codec;
pub mod rounds;
mod schedule;
mod service;
pub mod store;
mod sync_codec;
#[cfg(test)]
mod tests;
mod tls;
mod traffic;
mod transfers;
mod transport;
mod turns;
mod watched;
pub mod web;
mod window;

use std::collections::BTreeSet;
use std::sync::Arc;

use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::round::{MANIFEST_BYTES_MAX, RoundId};
use tokio::sync::{mpsc, oneshot, watch};

pub use head::{HeadCheck, HeadVerdict};
pub use libp2p::{Multiaddr, PeerId};
pub use limits::{Limits, Scoring};
pub use names::{member_of, peer_of};
pub use paths::Link;
pub use peers::{Counts, PeerStatus};
pub use reach::{ReachConfig, Reachability, Role};
pub use traffic::Traffic;
pub use transfers::{ProviderState, ProviderStatus, Transfer, Upload};

use crate::store::Store;
use downloads::Wanted;
use limits::{COMMANDS_MAX, EVENTS_MAX, GOSSIP_BYTES_MAX, SYNC_REQUEST_BYTES_MAX, SYNC_RESPONSE_BYTES_MAX};
use names::keypair_of;
use service::Command;
use traffic::Meter;
use transfers::Board;

/// What a peer's network needs to know.
#[derive(Clone)]
pub struct NetworkConfig {
    /// The member's ed25519 secret key, 32 bytes.
    pub secret: [u8; 32],
    /// Where to listen, such as `/ip4/0.0.0.0/udp/4001/quic-v1` and `/ip4/0.0.0.0/tcp/4001`; port 0 picks one.
    pub listen: Vec<Multiaddr>,
    /// Peers that are dialled for ever, with or without a `/p2p/` ending.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether to look for peers on the local network by multicast DNS.
    pub mdns: bool,
    /// The gossip topic; one a round.
    pub topic: String,
    /// When given, connections from and to all other keys are refused.
    pub allowed: Option<BTreeSet<MemberKey>>,
    /// How this peer is reached from outside.
    pub reach: ReachConfig,
    /// Bounds and pauses; `Limits::default()` outside tests.
    pub limits: Limits,
}

/// Names one gossiped message.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MessageId(Vec<u8>);

/// Names one sync request that waits for our answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SyncToken(libp2p::request_response::InboundRequestId);

/// What the driver found in a gossiped message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Valid and new: pass it on.
    Accept,
    /// Invalid by the sender's own fault: do not pass it on, and think less of the sender.
    Reject,
    /// Not for us to judge (unknown author, replay, our own trouble): do not pass it on.
    Ignore,
}

/// Where a neighbour that we dialled sees us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub by: PeerId,
    pub address: Multiaddr,
}

/// How this peer and the others reach each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReachStatus {
    pub reachability: Reachability,
    /// One a neighbour.
    pub links: Vec<Link>,
    pub observed: Vec<Observed>,
}

/// What the network tells the driver.
#[derive(Debug)]
pub enum NetworkEvent {
    /// We can be dialled here (with our `/p2p/` ending).
    Listening(Multiaddr),
    /// A mingle peer is ready for sync (told once, until it is disconnected).
    PeerConnected(PeerId),
    /// The last connection to the peer is gone.
    PeerDisconnected(PeerId),
    /// A peer that may not connect tried to; told once a minute for each.
    Refused {
        peer: PeerId,
        why: String,
    },
    /// How a peer is connected now: told of its first connection, and when a direct one replaces a relayed one or the
    /// other way round.
    Path(Link),
    /// A bootstrap address has a host whose certificate is not believed; told once for each.
    Distrusted {
        address: Multiaddr,
        why: String,
    },
    /// Whether we can be dialled is known, or has changed.
    Reachability(Reachability),
    /// A message to be judged with `report` within ten seconds, or it is not passed on.
    Gossip {
        message_id: MessageId,
        from: PeerId,
        bytes: Vec<u8>,
    },
    /// A question to be answered with `sync_respond` within 30 seconds.
    SyncRequest {
        from: PeerId,
        token: SyncToken,
        bytes: Vec<u8>,
    },
    SyncResponse {
        from: PeerId,
        bytes: Vec<u8>,
    },
    SyncFailed {
        from: PeerId,
        why: String,
    },
    /// At most four a second and blob.
    BlobProgress {
        hash: ContentHash,
        have: u64,
        size: u64,
        from: PeerId,
    },
    /// Complete, verified and durable in the store.
    BlobFetched {
        hash: ContentHash,
    },
    /// Of what its judge wanted a part of (`fetch_checked`), that part is there, verified and durable; the blob is not.
    BlobPart {
        hash: ContentHash,
    },
    /// Every provider failed once more; what was verified is kept. Ask again with `fetch`.
    BlobFailed {
        hash: ContentHash,
        why: String,
    },
    /// Its first bytes are not those of what it should be (`fetch_checked`); nothing of it is kept.
    BlobRefused {
        hash: ContentHash,
        why: String,
    },
    /// A stored blob was found damaged while it was served and is out of the store: fetch it again.
    BlobDamaged {
        hash: ContentHash,
    },
}

/// Why a command was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the network has stopped")]
    Stopped,
    #[error("{COMMANDS_MAX} commands wait for the network already")]
    Busy,
    #[error("{what} of {size} bytes is refused: at most {max} bytes are allowed")]
    TooLarge { what: &'static str, size: usize, max: usize },
    #[error("cannot listen on {address}: {why}")]
    Listen { address: Multiaddr, why: String },
    #[error("the network cannot be set up: {0}")]
    Setup(String),
}

/// The network of one peer; starts a task on the current tokio runtime.
pub struct Network;

impl Network {
    /// Listens, dials the bootstrap peers and runs until `shutdown` or until every handle is dropped.
    ///
    /// # Errors
    /// `Listen` when an address cannot be bound, `Setup` when the keys or the transport cannot be built.
    pub fn start(config: NetworkConfig, store: Store) -> Result<(NetworkHandle, mpsc::Receiver<NetworkEvent>), NetworkError> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (outbox, events) = mpsc::channel(EVENTS_MAX);
        let (peers, connected) = watch::channel(Vec::new());
        let (show, shown) = watch::channel(Vec::new());
        let (reached, reach) = watch::channel(ReachStatus::default());
        let board = Board::new();
        let shows = service::Shown { connected: peers, peers: show, reach: reached, board: board.clone() };
        let service = service::Service::new(config, store, outbox, shows)?;
        let (local, meter) = (service.local_peer(), service.meter());
        tokio::spawn(service.run(inbox));
        Ok((NetworkHandle { commands, connected, shown, reach, meter, local, board }, events))
    }
}

/// Commands to the network. Clones share it; no method waits, except `shutdown`.
#[derive(Clone)]
pub struct NetworkHandle {
    commands: mpsc::Sender<Command>,
    connected: watch::Receiver<Vec<PeerId>>,
    shown: watch::Receiver<Vec<PeerStatus>>,
    reach: watch::Receiver<ReachStatus>,
    meter: Meter,
    local: PeerId,
    board: Board,
}

impl NetworkHandle {
    /// Our own name.
    pub fn local_peer(&self) -> PeerId {
        self.local
    }

    /// Gossips a message to the topic. It is queued while nobody listens; whoever misses it is served by sync.
    pub fn publish(&self, bytes: Vec<u8>) -> Result<(), NetworkError> {
        check("a message", bytes.len(), GOSSIP_BYTES_MAX)?;
        self.send(Command::Publish(bytes))
    }

    /// Judges a gossiped message, so that it is passed on or not. `from` is the `from` of the event.
    pub fn report(&self, message_id: MessageId, from: PeerId, verdict: Verdict) -> Result<(), NetworkError> {
        self.send(Command::Report { message_id, from, verdict })
    }

    /// Holds against a peer that it handed over so many invalid records in reconciliation, as `Verdict::Reject` does for
    /// one in gossip.
    pub fn misled(&self, by: PeerId, times: u32) -> Result<(), NetworkError> {
        self.send(Command::Misled { by, times })
    }

    /// Asks a connected peer; ends in `SyncResponse` or `SyncFailed`.
    pub fn sync_request(&self, peer: PeerId, bytes: Vec<u8>) -> Result<(), NetworkError> {
        check("a sync request", bytes.len(), SYNC_REQUEST_BYTES_MAX)?;
        self.send(Command::SyncRequest { peer, bytes })
    }

    /// Answers a `SyncRequest`. An answer that comes too late is dropped.
    pub fn sync_respond(&self, token: SyncToken, bytes: Vec<u8>) -> Result<(), NetworkError> {
        check("a sync response", bytes.len(), SYNC_RESPONSE_BYTES_MAX)?;
        self.send(Command::SyncRespond { token, bytes })
    }

    /// Fetches a blob of `size` bytes into the store, from `providers` first and then from any connected peer.
    ///
    /// Ends in `BlobFetched` or `BlobFailed`. Asking again while it runs only adds providers.
    pub fn fetch(&self, hash: ContentHash, size: u64, providers: Vec<PeerId>) -> Result<(), NetworkError> {
        self.send(Command::Fetch(Wanted { hash, size, providers, head: None }))
    }

    /// Like `fetch`, but the first bytes come first and are judged: what `head` refuses ends in `BlobRefused`, and
    /// nothing of it is kept. When `head` wants a part only, it ends in `BlobPart`; what comes stays in the store, and
    /// whoever wants more of it later fetches the rest.
    pub fn fetch_checked(
        &self,
        hash: ContentHash,
        size: u64,
        providers: Vec<PeerId>,
        head: Arc<dyn HeadCheck>,
    ) -> Result<(), NetworkError> {
        self.send(Command::Fetch(Wanted { hash, size, providers, head: Some(head) }))
    }

    /// Stops a download without an event. What was verified is kept.
    pub fn cancel_fetch(&self, hash: ContentHash) -> Result<(), NetworkError> {
        self.send(Command::CancelFetch(hash))
    }

    /// The peers that are ready for sync, in no particular order.
    pub fn connected_peers(&self) -> Vec<PeerId> {
        self.connected.borrow().clone()
    }

    /// Hands this round file to whoever asks for the round, from now on.
    pub fn offer_round(&self, round: RoundId, file: Arc<[u8]>) -> Result<(), NetworkError> {
        check("a round file", file.len(), MANIFEST_BYTES_MAX)?;
        self.send(Command::OfferRound(round, file))
    }

    /// The blobs on their way here, with what each provider brings.
    pub fn transfers(&self) -> Vec<Transfer> {
        self.board.transfers()
    }

    /// What was sent of blobs, by peer.
    pub fn uploads(&self) -> Vec<Upload> {
        self.board.uploads()
    }

    /// Every connected peer with its score and what it has done.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shown.borrow().clone()
    }

    /// Bytes read and written since the start.
    pub fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    /// From now on only these keys may be connected (`None`: all). Others are disconnected at once and forgotten.
    pub fn set_allowed(&self, allowed: Option<BTreeSet<MemberKey>>) -> Result<(), NetworkError> {
        self.send(Command::SetAllowed(allowed))
    }

    /// Whether and where this peer can be dialled, and how its neighbours are connected. It changes; each clone of the
    /// receiver can wait for that.
    pub fn reachability(&self) -> watch::Receiver<ReachStatus> {
        self.reach.clone()
    }

    /// Dials an address once.
    pub fn dial(&self, address: Multiaddr) -> Result<(), NetworkError> {
        self.send(Command::Dial(address))
    }

    /// Closes every connection and stops; returns when that is done.
    pub async fn shutdown(&self) {
        let (done, stopped) = oneshot::channel();
        if self.commands.send(Command::Shutdown(done)).await.is_ok() {
            // An error means that the service is gone, which is what was asked for.
            let _ = stopped.await;
        }
    }

    fn send(&self, command: Command) -> Result<(), NetworkError> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NetworkError::Busy,
            mpsc::error::TrySendError::Closed(_) => NetworkError::Stopped,
        })
    }
}

fn check(what: &'static str, size: usize, max: usize) -> Result<(), NetworkError> {
    if size <= max { Ok(()) } else { Err(NetworkError::TooLarge { what, size, max }) }
}
