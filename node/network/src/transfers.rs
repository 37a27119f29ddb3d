//! What is being fetched and served, for people: bytes and rates by peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use mingle_protocol::hash::ContentHash;

use crate::rate::Rate;

/// Peers whose uploads are remembered; the one that was served longest ago is forgotten.
const UPLOADS_MAX: usize = 512;
/// A peer that was served nothing for so long has a rate of zero.
const PAUSE: Duration = Duration::from_secs(2);

/// One blob on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Transfer {
    pub hash: ContentHash,
    pub size: u64,
    /// Verified bytes at hand.
    pub have: u64,
    pub providers: Vec<ProviderStatus>,
}

/// What one peer brings of one blob.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderStatus {
    pub peer: PeerId,
    /// Verified bytes that it sent.
    pub bytes: u64,
    pub bytes_per_second: u64,
    pub state: ProviderState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderState {
    /// Something of it is on its way.
    Sending,
    /// Connected, and nothing is asked of it.
    Idle,
    /// Not reached yet, or tried again after a pause.
    Waiting,
    /// Not asked again for this blob.
    Out,
}

/// What one peer was sent of all blobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Upload {
    pub peer: PeerId,
    pub bytes: u64,
    pub bytes_per_second: u64,
}

/// Written by downloads and servers, read by the driver.
#[derive(Clone)]
pub(crate) struct Board(Arc<Mutex<Lists>>, Instant);

#[derive(Default)]
struct Lists {
    transfers: BTreeMap<ContentHash, Transfer>,
    uploads: BTreeMap<PeerId, (Rate, Duration)>,
}

impl Board {
    pub fn new() -> Self {
        Self(Arc::default(), Instant::now())
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn show(&self, transfer: Transfer) {
        self.lists().transfers.insert(transfer.hash, transfer);
    }

    pub fn clear(&self, hash: ContentHash) {
        self.lists().transfers.remove(&hash);
    }

    pub fn transfers(&self) -> Vec<Transfer> {
        self.lists().transfers.values().cloned().collect()
    }

    pub fn served(&self, peer: PeerId, bytes: u64, took: Duration) {
        let now = self.1.elapsed();
        let uploads = &mut self.lists().uploads;
        if uploads.len() >= UPLOADS_MAX && !uploads.contains_key(&peer) {
            let oldest = uploads.iter().min_by_key(|(_, (_, at))| *at).map(|(peer, _)| *peer);
            oldest.and_then(|peer| uploads.remove(&peer));
        }
        let (rate, at) = uploads.entry(peer).or_default();
        rate.work(now.saturating_sub(took).max(*at));
        rate.moved(bytes, now);
        rate.rest(now);
        *at = now;
    }

    pub fn uploads(&self) -> Vec<Upload> {
        let now = self.1.elapsed();
        let row = |(peer, (rate, at)): (&PeerId, &(Rate, Duration))| {
            let recent = now.saturating_sub(*at) < PAUSE;
            let bytes_per_second = rate.per_second(now).filter(|_| recent).unwrap_or(0.0) as u64;
            Upload { peer: *peer, bytes: rate.total(), bytes_per_second }
        };
        self.lists().uploads.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_counted_by_peer_and_bounded() {
        let board = Board::new();
        let peer = PeerId::random();
        for _ in 0..3 {
            board.served(peer, 1000, Duration::from_millis(10));
        }
        assert_eq!(board.uploads().iter().map(|upload| upload.bytes).collect::<Vec<_>>(), [3000]);
        for _ in 0..UPLOADS_MAX + 10 {
            board.served(PeerId::random(), 1, Duration::ZERO);
        }
        assert_eq!(board.uploads().len(), UPLOADS_MAX);
    }
}
