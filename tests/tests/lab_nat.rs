//! Two members, each behind a NAT of its own, and one public seed: they meet through its relay and then directly, and the
//! relay never carries an adapter. Where their NATs let them not, the round comes together all the same, through what the
//! seed keeps.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mingle_protocol::round::Round;
use mingle_tests::lab::{self, Flow, Host, Lab, Nat, Shape};
use mingle_tests::peer::agree_within;
use mingle_tests::{Peer, adapters};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const PORT: u16 = 4001;
/// What a relay may pass on between two members: far less than any adapter here.
const SIGNALLING_MAX: u64 = 128 * 1024;
/// Probes, reservations and hole punching have pauses of their own.
const PATIENCE: Duration = Duration::from_secs(150);

/// Members behind NATs of one kind, and a seed.
struct Scene {
    folder: TempDir,
    round: Round,
    lab: Lab,
    outside: Host,
    seed: Peer,
    members: Vec<(Host, Peer)>,
}

impl Scene {
    /// None where this machine can have no NATs. A seed of `another` round relays and keeps no adapter of this one.
    fn new(name: &str, nat: Nat, over: &[Over], another: bool) -> Option<Self> {
        let mut lab = Lab::open_with_nat(6)?;
        let line = Shape::delayed(10);
        let folder = TempDir::new().expect("a temporary folder");
        // 4 MiB an adapter.
        let round = adapters::round(name, 8, 16_384, []);
        let file = write_round(folder.path(), "round.json", &round);
        let (of_seed, seed_file) = match another {
            false => (round.clone(), file.clone()),
            true => {
                let other = adapters::round("another", 2, 24, []);
                let file = write_round(folder.path(), "another.json", &other);
                (other, file)
            }
        };
        let outside = lab.host("seed", line, line);
        let mut seed = Peer::new(&lab::program(PROGRAM), folder.path(), "seed", of_seed.id(), ["seed"]);
        seed.argue(["--round".into(), seed_file.into_os_string()]);
        seed.argue([Over::Quic, Over::Tcp].map(Over::listening));
        outside.runs(&mut seed);
        seed.start();
        let name_of_seed = seed.wait("the seed's status", |seed| Some(seed.status()?.peer));

        let members = ["alice", "bob"].iter().enumerate().map(|(number, name)| {
            let host = lab.host_behind(nat, name, line, line);
            let directory = folder.path().join(format!("adapter-{name}"));
            adapters::write_peft(&directory, &round, &adapters::adapter_file(&round, number as u64));
            let mut peer = Peer::new(&lab::program(PROGRAM), folder.path(), name, round.id(), ["publish"]);
            peer.argue([directory.into_os_string(), "--round".into(), file.clone().into()]);
            peer.argue(["--examples", "100"]);
            for over in over {
                peer.argue([over.listening(), format!("--peer={}/p2p/{name_of_seed}", over.address(&outside))]);
            }
            host.runs(&mut peer);
            peer.start();
            (host, peer)
        });
        let members = members.collect();
        Some(Self { folder, round, lab, outside, seed, members })
    }

    fn adapter(&self) -> u64 {
        self.round.tensors().elements() * 4
    }

    /// Both hold the merge of both.
    fn agree(&mut self) {
        let (hosts, mut peers): (Vec<Host>, Vec<Peer>) = self.members.drain(..).unzip();
        agree_within(PATIENCE, &mut peers, 2);
        self.members = hosts.into_iter().zip(peers).collect();
    }

    /// What one member gave to the wire for the other's NAT.
    fn between(&self, from: usize, to: usize) -> Flow {
        self.lab.wire().flow(self.members[from].0.port, self.members[to].0.port)
    }

    /// What the seed sent to a member.
    fn seed_to(&self, to: usize) -> Flow {
        self.lab.wire().flow(self.outside.port, self.members[to].0.port)
    }

    fn to_seed(&self, from: usize) -> Flow {
        self.lab.wire().flow(self.members[from].0.port, self.outside.port)
    }

    fn told(&self) -> String {
        let peers: Vec<String> = self.members.iter().map(|(_, peer)| peer.told()).chain([self.seed.told()]).collect();
        format!("{}\n{:?}", peers.join("\n\n"), self.folder)
    }
}

fn write_round(folder: &Path, name: &str, round: &Round) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, round.to_json()).expect("a round file");
    file
}

/// What members speak.
#[derive(Clone, Copy)]
enum Over {
    Quic,
    Tcp,
}

impl Over {
    fn listening(self) -> String {
        match self {
            Self::Quic => format!("--listen=/ip4/0.0.0.0/udp/{PORT}/quic-v1"),
            Self::Tcp => format!("--listen=/ip4/0.0.0.0/tcp/{PORT}"),
        }
    }

    fn address(self, host: &Host) -> String {
        match self {
            Self::Quic => host.quic(PORT),
            Self::Tcp => host.tcp(PORT),
        }
    }
}

/// Whether one of its events of this kind names the other.
fn told_of(peer: &Peer, kind: &str, other: &str) -> bool {
    peer.events_named(kind).iter().any(|event| event["peer"] == other)
}

#[test]
fn members_behind_nats_meet_through_a_relay_and_then_directly_and_the_relay_carries_no_adapter() {
    meet("two behind nats", &[Over::Quic, Over::Tcp]);
}

#[test]
fn members_behind_nats_that_let_no_udp_through_meet_over_tcp() {
    meet("two behind nats over tcp", &[Over::Tcp]);
}

fn meet(name: &str, over: &[Over]) {
    // A seed that keeps nothing of this round: whatever the members exchange came directly, or through the relay.
    let Some(mut scene) = Scene::new(name, Nat::PortPreserving, over, true) else { return };
    let began = Instant::now();
    scene.agree();
    println!("{name}: agreed after {:.1?}", began.elapsed());
    let names: Vec<String> = scene.members.iter().map(|(_, peer)| peer.status().expect("a status").peer).collect();
    for (own, other) in [(0, 1), (1, 0)] {
        let peer = &scene.members[own].1;
        assert!(told_of(peer, "relayed", &names[other]), "they meet through the relay: {}", scene.told());
        assert!(told_of(peer, "direct", &names[other]), "and then directly: {}", scene.told());
        let flow = scene.between(own, other);
        assert!(flow.payload >= scene.adapter(), "the adapter went directly: {flow:?}");
    }
    let relayed = [scene.seed_to(0), scene.seed_to(1), scene.to_seed(0), scene.to_seed(1)];
    println!(
        "an adapter is {} bytes; the relay sent {} and {}, heard {} and {} bytes",
        scene.adapter(),
        relayed[0].bytes,
        relayed[1].bytes,
        relayed[2].bytes,
        relayed[3].bytes
    );
    assert!(relayed.iter().all(|flow| flow.bytes < SIGNALLING_MAX), "{relayed:?}");
}

#[test]
fn members_that_cannot_meet_have_each_others_adapters_from_the_seed() {
    let Some(mut scene) = Scene::new("two behind symmetric nats", Nat::Symmetric, &[Over::Quic, Over::Tcp], false) else { return };
    scene.agree();
    for (own, other) in [(0, 1), (1, 0)] {
        let flow = scene.between(own, other);
        assert!(flow.payload < SIGNALLING_MAX, "these NATs cannot be passed: {flow:?}");
        // The adapter once from its member to the seed, and once from the seed to the other.
        let (kept, handed) = (scene.to_seed(own), scene.seed_to(other));
        println!(
            "an adapter is {} bytes; the seed had it with {} bytes and handed it over with {}",
            scene.adapter(),
            kept.bytes,
            handed.bytes
        );
        for flow in [kept, handed] {
            assert!(flow.payload >= scene.adapter() && flow.bytes < scene.adapter() * 5 / 4, "{flow:?}");
        }
    }
    let kept = |seed: &mut Peer| (seed.slots().iter().filter(|slot| slot.size > 0 && slot.have == slot.size).count() == 2).then_some(());
    scene.seed.wait("both adapters", kept);
}
