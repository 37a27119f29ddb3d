//! The ledger: the replicated set of records, and what it implies.
//!
//! One slot a member. Joining ledgers is commutative, associative and idempotent, because a slot keeps a function of
//! the set of records it was shown and of nothing else: those of the highest sequence, and of these the two with the
//! least identities. Two different records at one sequence are proof that a member said two things at once; the slot
//! then counts for nothing until the member speaks at a higher sequence.
//!
//! Of more members than the round's cap (possible only with an open roster) those with the least keys are kept: an
//! arbitrary choice, but the same at every peer. Rounds that mind who joins use a roster.
//!
//! Who belongs is part of the ledger (`ledger/standings.rs`). A record of a key whose standing is known, be it that the
//! key is out, is kept in its slot whatever came first, and counts only while the key is a member. A record of a key that
//! neither the roster nor any change names is not taken: it comes again by reconciliation after the change that admits it.
//! Joining therefore takes changes of standing before all other records.
//!
//! What members found out about each other's adapters is part of it too (`ledger/verdicts.rs`). A slot's one adapter is a
//! candidate; it is admitted when as many members approve it as the manifest asks for. Peers fetch candidates and merge
//! what is admitted.

mod standings;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::hash::{ContentHash, DomainHasher};
use crate::identity::{MemberKey, Roster};
use crate::record::{Announcement, Record, RecordId, SignedRecord};
use crate::round::{Manifest, Round};
use crate::standing::Standing;
use crate::verdict::Verdict;
use standings::{Inserted, Standings};
use verdicts::Verdicts;

/// All records of one round a peer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    manifest: Arc<Manifest>,
    standings: Standings,
    slots: BTreeMap<MemberKey, Slot>,
    verdicts: Verdicts,
}

/// The records of one member at its highest sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    least: SignedRecord,
    second: Option<SignedRecord>,
}

/// What a slot means. A member without a slot is vacant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState<'a> {
    Adapter(&'a Announcement),
    Withdrawn,
    /// Two records at one sequence: kept as proof, counted for nothing.
    Conflict(&'a SignedRecord, &'a SignedRecord),
}

/// One adapter of the ledger, as the merge and the receipt speak of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    pub member: MemberKey,
    pub record: RecordId,
    pub adapter: ContentHash,
    pub size: u64,
    pub weight: u64,
}

/// What a record did to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The slot's first record, or one of a higher sequence. Records it displaced can be forgotten.
    Kept { displaced: Vec<RecordId> },
    /// A second record at the same sequence: the slot is now in conflict (or its proof has changed).
    Conflict { displaced: Vec<RecordId> },
    /// Already held.
    Known,
    /// Of a lower sequence than the one held: superseded before it came.
    Stale { held: u64 },
    /// A third record at a sequence already in conflict adds nothing.
    Redundant,
    /// The cap is reached by members with lesser keys.
    Full,
    /// Nothing names a member it speaks of: not taken, but a change that admits it may be on its way.
    NotInRoster,
}

impl Ledger {
    pub fn new(round: &Round) -> Self {
        let (standings, verdicts) = (Standings::default(), Verdicts::default());
        Self { manifest: round.shared_manifest(), standings, slots: BTreeMap::new(), verdicts }
    }

    /// A ledger that was shown these records, changes of standing before all others.
    pub fn holding(round: &Round, records: impl IntoIterator<Item = SignedRecord>) -> Self {
        let mut ledger = Self::new(round);
        let (standings, others): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.standing().is_some());
        for record in standings.into_iter().chain(others) {
            ledger.insert(record);
        }
        ledger
    }

    fn member_max(&self) -> usize {
        usize::try_from(self.manifest.member_max).unwrap_or(usize::MAX)
    }

    /// Shows the ledger one verified record.
    pub fn insert(&mut self, record: SignedRecord) -> Change {
        let member = record.record().member();
        if let Record::Standing(said) = record.record() {
            let said = said.clone();
            let Inserted { mut change, evicted } = self.standings.insert(&said, record);
            if let (Change::Kept { displaced }, Some(gone)) = (&mut change, evicted)
                && !self.is_named(&gone)
            {
                displaced.extend(self.slots.remove(&gone).iter().flat_map(Slot::records).map(SignedRecord::id));
                displaced.extend(self.verdicts.forget(&gone));
            }
            return change;
        }
        if !self.is_named(&member) {
            return Change::NotInRoster;
        }
        if let Record::Verdict(said) = record.record() {
            let said = said.clone();
            return if self.is_named(&said.subject) { self.verdicts.insert(&said, record) } else { Change::NotInRoster };
        }
        if let Some(slot) = self.slots.get_mut(&member) {
            return slot.insert(record);
        }
        let mut displaced = Vec::new();
        // With a roster, slots are bounded by those it names and those that changes name.
        if self.manifest.roster == Roster::Open && self.slots.len() >= self.member_max() {
            match self.slots.last_entry() {
                Some(greatest) if *greatest.key() > member => displaced = greatest.remove().records().map(SignedRecord::id).collect(),
                _ => return Change::Full,
            }
        }
        self.slots.insert(member, Slot { least: record, second: None });
        Change::Kept { displaced }
    }

    /// Takes over all that `other` holds.
    pub fn join(&mut self, other: &Self) {
        for record in other.records() {
            self.insert(record.clone());
        }
    }

    /// Whether a member's records are kept: the roster or a change of standing speaks of it.
    fn is_named(&self, member: &MemberKey) -> bool {
        self.manifest.roster.admits(member) || self.standings.get(member).is_some()
    }

    /// What a key is to the round now; `None` where nothing speaks of it.
    pub fn standing(&self, key: &MemberKey) -> Option<Standing> {
        self.standings.get(key).or_else(|| self.manifest.standing(key))
    }

    /// The highest sequence at which a key's standing was changed; 0 if it never was.
    pub fn standing_sequence(&self, key: &MemberKey) -> u64 {
        self.standings.sequence(key)
    }

    /// The records by which founders changed who belongs, in order of the keys they speak of.
    pub fn standing_records(&self) -> impl Iterator<Item = &SignedRecord> {
        self.standings.records()
    }

    /// Whether a peer of this key may connect.
    pub fn may_connect(&self, key: &MemberKey) -> bool {
        !self.manifest.is_private() || self.standing(key).is_some_and(|standing| standing > Standing::Out)
    }

    /// Every key that may connect; `None` when all may.
    pub fn access(&self) -> Option<BTreeSet<MemberKey>> {
        let named = self.manifest.named().into_iter().chain(self.standings.iter().map(|(key, _)| key));
        self.manifest.is_private().then(|| named.filter(|key| self.may_connect(key)).collect())
    }

    pub fn slot(&self, member: &MemberKey) -> Option<SlotState<'_>> {
        self.slots.get(member).map(Slot::state)
    }

    /// Members with a slot, in order of their keys.
    pub fn slots(&self) -> impl Iterator<Item = (MemberKey, SlotState<'_>)> {
        self.slots.iter().map(|(member, slot)| (*member, slot.state()))
    }

    /// The highest sequence a member has spoken at; 0 if it never spoke.
    pub fn sequence(&self, member: &MemberKey) -> u64 {
        self.slots.get(member).map_or(0, Slot::sequence)
    }

    /// The adapters that count: the candidates with as many approvals as the round asks for, in order of their members' keys.
    pub fn admitted(&self) -> impl Iterator<Item = Admitted> + '_ {
        self.candidates().filter(|entry| self.approvals(entry) >= self.approvals_needed())
    }

    /// How many members have to approve an adapter.
    pub fn approvals_needed(&self) -> usize {
        self.manifest.verdicts.map_or(0, |rule| usize::try_from(rule.approvals).unwrap_or(usize::MAX))
    }

    /// How many members approve this candidate.
    pub fn approvals(&self, candidate: &Admitted) -> usize {
        self.verdicts(candidate).filter_map(SignedRecord::verdict).filter(|said| said.approves).count()
    }

    /// The verdicts that count on this candidate: of judges who are members now, on this very announcement. In order of the
    /// judges' keys.
    pub fn verdicts(&self, candidate: &Admitted) -> impl Iterator<Item = &SignedRecord> {
        let announcement = candidate.record;
        let counts = move |said: &Verdict| said.announcement == announcement && self.standing(&said.member) == Some(Standing::Member);
        self.verdicts.on(&candidate.member).filter(move |record| record.verdict().is_some_and(counts))
    }

    /// The last verdict of a judge on a member, whichever announcement it is about.
    pub fn verdict(&self, judge: &MemberKey, subject: &MemberKey) -> Option<&Verdict> {
        self.verdicts.get(judge, subject)
    }

    /// The adapters that may count, in order of their members' keys: at most as many as the round has places, so that the
    /// merge's sums stay exact however many members founders add.
    pub fn candidates(&self) -> impl Iterator<Item = Admitted> + '_ {
        let members = self.slots.iter().filter(|(member, _)| self.standing(member) == Some(Standing::Member));
        let adapters = members.filter_map(|(member, slot)| match slot.state() {
            SlotState::Adapter(announcement) => Some(Admitted {
                member: *member,
                record: slot.least.id(),
                adapter: announcement.adapter,
                size: announcement.size,
                weight: announcement.weight,
            }),
            SlotState::Withdrawn | SlotState::Conflict(..) => None,
        });
        adapters.take(self.member_max())
    }

    /// Every record held: changes of standing first, so that whoever takes them in this order takes them all, and verdicts
    /// last; each in order of the keys they speak of, verdicts on one member in order of their judges' keys.
    pub fn records(&self) -> impl Iterator<Item = &SignedRecord> {
        self.standings.records().chain(self.slots.values().flat_map(Slot::records)).chain(self.verdicts.records())
    }

    pub fn record_count(&self) -> u64 {
        self.records().map(|_| 1).sum()
    }

    /// A digest of the set of records: equal for equal sets, and only for these.
    pub fn fingerprint(&self) -> ContentHash {
        let mut hasher = DomainHasher::new("ledger/1");
        hasher.u64(self.record_count());
        for record in self.records() {
            hasher.hash(&record.id().0.0);
        }
        hasher.finish()
    }
}

impl Slot {
    fn sequence(&self) -> u64 {
        self.least.record().sequence()
    }

    fn records(&self) -> impl Iterator<Item = &SignedRecord> {
        std::iter::once(&self.least).chain(&self.second)
    }

    fn state(&self) -> SlotState<'_> {
        match (&self.second, self.least.record()) {
            (Some(second), _) => SlotState::Conflict(&self.least, second),
            (None, Record::Announcement(announcement)) => SlotState::Adapter(announcement),
            (None, _) => SlotState::Withdrawn,
        }
    }

    fn insert(&mut self, record: SignedRecord) -> Change {
        let (held, sequence) = (self.sequence(), record.record().sequence());
        if sequence < held {
            return Change::Stale { held };
        }
        if self.records().any(|known| known.id() == record.id()) {
            return Change::Known;
        }
        if sequence > held {
            let displaced = self.records().map(SignedRecord::id).collect();
            *self = Self { least: record, second: None };
            return Change::Kept { displaced };
        }
        // Same sequence, another record: keep the two least of up to three.
        let mut records: Vec<SignedRecord> = self.records().cloned().chain([record.clone()]).collect();
        records.sort_by_key(SignedRecord::id);
        let mut records = records.into_iter();
        let (Some(least), second, third) = (records.next(), records.next(), records.next()) else { return Change::Redundant };
        *self = Self { least, second };
        match third {
            Some(third) if third.id() == record.id() => Change::Redundant,
            third => Change::Conflict { displaced: third.iter().map(SignedRecord::id).collect() },
        }
    }
}

#[cfg(test)]
mod tests;
