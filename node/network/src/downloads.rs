//! The downloads of one peer: a few run, the others wait their turn, each hash at most once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use libp2p::PeerId;
use mingle_protocol::hash::ContentHash;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::download;
use super::head::HeadCheck;
use super::limits::{DOWNLOADS_MAX, DOWNLOADS_WAITING_MAX, Limits, PROVIDERS_MAX};
use super::service::Report;
use super::store::Store;
use super::transfers::Board;
use super::window::Window;

/// What every download shares.
#[derive(Clone)]
pub struct Context {
    pub store: Store,
    pub limits: Limits,
    pub reports: mpsc::Sender<Report>,
    pub connected: watch::Receiver<Vec<PeerId>>,
    /// A place for each block that may be in memory on its way to the disk.
    pub buffers: Arc<Semaphore>,
    pub board: Board,
    pub window: Window,
}

/// What is to be fetched.
pub struct Wanted {
    pub hash: ContentHash,
    pub size: u64,
    pub providers: Vec<PeerId>,
    pub head: Option<Arc<dyn HeadCheck>>,
}

/// A peer that may have the blob, and whether the driver named it.
pub type Hint = (PeerId, bool);

/// How a download ended.
pub enum Ended {
    Fetched,
    /// All that its judge wanted of it.
    Part,
    Failed(String),
    /// By its first bytes.
    Refused(String),
    Cancelled,
}

struct Running {
    stop: CancellationToken,
    more: mpsc::Sender<Hint>,
    /// Asked for again after it was cancelled: begins when the old one has let go of its files.
    again: Option<Wanted>,
}

pub struct Downloads {
    context: Context,
    stop: CancellationToken,
    running: HashMap<ContentHash, Running>,
    waiting: VecDeque<Wanted>,
}

impl Downloads {
    pub fn new(context: Context, stop: CancellationToken) -> Self {
        Self { context, stop, running: HashMap::new(), waiting: VecDeque::new() }
    }

    /// Begins, queues, or adds providers. `Err` when too many wait already.
    pub fn fetch(&mut self, mut wanted: Wanted, tasks: &mut JoinSet<()>) -> Result<(), String> {
        wanted.providers.truncate(PROVIDERS_MAX);
        let hash = wanted.hash;
        if let Some(running) = self.running.get_mut(&hash) {
            if running.stop.is_cancelled() {
                running.again = Some(wanted);
            } else {
                // Full means that it has plenty of providers to try.
                for peer in wanted.providers {
                    let _ = running.more.try_send((peer, true));
                }
            }
        } else if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.hash == hash) {
            waiting.providers.extend(wanted.providers);
            waiting.providers.truncate(PROVIDERS_MAX);
        } else if self.waiting.len() >= DOWNLOADS_WAITING_MAX {
            return Err(format!("{DOWNLOADS_WAITING_MAX} blobs wait to be fetched already"));
        } else {
            self.waiting.push_back(wanted);
        }
        self.start(tasks);
        Ok(())
    }

    /// A peer that asks us for a blob that we fetch: what it has of it, we may lack.
    pub fn interest(&mut self, hash: ContentHash, peer: PeerId) {
        if let Some(running) = self.running.get_mut(&hash) {
            let _ = running.more.try_send((peer, false));
        }
    }

    pub fn cancel(&mut self, hash: ContentHash) {
        self.waiting.retain(|waiting| waiting.hash != hash);
        if let Some(running) = self.running.get_mut(&hash) {
            running.stop.cancel();
            running.again = None;
        }
    }

    /// A download has let go of its files: the next one may begin.
    pub fn ended(&mut self, hash: ContentHash, tasks: &mut JoinSet<()>) {
        if let Some(running) = self.running.remove(&hash) {
            self.waiting.extend(running.again);
        }
        self.start(tasks);
    }

    fn start(&mut self, tasks: &mut JoinSet<()>) {
        while self.running.len() < DOWNLOADS_MAX {
            let Some(wanted) = self.waiting.pop_front() else { return };
            let hash = wanted.hash;
            let stop = self.stop.child_token();
            let (more, receiver) = mpsc::channel(PROVIDERS_MAX);
            self.running.insert(hash, Running { stop: stop.clone(), more, again: None });
            let context = self.context.clone();
            tasks.spawn(async move {
                let reports = context.reports.clone();
                // A task of its own: whatever happens in it, its place among the running is freed.
                let running = tokio::spawn(download::run(context, wanted, receiver, stop));
                let ended = running.await.unwrap_or_else(|error| Ended::Failed(format!("the download failed: {error}")));
                // The service is gone only when nobody waits for the news.
                let _ = reports.send(Report::Ended { hash, ended }).await;
            });
        }
    }
}

impl Ended {
    /// What the driver hears of it.
    pub fn event(self, hash: ContentHash) -> Option<super::NetworkEvent> {
        match self {
            Self::Fetched => Some(super::NetworkEvent::BlobFetched { hash }),
            Self::Part => Some(super::NetworkEvent::BlobPart { hash }),
            Self::Failed(why) => Some(super::NetworkEvent::BlobFailed { hash, why }),
            Self::Refused(why) => Some(super::NetworkEvent::BlobRefused { hash, why }),
            Self::Cancelled => None,
        }
    }
}
