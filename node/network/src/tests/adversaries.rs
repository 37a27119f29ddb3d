//! Peers that mean harm, with honest ones beside them. The victim runs in a process of its own, so that its memory is its
//! own; the honest peers know nobody but the victim, so all that they hear of each other has passed through it.
//!
//! An adversary comes from another loopback address than the honest peers, as it would from another place.

mod flood;
mod frames;
mod idle;
mod sybils;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::*;

/// Makes this test program the victim.
const VICTIM: &str = "MINGLE_TEST_VICTIM";
/// What an attack may add to the victim's memory.
const ADDED_KIB_MAX: u64 = 64 << 10;
/// An offender is cut within ten seconds; half as much again for a machine that does other things.
const CUT_WITHIN: Duration = Duration::from_secs(15);
/// Messages of each honest peer, spread over the attack.
const MESSAGES: usize = 100;
/// How often an honest peer asks the victim what it has.
const RECONCILED_EVERY: Duration = Duration::from_secs(2);
/// What every honest message begins with.
const GOOD: &[u8] = b"good";

/// A driver's verdict on one message, as quick as a signature is checked.
fn is_good(bytes: &[u8]) -> bool {
    std::hint::black_box(blake3::hash(bytes));
    bytes.starts_with(GOOD)
}

/// Takes gossip in and answers reconciliation with all that was good; what it has is in `seen`.
async fn drive(handle: NetworkHandle, mut events: mpsc::Receiver<NetworkEvent>, seen: Arc<Mutex<BTreeSet<Vec<u8>>>>) {
    while let Some(event) = events.recv().await {
        match event {
            NetworkEvent::Gossip { message_id, from, bytes } => {
                let verdict = match is_good(&bytes) {
                    false => Verdict::Reject,
                    true if seen.lock().unwrap().insert(bytes) => Verdict::Accept,
                    true => Verdict::Ignore,
                };
                let _ = handle.report(message_id, from, verdict);
            }
            NetworkEvent::SyncRequest { token, .. } => {
                let all: Vec<u8> = seen.lock().unwrap().iter().flatten().copied().collect();
                let _ = handle.sync_respond(token, all);
            }
            NetworkEvent::SyncResponse { bytes, .. } => {
                seen.lock().unwrap().extend(bytes.chunks_exact(GOOD.len() + 2).map(<[u8]>::to_vec));
            }
            _ => {}
        }
    }
}

/// Not a test of its own: the victim's process. Without being told to be one, it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn victim_process() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut config = config(200, TCP, &[]);
    config.limits.peers_target = 0;
    let (handle, mut events) = Network::start(config, store).unwrap();
    let NetworkEvent::Listening(address) = events.recv().await.unwrap() else { panic!("not listening") };
    println!("\nVICTIM {address}");
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    tokio::spawn(drive(handle.clone(), events, seen.clone()));
    // Ends with the test that started it.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    loop {
        println!("\nSTATUS {} {} {}", resident_kib(), seen.lock().unwrap().len(), handle.peers().len());
        std::io::stdout().flush().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[derive(Clone, Copy, Debug, Default)]
struct Status {
    resident_kib: u64,
    accepted: usize,
    peers: usize,
}

struct Victim {
    process: Child,
    address: Multiaddr,
    id: PeerId,
    said: Arc<Mutex<Vec<Status>>>,
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Victim {
    async fn start() -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::adversaries::victim_process", "--nocapture", "--test-threads=1"])
            .env(VICTIM, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (tell, told) = tokio::sync::oneshot::channel();
        let (all, mut tell) = (said.clone(), Some(tell));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("VICTIM ") {
                    let _ = tell.take().map(|tell| tell.send(address.parse::<Multiaddr>().unwrap()));
                } else if let Some(status) = line.strip_prefix("STATUS ") {
                    let numbers: Vec<u64> = status.split(' ').map(|number| number.parse().unwrap()).collect();
                    let status = Status { resident_kib: numbers[0], accepted: numbers[1] as usize, peers: numbers[2] as usize };
                    all.lock().unwrap().push(status);
                }
            }
        });
        let address = timeout(PATIENCE, told).await.unwrap().unwrap();
        let id = crate::dialer::peer_in(&address).unwrap();
        Self { process, address, id, said }
    }

    fn now(&self) -> Status {
        self.said.lock().unwrap().last().copied().unwrap_or_default()
    }

    /// The most memory it held since `from`.
    fn most_kib(&self, from: usize) -> u64 {
        self.said.lock().unwrap()[from..].iter().map(|status| status.resident_kib).max().unwrap_or_default()
    }

    fn moment(&self) -> usize {
        self.said.lock().unwrap().len()
    }
}

/// The messages a peer has heard.
type Heard = Arc<Mutex<BTreeSet<Vec<u8>>>>;

/// Honest peers around one victim.
struct Honest {
    peers: Vec<(NetworkHandle, Heard, TempDir)>,
    victim: PeerId,
}

impl Honest {
    async fn around(victim: &Victim, count: u8) -> Self {
        let mut peers = Vec::new();
        for secret in 1..=count {
            let known = NetworkConfig { allowed: Some([member(200)].into()), ..config(secret, TCP, &[&victim.address]) };
            let mut peer = start(known).await;
            peer.connected_to(victim.id).await;
            let Peer { handle, events, folder, .. } = peer;
            let seen = Arc::new(Mutex::new(BTreeSet::new()));
            tokio::spawn(drive(handle.clone(), events, seen.clone()));
            tokio::spawn(reconcile(handle.clone(), victim.id));
            peers.push((handle, seen, folder));
        }
        Self { peers, victim: victim.id }
    }

    /// Everybody publishes, for about ten seconds; then what arrived where, as a share of what should have.
    async fn talk(&self) -> f64 {
        for number in 0..MESSAGES {
            for (peer, (handle, seen, _)) in self.peers.iter().enumerate() {
                let message = [GOOD, &[peer as u8, number as u8]].concat();
                seen.lock().unwrap().insert(message.clone());
                handle.publish(message).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let all = self.peers.len() * MESSAGES * self.peers.len();
        let arrived = || self.peers.iter().map(|(_, seen, _)| seen.lock().unwrap().len()).sum::<usize>();
        let began = Instant::now();
        while arrived() < all && began.elapsed() < RECONCILED_EVERY * 5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let connected = self.peers.iter().filter(|(handle, ..)| handle.connected_peers().contains(&self.victim)).count();
        assert_eq!(connected, self.peers.len(), "an honest peer was cut");
        arrived() as f64 / all as f64
    }
}

/// What a node's reconciliation does: asks every now and then for what it has not heard.
async fn reconcile(handle: NetworkHandle, victim: PeerId) {
    loop {
        tokio::time::sleep(RECONCILED_EVERY).await;
        if handle.sync_request(victim, b"what do you have".to_vec()).is_err() {
            return;
        }
    }
}

/// The outcome of an attack, shown and judged.
fn judge(what: &str, victim: &Victim, before: (usize, Status), delivered: f64, cut: Option<Duration>) {
    let added = victim.most_kib(before.0).saturating_sub(before.1.resident_kib);
    println!("{what}: {:.2} % delivered, {added} KiB added, longest until cut {cut:?}", delivered * 100.0);
    assert!(delivered >= 0.99, "{delivered}");
    assert!(added <= ADDED_KIB_MAX, "{added} KiB");
    assert!(cut.is_none_or(|cut| cut <= CUT_WITHIN), "{cut:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_adversary_everything_arrives() {
    let victim = Victim::start().await;
    let honest = Honest::around(&victim, 4).await;
    let before = (victim.moment(), victim.now());
    let delivered = honest.talk().await;
    judge("nobody", &victim, before, delivered, None);
    assert_eq!(victim.now().accepted, 4 * MESSAGES);
    for (handle, ..) in &honest.peers {
        assert!(handle.peers().iter().all(|peer| peer.score >= 0.0 && peer.counts.offences == 0 && peer.counts.over_quota == 0));
    }
}
