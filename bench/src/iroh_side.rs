//! The transfer as iroh-blobs documents it: every peer connects to the seed and fetches into a store on disk.

use std::time::{Duration, Instant};

use anyhow::Result;
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, RelayMode};
use iroh_blobs::BlobsProtocol;
use iroh_blobs::store::fs::FsStore;

struct Node {
    router: Router,
    store: FsStore,
    _folder: tempfile::TempDir,
}

async fn node() -> Result<Node> {
    let folder = tempfile::tempdir()?;
    let store = FsStore::load(folder.path().join("blobs")).await?;
    let endpoint = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).bind_addr("127.0.0.1:0")?.bind().await?;
    let router = Router::builder(endpoint).accept(iroh_blobs::ALPN, BlobsProtocol::new(&store, None)).spawn();
    Ok(Node { router, store, _folder: folder })
}

pub async fn transfer(blob: &[u8], peers: usize) -> Result<Duration> {
    let seed = node().await?;
    let hash = seed.store.add_bytes(blob.to_vec()).await?.hash;
    crate::same(*hash.as_bytes(), blob)?;
    let address = seed.router.endpoint().addr();
    let mut nodes = Vec::new();
    for _ in 0..peers {
        nodes.push(node().await?);
    }
    let mut connections = Vec::new();
    for node in &nodes {
        connections.push(node.router.endpoint().connect(address.clone(), iroh_blobs::ALPN).await?);
    }
    let began = Instant::now();
    let fetches = nodes.iter().zip(connections).map(|(node, connection)| async move {
        node.store.remote().fetch(connection, hash).await?;
        anyhow::Ok(())
    });
    futures::future::try_join_all(fetches).await?;
    let took = began.elapsed();
    for node in nodes {
        anyhow::ensure!(node.store.has(hash).await?, "a peer does not have it");
        node.router.shutdown().await?;
    }
    seed.router.shutdown().await?;
    Ok(took)
}
