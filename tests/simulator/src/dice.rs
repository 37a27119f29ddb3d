//! Numbers drawn from a seed, so that what fails can be run again as it was.

use std::time::Duration;

/// A stream of numbers that its seed and purpose determine. It refuses to be seeded by accident: the seed is printed.
pub struct Dice {
    stream: blake3::OutputReader,
    /// One block of the stream, and how much of it is used.
    block: [u8; 64],
    used: usize,
}

impl Dice {
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("mingle 2026 dice of the tests");
        hasher.update(&seed.to_le_bytes()).update(purpose.as_bytes());
        Self { stream: hasher.finalize_xof(), block: [0; 64], used: 64 }
    }

    pub fn number(&mut self) -> u64 {
        if self.used == self.block.len() {
            self.stream.fill(&mut self.block);
            self.used = 0;
        }
        let at = self.used;
        self.used += 8;
        u64::from_le_bytes(std::array::from_fn(|index| self.block[at + index]))
    }

    /// Below `end`, which is not 0. The bias of the remainder does not matter to a test.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn milliseconds(&mut self, most: usize) -> Duration {
        Duration::from_millis(self.below(most + 1) as u64)
    }

    pub fn one_of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Uniform in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in (-1, 1).
    pub fn value(&mut self) -> f32 {
        (self.number() >> 41) as f32 / (1u64 << 22) as f32 - 1.0
    }
}

/// The seed of this run: `MINGLE_TEST_SEED`, or one from the clock, which the caller prints.
pub fn seed() -> u64 {
    let given = std::env::var("MINGLE_TEST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64))
}
