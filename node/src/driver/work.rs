//! What a peer contributes to its round.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use mingle_protocol::adapter::Slice;
use mingle_protocol::machine::Quorum;
use mingle_protocol::record::{Privacy, SignedRecord};
use tokio::sync::mpsc;

use super::{Job, TrainingStatus};

/// The role of a peer that merges nothing.
pub(super) const SEED: &str = "seed";

/// What this peer contributes.
pub enum Work {
    /// Nothing: it may not announce.
    Read,
    /// Nothing, and it fetches no members' adapters: one merged file that enough members vouch for, or some layers of it.
    Believe(Quorum, Option<Slice>),
    /// Nothing: it keeps and serves what others announced, and merges none of it.
    Seed,
    /// Nothing new: it serves what it has announced before.
    Serve,
    /// That what it announced counts no more.
    Withdraw,
    /// What founders have decided, and then nothing: it ends when neighbours know it.
    Tell(Vec<SignedRecord>),
    /// An adapter made elsewhere.
    Publish(Prepared),
    /// An adapter to be trained now.
    Train(Training),
}

impl Work {
    pub(super) fn announces(&self) -> bool {
        !matches!(self, Self::Read | Self::Believe(..) | Self::Seed | Self::Tell(_))
    }

    pub(super) fn role(&self) -> &'static str {
        match self {
            Self::Read | Self::Believe(..) => "reader",
            Self::Seed => SEED,
            Self::Tell(_) => "founder",
            _ => "member",
        }
    }
}

/// What makes an adapter when it is called, on a thread of its own.
pub type Training = Box<dyn FnOnce(&TrainingDesk) -> Result<Prepared> + Send>;

/// An adapter file ready to be announced.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// `adapter_model.safetensors`.
    pub weights: PathBuf,
    pub examples: u64,
    /// Held-out loss before and after, in nats a token.
    pub losses: Option<(f64, f64)>,
    /// What its training promises for each of its examples.
    pub privacy: Option<Privacy>,
    pub seconds: f64,
}

/// A training's line to the loop.
pub struct TrainingDesk {
    stop: Arc<AtomicBool>,
    jobs: mpsc::Sender<Job>,
}

impl TrainingDesk {
    pub(super) fn new(stop: Arc<AtomicBool>, jobs: mpsc::Sender<Job>) -> Self {
        Self { stop, jobs }
    }

    /// Whether the training shall write a checkpoint and end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Progress is for looking at: when the loop is busy it is dropped.
    pub fn report(&self, status: TrainingStatus) {
        let _ = self.jobs.try_send(Job::Training(status));
    }
}
