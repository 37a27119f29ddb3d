//! How every peer behaves, in one place: what it has used, what it did wrong, whether it may connect.
//!
//! Everybody who deals with a peer asks or tells the guard: the door before it lets in, each protocol before it serves,
//! downloads when a proof is false. The guard only keeps the books; the door closes the connections it names.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libp2p::PeerId;
use mingle_protocol::identity::MemberKey;
use tokio::time::Instant;

use super::bars::Bars;
use super::limits::Scoring;
use super::peer_of;
use super::quotas::{Buckets, Quota, Rate};

/// Points of offences that a peer may gather before it is barred; one point is forgiven a second.
const OFFENCES: Rate = Rate { burst: 100, a_minute: 60 };
/// What is held against a peer halves in so long.
const BLAME_HALVES: Duration = Duration::from_secs(3600);
/// Peers whose blame is remembered; the one with the least makes room.
const BLAMED_MAX: usize = 1024;

/// What a peer may do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// A record that the driver rejects, in gossip or in a reconciliation. A few are forgiven: a peer of another version may believe in them.
    InvalidRecord,
    /// Bytes of a blob that do not verify: no honest provider sends a byte that fails its own proof.
    BadProof,
    /// A frame of one of our protocols that no honest peer writes, such as one beyond its bound.
    Malformed,
    /// So much in gossip, as its score shows, that it is not heard there any more.
    Unheard,
    /// More than a quota allows. Honest peers stay far below it, and some patience costs little.
    OverQuota,
}

impl Offence {
    fn points(self) -> u32 {
        match self {
            Self::InvalidRecord => 4,
            Self::BadProof => 50,
            Self::Malformed => 25,
            // More than all that is forgiven.
            Self::Unheard => OFFENCES.burst + 1,
            Self::OverQuota => 1,
        }
    }

    /// What it adds to the application's part of the score. Invalid records are counted by gossip itself.
    fn blame(self) -> f64 {
        match self {
            Self::InvalidRecord | Self::OverQuota | Self::Unheard => 0.0,
            Self::BadProof => 1000.0,
            Self::Malformed => 10.0,
        }
    }
}

/// What one connected peer has done since it connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Gossiped messages that were new to us, and their bytes.
    pub messages: u64,
    pub message_bytes: u64,
    /// Of those, passed on as valid.
    pub accepted: u64,
    /// Questions of reconciliation, and bytes of our answers.
    pub questions: u64,
    pub answer_bytes: u64,
    /// Blob ranges it asked for, and bytes it was sent.
    pub blob_requests: u64,
    pub blob_bytes: u64,
    /// How often it was refused for asking too much, and what else it did wrong.
    pub over_quota: u64,
    pub offences: u64,
}

struct Blame {
    points: f64,
    at: Instant,
}

impl Blame {
    fn now(&self, now: Instant) -> f64 {
        let halvings = now.saturating_duration_since(self.at).as_secs_f64() / BLAME_HALVES.as_secs_f64();
        self.points * (-halvings).exp2()
    }
}

/// Why a peer is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its key is not among those that may take part in the round")]
    NotAllowed,
    #[error("it misbehaved and is kept out for a while")]
    Barred,
    #[error("too many connections or attempts come from its address")]
    Crowded,
    #[error("no place is free for another connection")]
    Full,
}

struct Books {
    buckets: Vec<(Quota, Buckets<PeerId>)>,
    offences: Buckets<PeerId>,
    bars: Bars<PeerId>,
    blame: HashMap<PeerId, Blame>,
    /// Connected peers.
    counts: HashMap<PeerId, Counts>,
    /// When given, everybody else is refused.
    allowed: Option<HashSet<PeerId>>,
    /// To be disconnected.
    leaving: VecDeque<PeerId>,
    waker: Option<Waker>,
}

pub struct Guard {
    books: Mutex<Books>,
    pub scoring: Scoring,
}

impl Guard {
    pub fn new(allowed: Option<&BTreeSet<MemberKey>>, scoring: Scoring) -> Self {
        let books = Books {
            buckets: Quota::ALL.map(|quota| (quota, Buckets::new(quota.rate()))).into(),
            offences: Buckets::new(OFFENCES),
            bars: Bars::new(),
            blame: HashMap::new(),
            counts: HashMap::new(),
            allowed: allowed.map(peers_of),
            leaving: VecDeque::new(),
            waker: None,
        };
        Self { books: Mutex::new(books), scoring }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `cost` out of what the peer may use; `false` when that is used up, which is held against it.
    pub fn spend(&self, peer: &PeerId, quota: Quota, cost: u32) -> bool {
        let books = &mut *self.books();
        let enough = books.take(peer, quota, cost);
        if !enough {
            if let Some(counts) = books.counts.get_mut(peer) {
                counts.over_quota += 1;
            }
            books.offence(peer, Offence::OverQuota);
        }
        enough
    }

    /// The same for what we ask of the peer: used up, it is ours to wait.
    pub fn afford(&self, peer: &PeerId, quota: Quota, cost: u32) -> bool {
        self.books().take(peer, quota, cost)
    }

    /// Holds something against the peer; too much of it, and it is disconnected and barred.
    pub fn offence(&self, peer: &PeerId, offence: Offence) {
        let books = &mut *self.books();
        if let Some(counts) = books.counts.get_mut(peer) {
            counts.offences += 1;
        }
        books.offence(peer, offence);
    }

    /// Invalid records in a reconciliation, `times` of them.
    pub fn misled(&self, peer: &PeerId, times: u32) {
        // With so many it is barred whatever was forgiven meanwhile.
        for _ in 0..times.min(OFFENCES.burst) {
            self.offence(peer, Offence::InvalidRecord);
        }
    }

    /// Disconnects the peer; it may come back.
    pub fn part_with(&self, peer: PeerId) {
        let books = &mut *self.books();
        books.leaving.push_back(peer);
        books.wake();
    }

    /// Whether the peer may be connected to.
    pub fn admits(&self, peer: &PeerId) -> Result<(), Refusal> {
        let books = self.books();
        if books.allowed.as_ref().is_some_and(|allowed| !allowed.contains(peer)) {
            return Err(Refusal::NotAllowed);
        }
        if books.bars.is_barred(peer, Instant::now()) { Err(Refusal::Barred) } else { Ok(()) }
    }

    /// From now on only these keys are let in; connected peers that are not among them have to leave.
    pub fn set_allowed(&self, allowed: Option<&BTreeSet<MemberKey>>) {
        let books = &mut *self.books();
        books.allowed = allowed.map(peers_of);
        if let Some(allowed) = &books.allowed {
            books.leaving.extend(books.counts.keys().filter(|peer| !allowed.contains(*peer)).copied());
        }
        books.wake();
    }

    pub fn connected(&self, peer: PeerId) {
        self.books().counts.entry(peer).or_default();
    }

    pub fn disconnected(&self, peer: &PeerId) {
        self.books().counts.remove(peer);
    }

    /// Changes what is counted of a connected peer.
    pub fn count(&self, peer: &PeerId, change: impl FnOnce(&mut Counts)) {
        if let Some(counts) = self.books().counts.get_mut(peer) {
            change(counts);
        }
    }

    pub fn counts(&self, peer: &PeerId) -> Counts {
        self.books().counts.get(peer).copied().unwrap_or_default()
    }

    /// The application's part of the peer's score: zero, or less.
    pub fn blame(&self, peer: &PeerId) -> f64 {
        let books = self.books();
        books.blame.get(peer).map_or(0.0, |blame| -blame.now(Instant::now()))
    }

    /// The next peer to be disconnected.
    pub fn poll_leaving(&self, context: &mut Context<'_>) -> Poll<PeerId> {
        let books = &mut *self.books();
        match books.leaving.pop_front() {
            Some(peer) => Poll::Ready(peer),
            None => {
                books.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Books {
    fn take(&mut self, peer: &PeerId, quota: Quota, cost: u32) -> bool {
        let buckets = self.buckets.iter_mut().find(|(of, _)| *of == quota);
        buckets.is_none_or(|(_, buckets)| buckets.take(peer, cost))
    }

    fn offence(&mut self, peer: &PeerId, offence: Offence) {
        let now = Instant::now();
        self.hold_against(*peer, offence.blame(), now);
        if self.offences.take(peer, offence.points()) || self.bars.is_barred(peer, now) {
            return;
        }
        let length = self.bars.bar(*peer, now);
        tracing::warn!(%peer, ?offence, seconds = length.as_secs(), "a peer misbehaves and is kept out for a while");
        self.leaving.push_back(*peer);
        self.wake();
    }

    fn hold_against(&mut self, peer: PeerId, points: f64, now: Instant) {
        if points <= 0.0 {
            return;
        }
        if self.blame.len() >= BLAMED_MAX && !self.blame.contains_key(&peer) {
            let least = self.blame.iter().min_by(|one, other| one.1.now(now).total_cmp(&other.1.now(now)));
            if let Some(least) = least.map(|(peer, _)| *peer) {
                self.blame.remove(&least);
            }
        }
        let blame = self.blame.entry(peer).or_insert(Blame { points: 0.0, at: now });
        *blame = Blame { points: blame.now(now) + points, at: now };
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A key that is no point of the curve belongs to nobody who could connect.
fn peers_of(members: &BTreeSet<MemberKey>) -> HashSet<PeerId> {
    members.iter().filter_map(peer_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(guard: &Guard) -> Vec<PeerId> {
        guard.books().leaving.drain(..).collect()
    }

    #[test]
    fn who_offends_again_and_again_is_barred_once() {
        let (guard, offender, honest) = (Guard::new(None, Scoring::On), PeerId::random(), PeerId::random());
        guard.connected(offender);
        guard.connected(honest);
        for _ in 0..25 {
            guard.offence(&offender, Offence::InvalidRecord);
            assert_eq!(guard.admits(&offender), Ok(()), "a few are forgiven");
        }
        for _ in 0..10 {
            guard.offence(&offender, Offence::InvalidRecord);
        }
        assert_eq!(guard.admits(&offender), Err(Refusal::Barred));
        assert_eq!(guard.admits(&honest), Ok(()));
        assert_eq!(leaving(&guard), [offender], "told once");
        assert_eq!(guard.counts(&offender).offences, 35);
    }

    #[test]
    fn a_false_proof_weighs_most() {
        let (guard, offender) = (Guard::new(None, Scoring::On), PeerId::random());
        guard.offence(&offender, Offence::BadProof);
        assert!(guard.admits(&offender).is_ok() && guard.blame(&offender) < -999.0);
        guard.offence(&offender, Offence::BadProof);
        guard.offence(&offender, Offence::BadProof);
        assert_eq!(guard.admits(&offender), Err(Refusal::Barred));
        assert_eq!(guard.blame(&PeerId::random()), 0.0);
    }

    #[test]
    fn who_is_not_heard_any_more_is_barred_at_once() {
        let (guard, unheard) = (Guard::new(None, Scoring::On), PeerId::random());
        guard.offence(&unheard, Offence::Unheard);
        assert_eq!(guard.admits(&unheard), Err(Refusal::Barred));
        assert_eq!(leaving(&guard), [unheard]);
    }

    #[test]
    fn who_asks_too_much_is_refused_first_and_barred_later() {
        let (guard, greedy) = (Guard::new(None, Scoring::On), PeerId::random());
        guard.connected(greedy);
        let served = (0..10_000).filter(|_| guard.spend(&greedy, Quota::SyncAsked, 1)).count();
        assert!((512..600).contains(&served), "{served}");
        assert_eq!(guard.admits(&greedy), Err(Refusal::Barred));
        assert!(guard.counts(&greedy).over_quota > 100);
        let modest = PeerId::random();
        let asked = (0..10_000).filter(|_| guard.afford(&modest, Quota::SyncAsking, 1)).count();
        assert!(asked < 512 && guard.admits(&modest).is_ok(), "our own eagerness is not held against others");
    }

    #[test]
    fn who_is_no_longer_allowed_has_to_leave() {
        let keys: Vec<MemberKey> = (1..4).map(crate::tests::member).collect();
        let peers: Vec<PeerId> = keys.iter().filter_map(peer_of).collect();
        let guard = Guard::new(None, Scoring::On);
        peers.iter().for_each(|peer| guard.connected(*peer));
        guard.set_allowed(Some(&[keys[0]].into()));
        let gone: HashSet<PeerId> = leaving(&guard).into_iter().collect();
        assert_eq!(gone, peers[1..].iter().copied().collect());
        assert_eq!(guard.admits(&peers[1]), Err(Refusal::NotAllowed));
        guard.set_allowed(None);
        assert!(leaving(&guard).is_empty() && guard.admits(&peers[1]).is_ok());
    }

    #[test]
    fn blame_is_bounded_in_number_and_the_worst_is_kept() {
        let (guard, worst) = (Guard::new(None, Scoring::On), PeerId::random());
        guard.offence(&worst, Offence::BadProof);
        for _ in 0..BLAMED_MAX * 2 {
            guard.offence(&PeerId::random(), Offence::Malformed);
        }
        assert!(guard.books().blame.len() <= BLAMED_MAX && guard.blame(&worst) < -999.0);
    }
}
