//! What a peer contributes to its round, and when its run ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use mingle_protocol::receipt::Receipt;
use tokio::sync::mpsc;

use super::{Job, TrainingStatus};

/// The role of a peer that merges nothing.
pub(super) const SEED: &str = "seed";

/// What this peer contributes.
pub enum Work {
    /// Nothing: it may not announce.
    Read,
    /// Nothing: it keeps and serves what others announced, and merges none of it.
    Seed,
    /// Nothing new: it serves what it has announced before.
    Serve,
    /// That what it announced counts no more.
    Withdraw,
    /// An adapter made elsewhere.
    Publish(Prepared),
    /// An adapter to be trained now.
    Train(Training),
}

impl Work {
    pub(super) fn announces(&self) -> bool {
        !matches!(self, Self::Read | Self::Seed)
    }

    pub(super) fn role(&self) -> &'static str {
        match self {
            Self::Read => "reader",
            Self::Seed => SEED,
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

/// When a run ends by itself. Without a goal it runs until it is stopped.
#[derive(Clone, Debug, Default)]
pub struct Goal {
    /// As soon as the merged adapter holds this many and all that neighbours hand over.
    pub adapters: Option<usize>,
    /// At the latest after this.
    pub deadline: Option<Duration>,
    /// As soon as this member's own work is done and all that is in its home is merged.
    pub offline: bool,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub merged: Option<(Receipt, PathBuf)>,
    /// Whether the goal was reached, rather than the deadline or a signal.
    pub reached: bool,
    /// Whether this member stands withdrawn.
    pub withdrawn: bool,
}
