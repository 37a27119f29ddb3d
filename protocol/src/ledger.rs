//! The ledger: the replicated set of records, and what it implies.
//!
//! One slot a member. Joining ledgers is commutative, associative and idempotent, because a slot keeps a function of
//! the set of records it was shown and of nothing else: those of the highest sequence, and of these the two with the
//! least identities. Two different records at one sequence are proof that a member said two things at once; the slot
//! then counts for nothing until the member speaks at a higher sequence.
//!
//! Of more members than the round's cap (possible only with an open roster) those with the least keys are kept: an
//! arbitrary choice, but the same at every peer. Rounds that mind who joins use a roster.

use std::collections::BTreeMap;

use crate::hash::{ContentHash, DomainHasher};
use crate::identity::MemberKey;
use crate::record::{Announcement, Record, RecordId, SignedRecord};
use crate::round::Round;

/// All records of one round a peer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    member_max: usize,
    slots: BTreeMap<MemberKey, Slot>,
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

/// One adapter the ledger admits, as the merge and the receipt speak of it.
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
}

impl Ledger {
    pub fn new(round: &Round) -> Self {
        Self { member_max: usize::try_from(round.manifest().member_max).unwrap_or(usize::MAX), slots: BTreeMap::new() }
    }

    /// Shows the ledger one verified record.
    pub fn insert(&mut self, record: SignedRecord) -> Change {
        let member = record.record().member();
        if let Some(slot) = self.slots.get_mut(&member) {
            return slot.insert(record);
        }
        let mut displaced = Vec::new();
        if self.slots.len() >= self.member_max {
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

    /// The adapters that count, in order of their members' keys.
    pub fn admitted(&self) -> impl Iterator<Item = Admitted> + '_ {
        self.slots.iter().filter_map(|(member, slot)| match slot.state() {
            SlotState::Adapter(announcement) => Some(Admitted {
                member: *member,
                record: slot.least.id(),
                adapter: announcement.adapter,
                size: announcement.size,
                weight: announcement.weight,
            }),
            SlotState::Withdrawn | SlotState::Conflict(..) => None,
        })
    }

    /// Every record held, in order of the members' keys.
    pub fn records(&self) -> impl Iterator<Item = &SignedRecord> {
        self.slots.values().flat_map(Slot::records)
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
            (None, Record::Withdrawal(_)) => SlotState::Withdrawn,
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
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::record::tests::{announce, round, withdraw};
    use proptest::prelude::*;

    fn ledger(records: &[SignedRecord]) -> Ledger {
        let mut ledger = Ledger::new(&round());
        for record in records {
            ledger.insert(record.clone());
        }
        ledger
    }

    fn joined(left: &Ledger, right: &Ledger) -> Ledger {
        let mut ledger = left.clone();
        ledger.join(right);
        ledger
    }

    #[test]
    fn a_higher_sequence_supersedes_and_an_older_one_changes_nothing() {
        let (first, second) = (announce(1, 1, b"a"), announce(1, 2, b"b"));
        let mut ledger = ledger(std::slice::from_ref(&first));
        assert_eq!(ledger.insert(second.clone()), Change::Kept { displaced: vec![first.id()] });
        let before = ledger.clone();
        assert_eq!(ledger.insert(first), Change::Stale { held: 2 });
        assert_eq!(ledger.insert(second), Change::Known);
        assert_eq!(ledger, before);
    }

    #[test]
    fn two_adapters_at_one_sequence_are_proof_and_count_for_nothing() {
        let (one, two) = (announce(1, 1, b"a"), announce(1, 1, b"b"));
        let mut ledger = ledger(&[one.clone(), announce(2, 1, b"c")]);
        assert_eq!(ledger.insert(two), Change::Conflict { displaced: vec![] });
        assert!(matches!(ledger.slot(&one.record().member()), Some(SlotState::Conflict(..))));
        assert_eq!(ledger.admitted().count(), 1);
        assert_eq!(ledger.record_count(), 3);
        // The member may speak again.
        ledger.insert(announce(1, 2, b"d"));
        assert_eq!(ledger.admitted().count(), 2);
    }

    #[test]
    fn a_withdrawn_member_counts_for_nothing() {
        let mut ledger = ledger(&[announce(1, 1, b"a")]);
        ledger.insert(withdraw(1, 2));
        assert_eq!(ledger.admitted().count(), 0);
        assert_eq!(ledger.slots().map(|(_, state)| state).collect::<Vec<_>>(), [SlotState::Withdrawn]);
    }

    #[test]
    fn beyond_the_cap_the_least_keys_stay() {
        let records: Vec<_> = (1..=6).map(|member| announce(member, 1, b"a")).collect();
        let mut keys: Vec<_> = records.iter().map(|record| record.record().member()).collect();
        keys.sort();
        let forward = ledger(&records);
        let backward = ledger(&records.iter().rev().cloned().collect::<Vec<_>>());
        assert_eq!(forward, backward);
        assert_eq!(forward.slots().map(|(member, _)| member).collect::<Vec<_>>(), keys[..4]);
    }

    fn some_records() -> impl Strategy<Value = Vec<SignedRecord>> {
        // Few members, sequences and adapters, so that supersession, conflict and the cap all happen.
        let record = (1u8..7, 1u64..4, 0u8..4).prop_map(|(member, sequence, adapter)| match adapter {
            0 => withdraw(member, sequence),
            _ => announce(member, sequence, &[adapter]),
        });
        proptest::collection::vec(record, 0..12)
    }

    proptest! {
        #[test]
        fn joining_is_commutative_associative_and_idempotent(a in some_records(), b in some_records(), c in some_records()) {
            let (x, y, z) = (ledger(&a), ledger(&b), ledger(&c));
            prop_assert_eq!(joined(&x, &y), joined(&y, &x));
            prop_assert_eq!(joined(&joined(&x, &y), &z), joined(&x, &joined(&y, &z)));
            prop_assert_eq!(joined(&x, &x), x.clone());
            // And a join is what one ledger shown everything would hold.
            let all: Vec<_> = a.into_iter().chain(b).collect();
            prop_assert_eq!(joined(&x, &y).fingerprint(), ledger(&all).fingerprint());
            prop_assert_eq!(joined(&x, &y), ledger(&all));
        }
    }
}
