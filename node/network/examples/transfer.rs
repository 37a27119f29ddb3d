//! One blob from its seeds to many peers, all in this process over loopback: seconds and MiB a second.
//!
//!     cargo run --release -p mingle-network --example transfer -- --size 64 --peers 8
//!     cargo run --release -p mingle-network --example transfer -- --size 64 --peers 1 --providers 4 --rate-limit 20
//!
//! `--size` and `--rate-limit` (a seed's, a second) are in MiB. `--folder` says where the stores lie. It speaks to
//! `Network` and `Store` only, so that another transport can be measured in the same way.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mingle_network::store::Store;
use mingle_network::{Limits, Multiaddr, Network, NetworkConfig, NetworkEvent, NetworkHandle, ReachConfig};
use tokio::sync::mpsc;

struct Options {
    size: u64,
    peers: usize,
    providers: usize,
    rate_limit: Option<u64>,
    quic: bool,
    mesh: bool,
    repeat: usize,
    folder: PathBuf,
}

impl Options {
    fn read() -> Result<Self, String> {
        let folder = std::env::temp_dir();
        let mut options = Self { size: 64, peers: 8, providers: 1, rate_limit: None, quic: false, mesh: false, repeat: 1, folder };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            let number = |text: String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
            match word.as_str() {
                "--size" => options.size = number(value()?)?,
                "--peers" => options.peers = number(value()?)? as usize,
                "--providers" => options.providers = number(value()?)? as usize,
                "--rate-limit" => options.rate_limit = Some(number(value()?)? << 20),
                "--transport" => options.quic = value()? == "quic",
                "--mesh" => options.mesh = true,
                "--repeat" => options.repeat = number(value()?)? as usize,
                "--folder" => options.folder = value()?.into(),
                _ => return Err(format!("unknown option {word}")),
            }
        }
        Ok(options)
    }
}

struct Peer {
    handle: NetworkHandle,
    events: mpsc::Receiver<NetworkEvent>,
    store: Store,
    address: Multiaddr,
    folder: PathBuf,
}

impl Peer {
    async fn start(number: usize, options: &Options, bootstrap: Vec<Multiaddr>, upload: Option<u64>) -> Self {
        let folder = options.folder.join(format!("mingle-transfer-{}-{number}", std::process::id()));
        let store = Store::open(&folder).expect("a store");
        let listen = if options.quic { "/ip4/127.0.0.1/udp/0/quic-v1" } else { "/ip4/127.0.0.1/tcp/0" };
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
        let config = NetworkConfig {
            secret,
            listen: vec![listen.parse().expect("an address")],
            bootstrap,
            mdns: false,
            topic: "/mingle/records/transfer/1".to_owned(),
            allowed: None,
            reach: ReachConfig::default(),
            limits: Limits { upload_bytes_per_second: upload, ..Limits::default() },
        };
        let (handle, mut events) = Network::start(config, store.clone()).expect("a network");
        let address = loop {
            if let Some(NetworkEvent::Listening(address)) = events.recv().await {
                break address;
            }
        };
        Self { handle, events, store, address, folder }
    }
}

fn content(size: u64, salt: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let options = Options::read()?;
    let mut seeds = Vec::new();
    for number in 0..options.providers {
        seeds.push(Peer::start(number, &options, Vec::new(), options.rate_limit).await);
    }
    let mut addresses: Vec<Multiaddr> = seeds.iter().map(|seed| seed.address.clone()).collect();
    let mut peers = Vec::new();
    for number in 0..options.peers {
        let peer = Peer::start(options.providers + number, &options, addresses.clone(), None).await;
        if options.mesh {
            addresses.push(peer.address.clone());
        }
        peers.push(peer);
    }
    for peer in &mut peers {
        while !seeds.iter().all(|seed| peer.handle.connected_peers().contains(&seed.handle.local_peer())) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    for round in 0..options.repeat {
        let bytes = content(options.size << 20, round as u64);
        let mut blob = None;
        let began = Instant::now();
        for seed in &seeds {
            blob = Some(seed.store.put_blob(&bytes).expect("a blob"));
        }
        let stored = began.elapsed();
        drop(bytes);
        let (hash, size) = blob.ok_or("at least one provider")?;
        let began = Instant::now();
        for peer in &peers {
            let providers = seeds.iter().map(|seed| seed.handle.local_peer()).collect();
            peer.handle.fetch(hash, size, providers).expect("a fetch");
        }
        let mut ends = Vec::new();
        for peer in &mut peers {
            loop {
                match peer.events.recv().await {
                    Some(NetworkEvent::BlobFetched { hash: found }) if found == hash => break,
                    Some(NetworkEvent::BlobFailed { why, .. }) => return Err(why),
                    Some(_) => {}
                    None => return Err("a network stopped".to_owned()),
                }
            }
            ends.push(began.elapsed().as_secs_f64());
        }
        let seconds = began.elapsed().as_secs_f64();
        let all = (size * options.peers as u64) as f64 / f64::from(1 << 20);
        let first = ends.iter().copied().fold(f64::INFINITY, f64::min);
        println!(
            "{} MiB from {} to {} peers: {seconds:.3} s, {:.0} MiB/s in all (first {first:.3} s; stored in {:.3} s)",
            options.size,
            options.providers,
            options.peers,
            all / seconds,
            stored.as_secs_f64() / options.providers as f64
        );
        let served: Vec<u64> =
            seeds.iter().chain(&peers).map(|peer| peer.handle.uploads().iter().map(|upload| upload.bytes).sum()).collect();
        println!("bytes served by each: {served:?}");
        for peer in seeds.iter().chain(&peers) {
            peer.store.remove_blob(hash).expect("a removal");
        }
    }
    for peer in seeds.iter().chain(&peers) {
        peer.handle.shutdown().await;
    }
    for peer in seeds.into_iter().chain(peers) {
        let Peer { folder, store, .. } = peer;
        drop(store);
        let _ = std::fs::remove_dir_all(folder);
    }
    Ok(())
}
