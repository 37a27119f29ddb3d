//! A round over a bad network: long and lossy lines, one narrow one, and a cut through the middle while members announce.
//! Real processes in namespaces; all end with the same merged adapter.
//!
//! In full, with sixteen peers and a cut of a minute:
//! `MINGLE_LAB_FULL=1 cargo test -p mingle-tests --test lab_partition -- --nocapture`
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mingle_protocol::hash::ContentHash;
use mingle_protocol::merge::Accumulator;
use mingle_protocol::round::Round;
use mingle_tests::lab::{self, Host, Lab, Shape};
use mingle_tests::peer::agree_within;
use mingle_tests::{Peer, adapters};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const PORT: u16 = 4001;
/// 50 ms up and 50 ms down: 100 ms from host to host, 200 ms there and back.
const LINE_MS: u64 = 50;
/// Of the packets from host to host.
const LOSS: f64 = 0.01;
/// Of the narrow line, both ways.
const NARROW: u64 = 1_000_000;
/// The narrow line's host, on the left of the cut and there from the start.
const NARROW_HOST: usize = 1;
/// Longer than anything here takes, by far.
const PATIENCE: Duration = Duration::from_secs(400);

struct Size {
    peers: usize,
    cut: Duration,
    /// An adapter has 128 times so many bytes.
    width: u64,
}

fn size() -> Size {
    match lab::full() {
        true => Size { peers: 16, cut: Duration::from_secs(60), width: 1024 },
        false => Size { peers: 6, cut: Duration::from_secs(10), width: 512 },
    }
}

struct Scene {
    folder: TempDir,
    round: Round,
    file: PathBuf,
    hosts: Vec<Host>,
}

impl Scene {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A member that publishes its adapter and knows one peer on either side.
    fn member(&self, number: usize) -> Peer {
        let directory = self.path().join(format!("adapter-{number}"));
        adapters::write_peft(&directory, &self.round, &adapters::adapter_file(&self.round, number as u64));
        let mut peer = Peer::new(&lab::program(PROGRAM), self.path(), &format!("member-{number}"), self.round.id(), ["publish"]);
        peer.argue([directory.into_os_string(), "--round".into(), self.file.clone().into(), "--examples".into()]);
        peer.argue([weight(number).to_string()]);
        peer.argue([format!("--listen=/ip4/0.0.0.0/tcp/{PORT}"), format!("--listen=/ip4/0.0.0.0/udp/{PORT}/quic-v1")]);
        for known in [&self.hosts[0], &self.hosts[self.hosts.len() / 2]] {
            let address = if number.is_multiple_of(2) { known.quic(PORT) } else { known.tcp(PORT) };
            peer.argue(["--peer", &address]);
        }
        self.hosts[number].runs(&mut peer);
        peer.start();
        peer
    }

    /// The merged hash of these members' adapters, folded here.
    fn expected(&self, numbers: impl IntoIterator<Item = usize>) -> ContentHash {
        let mut average = Accumulator::new(self.round.tensors());
        for number in numbers {
            average.add(&adapters::adapter_file(&self.round, number as u64), weight(number)).expect("a whole adapter");
        }
        ContentHash::of(&average.finalise().expect("a merge"))
    }
}

fn weight(number: usize) -> u64 {
    100 * (number as u64 + 1)
}

#[test]
fn after_a_cut_through_a_bad_network_all_hold_the_same_merge() {
    let Size { peers, cut, width } = size();
    let Some(mut lab) = Lab::open(5) else { return };
    let hosts: Vec<Host> = (0..peers)
        .map(|index| {
            let line = Shape::delayed(LINE_MS);
            let line = if index == NARROW_HOST { line.at_rate(NARROW) } else { line };
            lab.host(&format!("host-{index}"), line.lossy(LOSS), line)
        })
        .collect();
    let folder = TempDir::new().expect("a temporary folder");
    let round = adapters::round("a bad network", 4, width, []);
    let file = folder.path().join("round.json");
    std::fs::write(&file, round.to_json()).expect("a round file");
    let scene = Scene { folder, round, file, hosts };
    let ports: Vec<usize> = scene.hosts.iter().map(|host| host.port).collect();

    // The first half of each side is there before the cut, the others come while it lasts.
    let middle = peers / 2;
    let early = |number: &usize| number % middle < middle.div_ceil(2);
    let began = Instant::now();
    let (mut left, mut right): (Vec<Peer>, Vec<Peer>) = (
        (0..middle).filter(early).map(|number| scene.member(number)).collect(),
        (middle..peers).filter(early).map(|number| scene.member(number)).collect(),
    );
    let first: Vec<usize> = (0..peers).filter(early).collect();
    let both = left.len();
    left.append(&mut right);
    let merged = agree_within(PATIENCE, &mut left, first.len()).merged_hash;
    right = left.split_off(both);
    assert_eq!(merged, scene.expected(first.iter().copied()));
    println!("{} peers agreed after {:.1?}", first.len(), began.elapsed());

    let (began, sides) = (Instant::now(), [&ports[..middle], &ports[middle..]]);
    lab.wire().cut(&sides);
    left.extend((0..middle).filter(|number| !early(number)).map(|number| scene.member(number)));
    right.extend((middle..peers).filter(|number| !early(number)).map(|number| scene.member(number)));
    for (side, own) in [(&mut left, 0..middle), (&mut right, middle..peers)] {
        let known: Vec<usize> = (0..peers).filter(|number| early(number) || own.contains(number)).collect();
        let merged = agree_within(PATIENCE, side, known.len()).merged_hash;
        assert_eq!(merged, scene.expected(known), "one side of the cut");
        println!("one side agreed {:.1?} after the cut", began.elapsed());
    }
    std::thread::sleep(cut.saturating_sub(began.elapsed()));
    let held = began.elapsed();

    let began = Instant::now();
    lab.wire().heal();
    left.append(&mut right);
    let merged = agree_within(PATIENCE, &mut left, peers).merged_hash;
    assert_eq!(merged, scene.expected(0..peers));
    let total = lab.wire().total();
    assert!(total.cut > 0 && total.lost > 0, "the network was bad: {total:?}");
    println!("cut for {held:.1?}; {peers} peers agreed {:.1?} after it was healed: {merged}", began.elapsed());
    let payload = scene.round.tensors().elements() * 4 * (peers * (peers - 1)) as u64;
    println!("adapters {payload} bytes in all; on the wire {total:?}");
}
