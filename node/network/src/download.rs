//! One download: which range from which provider, until the blob is complete or every provider has failed.
//!
//! Ranges are asked for a few at a time from the least busy provider; what arrives verified is kept whatever happens
//! next, and the rest is asked from somebody else. A provider that lies is not asked again.

use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use mingle_protocol::hash::ContentHash;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::blob_frames::Request;
use super::guard::Offence;
use super::limits::{BUSY_DOUBLINGS, BUSY_MAX, BUSY_PAUSE, Limits, PROGRESS_INTERVAL, PROVIDERS_MAX, RANGES_AT_ONCE};
use super::range::{RangeError, fetch_range};
use super::service::Report;
use crate::store::{ChunkRanges, PartialBlob, Store, StoreError};

/// How often a provider whose connection or stream failed is tried again in one download.
const FAILURES_MAX: u32 = 4;
/// The pause after a provider's first failure; it doubles.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);
/// How often the last proof may find that our own disk changed bytes before we give up.
const REPAIRS_MAX: u32 = 3;

/// What every download shares.
#[derive(Clone)]
pub struct Context {
    pub store: Store,
    pub limits: Limits,
    pub reports: mpsc::Sender<Report>,
    pub connected: watch::Receiver<Vec<PeerId>>,
}

/// How a download ended.
pub enum Ended {
    Fetched,
    Failed(String),
    Cancelled,
}

struct Provider {
    peer: PeerId,
    /// Named by the driver; others are asked only when no named one can be.
    named: bool,
    active: usize,
    failures: u32,
    busy: u32,
    not_before: Instant,
    /// Why it is not asked again.
    out: Option<String>,
}

pub struct Download {
    context: Context,
    partial: Arc<PartialBlob>,
    stop: CancellationToken,
    providers: Vec<Provider>,
    running: JoinSet<(PeerId, ChunkRanges, Result<(), RangeError>)>,
    claimed: ChunkRanges,
    /// Who was asked last, for the progress report.
    asked: Option<PeerId>,
    repairs: u32,
}

/// Runs a download to its end; `more` brings further providers while it runs.
pub async fn run(
    context: Context,
    hash: ContentHash,
    size: u64,
    providers: Vec<PeerId>,
    mut more: mpsc::Receiver<PeerId>,
    stop: CancellationToken,
) -> Ended {
    let store = context.store.clone();
    let begun = blocking(move || match store.blob_size(hash)? {
        Some(found) if found == size => Ok(None),
        Some(found) => Err(StoreError::SizeMismatch { hash, found, asked: size }),
        None => store.begin_download(hash, size).map(Some),
    });
    let partial = match begun.await {
        Ok(Some(partial)) => Arc::new(partial),
        Ok(None) => return Ended::Fetched,
        Err(why) => return Ended::Failed(why),
    };
    let mut download = Download {
        context,
        partial,
        stop,
        providers: Vec::new(),
        running: JoinSet::new(),
        claimed: ChunkRanges::empty(),
        asked: None,
        repairs: 0,
    };
    providers.into_iter().for_each(|peer| download.add(peer, true));
    let ended = download.drive(&mut more).await;
    // The range tasks hold the partial blob: it is free for the next download only when they are gone.
    download.stop.cancel();
    while download.running.join_next().await.is_some() {}
    ended
}

impl Download {
    async fn drive(&mut self, more: &mut mpsc::Receiver<PeerId>) -> Ended {
        let mut progress = interval(PROGRESS_INTERVAL);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = 0;
        loop {
            self.start_ranges();
            let missing = self.partial.missing_ranges();
            if self.running.is_empty() {
                if missing.is_empty() {
                    match self.finish().await {
                        Some(ended) => return ended,
                        None => continue,
                    }
                }
                if self.providers.iter().all(|provider| provider.out.is_some()) {
                    return Ended::Failed(self.why_failed());
                }
            }
            let next = self.next_pause();
            tokio::select! {
                () = self.stop.cancelled() => return Ended::Cancelled,
                Some(done) = self.running.join_next() => match done {
                    Ok((peer, ranges, outcome)) => {
                        self.claimed -= ranges;
                        if let Some(ended) = self.settle(peer, outcome).await {
                            return ended;
                        }
                    }
                    Err(error) => return Ended::Failed(format!("a range task failed: {error}")),
                },
                Some(peer) = more.recv() => self.add(peer, true),
                () = sleep_until(next) => {}
                _ = progress.tick() => self.tell(&mut told),
            }
        }
    }

    fn add(&mut self, peer: PeerId, named: bool) {
        if let Some(known) = self.providers.iter_mut().find(|provider| provider.peer == peer) {
            known.named |= named;
        } else if self.providers.len() < PROVIDERS_MAX {
            self.providers.push(Provider { peer, named, active: 0, failures: 0, busy: 0, not_before: Instant::now(), out: None });
        }
    }

    /// Fills the places for ranges while somebody can be asked.
    fn start_ranges(&mut self) {
        while self.running.len() < RANGES_AT_ONCE {
            let unclaimed = &self.partial.missing_ranges() - &self.claimed;
            if unclaimed.is_empty() {
                return;
            }
            let Some(provider) = self.choose() else { return };
            let request = Request::first_of(self.partial.hash(), &unclaimed);
            self.claimed |= request.ranges.clone();
            self.asked = Some(provider);
            let (context, partial, stop) = (self.context.clone(), self.partial.clone(), self.stop.clone());
            self.running.spawn(async move {
                let ranges = request.ranges.clone();
                let outcome = fetch_range(&context, &partial, provider, request, &stop).await;
                (provider, ranges, outcome)
            });
        }
    }

    /// The least busy provider that may be asked now. Peers that nobody named are asked when every named one has work
    /// already: they may hold the blob by now, and one slow provider must not be all there is.
    fn choose(&mut self) -> Option<PeerId> {
        if !self.providers.iter().any(|provider| provider.named && provider.active == 0 && provider.ready()) {
            let connected = self.context.connected.borrow().clone();
            connected.into_iter().for_each(|peer| self.add(peer, false));
        }
        let ready = self.providers.iter_mut().filter(|provider| provider.ready());
        let chosen = ready.min_by_key(|provider| (provider.active, !provider.named, provider.failures))?;
        chosen.active += 1;
        Some(chosen.peer)
    }

    /// What one range's end means for its provider; `Some` when it ends the download.
    async fn settle(&mut self, peer: PeerId, outcome: Result<(), RangeError>) -> Option<Ended> {
        let provider = self.providers.iter_mut().find(|provider| provider.peer == peer)?;
        provider.active = provider.active.saturating_sub(1);
        let error = match outcome {
            Ok(()) => {
                (provider.failures, provider.busy) = (0, 0);
                return None;
            }
            Err(error) => error,
        };
        tracing::debug!(hash = %self.partial.hash(), %error, "a range could not be fetched");
        let why = error.to_string();
        match error {
            RangeError::Store(error) => return Some(Ended::Failed(error.to_string())),
            RangeError::Busy { .. } => {
                provider.not_before = Instant::now() + BUSY_PAUSE * (1 << provider.busy.min(BUSY_DOUBLINGS));
                provider.busy += 1;
                if provider.busy > BUSY_MAX {
                    provider.out = Some(why);
                }
            }
            RangeError::NotFound { .. } | RangeError::SizeMismatch { .. } | RangeError::Mismatch { .. } | RangeError::OutOfRange { .. } => {
                provider.out = Some(why);
                if let RangeError::Mismatch { .. } = error {
                    let _ = self.context.reports.send(Report::Misbehaved { peer, offence: Offence::BadProof }).await;
                }
            }
            RangeError::Connection { .. } | RangeError::Truncated { .. } | RangeError::Stalled { .. } => {
                provider.not_before = Instant::now() + FAILURE_PAUSE * (1 << provider.failures.min(FAILURES_MAX));
                provider.failures += 1;
                if provider.failures >= FAILURES_MAX {
                    provider.out = Some(why);
                }
                if let RangeError::Stalled { connection, .. } = error {
                    // The watchdog's second half: a connection that carries nothing blocks whoever shares it.
                    let _ = self.context.reports.send(Report::Close(connection)).await;
                }
            }
        }
        None
    }

    /// Proves and seals the blob; `None` when the disk changed bytes and they are fetched again.
    async fn finish(&mut self) -> Option<Ended> {
        let partial = self.partial.clone();
        let sealed = tokio::task::spawn_blocking(move || partial.finish()).await;
        match sealed {
            Ok(Ok(())) => Some(Ended::Fetched),
            Ok(Err(StoreError::Incomplete { .. })) if self.repairs < REPAIRS_MAX => {
                self.repairs += 1;
                None
            }
            Ok(Err(error)) => Some(Ended::Failed(error.to_string())),
            Err(error) => Some(Ended::Failed(format!("the last proof failed: {error}"))),
        }
    }

    fn next_pause(&self) -> Instant {
        let waiting = self.providers.iter().filter(|provider| provider.out.is_none());
        let next = waiting.map(|provider| provider.not_before).min();
        // Never in the past, or the loop would spin while every place is taken.
        next.unwrap_or_else(Instant::now).max(Instant::now() + PROGRESS_INTERVAL)
    }

    fn tell(&self, told: &mut u64) {
        let have = self.partial.have_bytes();
        if let (Some(from), true) = (self.asked, have != *told) {
            *told = have;
            let (hash, size) = (self.partial.hash(), self.partial.size());
            // Progress is not worth waiting for.
            let _ = self.context.reports.try_send(Report::Progress { hash, have, size, from });
        }
    }

    fn why_failed(&self) -> String {
        /// A sentence, not a log.
        const NAMED_MAX: usize = 4;
        let whys: Vec<&str> = self.providers.iter().filter_map(|provider| provider.out.as_deref()).collect();
        match whys.len() {
            0 => "no peer that could have it is connected".to_owned(),
            count if count <= NAMED_MAX => whys.join("; "),
            count => format!("{}; and {} more", whys.get(..NAMED_MAX).unwrap_or_default().join("; "), count - NAMED_MAX),
        }
    }
}

impl Provider {
    fn ready(&self) -> bool {
        self.out.is_none() && self.not_before <= Instant::now()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(error) => Err(format!("a disk task failed: {error}")),
    }
}
