//! The large run: `cargo run --release -p mingle-simulator -- --seeds 10000 --peers 8..32`.
//!
//! Prints progress and failures on standard error, and one line of JSON on standard output. Exit code 1 when a seed failed.

use std::process::ExitCode;

use mingle_simulator::summary::{Summary, play_all};
use mingle_simulator::{Class, Planted};

const USAGE: &str = "usage: mingle-simulator [--seeds N] [--first SEED] [--peers N | --peers LEAST..MOST] [--members MOST] [--threads N]
       [--clean] [--patience SECONDS] [--plant no-reconciliation|gossip-before-keep|no-retraction] [--stop]";

struct Wanted {
    class: Class,
    first: u64,
    seeds: u64,
    threads: usize,
    stop: bool,
}

fn wanted() -> Option<Wanted> {
    let mut wanted = Wanted { class: Class::small(), first: 0, seeds: 100, threads: 1, stop: false };
    wanted.threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut patience = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next();
        match word.as_str() {
            "--seeds" => wanted.seeds = value()?.parse().ok()?,
            "--first" => wanted.first = value()?.parse().ok()?,
            "--threads" => wanted.threads = value()?.parse().ok()?,
            "--members" => wanted.class.members_max = value()?.parse().ok().filter(|members| *members >= 2)?,
            "--patience" => patience = Some(value()?.parse::<u64>().ok()? * 1_000),
            "--clean" => (wanted.class.faults, wanted.class.patience_ms) = (false, Class::clean().patience_ms),
            "--stop" => wanted.stop = true,
            "--peers" => {
                let text = value()?;
                let (least, most) = text.split_once("..").unwrap_or((&text, &text));
                let (least, most): (usize, usize) = (least.parse().ok()?, most.parse().ok()?);
                if least < 3 || most < least {
                    return None;
                }
                wanted.class.peers = least..=most;
                if most > 64 {
                    wanted.class.members_max = Class::large(most).members_max;
                }
            }
            "--plant" => {
                wanted.class.planted = match value()?.as_str() {
                    "no-reconciliation" => Planted::NoReconciliation,
                    "gossip-before-keep" => Planted::GossipBeforeKeep,
                    "no-retraction" => Planted::NoRetraction,
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    wanted.class.patience_ms = patience.unwrap_or(wanted.class.patience_ms);
    Some(wanted)
}

fn main() -> ExitCode {
    let Some(Wanted { class, first, seeds, threads, stop }) = wanted() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let every = (seeds / 20).max(1);
    let told = |summary: &Summary| {
        if summary.seeds.is_multiple_of(every) {
            let Summary { seeds: done, failed, seconds, .. } = summary;
            let (worst, seed) = summary.converged(1_000);
            eprintln!("{done} of {seeds} seeds, {failed} failed, {seconds:.0} s; slowest agreement {worst} s (seed {seed})");
        }
    };
    let summary = play_all(&class, first, seeds, threads, stop, told);
    for failure in &summary.failures {
        eprintln!("\n{failure}");
    }
    println!("{}", summary.to_json(&class));
    ExitCode::from(u8::from(summary.failed > 0))
}
