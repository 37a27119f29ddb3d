//! Whose block is sent next, and how fast we send: places in memory, shared fairly, and a bound on the rate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{SERVED_AT_ONCE_MAX, SERVED_PER_PEER_MAX, SERVED_RESERVED};

/// One block in memory on its way to a peer. The place is free again when it is dropped.
pub struct Turn {
    /// Its peer is counted as long as it has a turn.
    _peer: Arc<OfPeer>,
    _first: Option<OwnedSemaphorePermit>,
    _of_peer: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

/// What one peer has.
struct OfPeer {
    places: Arc<Semaphore>,
    /// Held by the one turn that may have a reserved place.
    first: Arc<Semaphore>,
}

/// Turns are given in the order they were asked for, to each peer a few at most, and some are kept for those who have none: so
/// none can keep the others waiting.
#[derive(Clone)]
pub struct Turns {
    shared: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    of_peer: Arc<Mutex<HashMap<PeerId, Weak<OfPeer>>>>,
}

impl Default for Turns {
    fn default() -> Self {
        let [shared, reserved] = [SERVED_AT_ONCE_MAX - SERVED_RESERVED, SERVED_RESERVED].map(|places| Arc::new(Semaphore::new(places)));
        Self { shared, reserved, of_peer: Arc::default() }
    }
}

impl Turns {
    fn of_peer(&self, peer: PeerId) -> Arc<OfPeer> {
        let mut peers: MutexGuard<'_, _> = self.of_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = peers.get(&peer).and_then(Weak::upgrade) {
            return places;
        }
        // Whoever is not served any more is forgotten here, so the list is as long as conversations are many.
        peers.retain(|_, places| places.strong_count() > 0);
        let [places, first] = [SERVED_PER_PEER_MAX, 1].map(|places| Arc::new(Semaphore::new(places)));
        let of_peer = Arc::new(OfPeer { places, first });
        peers.insert(peer, Arc::downgrade(&of_peer));
        of_peer
    }

    /// A turn if one is free now.
    pub fn try_take(&self, peer: PeerId) -> Option<Turn> {
        let peer = self.of_peer(peer);
        let of_peer = peer.places.clone().try_acquire_owned().ok()?;
        if let Ok(place) = self.shared.clone().try_acquire_owned() {
            return Some(Turn { _peer: peer, _first: None, _of_peer: of_peer, _place: place });
        }
        let first = peer.first.clone().try_acquire_owned().ok()?;
        let place = self.reserved.clone().try_acquire_owned().ok()?;
        Some(Turn { _peer: peer, _first: Some(first), _of_peer: of_peer, _place: place })
    }

    pub async fn take(&self, peer: PeerId) -> Turn {
        let peer = self.of_peer(peer);
        loop {
            let Ok(of_peer) = peer.places.clone().acquire_owned().await else { continue };
            let first = peer.first.clone().try_acquire_owned().ok();
            let place = tokio::select! {
                biased;
                place = self.shared.clone().acquire_owned() => place,
                place = self.reserved.clone().acquire_owned(), if first.is_some() => place,
            };
            // None is ever closed.
            if let Ok(place) = place {
                return Turn { _peer: peer, _first: first, _of_peer: of_peer, _place: place };
            }
        }
    }
}

/// A bound on bytes a second over all conversations together.
pub struct Bucket {
    per_second: Option<u64>,
    began: Instant,
    /// Until when what was sent fills the rate.
    filled: Mutex<Duration>,
}

impl Bucket {
    pub fn new(per_second: Option<u64>) -> Self {
        Self { per_second: per_second.filter(|rate| *rate > 0), began: Instant::now(), filled: Mutex::default() }
    }

    pub fn is_bounded(&self) -> bool {
        self.per_second.is_some()
    }

    /// How long to wait before these bytes may go.
    pub fn reserve(&self, bytes: usize) -> Duration {
        let Some(per_second) = self.per_second else { return Duration::ZERO };
        let now = self.began.elapsed();
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        let from = (*filled).max(now);
        *filled = from + Duration::from_secs_f64(bytes as f64 / per_second as f64);
        from - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_can_take_every_turn() {
        let turns = Turns::default();
        let (greedy, modest) = (PeerId::random(), PeerId::random());
        let held: Vec<Turn> = std::iter::from_fn(|| turns.try_take(greedy)).collect();
        assert_eq!(held.len(), SERVED_PER_PEER_MAX);
        assert!(turns.try_take(modest).is_some());
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { drop(turns.take(greedy).await) }
        });
        drop(held);
        waiting.await.unwrap();
        assert!(turns.try_take(modest).is_some());
        assert!(turns.of_peer.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn some_turns_are_left_for_those_who_have_none_however_many_are_greedy() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..SERVED_RESERVED - 1 {
            let greedy = PeerId::random();
            held.extend(std::iter::from_fn(|| turns.try_take(greedy)));
        }
        assert!(held.len() < SERVED_AT_ONCE_MAX);
        let modest = PeerId::random();
        let one = turns.take(modest).await;
        assert!(turns.try_take(modest).is_none(), "the others have the rest");
        drop(one);
        assert!(turns.try_take(modest).is_some());
        drop(held);
        assert_eq!((turns.shared.available_permits(), turns.reserved.available_permits()), (32, 16));
    }

    #[test]
    fn bytes_wait_for_their_time() {
        let bucket = Bucket::new(Some(1000));
        let first = bucket.reserve(500);
        let second = bucket.reserve(500);
        assert!(first.is_zero() && second > Duration::from_millis(400) && second <= Duration::from_millis(500), "{second:?}");
        assert!(Bucket::new(None).reserve(usize::MAX).is_zero());
    }
}
