//! What talking costs: a hundred peers in one process, each announcing once.
//!
//!     cargo run -p mingle-network --example gossip -- [peers] [bytes of a record]
//!
//! Every peer knows three others at first and finds the rest. Each publishes one message of a record's size; drivers
//! accept whatever is new. Printed: the share of messages that arrived, and control bytes for each message and peer, for
//! joining, for the announcements, and for both together.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mingle_network::store::Store;
use mingle_network::{Limits, Multiaddr, Network, NetworkConfig, NetworkEvent, NetworkHandle, ReachConfig, Traffic, Verdict};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Neighbours a peer is told of at the start.
const KNOWN: usize = 3;
/// How long the network may take to form, and its messages to arrive.
const PATIENCE: Duration = Duration::from_secs(120);
/// Gossip about what was said goes on for some heartbeats; it belongs to the price.
const AFTERMATH: Duration = Duration::from_secs(15);

struct Peer {
    handle: NetworkHandle,
    heard: Arc<AtomicUsize>,
    _folder: TempDir,
}

fn config(number: usize, bootstrap: Vec<Multiaddr>) -> NetworkConfig {
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&(number as u64).to_le_bytes());
    NetworkConfig {
        secret,
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        bootstrap,
        mdns: false,
        topic: format!("/mingle/records/1/{}", "0".repeat(64)),
        allowed: None,
        reach: ReachConfig::default(),
        limits: Limits::default(),
    }
}

/// A driver that accepts whatever is new.
async fn drive(handle: NetworkHandle, mut events: mpsc::Receiver<NetworkEvent>, heard: Arc<AtomicUsize>) {
    let mut seen = HashSet::new();
    while let Some(event) = events.recv().await {
        if let NetworkEvent::Gossip { message_id, from, bytes } = event {
            let verdict = if seen.insert(bytes) { Verdict::Accept } else { Verdict::Ignore };
            heard.store(seen.len(), Ordering::Relaxed);
            let _ = handle.report(message_id, from, verdict);
        }
    }
}

async fn start(number: usize, known: Vec<Multiaddr>) -> (Peer, Multiaddr) {
    let folder = TempDir::new().expect("a folder");
    let store = Store::open(folder.path()).expect("a store");
    let (handle, mut events) = Network::start(config(number, known), store).expect("a network");
    let address = loop {
        if let Some(NetworkEvent::Listening(address)) = events.recv().await {
            break address;
        }
    };
    let heard = Arc::new(AtomicUsize::new(0));
    tokio::spawn(drive(handle.clone(), events, heard.clone()));
    (Peer { handle, heard, _folder: folder }, address)
}

/// Bytes in and out of all peers together.
fn control(peers: &[Peer]) -> (u64, u64) {
    let of = peers.iter().map(|peer| peer.handle.traffic());
    of.fold((0, 0), |sum, Traffic { control_in, control_out, .. }| (sum.0 + control_in, sum.1 + control_out))
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let (count, size) = (arguments.next().unwrap_or(100), arguments.next().unwrap_or(400));
    let mut peers = Vec::new();
    let mut addresses: Vec<Multiaddr> = Vec::new();
    for number in 0..count {
        // Spread over those before, the same in every run.
        let known = (0..KNOWN.min(number)).map(|which| addresses[(number * 7919 + which * 104_729) % number].clone()).collect();
        let (peer, address) = start(number, known).await;
        peers.push(peer);
        addresses.push(address);
    }
    let began = Instant::now();
    let wanted = Limits::default().peers_target.min(count - 1) / 2;
    while peers.iter().any(|peer| peer.handle.connected_peers().len() < wanted) && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let formed = began.elapsed();
    tokio::time::sleep(AFTERMATH).await;
    let connections: usize = peers.iter().map(|peer| peer.handle.connected_peers().len()).sum();
    let joined = control(&peers);
    tokio::time::sleep(AFTERMATH).await;
    let idle = control(&peers);

    let began = Instant::now();
    for (number, peer) in peers.iter().enumerate() {
        let mut record = vec![0; size];
        record[..8].copy_from_slice(&(number as u64).to_le_bytes());
        peer.handle.publish(record).expect("a message within its bounds");
        // Trainings do not end in one instant.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let all = count * (count - 1);
    let arrived = || peers.iter().map(|peer| peer.heard.load(Ordering::Relaxed)).sum::<usize>();
    while arrived() < all && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let spread = began.elapsed();
    tokio::time::sleep(AFTERMATH).await;
    let said = control(&peers);

    let messages = (count * count) as f64;
    let show = |what: &str, (bytes_in, bytes_out): (u64, u64)| {
        println!("{what:<14} {:8.0} bytes in, {:8.0} out, a message a peer", bytes_in as f64 / messages, bytes_out as f64 / messages);
    };
    println!(
        "{count} peers, {:.1} neighbours each, formed in {:.1} s; {count} messages of {size} bytes spread in {:.1} s",
        connections as f64 / count as f64,
        formed.as_secs_f64(),
        spread.as_secs_f64()
    );
    println!("delivered      {:.3} %", 100.0 * arrived() as f64 / all as f64);
    show("joining", joined);
    show("announcements", (said.0 - idle.0, said.1 - idle.1));
    show("both", (joined.0 + said.0 - idle.0, joined.1 + said.1 - idle.1));
    let a_minute = |bytes: u64| bytes as f64 / count as f64 * 60.0 / AFTERMATH.as_secs_f64();
    println!("idle           {:8.0} bytes in, {:8.0} out, a minute a peer", a_minute(idle.0 - joined.0), a_minute(idle.1 - joined.1));
    let scores: Vec<f64> = peers.iter().flat_map(|peer| peer.handle.peers()).map(|peer| peer.score).collect();
    let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
    println!("lowest score   {least:.3} of {} neighbours", scores.len());
    for peer in &peers {
        peer.handle.shutdown().await;
    }
}
