//! What members say of each other's adapters, and what comes of it, whatever order records come in.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::standing::Standing::{Member, Out};
use crate::verdict::tests::{announce, change, judge, judged};

fn ledger(approvals: u32, records: &[SignedRecord]) -> Ledger {
    shown(&judged(approvals), records)
}

#[test]
fn an_adapter_counts_from_the_last_approval_it_needs() {
    let round = judged(2);
    let one = announce(&round, 1, 1, b"a");
    let mut ledger = ledger(2, std::slice::from_ref(&one));
    assert_eq!(ledger.candidates().map(|entry| entry.member).collect::<BTreeSet<_>>(), keys([1]));
    ledger.insert(judge(&round, 2, &one, 1, true));
    ledger.insert(judge(&round, 3, &one, 1, false));
    assert_eq!(admitted(&ledger), keys([]));
    assert_eq!(ledger.approvals(&ledger.candidates().next().unwrap()), 1);
    assert_eq!(ledger.insert(judge(&round, 4, &one, 1, true)), Change::Kept { displaced: vec![] });
    assert_eq!(admitted(&ledger), keys([1]));
    assert_eq!(ledger.verdicts(&ledger.candidates().next().unwrap()).count(), 3);
    // Whoever thinks again takes its approval back.
    ledger.insert(judge(&round, 4, &one, 2, false));
    assert_eq!(admitted(&ledger), keys([]));
}

#[test]
fn where_no_approvals_are_asked_for_verdicts_change_nothing() {
    let round = judged(0);
    let one = announce(&round, 1, 1, b"a");
    let mut ledger = ledger(0, std::slice::from_ref(&one));
    ledger.insert(judge(&round, 2, &one, 1, false));
    assert_eq!(admitted(&ledger), keys([1]));
    assert_eq!(ledger.record_count(), 2);
}

#[test]
fn a_later_announcement_needs_new_verdicts() {
    let round = judged(1);
    let (first, second) = (announce(&round, 1, 1, b"a"), announce(&round, 1, 2, b"b"));
    let mut ledger = ledger(1, &[first.clone(), judge(&round, 2, &first, 1, true)]);
    assert_eq!(admitted(&ledger), keys([1]));
    ledger.insert(second.clone());
    assert_eq!(admitted(&ledger), keys([]));
    let first_again = judge(&round, 2, &first, 1, true);
    assert_eq!(ledger.insert(judge(&round, 2, &second, 2, true)), Change::Kept { displaced: vec![first_again.id()] });
    assert_eq!(admitted(&ledger), keys([1]));
    assert_eq!(ledger.insert(first_again), Change::Stale { held: 2 });
}

#[test]
fn the_word_of_a_judge_who_is_out_counts_no_more() {
    let round = judged(1);
    let one = announce(&round, 1, 1, b"a");
    let mut ledger = ledger(1, &[one.clone(), judge(&round, 2, &one, 1, true)]);
    ledger.insert(change(&round, 2, 1, Out));
    assert_eq!(admitted(&ledger), keys([]));
    ledger.insert(change(&round, 2, 2, Member));
    assert_eq!(admitted(&ledger), keys([1]));
    // The founders' word is about who belongs, and none about adapters.
    let founder = judge(&round, 11, &one, 1, true);
    assert_eq!(ledger.insert(founder), Change::NotInRoster);
}

#[test]
fn a_judge_who_says_both_approves_nothing() {
    let round = judged(1);
    let one = announce(&round, 1, 1, b"a");
    let (yes, no) = (judge(&round, 2, &one, 1, true), judge(&round, 2, &one, 1, false));
    let mut ledger = ledger(1, &[one, yes.clone()]);
    assert_eq!(ledger.insert(no), Change::Kept { displaced: vec![yes.id()] });
    assert_eq!(ledger.insert(yes), Change::Redundant);
    assert_eq!(admitted(&ledger), keys([]));
}

#[test]
fn a_verdict_on_or_of_a_stranger_is_not_taken() {
    let round = judged(1);
    let (own, strange) = (announce(&round, 1, 1, b"a"), announce(&round, 7, 1, b"b"));
    let mut ledger = ledger(1, std::slice::from_ref(&own));
    let (of, on) = (judge(&round, 7, &own, 1, true), judge(&round, 2, &strange, 1, true));
    assert_eq!(ledger.insert(of.clone()), Change::NotInRoster);
    assert_eq!(ledger.insert(on.clone()), Change::NotInRoster);
    ledger.insert(change(&round, 7, 1, Member));
    for record in [of, strange, on] {
        assert_eq!(ledger.insert(record), Change::Kept { displaced: vec![] });
    }
    assert_eq!(admitted(&ledger), keys([1, 7]));
    assert_eq!(ledger.records().map(|record| record.record().rank()).collect::<Vec<_>>(), [0, 1, 1, 2, 2]);
}

#[test]
fn a_change_that_had_to_go_takes_verdicts_of_and_on_its_subject_with_it() {
    let round = judged(1);
    let mut subjects = [7u8, 8];
    subjects.sort_by_key(|number| key(*number).member());
    let [least, greatest] = subjects;
    let (own, strange) = (announce(&round, 1, 1, b"a"), announce(&round, greatest, 1, b"b"));
    let gone =
        [change(&round, greatest, 1, Member), strange.clone(), judge(&round, 2, &strange, 1, true), judge(&round, greatest, &own, 1, true)];
    let mut ledger = Ledger::new(&round);
    ledger.standings.set_max(1);
    for record in [std::slice::from_ref(&own), &gone, &[judge(&round, 2, &own, 1, true)]].concat() {
        ledger.insert(record);
    }
    let Change::Kept { displaced } = ledger.insert(change(&round, least, 1, Member)) else { unreachable!("a lesser key is kept") };
    assert_eq!(BTreeSet::from_iter(displaced), gone.iter().map(SignedRecord::id).collect());
    assert_eq!(ledger.record_count(), 3);
}

/// Signed once: what the strategies draw from. Member 7 comes and goes.
static RECORDS: LazyLock<Vec<SignedRecord>> = LazyLock::new(|| {
    let round = judged(2);
    let mut records: Vec<SignedRecord> =
        (1..3).flat_map(|sequence| [Out, Member].map(|becomes| change(&round, 7, sequence, becomes))).collect();
    let members = [1, 2, 3, 7];
    for subject in members {
        for (sequence, adapter) in [(1, b"a"), (2, b"b")] {
            let announced = announce(&round, subject, sequence, adapter);
            for by in members.into_iter().filter(|by| *by != subject) {
                records.extend([(1, true), (1, false), (2, true)].map(|(at, approves)| judge(&round, by, &announced, at, approves)));
            }
            records.push(announced);
        }
    }
    records
});

fn some_records() -> impl Strategy<Value = Vec<SignedRecord>> {
    proptest::collection::vec((0..RECORDS.len()).prop_map(|index| RECORDS[index].clone()), 0..60)
}

fn whole(records: &[SignedRecord]) -> Ledger {
    ledger(2, records)
}

/// So few verdicts are kept that some have to go.
fn narrow(records: &[SignedRecord]) -> Ledger {
    let mut ledger = Ledger::new(&judged(2));
    ledger.verdicts.set_max(4);
    for record in records {
        ledger.insert(record.clone());
    }
    ledger
}

/// What counts, by the words of the protocol and not by its code.
fn expected(records: &[SignedRecord]) -> BTreeSet<MemberKey> {
    let strongest = |pick: &dyn Fn(&&SignedRecord) -> bool| {
        let picked = records.iter().filter(pick);
        picked
            .max_by_key(|r| (r.record().sequence(), std::cmp::Reverse(r.verdict().is_some_and(|v| v.approves)), std::cmp::Reverse(r.id())))
    };
    let is_member = |member: MemberKey| {
        let changed = |becomes| move |r: &&SignedRecord| r.standing().is_some_and(|s| s.subject == member && s.becomes == becomes);
        let at = |becomes| records.iter().filter(changed(becomes)).map(|r| r.record().sequence()).max().unwrap_or(0);
        if member == key(7).member() { at(Member) > at(Out) } else { true }
    };
    let counts = |member: &MemberKey| {
        let Some(announced) = strongest(&|r| r.announcement().is_some_and(|a| a.member == *member)) else { return false };
        let approves = |judge: &MemberKey| {
            let last = strongest(&|r| r.verdict().is_some_and(|v| (v.member, v.subject) == (*judge, *member)));
            let last = last.and_then(SignedRecord::verdict);
            is_member(*judge) && last.is_some_and(|v| v.approves && v.announcement == announced.id())
        };
        is_member(*member) && keys([1, 2, 3, 7]).iter().filter(|judge| approves(judge)).count() >= 2
    };
    keys([1, 2, 3, 7]).into_iter().filter(counts).collect()
}

proptest! {
    #[test]
    fn joining_stays_commutative_associative_and_idempotent(a in some_records(), b in some_records(), c in some_records()) {
        for build in [whole, narrow] {
            let (x, y, z) = (build(&a), build(&b), build(&c));
            prop_assert_eq!(joined(&x, &y), joined(&y, &x));
            prop_assert_eq!(joined(&joined(&x, &y), &z), joined(&x, &joined(&y, &z)));
            prop_assert_eq!(joined(&x, &x), x.clone());
            prop_assert_eq!(joined(&x, &y).fingerprint(), joined(&y, &x).fingerprint());
        }
    }

    #[test]
    fn what_counts_follows_from_the_set_of_records(a in some_records(), turn in 0usize..60) {
        let mut turned = a.clone();
        turned.rotate_left(turn.min(a.len()));
        turned.sort_by_key(|record| record.standing().is_none());
        let ledger = whole(&turned);
        // Without a change that names it, member 7 is a stranger, and nothing of it is there.
        prop_assert_eq!(admitted(&ledger), expected(&a));
        prop_assert!(ledger.admitted().all(|entry| ledger.candidates().any(|candidate| candidate == entry)));
    }
}
