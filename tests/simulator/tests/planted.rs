//! Faults that are planted are found, each by the checker that is there for it: a simulation that finds nothing shows nothing.

use mingle_simulator::summary::play_all;
use mingle_simulator::{Class, Planted};

/// Within so many seeds.
const SEEDS: u64 = 300;

fn found(planted: Planted) -> String {
    let summary = play_all(&Class::small().planted(planted), 0, SEEDS, 1, true, |_| {});
    let failure = summary.failures.first().unwrap_or_else(|| panic!("{planted:?} was not found in {SEEDS} seeds"));
    println!("{planted:?} is found after {} seeds: {}", summary.seeds, failure.why);
    failure.why.clone()
}

#[test]
fn peers_that_never_ask_what_they_missed_are_found() {
    let why = found(Planted::NoReconciliation);
    assert!(why.contains("records") || why.contains("adapters to merge"), "{why}");
}

#[test]
fn a_record_passed_on_before_it_is_durable_is_found_by_a_crash() {
    let why = found(Planted::GossipBeforeKeep);
    assert!(why.contains("does not know it any more") || why.contains("two things at one sequence"), "{why}");
}

#[test]
fn an_adapter_that_is_never_taken_out_is_found() {
    let why = found(Planted::NoRetraction);
    assert!(why.contains("different bytes") || why.contains("afresh"), "{why}");
}
