//! Serving one blob stream: read the request, then send verified ranges from a blocking thread.
//!
//! Not one byte that fails its proof leaves the peer: a damaged blob ends the stream and leaves the store.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use futures::AsyncWriteExt;
use libp2p::PeerId;
use tokio::io::BufWriter;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use super::blob_frames::{Answer, Request};
use super::blob_streams::Inbound;
use super::guard::{Guard, Offence};
use super::limits::{BLOB_BUFFER_BYTES, BLOB_OPEN_TIMEOUT, Limits, SERVED_AT_ONCE_MAX, SERVED_PER_PEER_MAX};
use super::quotas::Quota;
use super::service::Report;
use super::watched::Watched;
use crate::store::{ServeError, Store, StoreError, StoredBlob, all_chunks};

/// What every serving task shares.
#[derive(Clone)]
pub struct Server {
    store: Store,
    slots: Arc<Semaphore>,
    /// How many slots each peer holds.
    of_peer: Arc<Mutex<HashMap<PeerId, usize>>>,
    limits: Limits,
    stop: CancellationToken,
    reports: mpsc::Sender<Report>,
    guard: Arc<Guard>,
}

impl Server {
    pub fn new(store: Store, limits: Limits, stop: CancellationToken, reports: mpsc::Sender<Report>, guard: Arc<Guard>) -> Self {
        Self { store, slots: Arc::new(Semaphore::new(SERVED_AT_ONCE_MAX)), of_peer: Arc::default(), limits, stop, reports, guard }
    }

    /// Answers one stream; what goes wrong is the other side's to notice, ours to log.
    pub async fn serve(self, inbound: Inbound) {
        let peer = inbound.peer;
        if let Err(error) = self.answer(inbound).await {
            tracing::debug!(%peer, %error, "a blob stream ended early");
        }
    }

    async fn answer(self, inbound: Inbound) -> io::Result<()> {
        let Inbound { peer, mut stream, places } = inbound;
        let request = timeout(BLOB_OPEN_TIMEOUT, Request::read(&mut stream)).await?.inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                self.guard.offence(&peer, Offence::Malformed);
            }
        })?;
        let slot = self.within_quota(&peer, &request).then(|| self.slot(peer)).flatten();
        let Some(slot) = slot else {
            stream.write_all(&Answer::Busy.to_bytes()).await?;
            return stream.close().await;
        };
        let stream = Watched::new(stream.compat(), self.limits.stall_window, &self.stop);
        let writer = SyncIoBridge::new(BufWriter::with_capacity(BLOB_BUFFER_BYTES, stream));
        let done = tokio::task::spawn_blocking(move || {
            let outcome = self.send(peer, &request, writer);
            drop((places, slot));
            outcome
        });
        done.await.map_err(io::Error::other)?
    }

    /// Whether the peer may have what it asks for, as far as its quotas go.
    fn within_quota(&self, peer: &PeerId, request: &Request) -> bool {
        let chunks = request.ranges.boundaries().chunks(2).map(|bounds| match bounds {
            [start, end] => end.0 - start.0,
            _ => 0,
        });
        // A chunk is a KiB.
        let kib = u32::try_from(chunks.sum::<u64>()).unwrap_or(u32::MAX);
        self.guard.count(peer, |counts| {
            counts.blob_requests += 1;
            counts.blob_bytes += u64::from(kib) << 10;
        });
        self.guard.spend(peer, Quota::BlobRequests, 1) && self.guard.spend(peer, Quota::BlobServedKib, kib)
    }

    fn slot(&self, peer: PeerId) -> Option<Slot> {
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        let mut of_peer = self.of_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let held = of_peer.entry(peer).or_default();
        if *held >= SERVED_PER_PEER_MAX {
            return None;
        }
        *held += 1;
        Some(Slot { _slot: slot, peer, of_peer: self.of_peer.clone() })
    }

    fn send<W>(&self, peer: PeerId, request: &Request, mut to: SyncIoBridge<W>) -> io::Result<()>
    where
        W: tokio::io::AsyncWrite + Unpin,
    {
        let hash = request.hash;
        let blob = match self.store.open_blob(hash) {
            Ok(blob) => blob,
            Err(StoreError::NotFound { .. }) => {
                to.write_all(&Answer::NotFound.to_bytes())?;
                return to.shutdown();
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        if !(&request.ranges - &all_chunks(blob.size)).is_empty() {
            to.write_all(&Answer::OutOfRange.to_bytes())?;
            return to.shutdown();
        }
        to.write_all(&Answer::Ranges { size: blob.size }.to_bytes())?;
        match blob.encode(&request.ranges, &mut to) {
            Ok(()) => {
                to.flush()?;
                to.shutdown()
            }
            Err(ServeError::Receiver { source }) => Err(source),
            Err(error @ ServeError::Damaged { .. }) => self.forget(peer, &blob, error),
        }
    }

    /// The receiver sees the stream end early and asks somebody else; the driver is told to fetch the blob again.
    fn forget(&self, peer: PeerId, blob: &StoredBlob, error: ServeError) -> io::Result<()> {
        tracing::warn!(hash = %blob.hash, %peer, %error, "a stored blob is damaged and is no longer served");
        self.store.demote_blob(blob.hash).map_err(io::Error::other)?;
        // Blocking: this is a blocking thread, and the event must not be lost.
        let _ = self.reports.blocking_send(Report::Damaged(blob.hash));
        Err(io::Error::other(error))
    }
}

/// A place among those served, freed when dropped.
struct Slot {
    _slot: OwnedSemaphorePermit,
    peer: PeerId,
    of_peer: Arc<Mutex<HashMap<PeerId, usize>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut of_peer = self.of_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = of_peer.get_mut(&self.peer) {
            *held -= 1;
            if *held == 0 {
                of_peer.remove(&self.peer);
            }
        }
    }
}
