//! A member on a slow and long line: it introduces itself in time, is never taken for a silent connection, and its adapter
//! arrives.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use mingle_tests::lab::{self, Lab, Shape};
use mingle_tests::{Peer, adapters};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const PORT: u16 = 4001;
/// Longer than any connection may be silent.
const WATCHED: Duration = Duration::from_secs(12);

/// A seed, and a member that reaches it over 600 ms there and back at 1 Mbit/s.
fn joins(name: &str, quic: bool) {
    let Some(mut lab) = Lab::open(if quic { 31 } else { 32 }) else { return };
    let folder = TempDir::new().expect("a temporary folder");
    // 98 KiB an adapter.
    let round = adapters::round(name, 4, 768, []);
    let file = folder.path().join("round.json");
    std::fs::write(&file, round.to_json()).expect("a round file");
    let outside = lab.host("seed", Shape::default(), Shape::default());
    let listen = if quic { outside.quic(PORT) } else { outside.tcp(PORT) };
    let mut seed = Peer::new(&lab::program(PROGRAM), folder.path(), "seed", round.id(), ["seed", "--listen", &listen]);
    seed.argue(["--round".into(), file.clone().into_os_string()]);
    outside.runs(&mut seed);
    seed.start();
    seed.wait("the seed's address", |seed| (!seed.events_named("listening").is_empty()).then_some(()));

    let slow = Shape::delayed(300).at_rate(1_000_000);
    let ship = lab.host("ship", slow, slow);
    let directory = folder.path().join("adapter");
    adapters::write_peft(&directory, &round, &adapters::adapter_file(&round, 1));
    let mut member = Peer::new(&lab::program(PROGRAM), folder.path(), "ship", round.id(), ["publish"]);
    member.argue([directory.into_os_string(), "--round".into(), file.into_os_string()]);
    member.argue(["--examples", "100", "--peer", &listen]);
    ship.runs(&mut member);
    member.start();
    let began = Instant::now();
    let known = |peer: &mut Peer| (!peer.events_named("connected").is_empty()).then(|| began.elapsed());
    let (here, there) = (member.wait("the seed", known), seed.wait("the member", known));
    println!("{name}: introduced after {here:?}, {there:?}");
    assert!(there < Duration::from_secs(6), "{there:?}");
    seed.wait("the adapter", |seed| (!seed.events_named("fetched").is_empty()).then_some(()));
    while began.elapsed() < WATCHED {
        std::thread::sleep(Duration::from_millis(100));
        assert!(member.events_named("disconnected").is_empty(), "{}", member.told());
        assert!(seed.events_named("disconnected").is_empty(), "{}", seed.told());
    }
}

#[test]
fn over_tcp() {
    joins("a ship over TCP", false);
}

#[test]
fn over_quic() {
    joins("a ship over QUIC", true);
}
