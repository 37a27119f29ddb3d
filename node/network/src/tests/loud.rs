//! A peer that says more in a sync message than it may.

use std::io;

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::request_response::{self, Codec, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{StreamProtocol, SwarmBuilder, identify, noise, tcp, yamux};

use super::super::sync_codec::SYNC_PROTOCOL;
use super::*;

/// Writes what it is given as it is: the length is the test's.
#[derive(Clone)]
pub(super) struct Raw;

impl Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, protocol: &StreamProtocol, _: &mut T) -> io::Result<Vec<u8>> {
        if protocol.as_ref().starts_with("/meshsub") {
            // Gossip keeps its stream open; that nobody listens must not be noticed.
            std::future::pending::<()>().await;
        }
        Ok(Vec::new())
    }
    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    async fn write_request<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()> {
        io.write_all(&bytes).await
    }
    async fn write_response<T: AsyncWrite + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()> {
        io.write_all(&bytes).await
    }
}

#[derive(NetworkBehaviour)]
struct Loud {
    identify: identify::Behaviour,
    sync: request_response::Behaviour<Raw>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_message_beyond_the_bound_is_refused() {
    let mut honest = start(config(1, TCP, &[])).await;
    let mut loud = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|key| Loud {
            identify: identify::Behaviour::new(identify::Config::new("/mingle/1".to_owned(), key.public())),
            sync: request_response::Behaviour::with_codec(Raw, [(SYNC_PROTOCOL, ProtocolSupport::Full)], Default::default()),
        })
        .unwrap()
        .build();
    let (target, id) = (honest.id(), *loud.local_peer_id());
    loud.dial(honest.address.clone()).unwrap();
    let talking = tokio::spawn(async move {
        loop {
            if let SwarmEvent::ConnectionEstablished { .. } = loud.select_next_some().await {
                let question = |length: u32, sent: usize| [length.to_le_bytes().to_vec(), vec![7; sent]].concat();
                for raw in [
                    question(SYNC_REQUEST_BYTES_MAX as u32 + 1, SYNC_REQUEST_BYTES_MAX + 1), // One byte too many.
                    question(u32::MAX, 10),                                                  // A promise of 4 GiB.
                    question(100, 10),                                                       // Cut off.
                    question(3, 3),                                                          // In order, and the last.
                ] {
                    loud.behaviour_mut().sync.send_request(&target, raw);
                }
            }
        }
    });
    // Of the four only the one within its bounds is heard.
    let heard = |event| if let NetworkEvent::SyncRequest { bytes, token, .. } = event { Some((bytes, token)) } else { None };
    let (bytes, token) = honest.expect("the modest question", heard).await;
    assert_eq!(bytes, [7; 3]);
    honest.connected_to(id).await;
    // An answer that is none of our length-prefixed ones fails at our side, by name.
    honest.handle.sync_request(id, b"question".to_vec()).unwrap();
    honest
        .expect("a failure", |event| match event {
            NetworkEvent::SyncRequest { .. } => panic!("an oversized question was heard"),
            NetworkEvent::SyncFailed { from, .. } => (from == id).then_some(()),
            _ => None,
        })
        .await;
    honest.handle.sync_respond(token, Vec::new()).unwrap();
    talking.abort();
}
