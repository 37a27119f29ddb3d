//! The asker's side of one reconciliation: what it has learned about the difference, and what it asks next.

use std::collections::BTreeSet;

use super::{Catalogue, RangeMessage, Request, ShortId, ShortIds, SyncError, batch, short};
use crate::ledger::Ledger;
use crate::record::RecordId;
use crate::round::{MEMBERS_MAX, RoundId};
use crate::standing::STANDINGS_MAX;
use crate::verdict::VERDICTS_MAX;

/// Two ledgers with nothing in common and as large as they can be take fewer.
const QUESTIONS_MAX: u32 = 2_048;
/// Two records for every slot a round can have, every change of standing, and every verdict.
const RECORDS_MAX: usize = (MEMBERS_MAX as usize + STANDINGS_MAX) * 2 + STANDINGS_MAX + VERDICTS_MAX;

/// One reconciliation with one neighbour.
#[derive(Default)]
pub struct Session {
    /// What the neighbour has and we lack, in the order in which it is of use.
    wanted: Vec<ShortId>,
    /// What we have and the neighbour lacks.
    owed: BTreeSet<ShortId>,
    questions: u32,
}

impl Session {
    /// The question that begins it.
    pub fn compare(round: RoundId, catalogue: &Catalogue) -> Request {
        Request::Compare { round, count: catalogue.count(), fingerprint: catalogue.fingerprint(), attestation: None, attestations: 0 }
    }

    /// The neighbour lists what it holds.
    pub fn listed(&mut self, catalogue: &Catalogue, theirs: &ShortIds) {
        self.wanted = theirs.iter().filter(|name| !catalogue.contains(name)).collect();
        let theirs = theirs.to_set();
        self.owed = catalogue.names().filter(|name| !theirs.contains(name)).collect();
    }

    /// The neighbour holds too many to list.
    ///
    /// # Errors
    /// None for a catalogue.
    pub fn differs(&mut self, round: RoundId, catalogue: &Catalogue) -> Result<Request, SyncError> {
        self.question()?;
        Ok(Request::Range { round, message: catalogue.ask()? })
    }

    /// The neighbour answers about ranges: the next question about them, until there is none.
    ///
    /// # Errors
    /// Bytes that are no such answer, or a neighbour without end.
    pub fn ranged(&mut self, round: RoundId, catalogue: &Catalogue, message: &RangeMessage) -> Result<Option<Request>, SyncError> {
        self.question()?;
        let (next, [here, there]) = catalogue.ask_on(message)?;
        self.owed.extend(here);
        self.wanted.extend(there);
        if self.wanted.len() > RECORDS_MAX {
            return Err(SyncError::TooMany { max: RECORDS_MAX });
        }
        Ok(next.map(|message| Request::Range { round, message }))
    }

    /// The neighbour hands these over. Names that did not fit its answer are asked for again; a neighbour that had none
    /// of what it listed is asked for no more.
    pub fn received(&mut self, records: impl IntoIterator<Item = RecordId>) {
        let before = self.wanted.len();
        let came: BTreeSet<ShortId> = records.into_iter().map(short).collect();
        self.wanted.retain(|name| !came.contains(name));
        if self.wanted.len() == before {
            self.wanted.clear();
        }
    }

    /// The next batch in both directions, or `None` when all is done.
    ///
    /// # Errors
    /// A neighbour without end.
    pub fn exchange(&mut self, round: RoundId, ledger: &Ledger, catalogue: &Catalogue) -> Result<Option<Request>, SyncError> {
        // The rest may have come, or gone, by another way.
        self.wanted.retain(|name| !catalogue.contains(name));
        self.owed.retain(|name| catalogue.contains(name));
        if self.wanted.is_empty() && self.owed.is_empty() {
            return Ok(None);
        }
        self.question()?;
        let wanted: ShortIds = self.wanted.iter().copied().take(super::BATCH_MAX).collect();
        let (records, sent) = batch(ledger.records().filter(|record| self.owed.contains(&short(record.id()))));
        for name in sent {
            self.owed.remove(&name);
        }
        Ok(Some(Request::Exchange { round, wanted, records }))
    }

    fn question(&mut self) -> Result<(), SyncError> {
        self.questions = self.questions.saturating_add(1);
        if self.questions > QUESTIONS_MAX { Err(SyncError::Endless { max: QUESTIONS_MAX }) } else { Ok(()) }
    }
}
