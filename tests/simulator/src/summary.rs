//! Many seeds at once, and what came of them, in words and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::setting::Class;
use crate::world::{Failure, Outcome, play};

/// Failures whose words are kept.
const FAILURES_TOLD: usize = 20;

#[derive(Default)]
pub struct Summary {
    pub seeds: u64,
    pub failed: u64,
    pub failures: Vec<Failure>,
    pub seconds: f64,
    /// Of the seeds in which all agreed, with the seed.
    converged: Vec<(u64, u64)>,
    peers: u64,
    records: u64,
    questions: u64,
    messages: u64,
    message_bytes: u64,
    /// How often each kind of thing happened.
    pub happened: BTreeMap<&'static str, u64>,
}

/// Plays seeds on several threads. `told` hears how far it has come, about every so many seeds.
pub fn play_all(class: &Class, first: u64, seeds: u64, threads: usize, stop_at_failure: bool, told: impl Fn(&Summary) + Sync) -> Summary {
    let (next, stopped) = (AtomicU64::new(first), AtomicBool::new(false));
    let summary = Mutex::new(Summary::default());
    let begun = Instant::now();
    let work = || {
        while !stopped.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return;
            }
            let played = play(seed, class);
            stopped.fetch_or(stop_at_failure && played.is_err(), Ordering::Relaxed);
            let mut summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            summary.take(seed, played);
            summary.seconds = begun.elapsed().as_secs_f64();
            told(&summary);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Summary {
    fn take(&mut self, seed: u64, played: Result<Outcome, Box<Failure>>) {
        self.seeds += 1;
        match played {
            Ok(outcome) => {
                self.converged.push((outcome.converged_ms, seed));
                self.peers += outcome.peers as u64;
                self.records += outcome.records as u64;
                self.questions += outcome.questions;
                self.messages += outcome.messages;
                self.message_bytes += outcome.message_bytes;
                for (what, count) in outcome.happened {
                    *self.happened.entry(what).or_default() += count;
                }
            }
            Err(failure) => {
                self.failed += 1;
                self.converged.extend(failure.converged_ms.map(|converged| (converged, seed)));
                if self.failures.len() < FAILURES_TOLD {
                    self.failures.push(*failure);
                }
            }
        }
    }

    /// The time within which this share of the seeds (in thousandths) agreed, in seconds, and a seed that took it.
    pub fn converged(&self, of_thousand: usize) -> (f64, u64) {
        let mut times = self.converged.clone();
        times.sort_unstable();
        let place = (times.len() * of_thousand).div_ceil(1_000).saturating_sub(1);
        times.get(place).map_or((0.0, 0), |(ms, seed)| (*ms as f64 / 1_000.0, *seed))
    }

    pub fn to_json(&self, class: &Class) -> String {
        let (half, most, nearly, (worst, worst_seed)) =
            (self.converged(500).0, self.converged(950).0, self.converged(990).0, self.converged(1_000));
        let mut text = String::new();
        let _ = write!(
            text,
            "{{\"class\": \"{}\", \"seeds\": {}, \"failures\": {}, \"seconds\": {:.1}, \"converged_s\": {{\"p50\": {half}, \"p95\": {most}, \
             \"p99\": {nearly}, \"worst\": {worst}, \"worst_seed\": {worst_seed}}}, \"peers\": {}, \"records\": {}, \"questions\": {}, \
             \"messages\": {}, \"message_bytes\": {}, \"happened\": {:?}, \"failed_seeds\": {:?}}}",
            class.words(),
            self.seeds,
            self.failed,
            self.seconds,
            self.peers,
            self.records,
            self.questions,
            self.messages,
            self.message_bytes,
            self.happened,
            self.failures.iter().map(|failure| failure.seed).collect::<Vec<_>>(),
        );
        text
    }
}
