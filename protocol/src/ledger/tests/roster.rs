//! Who belongs, and how it changes, whatever order records come in.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::standing::Standing::{self, Member, Out, Reader};
use crate::standing::tests::{announce, change, founded};

fn ledger(records: &[SignedRecord]) -> Ledger {
    shown(&founded(), records)
}

#[test]
fn a_stranger_is_not_taken_until_founders_admit_it() {
    let (said, admits) = (announce(7, 1, b"a"), change(7, 1, Member, &[11, 12]));
    let mut ledger = ledger(&[announce(1, 1, b"b")]);
    assert_eq!(ledger.insert(said.clone()), Change::NotInRoster);
    assert_eq!(ledger.standing(&key(7).member()), None);
    assert_eq!(ledger.insert(admits.clone()), Change::Kept { displaced: vec![] });
    assert_eq!(ledger.insert(admits), Change::Known);
    assert_eq!(ledger.insert(said), Change::Kept { displaced: vec![] });
    assert_eq!(admitted(&ledger), keys([1, 7]));
    assert_eq!(ledger.record_count(), 3);
    assert!(ledger.records().next().is_some_and(|record| record.standing().is_some()), "changes come first");
}

#[test]
fn a_readers_adapter_does_not_count() {
    let mut ledger = ledger(&[]);
    assert_eq!(ledger.insert(announce(5, 1, b"a")), Change::NotInRoster);
    ledger.insert(change(1, 1, Reader, &[11, 12]));
    ledger.insert(announce(1, 1, b"a"));
    assert_eq!(ledger.record_count(), 2, "kept, for it may become a member again");
    assert_eq!(admitted(&ledger), keys([]));
}

#[test]
fn revoking_takes_exactly_that_adapter_out_and_admitting_again_brings_it_back() {
    let mut ledger = ledger(&[announce(1, 1, b"a"), announce(2, 1, b"b")]);
    let whole: Vec<_> = ledger.admitted().collect();
    let out = change(1, 1, Out, &[11, 12]);
    ledger.insert(out.clone());
    assert_eq!(ledger.admitted().collect::<Vec<_>>(), whole.iter().filter(|e| e.member == key(2).member()).cloned().collect::<Vec<_>>());
    // What it says meanwhile is kept and counts when it is back, as at a peer that heard of it later.
    ledger.insert(announce(1, 2, b"c"));
    assert_eq!(admitted(&ledger), keys([2]));
    assert_eq!(ledger.insert(change(1, 2, Member, &[12, 13])), Change::Kept { displaced: vec![out.id()] });
    assert_eq!(admitted(&ledger), keys([1, 2]));
    assert_eq!(ledger.insert(out), Change::Stale { held: 2 });
    assert_eq!(ledger.standing_sequence(&key(1).member()), 2);
}

#[test]
fn founders_who_contradict_each_other_lock_out() {
    let (lets_in, locks_out) = (change(7, 1, Member, &[11, 12]), change(7, 1, Out, &[12, 13]));
    let mut ledger = ledger(std::slice::from_ref(&lets_in));
    assert_eq!(ledger.insert(locks_out.clone()), Change::Kept { displaced: vec![lets_in.id()] });
    assert_eq!(ledger.insert(lets_in), Change::Redundant);
    assert_eq!(ledger.standing(&key(7).member()), Some(Out));
    ledger.insert(change(7, 2, Reader, &[11, 13]));
    assert_eq!(ledger.standing(&key(7).member()), Some(Reader));
}

#[test]
fn who_may_connect_follows_the_changes() {
    let mut ledger = ledger(&[]);
    assert_eq!(ledger.access(), Some(keys([1, 2, 5, 11, 12, 13])));
    for change in [change(1, 1, Out, &[11, 12]), change(7, 1, Member, &[11, 12]), change(8, 1, Reader, &[11, 12])] {
        ledger.insert(change);
    }
    assert_eq!(ledger.access(), Some(keys([2, 5, 7, 8, 11, 12, 13])));
    assert!(ledger.may_connect(&key(8).member()) && !ledger.may_connect(&key(1).member()) && !ledger.may_connect(&key(9).member()));
    let open = Ledger::new(&crate::record::tests::round());
    assert!(open.access().is_none() && open.may_connect(&key(9).member()));
}

#[test]
fn no_more_adapters_count_than_the_round_has_places() {
    let added = (21..27).map(|number| change(number, 1, Member, &[11, 12])).collect::<Vec<_>>();
    let said = (21..27).map(|number| announce(number, 1, &[number])).collect::<Vec<_>>();
    let ledger = ledger(&[added, said].concat());
    let least: BTreeSet<_> = keys(21..27).into_iter().take(4).collect();
    assert_eq!(founded().manifest().member_max, 4);
    assert_eq!(admitted(&ledger), least);
    assert_eq!(ledger.slots().count(), 6);
}

#[test]
fn a_change_that_had_to_go_takes_the_records_it_admitted_with_it() {
    let mut subjects: Vec<u8> = (21..25).collect();
    subjects.sort_by_key(|number| key(*number).member());
    let mut ledger = Ledger::new(&founded());
    ledger.standings.set_max(3);
    let said = announce(subjects[3], 1, b"a");
    let changes: Vec<_> = subjects.iter().map(|number| change(*number, 1, Member, &[11, 12])).collect();
    for record in [&changes[1], &changes[2], &changes[3], &said] {
        ledger.insert(record.clone());
    }
    assert_eq!(ledger.insert(changes[0].clone()), Change::Kept { displaced: vec![changes[3].id(), said.id()] });
    assert_eq!(ledger.insert(changes[3].clone()), Change::Full);
    assert_eq!(ledger.insert(said), Change::NotInRoster);
    assert_eq!(ledger.record_count(), 3);
}

/// Signed once: what the strategies draw from. Subjects 1 and 2 are in the roster, 5 is a reader, the others strangers.
static RECORDS: LazyLock<Vec<SignedRecord>> = LazyLock::new(|| {
    let subjects = [1, 2, 5, 7, 8, 9];
    let mut records = Vec::new();
    for subject in subjects {
        for sequence in 1..3 {
            for becomes in [Standing::Out, Standing::Reader, Standing::Member] {
                records.extend([&[11, 12], &[13, 11]].map(|founders| change(subject, sequence, becomes, founders)));
            }
            records.extend([b"a", b"b"].map(|adapter| announce(subject, sequence, adapter)));
        }
    }
    records
});

fn some_records() -> impl Strategy<Value = Vec<SignedRecord>> {
    proptest::collection::vec((0..RECORDS.len()).prop_map(|index| RECORDS[index].clone()), 0..24)
}

/// So few changes are kept that some have to go.
fn narrow(records: &[SignedRecord]) -> Ledger {
    let mut ledger = Ledger::new(&founded());
    ledger.standings.set_max(3);
    for record in records {
        ledger.insert(record.clone());
    }
    ledger
}

proptest! {
    #[test]
    fn joining_stays_commutative_associative_and_idempotent(a in some_records(), b in some_records(), c in some_records()) {
        for build in [ledger, narrow] {
            let (x, y, z) = (build(&a), build(&b), build(&c));
            prop_assert_eq!(joined(&x, &y), joined(&y, &x));
            prop_assert_eq!(joined(&joined(&x, &y), &z), joined(&x, &joined(&y, &z)));
            prop_assert_eq!(joined(&x, &x), x.clone());
            prop_assert_eq!(joined(&x, &y).fingerprint(), joined(&y, &x).fingerprint());
        }
    }

    /// Peers that were shown the same records in different orders hold the same once each has met one who was shown the
    /// changes first; and then what counts is what counts there.
    #[test]
    fn order_is_forgotten_after_meeting_a_peer_that_knows_more(a in some_records(), turn in 0usize..24) {
        for build in [ledger, narrow] {
            let mut turned = a.clone();
            turned.rotate_left(turn.min(a.len()));
            let mut sorted = a.clone();
            sorted.sort_by_key(|record| record.standing().is_none());
            let informed = build(&sorted);
            prop_assert_eq!(&joined(&build(&a), &informed), &informed);
            prop_assert_eq!(&joined(&build(&turned), &informed), &informed);
            let members: BTreeSet<_> = informed.slots().map(|(member, _)| member).filter(|key| informed.standing(key) == Some(Member)).collect();
            prop_assert!(admitted(&informed).is_subset(&members));
        }
    }
}
