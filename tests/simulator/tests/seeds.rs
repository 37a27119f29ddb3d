//! Many small histories with every fault, and without any.
//!
//! `MINGLE_SIM_SEED=N` plays one seed alone, with words.

use mingle_simulator::summary::play_all;
use mingle_simulator::{Class, play};

/// Histories of 8 to 32 peers. More of them are for the program (docs/testing.md).
const SEEDS: u64 = 200;
const CALM_SEEDS: u64 = 60;

/// Plays all and tells of the first that fails.
fn all_agree(class: &Class, seeds: u64, must_happen: &[&str]) {
    if let Some(seed) = std::env::var("MINGLE_SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        return match play(seed, class) {
            Ok(outcome) => println!("seed {seed}: {outcome:#?}"),
            Err(failure) => panic!("{failure}"),
        };
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let summary = play_all(class, 0, seeds, threads, true, |_| {});
    if let Some(failure) = summary.failures.first() {
        panic!("{failure}");
    }
    println!("{}", summary.to_json(class));
    assert_eq!(summary.seeds, seeds);
    // Histories in which nothing happens would show nothing.
    for what in must_happen {
        let count = summary.happened.get(what).copied().unwrap_or_default();
        assert!(count >= seeds / 10, "in {seeds} seeds a peer {what:?} {count} times");
    }
}

#[test]
fn peers_agree_after_every_fault() {
    let faults = [
        "dies",
        "stands still",
        "the network splits",
        "leaves for good",
        "has a bad blob",
        "sees a conflict",
        "refuses a record",
        "refuses an answer",
        "refuses an adapter",
        "hears nothing from",
        "fails to fetch",
        "tells who belongs",
        "withdraws",
    ];
    all_agree(&Class::small(), SEEDS, &faults);
}

#[test]
fn without_faults_peers_agree_at_once() {
    all_agree(&Class::clean(), CALM_SEEDS, &["merges", "withdraws"]);
}

#[test]
fn hundreds_of_peers_agree() {
    all_agree(&Class::large(256), 1, &["merges"]);
}
