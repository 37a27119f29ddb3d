//! One direction of one host's line: how long, how lossy, how wide. It reads no clock.

use std::time::Duration;

use tokio::time::Instant;

use crate::dice::Dice;

/// What a line does to packets. The default does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    pub delay: Duration,
    /// Up to so much more, drawn for each packet; packets never overtake each other.
    pub jitter: Duration,
    /// Of each packet, from 0 to 1.
    pub loss: f64,
    /// Bits a second.
    pub rate: Option<u64>,
}

/// A narrow line holds at least so much before it drops.
const QUEUE_BYTES_MIN: u64 = 64 * 1024;
/// And a wide one what it carries in a tenth of a second.
const QUEUES_A_SECOND: u64 = 10;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    At(Instant),
    Lost,
    /// The queue before a narrow line is full.
    Full,
}

/// A line in use.
pub struct Link {
    shape: Shape,
    dice: Dice,
    /// When it has sent all that it was given.
    idle: Option<Instant>,
    /// When the last packet comes out.
    last: Option<Instant>,
}

impl Shape {
    pub fn delayed(milliseconds: u64) -> Self {
        Self { delay: Duration::from_millis(milliseconds), ..Self::default() }
    }

    pub fn lossy(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    pub fn at_rate(self, bits_a_second: u64) -> Self {
        Self { rate: Some(bits_a_second), ..self }
    }

    /// The line of this host; what it draws depends on seed, host and direction only.
    pub fn link(self, seed: u64, host: &str, direction: &str) -> Link {
        Link { shape: self, dice: Dice::new(seed, &format!("{direction} {host}")), idle: None, last: None }
    }
}

impl Link {
    /// Changes what the line does from now on.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// Sends a packet of so many bytes.
    pub fn pass(&mut self, now: Instant, bytes: usize) -> Passed {
        let Shape { delay, jitter, loss, rate } = self.shape;
        let mut leaves = now;
        if let Some(rate) = rate.map(|rate| rate.max(1)) {
            let begins = self.idle.map_or(now, |idle| idle.max(now));
            let waiting = (begins - now).as_nanos() * u128::from(rate) / 8_000_000_000;
            if waiting > u128::from(QUEUE_BYTES_MIN.max(rate / 8 / QUEUES_A_SECOND)) {
                return Passed::Full;
            }
            leaves = begins + Duration::from_nanos(bytes as u64 * 8_000_000_000 / rate);
            self.idle = Some(leaves);
        }
        if loss > 0.0 && self.dice.fraction() < loss {
            return Passed::Lost;
        }
        let mut at = leaves + delay;
        if !jitter.is_zero() {
            at += jitter.mul_f64(self.dice.fraction());
        }
        at = self.last.map_or(at, |last| last.max(at));
        self.last = Some(at);
        Passed::At(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(shape: Shape) -> Link {
        shape.link(7, "host", "up")
    }

    #[test]
    fn a_line_without_a_shape_changes_nothing() {
        let now = Instant::now();
        let mut link = link(Shape::default());
        assert!((0..1000).all(|_| link.pass(now, 1500) == Passed::At(now)));
    }

    #[test]
    fn a_narrow_line_takes_its_time_and_drops_what_does_not_fit_before_it() {
        let now = Instant::now();
        let mut link = link(Shape::delayed(10).at_rate(1_000_000));
        // 1250 bytes are 10 ms at 1 Mbit/s.
        let sent: Vec<Passed> = (0..100).map(|_| link.pass(now, 1250)).collect();
        let through = sent.iter().take_while(|passed| **passed != Passed::Full).count();
        for (index, passed) in sent.iter().take(through).enumerate() {
            assert_eq!(*passed, Passed::At(now + Duration::from_millis(10 * (index as u64 + 2))));
        }
        assert_eq!(through, (QUEUE_BYTES_MIN / 1250) as usize + 1, "the queue is bounded");
        assert!(sent[through..].iter().all(|passed| *passed == Passed::Full));
        let later = now + Duration::from_secs(5);
        assert_eq!(link.pass(later, 1250), Passed::At(later + Duration::from_millis(20)), "an idle line saves nothing up");
    }

    #[test]
    fn a_line_loses_its_share_and_the_same_packets_each_time() {
        let now = Instant::now();
        let lost = || {
            let mut link = link(Shape::default().lossy(0.01));
            (0..100_000).map(|_| link.pass(now, 100) == Passed::Lost).collect::<Vec<_>>()
        };
        let first = lost();
        assert!((800..1_200).contains(&first.iter().filter(|lost| **lost).count()));
        assert_eq!(first, lost());
    }

    #[test]
    fn jitter_never_lets_a_packet_overtake_another() {
        let now = Instant::now();
        let mut link = link(Shape { jitter: Duration::from_millis(50), ..Shape::delayed(10) });
        let mut last = now;
        for step in 0..1000 {
            let Passed::At(at) = link.pass(now + Duration::from_millis(step), 100) else { panic!("nothing is lost here") };
            assert!(at >= last && at >= now + Duration::from_millis(step + 10));
            last = at;
        }
    }
}
