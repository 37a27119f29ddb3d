//! How fast something moves: bytes over the time it was at work, the recent past weighing most. Reads no clock.

use std::time::Duration;

/// Half of what is older than this is forgotten.
const WINDOW: Duration = Duration::from_secs(2);
/// Less time than this says nothing about a rate.
const SHORTEST: Duration = Duration::from_millis(5);

/// Counts bytes while there is work to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    total: u64,
    bytes: f64,
    time: Duration,
    /// Since when it is at work, as far as it is not counted in `time` yet.
    since: Option<Duration>,
}

impl Rate {
    /// There is work from `now` on.
    pub fn work(&mut self, now: Duration) {
        self.since.get_or_insert(now);
    }

    /// There is none any more.
    pub fn rest(&mut self, now: Duration) {
        self.count(now);
        self.since = None;
    }

    pub fn moved(&mut self, bytes: u64, now: Duration) {
        self.total += bytes;
        self.bytes += bytes as f64;
        self.count(now);
        if self.time > WINDOW {
            self.bytes /= 2.0;
            self.time /= 2;
        }
    }

    fn count(&mut self, now: Duration) {
        if let Some(since) = &mut self.since {
            self.time += now.saturating_sub(*since);
            *since = now;
        }
    }

    /// Bytes a second of work; `None` while too little is known. Waiting without a byte lowers it.
    pub fn per_second(&self, now: Duration) -> Option<f64> {
        let time = self.time + self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        (time >= SHORTEST && self.total > 0).then(|| self.bytes / time.as_secs_f64())
    }

    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_a_change_and_forgets_pauses() {
        let mut rate = Rate::default();
        let mut now = Duration::ZERO;
        assert_eq!(rate.per_second(now), None);
        let mut run = |rate: &mut Rate, bytes: u64, steps: u32| {
            rate.work(now);
            for _ in 0..steps {
                now += Duration::from_millis(100);
                rate.moved(bytes, now);
            }
            rate.rest(now);
            now += Duration::from_secs(3600);
            now
        };
        let at = run(&mut rate, 100, 50);
        assert!((rate.per_second(at).unwrap() - 1000.0).abs() < 1.0);
        let at = run(&mut rate, 10, 100);
        let slowed = rate.per_second(at).unwrap();
        assert!((100.0..120.0).contains(&slowed), "{slowed}");
        assert_eq!(rate.total(), 6000);
        // A peer that is asked and silent grows slower in our eyes.
        rate.work(at);
        assert!(rate.per_second(at + Duration::from_secs(20)).unwrap() < 20.0);
    }
}
