//! The part of the ledger that says who belongs: one change a key, the strongest it was shown.
//!
//! A higher sequence is stronger; at one sequence the more restrictive standing, so that founders who contradict each
//! other lock out rather than let in; then the lesser identity. Of more keys than a peer keeps, those with the least keys
//! stay. Both are functions of the set of records shown, so joining stays commutative, associative and idempotent.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Change;
use crate::identity::MemberKey;
use crate::record::{RecordId, SignedRecord};
use crate::standing::{STANDINGS_MAX, Standing, StandingChange};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standings {
    max: usize,
    held: BTreeMap<MemberKey, Held>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    sequence: u64,
    becomes: Standing,
    record: SignedRecord,
}

impl Held {
    fn strength(&self) -> (u64, Reverse<Standing>, Reverse<RecordId>) {
        (self.sequence, Reverse(self.becomes), Reverse(self.record.id()))
    }
}

/// What a change did, and whose change had to go for it.
pub(super) struct Inserted {
    pub change: Change,
    pub evicted: Option<MemberKey>,
}

impl From<Change> for Inserted {
    fn from(change: Change) -> Self {
        Self { change, evicted: None }
    }
}

impl Default for Standings {
    fn default() -> Self {
        Self { max: STANDINGS_MAX, held: BTreeMap::new() }
    }
}

impl Standings {
    #[cfg(test)]
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    pub(super) fn get(&self, key: &MemberKey) -> Option<Standing> {
        self.held.get(key).map(|held| held.becomes)
    }

    pub(super) fn sequence(&self, key: &MemberKey) -> u64 {
        self.held.get(key).map_or(0, |held| held.sequence)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (MemberKey, Standing)> + '_ {
        self.held.iter().map(|(key, held)| (*key, held.becomes))
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &SignedRecord> {
        self.held.values().map(|held| &held.record)
    }

    /// `said` is what `record` says.
    pub(super) fn insert(&mut self, said: &StandingChange, record: SignedRecord) -> Inserted {
        let new = Held { sequence: said.sequence, becomes: said.becomes, record };
        if let Some(held) = self.held.get_mut(&said.subject) {
            return if new.sequence < held.sequence {
                Change::Stale { held: held.sequence }.into()
            } else if new.record.id() == held.record.id() {
                Change::Known.into()
            } else if new.strength() < held.strength() {
                Change::Redundant.into()
            } else {
                let displaced = vec![held.record.id()];
                *held = new;
                Change::Kept { displaced }.into()
            };
        }
        let (mut displaced, mut evicted) = (Vec::new(), None);
        if self.held.len() >= self.max {
            match self.held.last_entry() {
                Some(greatest) if *greatest.key() > said.subject => {
                    let (key, gone) = greatest.remove_entry();
                    displaced.push(gone.record.id());
                    evicted = Some(key);
                }
                _ => return Change::Full.into(),
            }
        }
        self.held.insert(said.subject, new);
        Inserted { change: Change::Kept { displaced }, evicted }
    }
}
