//! The last events for people, and a hash over all of them that two runs of one seed share.

use std::collections::{BTreeMap, VecDeque};

use crate::Name;

/// Events that are told of a failure; `MINGLE_SIM_EVENTS` says otherwise.
const LAST: usize = 60;

#[derive(Clone, Copy)]
struct Note {
    at: u64,
    peer: Name,
    what: &'static str,
    number: u64,
}

/// Everything that happened, as a hash, and the end of it in words.
pub struct Trace {
    last: VecDeque<Note>,
    most: usize,
    hasher: blake3::Hasher,
    counts: BTreeMap<&'static str, u64>,
}

impl Default for Trace {
    fn default() -> Self {
        let most = std::env::var("MINGLE_SIM_EVENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(LAST);
        Self {
            last: VecDeque::new(),
            most,
            hasher: blake3::Hasher::new_derive_key("mingle 2026 trace of a simulation"),
            counts: BTreeMap::new(),
        }
    }
}

impl Trace {
    /// How often each kind of thing happened.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    pub fn note(&mut self, at: u64, peer: Name, what: &'static str, number: u64) {
        *self.counts.entry(what).or_default() += 1;
        self.hasher.update(&at.to_le_bytes()).update(&(peer as u64).to_le_bytes()).update(&number.to_le_bytes());
        self.hasher.update(what.as_bytes());
        if self.last.len() >= self.most {
            self.last.pop_front();
        }
        self.last.push_back(Note { at, peer, what, number });
    }

    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex().as_str()[..16].to_owned()
    }

    pub fn words(&self) -> Vec<String> {
        let word = |note: &Note| {
            let Note { at, peer, what, number } = note;
            format!("{:>9.3} s  peer {peer:<4} {what} {number:x}", *at as f64 / 1_000.0)
        };
        self.last.iter().map(word).collect()
    }
}
