//! A member's verdicts on others' adapters: when one is tried, and what is said of it.
//!
//! One adapter at a time, on a thread of its own that the loop never waits for; this member's own training goes first.
//! There is no queue: what is still to be judged follows from the ledger, so nothing is judged twice, over a restart too.
//! Members take turns, so that one that announces again and again does not keep the others waiting.
//!
//! The same thread scores what is merged, for people to look at, where this peer was asked to: the newest merge first, then
//! those it was too late for, of which so many wait; and for no longer than half of the time.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::machine::Input;
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{Record, RecordId, SEQUENCE_MAX, SignedRecord};
use mingle_protocol::verdict::Verdict;
use tokio::sync::mpsc;

use super::{Driver, Event, Job, Phase};
use crate::judge::{Bench, Judge, Tried};

/// Merges that wait to be scored; of more, the oldest are not.
const UNSCORED_MAX: usize = 32;

/// What is measured.
enum Trial {
    /// An adapter, beside what is merged.
    Adapter { merged: Vec<Admitted>, candidate: Admitted },
    /// What is merged, as it was written.
    Merge { receipt: Receipt, folder: PathBuf },
}

/// What a merge does to the data held out here, in nats a token.
pub(super) struct Scored {
    adapters: usize,
    set_root: ContentHash,
    loss: f64,
    base_loss: f64,
    examples: u64,
}

pub(super) struct Judging {
    jobs: mpsc::Sender<Job>,
    /// What it judges by, until the first trial takes it.
    judge: Option<Judge>,
    trials: Option<SyncSender<Trial>>,
    busy: bool,
    /// Whose adapter was tried last.
    last: Option<MemberKey>,
    /// Whether merges are scored, which are to be, the newest last, and when the next may be.
    scores: bool,
    unscored: VecDeque<(Receipt, PathBuf)>,
    score_from: Instant,
    score_began: Instant,
    /// Announcements that could not be tried, or to which there is no more to be said.
    passed_over: BTreeSet<RecordId>,
}

impl Judging {
    pub fn new(judge: Option<Judge>, jobs: mpsc::Sender<Job>) -> Self {
        let (scores, now) = (judge.as_ref().is_some_and(|judge| judge.scores), Instant::now());
        let (score_from, score_began, passed_over) = (now, now, BTreeSet::new());
        Self { jobs, judge, trials: None, busy: false, last: None, scores, unscored: VecDeque::new(), score_from, score_began, passed_over }
    }

    /// There is a new merge.
    pub fn merged(&mut self, receipt: &Receipt, folder: &Path) {
        if self.scores {
            self.unscored.push_back((receipt.clone(), folder.to_owned()));
            let old = self.unscored.len().saturating_sub(UNSCORED_MAX);
            self.unscored.drain(..old);
        }
    }
}

impl<F: FnMut(&Event)> Driver<F> {
    /// Begins to try the next adapter that this member has not judged, if it judges and nothing else is to be done.
    pub(super) fn judge(&mut self) -> Result<()> {
        let able = self.judging.judge.is_some() || self.judging.trials.is_some();
        let idle = !self.judging.busy && self.phase != Phase::Training;
        if !able || !idle {
            return Ok(());
        }
        let asked = self.machine.round().manifest().verdicts.is_some() && self.is_member();
        let candidate = if asked { self.next_to_judge()? } else { None };
        let trial = match candidate {
            Some(candidate) => {
                self.judging.last = Some(candidate.member);
                Some(Trial::Adapter { merged: self.machine.merge_set().to_vec(), candidate })
            }
            None => self.next_to_score(),
        };
        let Some(trial) = trial else { return Ok(()) };
        if self.judging.trials.is_none() {
            self.open_bench()?;
        }
        // The thread is gone only after it said why.
        self.judging.busy = self.judging.trials.as_ref().is_some_and(|trials| trials.try_send(trial).is_ok());
        Ok(())
    }

    /// An adapter of another member that is here and has no verdict of this member; of several, the next in turn.
    fn next_to_judge(&self) -> Result<Option<Admitted>> {
        let (own, ledger) = (self.key.member(), self.machine.ledger());
        let judged = |entry: &Admitted| ledger.verdict(&own, &entry.member).is_some_and(|said| said.announcement == entry.record);
        let open = |entry: &Admitted| entry.member != own && !judged(entry) && !self.judging.passed_over.contains(&entry.record);
        let mut open: Vec<Admitted> = ledger.candidates().filter(open).collect();
        let turn = open.iter().position(|entry| Some(entry.member) > self.judging.last).unwrap_or(0);
        open.rotate_left(turn);
        for entry in open {
            if self.store.blob_size(entry.adapter)? == Some(entry.size) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The newest merge that was not scored, unless it is too soon.
    fn next_to_score(&mut self) -> Option<Trial> {
        let now = Instant::now();
        if now < self.judging.score_from {
            return None;
        }
        self.judging.score_began = now;
        let (receipt, folder) = self.judging.unscored.pop_back()?;
        Some(Trial::Merge { receipt, folder })
    }

    pub(super) fn scored(&mut self, scored: Result<Scored>) {
        self.judging.busy = false;
        let now = Instant::now();
        self.judging.score_from = now + now.duration_since(self.judging.score_began);
        match scored {
            Ok(Scored { adapters, set_root, loss, base_loss, examples }) => {
                (self.observe)(&Event::Scored { adapters, set_root, loss, base_loss, examples });
            }
            // An adapter of it is gone, and the merge with it; the one that is there now has its turn.
            Err(error) => tracing::debug!(error = format!("{error:#}"), "a merge could not be scored"),
        }
    }

    /// Starts the thread that loads base and data once and then tries what it is given.
    fn open_bench(&mut self) -> Result<()> {
        let Some(judge) = self.judging.judge.take() else { return Ok(()) };
        // The loop sends only when the last trial is done.
        let (trials, given) = sync_channel::<Trial>(1);
        let (round, store, folder) = (self.machine.round().clone(), self.store.clone(), self.home.judging());
        let jobs = self.judging.jobs.clone();
        let told = jobs.clone();
        let run = move || {
            let mut bench = match Bench::open(judge, round, store, folder) {
                Ok(bench) => bench,
                Err(error) => {
                    let _ = jobs.blocking_send(Job::Unable(error.context("this member cannot judge others' adapters")));
                    return;
                }
            };
            while let Ok(trial) = given.recv() {
                let job = match trial {
                    Trial::Adapter { merged, candidate } => {
                        let tried = bench.measure(&merged, &candidate);
                        Job::Tried(candidate, tried)
                    }
                    Trial::Merge { receipt, folder } => {
                        let (adapters, set_root, examples) = (receipt.admitted.len(), receipt.set_root, bench.examples());
                        let measured = bench.score(&receipt, &folder);
                        Job::Scored(measured.map(|(loss, base_loss)| Scored { adapters, set_root, loss, base_loss, examples }))
                    }
                };
                if jobs.blocking_send(job).is_err() {
                    return;
                }
            }
        };
        let guarded = move || {
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                let why = "judging panicked; what it printed before says where";
                let _ = told.blocking_send(Job::Unable(anyhow::anyhow!(why)));
            }
        };
        std::thread::Builder::new().name("judging".into()).stack_size(64 << 20).spawn(guarded)?;
        self.judging.trials = Some(trials);
        Ok(())
    }

    pub(super) fn unable_to_judge(&mut self, why: &anyhow::Error) {
        self.judging.trials = None;
        self.judging.busy = false;
        (self.observe)(&Event::Trouble { why: format!("{why:#}") });
    }

    /// Signs what a trial found and tells it.
    pub(super) fn tried(&mut self, candidate: &Admitted, tried: Result<Tried>) -> Result<()> {
        self.judging.busy = false;
        let measured = match tried {
            Ok(Tried::Measured(measured)) => measured,
            // What is lost is fetched again and has another turn.
            Ok(Tried::Unusable(unusable)) => return self.unusable(unusable),
            Err(error) => {
                self.judging.passed_over.insert(candidate.record);
                let (adapter, member) = (candidate.adapter.short(), candidate.member.short());
                let why = format!("adapter {adapter} of member {member} could not be tried: {error:#}");
                (self.observe)(&Event::Trouble { why });
                return Ok(());
            }
        };
        let (ledger, member, subject) = (self.machine.ledger(), self.key.member(), candidate.member);
        let sequence = ledger.verdict(&member, &subject).map_or(0, |said| said.sequence) + 1;
        // It may have been superseded meanwhile.
        if !self.is_member() || sequence > SEQUENCE_MAX || !ledger.candidates().any(|entry| entry == *candidate) {
            self.judging.passed_over.insert(candidate.record);
            return Ok(());
        }
        let round = self.machine.round().clone();
        let (announcement, approves, losses, examples) = (candidate.record, measured.approves, measured.losses, measured.examples);
        let verdict = Verdict { round: round.id(), member, subject, announcement, sequence, approves, losses, examples };
        let record = SignedRecord::sign(&Record::Verdict(verdict), &self.key, &round).context("cannot sign a verdict")?;
        self.handle(Input::Publish(record))?;
        self.write_status();
        Ok(())
    }
}
