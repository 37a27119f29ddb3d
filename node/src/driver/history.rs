//! What a peer remembers of its way, for looking at: the losses of its training, its merges with what they scored on data
//! held out here, and what happened lately.
//!
//! It follows from the events alone and decides nothing. Every list has a bound: a curve that grows too long is thinned out
//! evenly, and of what happened the oldest goes. Kept as `history.json` beside the status, so that a curve survives a restart.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mingle_protocol::hash::ContentHash;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::{Event, TrainingStatus};
use super::status::unix_ms;
use crate::files;

/// Points of a curve; more are not seen on a screen.
const POINTS_MAX: usize = 512;
/// Merges that are remembered.
const MERGES_MAX: usize = 256;
/// Of what happened, the newest.
const HAPPENED_MAX: usize = 64;
/// Letters of a sentence about what happened: a peer may have chosen part of it.
const TEXT_MAX: usize = 400;
/// It is written no more often than this.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// What `history.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct History {
    /// Losses of training steps, evenly thinned out.
    pub training: Vec<LossPoint>,
    /// Losses on held-out data during the training, where they are measured.
    pub held_out: Vec<LossPoint>,
    /// How the training ended.
    pub trained: Option<TrainedPoint>,
    /// Every merge, the oldest first.
    pub merges: Vec<MergePoint>,
    /// Loss of the base alone on the data by which merges are scored, in nats a token.
    pub base_loss: Option<f64>,
    /// What happened lately, the newest last.
    pub happened: Vec<Happening>,
    /// Of so many training steps one is kept.
    #[serde(skip)]
    stride: u64,
}

/// A loss after a training step, in nats a labelled token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LossPoint {
    pub step: u64,
    pub loss: f64,
}

/// A finished training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrainedPoint {
    pub examples: u64,
    /// Loss on held-out data before and after, in nats a token, where there is any.
    pub loss_before: Option<f64>,
    pub loss_after: Option<f64>,
    pub seconds: f64,
}

/// One merge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MergePoint {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    pub adapters: usize,
    #[schema(value_type = String)]
    pub merged_hash: ContentHash,
    #[schema(value_type = String)]
    pub set_root: ContentHash,
    /// On data held out here, in nats a token, where it was measured.
    pub loss: Option<f64>,
}

/// Something that happened, as a sentence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Happening {
    /// Milliseconds since 1970, of the last time.
    pub unix_ms: u64,
    /// Whether somebody should look at it.
    pub warning: bool,
    pub text: String,
    /// How often in a row.
    pub times: u32,
}

impl History {
    /// Whether it remembers anything of this: what comes and goes all the time is seen in the status.
    fn keeps(event: &Event) -> bool {
        let fleeting = matches!(
            event,
            Event::Fetching { .. }
                | Event::Listening { .. }
                | Event::Connected { .. }
                | Event::Disconnected { .. }
                | Event::Relayed { .. }
                | Event::Direct { .. }
                | Event::Reachability { .. }
        );
        !fleeting
    }

    fn record(&mut self, event: &Event) {
        match event {
            Event::Training(status) => return self.step(status),
            Event::Trained { examples, loss_before, loss_after, seconds } => {
                let (loss_before, loss_after) = (finite(*loss_before), finite(*loss_after));
                self.trained = Some(TrainedPoint { examples: *examples, loss_before, loss_after, seconds: *seconds });
            }
            Event::Merged { adapters, merged_hash, set_root, .. } | Event::Believed { adapters, merged_hash, set_root, .. } => {
                self.merge(*adapters, *merged_hash, *set_root);
            }
            Event::Scored { set_root, loss, base_loss, .. } => {
                self.base_loss = finite(Some(*base_loss));
                if let Some(merge) = self.merges.iter_mut().rev().find(|merge| merge.set_root == *set_root) {
                    merge.loss = finite(Some(*loss));
                }
            }
            _ => {}
        }
        self.happen(event);
    }

    fn step(&mut self, status: &TrainingStatus) {
        // A training that goes on from a checkpoint does some steps again.
        self.training.retain(|point| point.step < status.step);
        self.held_out.retain(|point| point.step < status.step);
        let (step, stride) = (status.step, self.stride.max(1));
        if status.loss.is_finite() && (step.saturating_sub(1).is_multiple_of(stride) || step == status.steps) {
            self.training.push(LossPoint { step, loss: status.loss });
        }
        if let Some(loss) = finite(status.held_out_loss) {
            self.held_out.push(LossPoint { step, loss });
        }
        if self.training.len() > POINTS_MAX {
            self.stride = stride * 2;
            let stride = self.stride;
            self.training.retain(|point| point.step.saturating_sub(1).is_multiple_of(stride));
            // Read back from a file it may have been thinned out in another way.
            thin_out(&mut self.training, POINTS_MAX);
        }
        thin_out(&mut self.held_out, POINTS_MAX);
    }

    fn merge(&mut self, adapters: usize, merged_hash: ContentHash, set_root: ContentHash) {
        // After a restart the same set is merged once more.
        if self.merges.last().is_some_and(|last| last.set_root == set_root) {
            return;
        }
        self.merges.push(MergePoint { unix_ms: now(), adapters, merged_hash, set_root, loss: None });
        thin_out(&mut self.merges, MERGES_MAX);
    }

    fn happen(&mut self, event: &Event) {
        let warning = matches!(
            event,
            Event::Trouble { .. }
                | Event::Conflict { .. }
                | Event::AdapterRefused { .. }
                | Event::RecordRefused { .. }
                | Event::Fault { .. }
        );
        let text: String = event.to_string().chars().take(TEXT_MAX).collect();
        match self.happened.last_mut().filter(|last| last.text == text) {
            Some(last) => (last.unix_ms, last.times) = (now(), last.times.saturating_add(1)),
            None => self.happened.push(Happening { unix_ms: now(), warning, text, times: 1 }),
        }
        let old = self.happened.len().saturating_sub(HAPPENED_MAX);
        self.happened.drain(..old);
    }
}

/// Every other one goes, but not the last, until no more than `most` are left.
fn thin_out<T>(points: &mut Vec<T>, most: usize) {
    while points.len() > most {
        let last = points.len() - 1;
        let mut index = 0;
        points.retain(|_| {
            index += 1;
            (index - 1) % 2 == 0 || index - 1 == last
        });
    }
}

fn finite(loss: Option<f64>) -> Option<f64> {
    loss.filter(|loss| loss.is_finite())
}

fn now() -> u64 {
    u64::try_from(unix_ms()).unwrap_or(u64::MAX)
}

/// Writes the history along: what the loop's events go through.
#[derive(Clone)]
pub(super) struct Chronicle(Arc<Mutex<Kept>>);

struct Kept {
    history: Arc<History>,
    path: PathBuf,
    unwritten: bool,
    written: Option<Instant>,
}

impl Chronicle {
    /// Goes on from what the file holds, if it can be read.
    pub fn open(path: PathBuf) -> Self {
        let read = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self(Arc::new(Mutex::new(Kept { history: Arc::new(read.unwrap_or_default()), path, unwritten: false, written: None })))
    }

    pub fn record(&self, event: &Event) {
        if !History::keeps(event) {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Copied only while somebody looks at what was before.
        Arc::make_mut(&mut kept.history).record(event);
        kept.unwritten = true;
    }

    /// The history now; written if there is something new and it is time for it, or the last chance.
    pub fn keep(&self, last: bool) -> Arc<History> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last || kept.written.is_none_or(|written| written.elapsed() >= WRITE_EVERY);
        if kept.unwritten && due {
            (kept.unwritten, kept.written) = (false, Some(Instant::now()));
            let written = serde_json::to_vec(&*kept.history).map_err(anyhow::Error::from);
            // As with the status: a full disk must not stop the peer for its sake.
            if let Err(error) = written.and_then(|text| files::write_volatile(&kept.path, &text)) {
                tracing::warn!(%error, "cannot write the history");
            }
        }
        kept.history.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, steps: u64) -> Event {
        Event::Training(TrainingStatus {
            step,
            steps,
            epoch: 1,
            epochs: 1,
            loss: 1.0 / step as f64,
            tokens_per_second: 1.0,
            seconds_left: 0.0,
            learning_rate: 0.0,
            gradient_norm: 0.0,
            resident_bytes: None,
            peak_bytes: None,
            held_out_loss: step.is_multiple_of(10).then_some(2.0),
        })
    }

    fn merged(adapters: usize) -> Event {
        let hash = ContentHash([adapters as u8; 32]);
        Event::Merged { adapters, weight: 1, merged_hash: hash, set_root: hash, folder: PathBuf::new() }
    }

    #[test]
    fn a_curve_is_bounded_and_keeps_its_ends() {
        let mut history = History::default();
        (1..=10_000).for_each(|number| history.record(&step(number, 10_000)));
        assert!((POINTS_MAX / 3..=POINTS_MAX).contains(&history.training.len()), "{}", history.training.len());
        assert!(history.held_out.len() <= POINTS_MAX);
        assert_eq!((history.training[0].step, history.training.last().map(|point| point.step)), (1, Some(10_000)));
        assert!(history.training.is_sorted_by_key(|point| point.step));
        // It was killed, and goes on from a checkpoint.
        history.record(&step(5_000, 10_000));
        assert!(history.training.iter().chain(&history.held_out).all(|point| point.step <= 5_000));
    }

    #[test]
    fn a_score_finds_its_merge_and_a_merge_is_told_once() {
        let mut history = History::default();
        [1, 2, 2].into_iter().for_each(|adapters| history.record(&merged(adapters)));
        let scored = |adapters: usize, loss| Event::Scored {
            adapters,
            set_root: ContentHash([adapters as u8; 32]),
            loss,
            base_loss: 3.0,
            examples: 9,
        };
        history.record(&scored(1, 2.5));
        history.record(&scored(2, f64::NAN));
        assert_eq!(history.merges.iter().map(|merge| (merge.adapters, merge.loss)).collect::<Vec<_>>(), [(1, Some(2.5)), (2, None)]);
        assert_eq!(history.base_loss, Some(3.0));
        (0..1_000).for_each(|number| history.record(&merged(number)));
        assert!(history.merges.len() <= MERGES_MAX && history.happened.len() <= HAPPENED_MAX);
        assert_eq!(history.merges.last().map(|merge| merge.adapters), Some(999));
    }

    #[test]
    fn what_a_peer_makes_happen_again_and_again_is_one_short_line() {
        let mut history = History::default();
        let trouble = Event::Trouble { why: "x".repeat(10_000) };
        (0..100).for_each(|_| history.record(&trouble));
        assert_eq!(history.happened.len(), 1);
        assert_eq!((history.happened[0].times, history.happened[0].text.len()), (100, TEXT_MAX));
        assert!(history.happened[0].warning);
    }

    #[test]
    fn it_goes_on_where_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.json");
        let chronicle = Chronicle::open(path.clone());
        (1..=3).for_each(|number| chronicle.record(&step(number, 9)));
        let kept = chronicle.keep(true);
        assert_eq!(kept.training.len(), 3);
        assert_eq!(*Chronicle::open(path.clone()).keep(false), *kept);
        std::fs::write(&path, "not JSON").expect("a file");
        assert_eq!(*Chronicle::open(path).keep(false), History::default());
    }
}
