//! What one peer may ask of us, as token buckets: a burst and a refill for each protocol.
//!
//! The buckets are far above what an honest peer of a round with a hundred members does and still above one with ten
//! thousand; whoever empties one hears "busy" or is not heard. The number of keys is bounded, because keys are made by
//! strangers: when even after dropping the full buckets too many are left, all begin anew, which costs an attacker more
//! connections than it gains (bars are kept elsewhere).

use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;

/// Peers or addresses remembered by one kind of bucket: ten times the connections a node can have.
const KEYS_MAX: usize = 4096;

/// A bucket's size and how fast it fills again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub a_minute: u32,
}

/// What is counted, each with its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Gossip frames of any kind, duplicates and control messages among them.
    GossipFrames,
    /// Messages that were new to us.
    GossipMessages,
    /// Their size in KiB.
    GossipKib,
    /// Questions of reconciliation that we are asked.
    SyncAsked,
    /// KiB of our answers.
    SyncAnsweredKib,
    /// Questions that we ask: we stay below what the other side allows.
    SyncAsking,
    /// Blob ranges we are asked for.
    BlobRequests,
    /// KiB of blobs that we serve.
    BlobServedKib,
    /// Round files we are asked for.
    RoundFiles,
    /// Questions for other peers.
    Referrals,
    /// A peer's news about itself.
    Introductions,
}

impl Quota {
    pub const ALL: [Self; 11] = [
        Self::GossipFrames,
        Self::GossipMessages,
        Self::GossipKib,
        Self::SyncAsked,
        Self::SyncAnsweredKib,
        Self::SyncAsking,
        Self::BlobRequests,
        Self::BlobServedKib,
        Self::RoundFiles,
        Self::Referrals,
        Self::Introductions,
    ];

    pub fn rate(self) -> Rate {
        let rate = |burst, a_minute| Rate { burst, a_minute };
        match self {
            // One neighbour passing on a round of 16,384 members who all finish within a minute sends 273 messages a
            // second, with what the mesh adds to them.
            Self::GossipFrames => rate(8_192, 60 * 512),
            // New messages come from whoever is first, so from one neighbour only a part of them.
            Self::GossipMessages => rate(4_096, 60 * 256),
            // A record is 400 bytes; 1 KiB each leaves room for the largest in between.
            Self::GossipKib => rate(8_192, 60 * 256),
            // Periodic ones come every 30 s; after a partition a peer asks batch by batch, 48 records each: 341 for a
            // full round.
            Self::SyncAsked => rate(512, 60 * 8),
            Self::SyncAsking => rate(448, 60 * 6),
            // The identities of a full round (1.1 MiB), a few times, and all its records.
            Self::SyncAnsweredKib => rate(64 << 10, 60 << 10),
            // Each asks for up to 16 MiB, and who asks for little at a time still gets 64 a second.
            Self::BlobRequests => rate(2_048, 60 * 64),
            // 64 GiB, then 256 MiB/s: every adapter of a large round once, at the speed of a fast network.
            Self::BlobServedKib => rate(64 << 20, 60 * (256 << 10)),
            // Who joins asks once, and again when something on the way failed.
            Self::RoundFiles => rate(16, 12),
            // Asked once, and again after pauses that grow.
            Self::Referrals => rate(32, 12),
            // A peer with many interfaces says each new address once.
            Self::Introductions => rate(32, 12),
        }
    }
}

/// Attempts to connect from one address: a testnet of a hundred peers on one machine that all begin at once, and
/// institutions behind one address whose members come back together.
pub const ATTEMPTS: Rate = Rate { burst: 256, a_minute: 60 * 8 };
/// A handshake that fails counts as so many attempts: honest peers do not send garbage.
pub const FAILED_ATTEMPT_COSTS: u32 = 8;

type Limiter<K, C> = RateLimiter<K, DashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// One kind of bucket, one for each key.
pub struct Buckets<K: Hash + Eq + Clone, C: Clock + Clone = DefaultClock> {
    rate: Rate,
    clock: C,
    limiter: Limiter<K, C>,
}

fn limiter<K: Hash + Eq + Clone, C: Clock + Clone>(rate: Rate, clock: &C) -> Limiter<K, C> {
    let one = NonZeroU32::MIN;
    let period = Duration::from_secs(60) / rate.a_minute.max(1);
    let quota = governor::Quota::with_period(period).unwrap_or(governor::Quota::per_second(one));
    RateLimiter::dashmap_with_clock(quota.allow_burst(NonZeroU32::new(rate.burst).unwrap_or(one)), clock.clone())
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    pub fn new(rate: Rate) -> Self {
        Self::with_clock(rate, DefaultClock::default())
    }
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Buckets<K, C> {
    pub fn with_clock(rate: Rate, clock: C) -> Self {
        Self { rate, limiter: limiter(rate, &clock), clock }
    }

    /// Takes `cost` out of the key's bucket; `false`, and nothing is taken, when it does not hold that much.
    pub fn take(&mut self, key: &K, cost: u32) -> bool {
        if self.limiter.len() >= KEYS_MAX {
            self.limiter.retain_recent();
            if self.limiter.len() >= KEYS_MAX / 2 {
                self.limiter = limiter(self.rate, &self.clock);
            }
        }
        match NonZeroU32::new(cost) {
            // Larger than the whole bucket is an error, and as little to be had.
            Some(cost) => matches!(self.limiter.check_key_n(key, cost), Ok(Ok(()))),
            None => true,
        }
    }
}

/// Bytes as whole KiB, at least one.
pub fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    #[test]
    fn a_bucket_holds_its_burst_and_fills_again() {
        let clock = FakeRelativeClock::default();
        let mut buckets = Buckets::with_clock(Rate { burst: 10, a_minute: 60 }, clock.clone());
        assert_eq!((0..100).filter(|_| buckets.take(&1, 1)).count(), 10);
        assert!(buckets.take(&2, 10), "every key has its own");
        assert!(!buckets.take(&3, 11), "more than a bucket holds is never there");
        clock.advance(Duration::from_secs(5));
        assert_eq!((0..100).filter(|_| buckets.take(&1, 1)).count(), 5);
        assert!(buckets.take(&1, 0));
    }

    #[test]
    fn keys_are_bounded_whoever_makes_them() {
        let clock = FakeRelativeClock::default();
        let mut buckets = Buckets::with_clock(Rate { burst: 10, a_minute: 1 }, clock);
        for key in 0..KEYS_MAX * 4 {
            assert!(buckets.take(&key, 5));
            assert!(buckets.limiter.len() <= KEYS_MAX);
        }
    }

    /// What the busiest honest neighbour does in a round of a hundred: far from the bounds.
    #[test]
    fn an_honest_neighbour_of_a_hundred_members_meets_no_bound() {
        let clock = FakeRelativeClock::default();
        let mut of = Quota::ALL.map(|quota| (quota, Buckets::with_clock(quota.rate(), clock.clone())));
        let mut take = |wanted: Quota, cost: u32| {
            let (_, buckets) = of.iter_mut().find(|(quota, _)| *quota == wanted).unwrap();
            assert!(buckets.take(&0, cost), "{wanted:?}");
        };
        for minute in 0..60 {
            // All announce at once, three times an hour, and each record comes from every neighbour.
            for _ in 0..if minute % 20 == 0 { 100 } else { 0 } {
                take(Quota::GossipFrames, 2);
                take(Quota::GossipMessages, 1);
                take(Quota::GossipKib, kib(4096));
            }
            // Heartbeats with gossip about them.
            take(Quota::GossipFrames, 60);
            // A partition healed: compared, and batch by batch all records exchanged, twice over.
            for _ in 0..12 {
                take(Quota::SyncAsked, 1);
                take(Quota::SyncAsking, 1);
                take(Quota::SyncAnsweredKib, kib(48 * 4096));
            }
            // A hundred adapters of 512 MiB in an hour, in small ranges.
            take(Quota::BlobRequests, 256);
            take(Quota::BlobServedKib, 1 << 20);
            take(Quota::Referrals, 4);
            take(Quota::Introductions, 2);
            clock.advance(Duration::from_secs(60));
        }
    }
}
