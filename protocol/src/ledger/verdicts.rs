//! The part of the ledger that says what members found out about each other's adapters: one verdict of each judge on each
//! member, the strongest it was shown.
//!
//! A higher sequence is stronger; at one sequence the verdict that does not approve, so that a judge who says both lets
//! nothing in; then the lesser identity. Of more pairs than a peer keeps, those with the least keys stay, the subject's
//! before the judge's. All that is a function of the set of verdicts shown, so joining stays commutative, associative and
//! idempotent. A verdict is kept whatever announcement it names and counts only on that one.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Change;
use crate::identity::MemberKey;
use crate::record::{RecordId, SignedRecord};
use crate::verdict::{VERDICTS_MAX, Verdict};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdicts {
    max: usize,
    /// By subject and judge.
    held: BTreeMap<(MemberKey, MemberKey), SignedRecord>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self { max: VERDICTS_MAX, held: BTreeMap::new() }
    }
}

fn strength(said: &Verdict, id: RecordId) -> (u64, Reverse<bool>, Reverse<RecordId>) {
    (said.sequence, Reverse(said.approves), Reverse(id))
}

impl Verdicts {
    #[cfg(test)]
    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &SignedRecord> {
        self.held.values()
    }

    pub(super) fn get(&self, judge: &MemberKey, subject: &MemberKey) -> Option<&Verdict> {
        self.held.get(&(*subject, *judge))?.verdict()
    }

    /// The verdicts on one member, in order of the judges' keys.
    pub(super) fn on(&self, subject: &MemberKey) -> impl Iterator<Item = &SignedRecord> {
        let every = (*subject, MemberKey([0; 32]))..=(*subject, MemberKey([u8::MAX; 32]));
        self.held.range(every).map(|(_, record)| record)
    }

    /// `said` is what `record` says.
    pub(super) fn insert(&mut self, said: &Verdict, record: SignedRecord) -> Change {
        let pair = (said.subject, said.member);
        if let Some(held) = self.held.get_mut(&pair) {
            let strongest = held.verdict().map(|known| strength(known, held.id()));
            let sequence = held.record().sequence();
            return if said.sequence < sequence {
                Change::Stale { held: sequence }
            } else if record.id() == held.id() {
                Change::Known
            } else if Some(strength(said, record.id())) < strongest {
                Change::Redundant
            } else {
                Change::Kept { displaced: vec![std::mem::replace(held, record).id()] }
            };
        }
        let mut displaced = Vec::new();
        if self.held.len() >= self.max {
            match self.held.last_entry() {
                Some(greatest) if *greatest.key() > pair => displaced.push(greatest.remove().id()),
                _ => return Change::Full,
            }
        }
        self.held.insert(pair, record);
        Change::Kept { displaced }
    }

    /// Forgets what a key said and what was said of it; the records that went.
    pub(super) fn forget(&mut self, key: &MemberKey) -> Vec<RecordId> {
        let mut gone = Vec::new();
        self.held.retain(|(subject, judge), record| {
            let stays = subject != key && judge != key;
            if !stays {
                gone.push(record.id());
            }
            stays
        });
        gone
    }
}
