#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod roster;
mod verdicts;

use super::*;
use crate::record::tests::{announce, key, round, withdraw};
use proptest::prelude::*;

/// A ledger that was shown these records in this order.
fn shown(round: &Round, records: &[SignedRecord]) -> Ledger {
    let mut ledger = Ledger::new(round);
    for record in records {
        ledger.insert(record.clone());
    }
    ledger
}

fn ledger(records: &[SignedRecord]) -> Ledger {
    shown(&round(), records)
}

fn admitted(ledger: &Ledger) -> BTreeSet<MemberKey> {
    ledger.admitted().map(|entry| entry.member).collect()
}

fn keys(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<MemberKey> {
    numbers.into_iter().map(|number| key(number).member()).collect()
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
