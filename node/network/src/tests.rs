//! Several real networks in one process, over loopback TCP and QUIC, and hostile peers that speak the real protocols.

mod access;
mod adversaries;
mod blobs;
mod hostile;
mod kills;
mod loud;
mod parts;
mod peers;
mod reach;
mod readers;
mod rounds;
mod scoring;
mod swarm;
mod traffic;
mod web;

use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;

/// Ten times what anything here takes on two slow cores, because other tests train models beside it.
const PATIENCE: Duration = Duration::from_secs(60);

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// The gossip topic of every peer here.
const TOPIC: &str = "/mingle/records/test/1";

struct Peer {
    handle: NetworkHandle,
    events: mpsc::Receiver<NetworkEvent>,
    store: Store,
    folder: TempDir,
    /// With the `/p2p/` ending.
    address: Multiaddr,
}

fn config(secret: u8, listen: &str, bootstrap: &[&Multiaddr]) -> NetworkConfig {
    NetworkConfig {
        secret: [secret; 32],
        listen: vec![listen.parse().unwrap()],
        bootstrap: bootstrap.iter().map(|address| (*address).clone()).collect(),
        mdns: false,
        topic: TOPIC.to_owned(),
        allowed: None,
        reach: ReachConfig::default(),
        limits: Limits { stall_window: Duration::from_secs(2), ..Limits::default() },
    }
}

pub(crate) fn member(secret: u8) -> MemberKey {
    member_of(&keypair_of([secret; 32]).unwrap().public().to_peer_id()).unwrap()
}

async fn start(config: NetworkConfig) -> Peer {
    let folder = TempDir::new().unwrap();
    start_in(config, folder).await
}

async fn start_in(config: NetworkConfig, folder: TempDir) -> Peer {
    let store = Store::open(folder.path()).unwrap();
    let (handle, events) = Network::start(config, store.clone()).unwrap();
    let address = Multiaddr::empty();
    let mut peer = Peer { handle, events, store, folder, address };
    peer.address =
        peer.expect("its address", |event| if let NetworkEvent::Listening(address) = event { Some(address) } else { None }).await;
    peer
}

impl Peer {
    fn id(&self) -> PeerId {
        self.handle.local_peer()
    }

    /// The first event that `wanted` takes; others are dropped.
    async fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(NetworkEvent) -> Option<T>) -> T {
        let found = timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.expect("the network stopped");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    async fn connected_to(&mut self, peer: PeerId) {
        while !self.handle.connected_peers().contains(&peer) {
            self.expect("a connection", |event| matches!(event, NetworkEvent::PeerConnected(_)).then_some(())).await;
        }
    }

    async fn gossip(&mut self) -> (MessageId, PeerId, Vec<u8>) {
        self.expect("gossip", |event| match event {
            NetworkEvent::Gossip { message_id, from, bytes } => Some((message_id, from, bytes)),
            _ => None,
        })
        .await
    }

    /// How a download ends: `Ok` when fetched, else why not.
    async fn download(&mut self, hash: ContentHash) -> Result<(), String> {
        self.expect("a download's end", |event| match event {
            NetworkEvent::BlobFetched { hash: found } if found == hash => Some(Ok(())),
            NetworkEvent::BlobFailed { hash: found, why } if found == hash => Some(Err(why)),
            _ => None,
        })
        .await
    }

    fn bytes_of(&self, hash: ContentHash) -> Vec<u8> {
        std::fs::read(self.store.blob_path(hash)).unwrap()
    }
}

/// Bytes that do not compress and differ everywhere.
fn content(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_peer_is_its_member_key() {
    let key = member(7);
    let peer = peer_of(&key).unwrap();
    assert_eq!(member_of(&peer), Some(key));
    assert_eq!(peer, keypair_of([7; 32]).unwrap().public().to_peer_id());
    assert_eq!(member_of(&PeerId::random()).and_then(|key| peer_of(&key)), None);
}
