//! Peers that cannot be dialled: they meet through a seed, talk through it, and take no blob through it.

use super::*;
use crate::{Link, ReachConfig, Reachability, Role};

fn seed_config(secret: u8) -> NetworkConfig {
    NetworkConfig { reach: ReachConfig { role: Role::Public, ..ReachConfig::default() }, ..hasty(secret, TCP, &[]) }
}

/// Verdicts within a second.
fn hasty(secret: u8, listen: &str, bootstrap: &[&Multiaddr]) -> NetworkConfig {
    let mut config = config(secret, listen, bootstrap);
    config.limits.probe_interval = Duration::from_millis(200);
    config.limits.settle = Duration::from_millis(300);
    config
}

/// A peer with no door at all.
async fn hidden(secret: u8, seed: &Peer) -> Peer {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let config = NetworkConfig { listen: Vec::new(), ..hasty(secret, TCP, &[&seed.address]) };
    let (handle, events) = Network::start(config, store.clone()).unwrap();
    Peer { handle, events, store, folder, address: Multiaddr::empty() }
}

impl Peer {
    /// The first address through a relay; AutoNAT found it out by itself unless the role says so.
    async fn circuit(&mut self) -> Multiaddr {
        let mut reach = self.handle.reachability();
        let reserved = reach.wait_for(|status| matches!(&status.reachability, Reachability::Private { relays } if !relays.is_empty()));
        let status = timeout(PATIENCE, reserved).await.expect("no relay was found").unwrap().clone();
        status.reachability.addresses()[0].clone()
    }

    async fn linked(&self, peer: PeerId, wanted: impl Fn(&Link) -> bool) {
        let mut reach = self.handle.reachability();
        let found = reach.wait_for(|status| status.links.iter().any(|link| link.peer == peer && wanted(link)));
        timeout(PATIENCE, found).await.expect("no such link").unwrap();
    }

    async fn ask(&mut self, other: &mut Self, question: &[u8]) {
        self.handle.sync_request(other.id(), question.to_vec()).unwrap();
        let token = other
            .expect("a question", |event| match event {
                NetworkEvent::SyncRequest { token, bytes, .. } if bytes == question => Some(token),
                _ => None,
            })
            .await;
        other.handle.sync_respond(token, b"an answer".to_vec()).unwrap();
        self.expect("an answer", |event| match event {
            NetworkEvent::SyncResponse { bytes, .. } => {
                assert_eq!(bytes, b"an answer");
                Some(())
            }
            NetworkEvent::SyncFailed { why, .. } => panic!("{why}"),
            _ => None,
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_without_a_door_talk_through_a_seed_and_take_no_blob_there() {
    let seed = start(seed_config(1)).await;
    let (mut one, mut two) = (hidden(2, &seed).await, hidden(3, &seed).await);
    let circuit = one.circuit().await;
    assert!(circuit.to_string().contains("/p2p-circuit"), "{circuit}");
    two.handle.dial(circuit).unwrap();
    two.connected_to(one.id()).await;
    one.connected_to(two.id()).await;
    two.linked(one.id(), |link| link.relayed && link.relay == Some(seed.id())).await;
    one.linked(two.id(), |link| link.relayed).await;
    two.ask(&mut one, b"through the relay").await;
    one.ask(&mut two, b"and back").await;

    let bytes = content(300_000);
    let (hash, size) = one.store.put_blob(&bytes).unwrap();
    two.handle.fetch(hash, size, vec![one.id()]).unwrap();
    let why = two.download(hash).await.unwrap_err();
    assert!(why.contains("only through a relay"), "{why}");
    assert!(!two.store.has_blob(hash).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_met_through_a_seed_meet_directly_and_then_the_blob_comes() {
    let seed = start(seed_config(1)).await;
    // They have doors, believe that nobody can dial them, and look for nobody: only the relay brings them together.
    let behind = |secret| {
        let mut config = hasty(secret, TCP, &[&seed.address]);
        config.reach.role = Role::Private;
        config.limits.peers_target = 1;
        config
    };
    let (mut one, mut two) = (start(behind(2)).await, start(behind(3)).await);
    let circuit = one.circuit().await;
    two.connected_to(seed.id()).await;
    two.handle.dial(circuit).unwrap();
    let target = one.id();
    let paths = |event| if let NetworkEvent::Path(link) = event { (link.peer == target).then_some(link.relayed) } else { None };
    assert!(two.expect("a path", paths).await, "the first path goes through the relay");
    assert!(!two.expect("another path", paths).await, "the second one does not");
    let bytes = content(3 << 20);
    let (hash, size) = one.store.put_blob(&bytes).unwrap();
    two.linked(one.id(), |link| !link.relayed).await;
    one.linked(two.id(), |link| !link.relayed).await;
    two.handle.fetch(hash, size, vec![one.id()]).unwrap();
    two.download(hash).await.unwrap();
    assert_eq!(two.bytes_of(hash), bytes);
    two.ask(&mut one, b"still here").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_can_be_dialled_is_told_so_and_reserves_nothing() {
    let seed = start(seed_config(1)).await;
    let mut peer = start(hasty(2, TCP, &[&seed.address])).await;
    let verdict = peer.expect("a verdict", |event| match event {
        NetworkEvent::Reachability(Reachability::Public { addresses }) => Some(addresses),
        NetworkEvent::Reachability(found) => panic!("it can be dialled, but is said to be {found:?}"),
        _ => None,
    });
    let addresses = verdict.await;
    assert!(peer.address.to_string().starts_with(&addresses[0].to_string()), "{addresses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_is_made_again_when_the_relay_comes_back() {
    let seed = start(seed_config(1)).await;
    let mut address = seed.address.clone();
    address.pop();
    let mut one = hidden(2, &seed).await;
    one.circuit().await;
    seed.handle.shutdown().await;
    let mut reach = one.handle.reachability();
    let gone = reach.wait_for(|status| status.reachability.addresses().is_empty());
    timeout(PATIENCE, gone).await.expect("the address through the relay stays").unwrap();
    let seed = start(NetworkConfig { listen: vec![address], ..seed_config(1) }).await;
    assert!(one.circuit().await.to_string().contains(&seed.id().to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_socket_carries_questions_and_blobs() {
    let mut one = start(config(1, "/ip4/127.0.0.1/tcp/0/ws", &[])).await;
    assert!(one.address.to_string().contains("/ws/p2p/"), "{}", one.address);
    let mut two = start(config(2, TCP, &[&one.address])).await;
    two.connected_to(one.id()).await;
    one.connected_to(two.id()).await;
    two.ask(&mut one, b"over the web's port").await;
    let bytes = content(300_000);
    let (hash, size) = one.store.put_blob(&bytes).unwrap();
    two.handle.fetch(hash, size, vec![one.id()]).unwrap();
    two.download(hash).await.unwrap();
    assert_eq!(two.bytes_of(hash), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_refused_leaves_no_path_behind() {
    let mut closed = start(NetworkConfig { allowed: Some([member(2)].into()), ..seed_config(1) }).await;
    let stranger = start(hasty(3, TCP, &[&closed.address])).await;
    let refused = |event| if let NetworkEvent::Refused { peer, .. } = event { Some(peer) } else { None };
    assert_eq!(closed.expect("a refusal", refused).await, stranger.id());
    let friend = start(hasty(2, TCP, &[&closed.address])).await;
    closed.linked(friend.id(), |link| !link.relayed).await;
    let links: Vec<PeerId> = closed.handle.reachability().borrow().links.iter().map(|link| link.peer).collect();
    assert_eq!(links, [friend.id()]);
}
