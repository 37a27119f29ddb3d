//! What a round costs on the wire, counted by the wire itself, every retransmission and acknowledgement with it.
//!
//! Two figures a peer: whole IP packets, and what TCP and UDP carry in them, which is what programs gave to their sockets
//! (and for QUIC its own headers, tags and acknowledgements besides). In full, with more and larger adapters:
//! `MINGLE_LAB_FULL=1 cargo test -p mingle-tests --test lab_bytes -- --nocapture`
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mingle_protocol::round::Round;
use mingle_tests::lab::{self, Flow, Host, Lab, Shape};
use mingle_tests::peer::agree_within;
use mingle_tests::{Peer, adapters};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const PORT: u16 = 4001;
const PATIENCE: Duration = Duration::from_secs(400);
/// What a peer may hear about an adapter, and all that is said besides, in a round that begins: 2 to 5 times what was seen.
const SAID_MAX: u64 = 32 * 1024;
/// How long peers that have everything are listened to.
const IDLE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq)]
enum Over {
    Quic,
    Tcp,
}

/// A round of members and of peers that only follow and serve.
struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
    lab: Lab,
    hosts: Vec<Host>,
}

impl Scene {
    fn new(name: &str, peers: usize, modules: usize, width: u64) -> Option<Self> {
        let mut lab = Lab::open(7)?;
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round(name, modules, width, []);
        let file = folder.path().join("round.json");
        std::fs::write(&file, round.to_json()).expect("a round file");
        let line = Shape::delayed(2);
        let hosts = (0..peers).map(|index| lab.host(&format!("host-{index}"), line, line)).collect();
        Some(Self { folder, round, file, lab, hosts })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A peer that knows the first one; of the first `members` each publishes.
    fn peer(&self, number: usize, members: usize, over: Over) -> Peer {
        let verb = if number < members { "publish" } else { "run" };
        let mut peer = Peer::new(&lab::program(PROGRAM), self.path(), &format!("peer-{number}"), self.round.id(), [verb]);
        if number < members {
            let directory = self.path().join(format!("adapter-{number}"));
            adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, number as u64));
            peer.argue([directory.into_os_string(), "--examples".into(), "100".into()]);
        }
        let (listen, known) = match over {
            Over::Quic => (format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1"), self.hosts[0].quic(PORT)),
            Over::Tcp => (format!("/ip4/0.0.0.0/tcp/{PORT}"), self.hosts[0].tcp(PORT)),
        };
        peer.argue(["--round".into(), self.file.clone().into_os_string(), "--listen".into(), listen.into()]);
        if number > 0 {
            peer.argue(["--peer".into(), known]);
        }
        self.hosts[number].runs(&mut peer);
        peer.start();
        peer
    }

    fn received(&self) -> Vec<Flow> {
        self.hosts.iter().map(|host| self.lab.wire().received(host.port)).collect()
    }
}

fn sum(flows: &[Flow], of: impl Fn(&Flow) -> u64) -> u64 {
    flows.iter().map(of).sum()
}

/// Runs a round until all agree and a while longer; what all peers received, the idle bytes a second and peer, and the
/// bytes of adapters that had to be received.
fn measure(name: &str, over: Over, peers: usize, members: usize, modules: usize, width: u64) -> Option<(Vec<Flow>, f64, u64)> {
    let scene = Scene::new(name, peers, modules, width)?;
    let began = Instant::now();
    let mut running: Vec<Peer> = (0..peers).map(|number| scene.peer(number, members, over)).collect();
    agree_within(PATIENCE, &mut running, members);
    let (took, received) = (began.elapsed(), scene.received());
    std::thread::sleep(IDLE);
    let later = scene.received();
    let idle = (sum(&later, |flow| flow.payload) - sum(&received, |flow| flow.payload)) as f64 / IDLE.as_secs_f64() / peers as f64;
    let size = std::fs::metadata(scene.path().join("adapter-0/adapter_model.safetensors")).expect("an adapter").len();
    let needed = size * (members * peers - members) as u64;
    println!("{name}: {peers} peers, {members} adapters of {size} bytes, agreed after {took:.1?}");
    let largest = received.iter().map(|flow| flow.payload).max().unwrap_or(0);
    let [bytes, payload] = [sum(&received, |flow| flow.bytes), sum(&received, |flow| flow.payload)];
    println!(
        "  received in all: IP {bytes} = {:.4}, TCP and UDP payload {payload} = {:.4} of {needed}; the most at one peer {largest}",
        bytes as f64 / needed as f64,
        payload as f64 / needed as f64
    );
    let blobs: u64 = running.iter_mut().filter_map(|peer| peer.status()).map(|status| status.traffic.blob_in).sum();
    println!("  received on streams of blobs: {blobs} = {:.4}", blobs as f64 / needed as f64);
    println!("  idle: {idle:.0} bytes a second and peer; control, beyond the adapters: {} bytes an adapter and peer", {
        payload.saturating_sub(needed) / (members * peers) as u64
    });
    Some((received, idle, needed))
}

/// As many as the machine can run without waiting for itself.
fn full_peers() -> usize {
    std::env::var("MINGLE_LAB_PEERS").ok().and_then(|count| count.parse().ok()).unwrap_or(24)
}

#[test]
fn adapters_cross_the_wire_once_to_each_peer() {
    let (peers, members, width) = if lab::full() { (full_peers(), 6, 32_768) } else { (4, 2, 8_192) };
    // QUIC's packets are 3 % headers, tags and acknowledgements, and what the receiver's buffer does not hold comes again.
    for (name, over, percent) in [("over tcp", Over::Tcp, 105), ("over quic", Over::Quic, 135)] {
        let Some((received, _, needed)) = measure(name, over, peers, members, 8, width) else { return };
        let payload = sum(&received, |flow| flow.payload);
        assert!(payload >= needed, "adapters came past the wire: {payload} of {needed}");
        assert!(payload * 100 <= needed * percent, "{name}: {payload} bytes for {needed}");
    }
}

#[test]
fn what_is_said_about_an_adapter_is_small() {
    let (peers, members) = if lab::full() { (24, 24) } else { (6, 6) };
    for (name, over) in [("small over tcp", Over::Tcp), ("small over quic", Over::Quic)] {
        let Some((received, _, needed)) = measure(name, over, peers, members, 1, 8) else { return };
        let said = sum(&received, |flow| flow.payload).saturating_sub(needed);
        let each = said / (peers * members) as u64;
        // Handshakes of every peer with every other are most of it.
        assert!(each <= SAID_MAX, "{name}: {each} bytes an adapter and peer");
    }
}
