//! How much may be on its way to this peer at once, over all downloads: what it takes in within two seconds.
//!
//! More would not come sooner. It would lie in buffers along the line, keep whatever else is said waiting behind it, and be
//! lost, and fetched again, whenever a conversation ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mingle_protocol::hash::ContentHash;

use crate::rate::Rate;

/// More than any line's round trip. A window that a long line fills grows with what comes of it.
const SECONDS: f64 = 2.0;
/// Where nothing is known of the line yet, and on slow ones: two blocks each from two peers.
const LEAST: u64 = 2 << 20;

/// Shared by all downloads of a peer.
#[derive(Clone)]
pub struct Window {
    began: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rate: Rate,
    /// What each download has on its way.
    downloads: HashMap<ContentHash, u64>,
}

impl Window {
    pub fn new() -> Self {
        Self { began: Instant::now(), state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of blobs came.
    pub fn arrived(&self, bytes: u64) {
        self.state().rate.moved(bytes, self.began.elapsed());
    }

    /// A download says how much it has on its way.
    pub fn set(&self, hash: ContentHash, bytes: u64) {
        self.state().set(hash, bytes, self.began.elapsed());
    }

    /// How much more may be on its way to all downloads together.
    pub fn room(&self) -> u64 {
        self.state().room(self.began.elapsed())
    }
}

impl State {
    fn set(&mut self, hash: ContentHash, bytes: u64, now: Duration) {
        match bytes {
            0 => drop(self.downloads.remove(&hash)),
            bytes => drop(self.downloads.insert(hash, bytes)),
        }
        // Time in which nothing was asked for says nothing about the line.
        if self.downloads.is_empty() { self.rate.rest(now) } else { self.rate.work(now) }
    }

    fn room(&self, now: Duration) -> u64 {
        let filled = self.rate.per_second(now).map_or(0.0, |rate| rate * SECONDS) as u64;
        filled.max(LEAST).saturating_sub(self.downloads.values().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_wide_as_what_came_in_the_last_seconds_and_shared_by_all() {
        let mut state = State::default();
        let [one, other] = [1, 2].map(|byte| ContentHash([byte; 32]));
        let mut now = Duration::ZERO;
        assert_eq!(state.room(now), LEAST);
        state.set(one, LEAST, now);
        state.set(other, 1, now);
        assert_eq!(state.room(now), 0);
        for _ in 0..40 {
            now += Duration::from_millis(100);
            state.rate.moved(10 << 20, now);
        }
        assert_eq!(state.room(now) >> 20, 200 - 3, "100 MiB a second");
        state.set(one, 0, now);
        state.set(other, 0, now);
        // A pause changes nothing; a line that has become slow does.
        now += Duration::from_secs(3600);
        assert_eq!(state.room(now) >> 20, 200);
        state.set(one, 1, now);
        now += Duration::from_secs(600);
        assert_eq!(state.room(now), LEAST - 1);
    }
}
