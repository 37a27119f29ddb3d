//! The transfer as a mingle node does it: every peer knows the seed's address and fetches by hash.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mingle_network::store::Store;
use mingle_network::{Limits, Multiaddr, Network, NetworkConfig, NetworkEvent, NetworkHandle, ReachConfig};
use tokio::sync::mpsc;

struct Node {
    handle: NetworkHandle,
    events: mpsc::Receiver<NetworkEvent>,
    store: Store,
    _folder: tempfile::TempDir,
}

fn node(number: usize, bootstrap: Vec<Multiaddr>) -> Result<Node> {
    let folder = tempfile::tempdir()?;
    let store = Store::open(folder.path().join("store"))?;
    let secret = *blake3::hash(format!("bench node {number}").as_bytes()).as_bytes();
    let config = NetworkConfig {
        secret,
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse()?],
        bootstrap,
        mdns: false,
        topic: "/mingle/bench".into(),
        allowed: None,
        reach: ReachConfig::default(),
        limits: Limits::default(),
    };
    let (handle, events) = Network::start(config, store.clone())?;
    Ok(Node { handle, events, store, _folder: folder })
}

impl Node {
    async fn until<T>(&mut self, mut found: impl FnMut(NetworkEvent) -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(found) = found(self.events.recv().await.context("the network has stopped")?)? {
                return Ok(found);
            }
        }
    }
}

pub async fn transfer(blob: &[u8], peers: usize) -> Result<Duration> {
    let mut seed = node(0, Vec::new())?;
    let (hash, size) = seed.store.put_blob(blob)?;
    crate::same(hash.0, blob)?;
    let address = seed.until(|event| Ok(if let NetworkEvent::Listening(address) = event { Some(address) } else { None })).await?;
    let provider = seed.handle.local_peer();
    let seed_events = tokio::spawn(async move { while seed.events.recv().await.is_some() {} });
    let mut nodes = Vec::new();
    for number in 1..=peers {
        let mut node = node(number, vec![address.clone()])?;
        node.until(|event| Ok(matches!(event, NetworkEvent::PeerConnected(peer) if peer == provider).then_some(()))).await?;
        nodes.push(node);
    }
    let began = Instant::now();
    for node in &nodes {
        node.handle.fetch(hash, size, vec![provider])?;
    }
    let fetches = nodes.iter_mut().map(|node| {
        node.until(move |event| match event {
            NetworkEvent::BlobFetched { hash: found } => Ok((found == hash).then_some(())),
            NetworkEvent::BlobFailed { why, .. } => Err(anyhow::anyhow!(why)),
            _ => Ok(None),
        })
    });
    futures::future::try_join_all(fetches).await?;
    let took = began.elapsed();
    for node in nodes {
        ensure!(node.store.has_blob(hash)?, "a peer does not have it");
        node.handle.shutdown().await;
    }
    seed.handle.shutdown().await;
    seed_events.await?;
    Ok(took)
}
