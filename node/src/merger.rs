//! Keeps the merge in step with the ledger, and writes it where people use it.
//!
//! Where the round's rule has running sums, each adapter that comes moves them by itself alone; one that goes is taken out
//! exactly, or where a rule cannot, the sums are made anew. Other rules are made anew from all files for every set. Files are
//! read in bounded pieces, twice: once to check every byte against its hash and every value against the round, once to merge.
//! A file that changed on disk since it was fetched is found by its hash and reported as lost.

mod checked;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::merge::{Accumulator, Direction, Made, MergeError, MergeRule, Plan};
use mingle_protocol::round::Round;

use crate::store::{Store, StoreError};
pub use checked::{CheckedAdapter, FoldError, Source, hash_of, merge_files};

/// What a step of the merger could not use.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    Refused { adapter: ContentHash, why: String },
    Lost { adapter: ContentHash },
}

/// The merge and what is in it.
pub struct Merger {
    round: Round,
    store: Store,
    plan: Plan,
    /// Where the rule has them.
    running: Option<Accumulator>,
    held: BTreeMap<MemberKey, Held>,
}

struct Held {
    entry: Admitted,
    source: Source,
}

impl Merger {
    /// A merge of nothing; for the mean eight bytes for each element of the round's adapter.
    pub fn new(round: Round, store: Store) -> Self {
        let plan = Plan::of(&round);
        let running = running(&plan);
        Self { round, store, plan, running, held: BTreeMap::new() }
    }

    /// What is in the merge, in order of the members' keys.
    pub fn held(&self) -> impl Iterator<Item = &Admitted> {
        self.held.values().map(|held| &held.entry)
    }

    /// Whether the rule can merge what is there.
    ///
    /// # Errors
    /// Nothing is there, or too little.
    pub fn check_enough(&self) -> Result<(), MergeError> {
        self.plan.check_enough(self.held.len() as u64)
    }

    /// Writes the merged file in pieces.
    ///
    /// # Errors
    /// Too few adapters, files that cannot be read any more, or the first error of `sink`.
    pub fn write<E: From<MergeError>>(&self, sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<Made, E> {
        let sources = || self.held.values().map(|held| &held.source);
        let Some(running) = &self.running else { return merge_files(&self.plan, sources(), sink) };
        running.finalise_to(self.round.merged(), sink)?;
        Ok(Made { tensors: self.round.merged().tensors().clone(), account: checked::account(sources()) })
    }

    /// Moves the merge to exactly `whole` minus what is unusable, one adapter at a time.
    ///
    /// # Errors
    /// Trouble of this machine alone (disk, memory). The merge is then started anew by the next step.
    pub fn step(&mut self, whole: &[Admitted]) -> Result<Vec<Unusable>> {
        let target: BTreeMap<MemberKey, &Admitted> = whole.iter().map(|entry| (entry.member, entry)).collect();
        let leaving: Vec<Admitted> = self.held().filter(|held| target.get(&held.member) != Some(held)).cloned().collect();
        for entry in leaving {
            if self.plan.rule() != MergeRule::Mean && self.running.is_some() {
                self.restart();
                break;
            }
            if let Err(error) = self.retract(&entry) {
                // What cannot be read any more cannot be subtracted; what remains can be added up again.
                tracing::warn!(%error, adapter = %entry.adapter, "taking out an adapter by starting the merge anew");
                self.restart();
                break;
            }
            self.held.remove(&entry.member);
        }
        let mut unusable = Vec::new();
        for (member, entry) in target {
            // What is merged anew is checked anew: it may have lain here for days.
            if self.held.remove(&member).filter(|_| self.running.is_some()).map(|held| self.held.insert(member, held)).is_some() {
                continue;
            }
            match self.add(entry) {
                Ok(source) => _ = self.held.insert(member, Held { entry: entry.clone(), source }),
                Err(FoldError::Refused(error)) => unusable.push(Unusable::Refused { adapter: entry.adapter, why: error.to_string() }),
                Err(FoldError::Lost { adapter }) => unusable.push(Unusable::Lost { adapter }),
                Err(FoldError::Changed { adapter }) => {
                    // The sums are spoilt: begin anew, without a file that changes under our hands.
                    self.restart();
                    self.store.demote_blob(adapter)?;
                    return self.step(whole);
                }
                Err(error) => {
                    self.restart();
                    return Err(error).with_context(|| format!("cannot merge adapter {}", entry.adapter));
                }
            }
        }
        Ok(unusable)
    }

    fn restart(&mut self) {
        self.running = running(&self.plan);
        self.held.clear();
    }

    fn add(&mut self, entry: &Admitted) -> Result<Source, FoldError> {
        let mut checked = self.open(entry)?;
        let path = self.store.blob_path(entry.adapter);
        let source = Source::of(&self.plan, self.plan.updates(), &checked, entry.member, entry.weight, &path)?;
        if let Some(running) = &mut self.running {
            checked.fold(running, source.clip, entry.weight, Direction::Add)?;
        }
        Ok(source)
    }

    fn retract(&mut self, entry: &Admitted) -> Result<(), FoldError> {
        let Some(clip) = self.held.get(&entry.member).map(|held| held.source.clip) else { return Ok(()) };
        if self.running.is_none() {
            return Ok(());
        }
        let mut checked = self.open(entry)?;
        let Some(running) = &mut self.running else { return Ok(()) };
        checked.fold(running, clip, entry.weight, Direction::Retract)
    }

    /// The adapter's file as it was announced, every byte of it.
    fn open(&self, entry: &Admitted) -> Result<CheckedAdapter, FoldError> {
        let lost = || FoldError::Lost { adapter: entry.adapter };
        let blob = match self.store.open_blob(entry.adapter) {
            Ok(blob) => blob,
            Err(StoreError::NotFound { .. } | StoreError::Damaged { .. }) => return Err(lost()),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return self.demote(entry.adapter),
            Err(error) => return Err(FoldError::Store(error)),
        };
        match CheckedAdapter::read(blob.data, self.round.tensors()) {
            Ok(checked) if checked.hash != entry.adapter => self.demote(entry.adapter),
            Ok(checked) => Ok(checked),
            // Bytes that are wrong may be wrong because they changed here: only the announced bytes can be refused.
            Err(FoldError::Refused(error)) if hash_of(&self.store.blob_path(entry.adapter))? == entry.adapter => Err(error.into()),
            Err(FoldError::Refused(_)) => self.demote(entry.adapter),
            Err(error) => Err(error),
        }
    }

    fn demote(&self, adapter: ContentHash) -> Result<CheckedAdapter, FoldError> {
        self.store.demote_blob(adapter).map_err(FoldError::Store)?;
        Err(FoldError::Lost { adapter })
    }
}

fn running(plan: &Plan) -> Option<Accumulator> {
    plan.rule().runs().then(|| Accumulator::of(plan))
}
