//! The task that owns the swarm: commands and reports in, events out.
//!
//! It never waits for the driver. Events that the driver does not take are kept up to a bound; beyond it the sockets are
//! not read until it does, while commands still are, so that neither side can wait for the other.

mod guarded;
mod meeting;
mod reaching;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, gossipsub, identify, mdns, ping};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::round::RoundId;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::behaviour::{Net, NetEvent, swarm};
use super::blob_serve::Server;
use super::blob_streams::Opened;
use super::dialer::Dialer;
use super::downloads::{Context, Downloads, Ended, Wanted};
use super::gossip::Gossip;
use super::guard::{Guard, Offence};
use super::limits::{BUFFERS_MAX, DIAL_TICK, DISCOVERY_INTERVAL, EVENTS_MAX, Limits, REPORTS_MAX, WATCH_TICK};
use super::peers::PeerStatus;
use super::questions::Questions;
use super::referrals::Asked;
use super::rounds::Offer;
use super::traffic::Meter;
use super::transfers::Board;
use super::window::Window;
use super::{MessageId, NetworkConfig, NetworkError, NetworkEvent, ReachStatus, SyncToken, Verdict, keypair_of};
use crate::store::Store;
use reaching::Reaching;

/// How long `shutdown` waits for connections and tasks to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// From the driver.
pub enum Command {
    Publish(Vec<u8>),
    Report { message_id: MessageId, from: PeerId, verdict: Verdict },
    Misled { by: PeerId, times: u32 },
    SyncRequest { peer: PeerId, bytes: Vec<u8> },
    SyncRespond { token: SyncToken, bytes: Vec<u8> },
    Fetch(Wanted),
    CancelFetch(ContentHash),
    Dial(Multiaddr),
    OfferRound(RoundId, Arc<[u8]>),
    SetAllowed(Option<BTreeSet<MemberKey>>),
    Shutdown(oneshot::Sender<()>),
}

/// From downloads and servers.
pub enum Report {
    Open {
        peer: PeerId,
        reply: oneshot::Sender<Opened>,
    },
    Close(ConnectionId),
    Progress {
        hash: ContentHash,
        have: u64,
        size: u64,
        from: PeerId,
    },
    Ended {
        hash: ContentHash,
        ended: Ended,
    },
    Damaged(ContentHash),
    /// A peer asks us for a blob that we fetch ourselves.
    Interest {
        hash: ContentHash,
        peer: PeerId,
    },
    /// What a peer did wrong in a blob stream.
    Misbehaved {
        peer: PeerId,
        offence: Offence,
    },
}

/// What every handle can look at.
pub struct Shown {
    pub connected: watch::Sender<Vec<PeerId>>,
    pub peers: watch::Sender<Vec<PeerStatus>>,
    pub reach: watch::Sender<ReachStatus>,
    pub board: Board,
}

pub struct Service {
    swarm: Swarm<Net>,
    gossip: Gossip,
    dialer: Dialer,
    reaching: Reaching,
    downloads: Downloads,
    server: Server,
    offer: Offer,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    limits: Limits,
    /// Which neighbours were asked for others.
    referred: Asked,
    events: mpsc::Sender<NetworkEvent>,
    /// Not yet taken by the driver.
    backlog: VecDeque<NetworkEvent>,
    reports: mpsc::Receiver<Report>,
    /// Peers that speak sync, as the driver knows them.
    ready: HashSet<PeerId>,
    connected: watch::Sender<Vec<PeerId>>,
    questions: Questions,
    guard: Arc<Guard>,
    /// What is shown of the peers.
    shown: watch::Sender<Vec<PeerStatus>>,
    meter: Meter,
}

impl Service {
    pub fn new(config: NetworkConfig, store: Store, events: mpsc::Sender<NetworkEvent>, shown: Shown) -> Result<Self, NetworkError> {
        let Shown { connected, peers: shown, reach, board } = shown;
        let key = keypair_of(config.secret)?;
        let (behaviour, gossip) = Gossip::new(&config.topic)?;
        let guard = Arc::new(Guard::new(config.allowed.as_ref(), config.limits.scoring));
        let meter = Meter::default();
        let mut swarm = swarm(&key, behaviour, config.mdns, &guard, &config.reach, &meter, &config.limits)?;
        let reaching = Reaching::new(&config.reach, &config.listen, &config.limits, reach);
        config.reach.external.iter().for_each(|address| swarm.add_external_address(address.clone()));
        for address in config.listen {
            let failed = |why: String| NetworkError::Listen { address: address.clone(), why };
            swarm.listen_on(address.clone()).map_err(|error| failed(error.to_string()))?;
        }
        let (report, reports) = mpsc::channel(REPORTS_MAX);
        let stop = CancellationToken::new();
        let context = Context {
            store: store.clone(),
            limits: config.limits.clone(),
            reports: report.clone(),
            connected: connected.subscribe(),
            buffers: Arc::new(Semaphore::new(BUFFERS_MAX)),
            board: board.clone(),
            window: Window::new(),
        };
        Ok(Self {
            dialer: Dialer::new(*swarm.local_peer_id(), config.bootstrap, Instant::now()),
            downloads: Downloads::new(context, stop.clone()),
            server: Server::new(store, config.limits.clone(), stop.clone(), report, guard.clone(), board),
            offer: Offer::default(),
            swarm,
            gossip,
            reaching,
            tasks: JoinSet::new(),
            stop,
            limits: config.limits,
            referred: Asked::default(),
            events,
            backlog: VecDeque::new(),
            reports,
            ready: HashSet::new(),
            connected,
            questions: Questions::new(),
            guard,
            shown,
            meter,
        })
    }

    pub fn local_peer(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    pub async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        self.warn_of_bootstrap();
        let mut dial = interval(DIAL_TICK);
        let mut discover = interval(DISCOVERY_INTERVAL);
        let mut watch = interval(WATCH_TICK);
        for timer in [&mut dial, &mut discover, &mut watch] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let events = self.events.clone();
        let done = loop {
            let has_backlog = !self.backlog.is_empty();
            let may_read = self.backlog.len() < EVENTS_MAX;
            tokio::select! {
                biased; // Our own work before more of theirs.
                place = events.reserve(), if has_backlog => match (place, self.backlog.pop_front()) {
                    (Ok(place), Some(event)) => place.send(event),
                    // The driver has let go of the events; its handle still works until it shuts down.
                    _ => self.backlog.clear(),
                },
                command = inbox.recv() => match command {
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(command) => self.command(command),
                    None => break None,
                },
                Some(report) = self.reports.recv() => self.report(report),
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "a network task failed");
                },
                _ = dial.tick() => {
                    self.dial_bootstrap();
                    self.tend();
                }
                _ = discover.tick() => self.discover(),
                _ = watch.tick() => self.watch_peers(),
                event = self.swarm.select_next_some(), if may_read => self.swarm_event(event),
            }
        };
        self.close().await;
        // The store and the queue are let go before the caller hears of it.
        drop((self, inbox));
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    async fn close(&mut self) {
        self.stop.cancel();
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let ended = async {
            while self.swarm.network_info().num_peers() > 0 || !self.tasks.is_empty() {
                tokio::select! {
                    _ = self.swarm.select_next_some() => {}
                    Some(_) = self.tasks.join_next() => {}
                    // Nobody listens any more: what they report is dropped.
                    Some(_) = self.reports.recv() => {}
                }
            }
        };
        if timeout(SHUTDOWN_PATIENCE, ended).await.is_err() {
            tracing::warn!("some connections did not close in time");
        }
    }

    fn tell(&mut self, event: NetworkEvent) {
        self.backlog.push_back(event);
    }

    fn command(&mut self, command: Command) {
        let behaviour = self.swarm.behaviour_mut();
        match command {
            Command::Publish(bytes) => self.gossip.publish(&mut behaviour.gossip, bytes),
            Command::Report { message_id, from, verdict } => self.judge(message_id, from, verdict),
            Command::Misled { by, times } => self.guard.misled(&by, times),
            Command::SyncRequest { peer, bytes } => self.ask(peer, bytes),
            Command::SyncRespond { token, bytes } => self.respond(token, bytes),
            Command::SetAllowed(allowed) => self.set_allowed(allowed.as_ref()),
            Command::Fetch(mut wanted) => {
                let (local, hash) = (self.local_peer(), wanted.hash);
                wanted.providers.retain(|peer| *peer != local);
                if let Err(why) = self.downloads.fetch(wanted, &mut self.tasks) {
                    self.tell(NetworkEvent::BlobFailed { hash, why });
                }
            }
            Command::CancelFetch(hash) => self.downloads.cancel(hash),
            Command::Dial(address) => {
                if let Err(error) = self.swarm.dial(address) {
                    tracing::debug!(%error, "a dial was not begun");
                }
            }
            Command::OfferRound(round, file) => self.offer.set(round, file),
            // Taken by the loop.
            Command::Shutdown(_) => {}
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Open { peer, reply } => {
                if !self.reaching.paths.is_direct(&peer) {
                    // The download hears so now, and tries again while this is under way.
                    let dial = self.dialer.wanted(peer, self.swarm.is_connected(&peer));
                    let _ = dial.map(|dial| self.swarm.dial(dial));
                }
                self.swarm.behaviour_mut().blobs.open(peer, reply);
            }
            Report::Close(connection) => {
                self.swarm.close_connection(connection);
            }
            Report::Progress { .. } if self.backlog.len() >= EVENTS_MAX => {}
            Report::Progress { hash, have, size, from } => self.tell(NetworkEvent::BlobProgress { hash, have, size, from }),
            Report::Misbehaved { peer, offence } => self.guard.offence(&peer, offence),
            Report::Interest { hash, peer } => self.downloads.interest(hash, peer),
            Report::Damaged(hash) => self.tell(NetworkEvent::BlobDamaged { hash }),
            Report::Ended { hash, ended } => {
                self.downloads.ended(hash, &mut self.tasks);
                if let Some(event) = ended.event(hash) {
                    self.tell(event);
                }
            }
        }
    }

    fn dial_bootstrap(&mut self) {
        let (swarm, dialer) = (&mut self.swarm, &mut self.dialer);
        for dial in dialer.due(Instant::now(), |peer| swarm.is_connected(peer)) {
            let connection = dial.connection_id();
            if swarm.dial(dial).is_err() {
                dialer.failed(connection, false);
            }
        }
    }

    fn swarm_event(&mut self, event: SwarmEvent<NetEvent>) {
        self.hear(&event);
        match event {
            SwarmEvent::Behaviour(event) => self.behaviour_event(event),
            SwarmEvent::NewListenAddr { address, .. } => {
                // That of a relay has our name already.
                let address = address.with_p2p(self.local_peer()).unwrap_or_else(|address| address);
                self.tell(NetworkEvent::Listening(address));
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } => {
                self.dialer.established(connection_id, peer_id);
                self.score(&peer_id);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.dialer.disconnected(&peer_id, Instant::now());
                if self.ready.remove(&peer_id) {
                    self.show_connected();
                    self.tell(NetworkEvent::PeerDisconnected(peer_id));
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                tracing::debug!(%error, "a dial failed");
                self.dialer.failed(connection_id, matches!(error, DialError::LocalPeerId { .. }));
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener reports an error"),
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => tracing::warn!(%error, "a listener closed"),
            _ => {}
        }
    }

    fn behaviour_event(&mut self, event: NetEvent) {
        match event {
            NetEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => self.identified(connection_id, peer_id, info),
            NetEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.gossiped(propagation_source, MessageId(message_id.0), message.data);
            }
            NetEvent::Gate(knock) => self.tell(NetworkEvent::Refused { peer: knock.peer, why: knock.why.to_string() }),
            NetEvent::Gossip(gossipsub::Event::Subscribed { topic, .. }) => {
                self.gossip.subscribed(&mut self.swarm.behaviour_mut().gossip, &topic);
            }
            NetEvent::Referrals(event) => self.referral_event(event),
            NetEvent::Sync(event) => self.sync_event(event),
            NetEvent::Rounds(event) => self.round_event(event),
            // A peer that lost its power says nothing; TCP would believe in it for hours.
            NetEvent::Ping(ping::Event { connection, result: Err(ping::Failure::Timeout | ping::Failure::Other { .. }), .. }) => {
                self.swarm.close_connection(connection);
            }
            NetEvent::Blobs(inbound) => {
                self.tasks.spawn(self.server.clone().serve(inbound));
            }
            NetEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found.into_iter().filter(|(peer, _)| self.guard.admits(peer).is_ok()) {
                    self.dialer.learn(peer, [address], Instant::now());
                }
                self.discover();
            }
            _ => {}
        }
    }

    fn show_connected(&mut self) {
        self.connected.send_replace(self.ready.iter().copied().collect());
    }
}
