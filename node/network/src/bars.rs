//! Who is kept out for a while: longer each time, never for ever, and never more names than fit. Reads no clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// The first bar; it doubles with each further one.
pub const BAR_FIRST: Duration = Duration::from_secs(60);
/// The longest: what misbehaved by mistake is repaired within hours, and sync makes up for what was missed.
pub const BAR_LONGEST: Duration = Duration::from_secs(3600);
/// How long after its end a bar still makes the next one longer.
const REMEMBERED: Duration = Duration::from_secs(6 * 3600);
/// Names kept; the one that ends first makes room.
const NAMES_MAX: usize = 4096;

struct Bar {
    until: Instant,
    times: u32,
}

pub struct Bars<K> {
    of: HashMap<K, Bar>,
}

impl<K: Hash + Eq + Clone> Bars<K> {
    pub fn new() -> Self {
        Self { of: HashMap::new() }
    }

    /// Keeps `key` out from now on; says for how long.
    pub fn bar(&mut self, key: K, now: Instant) -> Duration {
        if self.of.len() >= NAMES_MAX && !self.of.contains_key(&key) {
            self.of.retain(|_, bar| bar.until + REMEMBERED > now);
            if self.of.len() >= NAMES_MAX
                && let Some(first) = self.of.iter().min_by_key(|(_, bar)| bar.until).map(|(key, _)| key.clone())
            {
                self.of.remove(&first);
            }
        }
        let bar = self.of.entry(key).or_insert(Bar { until: now, times: 0 });
        if bar.until + REMEMBERED < now {
            bar.times = 0;
        }
        bar.times = bar.times.saturating_add(1);
        let length = BAR_FIRST.saturating_mul(1 << (bar.times - 1).min(16)).min(BAR_LONGEST);
        bar.until = bar.until.max(now + length);
        length
    }

    pub fn is_barred(&self, key: &K, now: Instant) -> bool {
        self.of.get(key).is_some_and(|bar| now < bar.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_end_and_are_forgotten() {
        let mut now = Instant::now();
        let mut bars = Bars::new();
        assert!(!bars.is_barred(&1, now));
        let mut lengths = Vec::new();
        for _ in 0..10 {
            let length = bars.bar(1, now);
            assert!(bars.is_barred(&1, now) && !bars.is_barred(&2, now));
            now += length;
            assert!(!bars.is_barred(&1, now));
            lengths.push(length);
        }
        assert_eq!(&lengths[..3], [BAR_FIRST, BAR_FIRST * 2, BAR_FIRST * 4]);
        assert_eq!(lengths[9], BAR_LONGEST);
        now += REMEMBERED + Duration::from_secs(1);
        assert_eq!(bars.bar(1, now), BAR_FIRST);
    }

    #[test]
    fn names_are_bounded_and_the_one_that_ends_first_makes_room() {
        let now = Instant::now();
        let mut bars = Bars::new();
        bars.bar(0, now);
        bars.bar(0, now); // Barred for longer than all others.
        for name in 1..NAMES_MAX * 2 {
            bars.bar(name, now);
            assert!(bars.of.len() <= NAMES_MAX);
        }
        assert!(bars.is_barred(&0, now));
    }
}
