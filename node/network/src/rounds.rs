//! Handing a round's file to whoever has its identity, and getting it from those who have it.
//!
//! Who asks is not in the round yet, so it asks with a swarm of its own that speaks nothing else and uses no relays. It believes an answer
//! only when `check` does, and asks all peers at once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use libp2p::request_response::{self, Event, Message, OutboundFailure, OutboundRequestId, ProtocolSupport};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, Swarm, SwarmBuilder};
use mingle_protocol::round::{MANIFEST_BYTES_MAX, RoundId};
use tokio::time::timeout;

use super::guard::Guard;
use super::limits::DIAL_TIMEOUT;
use super::quotas::Quota;
use super::round_codec::{ROUND_PROTOCOL, RoundCodec};
use super::transport::transport;
use super::web::Web;
use super::{NetworkError, keypair_of};

pub type Behaviour = request_response::Behaviour<RoundCodec>;

/// A file of 4 MiB over a slow line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Questions of one connection at a time.
const STREAMS_MAX: usize = 2;

/// What carries the protocol.
pub fn behaviour(support: ProtocolSupport) -> Behaviour {
    let config = request_response::Config::default().with_request_timeout(ANSWER_TIMEOUT).with_max_concurrent_streams(STREAMS_MAX);
    request_response::Behaviour::with_codec(RoundCodec, [(ROUND_PROTOCOL, support)], config)
}

/// The one file that a peer hands out.
#[derive(Default)]
pub struct Offer(Option<(RoundId, Arc<[u8]>)>);

impl Offer {
    pub fn set(&mut self, round: RoundId, file: Arc<[u8]>) {
        self.0 = (file.len() <= MANIFEST_BYTES_MAX).then_some((round, file));
    }

    /// Answers a question. Who asks too often is not answered.
    pub fn event(&self, guard: &Guard, behaviour: &mut Behaviour, event: Event<RoundId, Option<Arc<[u8]>>>) {
        if let Event::Message { peer, message: Message::Request { request, channel, .. }, .. } = event
            && guard.spend(&peer, Quota::RoundFiles, 1)
        {
            let file = self.0.as_ref().filter(|(round, _)| *round == request).map(|(_, file)| file.clone());
            // Who has gone meanwhile may ask again.
            let _ = behaviour.send_response(channel, file);
        }
    }
}

/// Why nobody's answer could be used: one reason for each address that was asked.
#[derive(Debug, thiserror::Error)]
#[error("no peer has given the file of round {round}{}", list(tried))]
pub struct RoundUnreached {
    pub round: RoundId,
    pub tried: Vec<(Multiaddr, String)>,
}

fn list(tried: &[(Multiaddr, String)]) -> String {
    tried.iter().map(|(address, why)| format!("\n  {address}: {why}")).collect()
}

/// Why a round's file could not be got.
#[derive(Debug, thiserror::Error)]
pub enum GetRoundError {
    #[error(transparent)]
    Unreached(#[from] RoundUnreached),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Asks `peers` for the file of `round` with the key of `secret`, and gives what `check` makes of the first answer that it
/// believes. `check` says what is wrong with one that it does not; `web` says whose certificates are believed.
///
/// # Errors
/// `Unreached` when no answer was believed within `patience`.
pub async fn get_round<T, E: fmt::Display>(
    secret: [u8; 32],
    round: RoundId,
    peers: Vec<Multiaddr>,
    web: &Web,
    patience: Duration,
    check: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<T, GetRoundError> {
    let mut asking = Asking { swarm: swarm(secret, web)?, round, dialling: HashMap::new(), asked: HashMap::new(), tried: Vec::new() };
    for address in peers {
        asking.dial(address);
    }
    let answer = timeout(patience, asking.answer(check)).await;
    if let Ok(Some(answer)) = answer {
        return Ok(answer);
    }
    let Asking { dialling, asked, mut tried, .. } = asking;
    let late = format!("no answer within {} seconds", patience.as_secs());
    tried.extend(dialling.into_values().chain(asked.into_values()).map(|address| (address, late.clone())));
    Err(RoundUnreached { round, tried }.into())
}

/// Questions under way.
struct Asking {
    swarm: Swarm<Behaviour>,
    round: RoundId,
    dialling: HashMap<ConnectionId, Multiaddr>,
    asked: HashMap<OutboundRequestId, Multiaddr>,
    tried: Vec<(Multiaddr, String)>,
}

impl Asking {
    fn dial(&mut self, address: Multiaddr) {
        let dial = DialOpts::from(address.clone());
        let connection = dial.connection_id();
        match self.swarm.dial(dial) {
            Ok(()) => _ = self.dialling.insert(connection, address),
            Err(error) => self.tried.push((address, said(&error))),
        }
    }

    /// The first answer that is believed; none when all have failed.
    async fn answer<T, E: fmt::Display>(&mut self, check: impl Fn(&[u8]) -> Result<T, E>) -> Option<T> {
        while !(self.dialling.is_empty() && self.asked.is_empty()) {
            match self.swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, connection_id, .. } => {
                    if let Some(address) = self.dialling.remove(&connection_id) {
                        let id = self.swarm.behaviour_mut().send_request(&peer_id, self.round);
                        self.asked.insert(id, address);
                    }
                }
                SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                    if let Some(address) = self.dialling.remove(&connection_id) {
                        self.tried.push((address, said(&error)));
                    }
                }
                SwarmEvent::Behaviour(Event::Message { message: Message::Response { request_id, response }, .. }) => {
                    let why = match response.as_deref().map(&check) {
                        Some(Ok(answer)) => return Some(answer),
                        Some(Err(error)) => error.to_string(),
                        None => "it does not know this round".to_owned(),
                    };
                    self.failed(request_id, why);
                }
                SwarmEvent::Behaviour(Event::OutboundFailure { request_id, error, .. }) => {
                    let why = match error {
                        OutboundFailure::ConnectionClosed => "it closed the connection: it may admit only keys of its round".to_owned(),
                        OutboundFailure::UnsupportedProtocols => "it hands out no rounds".to_owned(),
                        other => other.to_string(),
                    };
                    self.failed(request_id, why);
                }
                _ => {}
            }
        }
        None
    }

    fn failed(&mut self, request: OutboundRequestId, why: String) {
        if let Some(address) = self.asked.remove(&request) {
            self.tried.push((address, why));
        }
    }
}

/// A failed dial in few words: the reasons of each transport, without the addresses that are shown anyhow.
fn said(error: &DialError) -> String {
    match error {
        DialError::LocalPeerId { .. } => "that is this peer itself".to_owned(),
        DialError::WrongPeerId { .. } => "another peer answers there".to_owned(),
        DialError::Transport(failed) => {
            let reasons: Vec<String> = failed.iter().map(|(_, error)| root(error)).collect();
            reasons.join("; ")
        }
        other => other.to_string(),
    }
}

/// The innermost cause: what the system said.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn swarm(secret: [u8; 32], web: &Web) -> Result<Swarm<Behaviour>, NetworkError> {
    let setup = |error: &dyn fmt::Display| NetworkError::Setup(error.to_string());
    let key = keypair_of(secret)?;
    let transport = transport(&key, web)?;
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_other_transport(|_| transport)
        .map_err(|error| setup(&error))?
        .with_behaviour(|_| behaviour(ProtocolSupport::Outbound))
        .map_err(|error| setup(&error))?
        .with_swarm_config(|config| config)
        .with_connection_timeout(DIAL_TIMEOUT)
        .build();
    Ok(swarm)
}
