#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
use std::collections::BTreeSet;

use super::*;
use crate::record::tests::{announce, key, round, withdraw};
use crate::record::{Record, SignedRecord};
use crate::sync;

pub(super) fn machine() -> Machine<u32> {
    Machine::new(round(), [])
}

pub(super) fn handle(machine: &mut Machine<u32>, input: Input<u32>, now: u64) -> Vec<Output<u32>> {
    let mut out = Vec::new();
    machine.handle(input, Millis(now), &mut out);
    out
}

fn gossip(machine: &mut Machine<u32>, record: &SignedRecord) -> Vec<Output<u32>> {
    handle(machine, Input::Gossip { bytes: record.bytes().to_vec() }, 0)
}

fn stored(machine: &mut Machine<u32>, record: &SignedRecord) -> Vec<Output<u32>> {
    let announcement = record.announcement().unwrap();
    handle(machine, Input::BlobStored { adapter: announcement.adapter, size: announcement.size }, 0)
}

pub(super) fn answer(machine: &mut Machine<u32>, from: u32, answer: sync::Answer, now: u64) -> Vec<Output<u32>> {
    let bytes = sync::Response::from(answer).to_bytes().unwrap();
    handle(machine, Input::SyncResponse { from, bytes }, now)
}

/// Whom these outputs ask.
pub(super) fn asked(outputs: &[Output<u32>]) -> Vec<u32> {
    outputs.iter().filter_map(|output| if let Output::Request { to, .. } = output { Some(*to) } else { None }).collect()
}

fn merges(outputs: &[Output<u32>]) -> Vec<usize> {
    outputs.iter().filter_map(|output| if let Output::Merge(set) = output { Some(set.len()) } else { None }).collect()
}

#[test]
fn a_record_is_kept_before_it_is_passed_on_then_fetched_and_merged() {
    let mut machine = machine();
    handle(&mut machine, Input::Connected(7), 0);
    let record = announce(1, 1, b"a");
    let outputs = gossip(&mut machine, &record);
    let adapter = record.announcement().unwrap().adapter;
    assert_eq!(
        outputs,
        [
            Output::Keep(record.clone()),
            Output::Notice(Notice::Recorded(record.clone())),
            Output::Reception(Reception::Accept),
            Output::Fetch { adapter, size: 900 },
        ]
    );
    assert!(!machine.is_complete());
    assert_eq!(merges(&stored(&mut machine, &record)), [1]);
    assert!(machine.is_complete());
    assert_eq!(gossip(&mut machine, &record), [Output::Reception(Reception::Ignore)]);
}

#[test]
fn bad_records_change_nothing_and_are_rejected() {
    let mut machine = machine();
    let mut bytes = announce(1, 1, b"a").bytes().to_vec();
    bytes[0] ^= 1;
    let outputs = handle(&mut machine, Input::Gossip { bytes }, 0);
    assert_eq!(outputs.last(), Some(&Output::Reception(Reception::Reject)));
    assert_eq!(machine.ledger().record_count(), 0);
}

#[test]
fn withdrawal_supersession_and_conflict_move_the_merge_set() {
    let mut machine = machine();
    let (one, two) = (announce(1, 1, b"a"), announce(2, 1, b"b"));
    for record in [&one, &two] {
        gossip(&mut machine, record);
        stored(&mut machine, record);
    }
    assert_eq!(machine.merge_set().len(), 2);
    assert_eq!(merges(&gossip(&mut machine, &withdraw(1, 2))), [1]);
    let again = announce(1, 3, b"a");
    assert_eq!(merges(&gossip(&mut machine, &again)), [2], "its blob is still stored");
    assert_eq!(merges(&gossip(&mut machine, &announce(2, 1, b"c"))), [1], "a conflict counts for nothing");
    assert_eq!(gossip(&mut machine, &one), [Output::Reception(Reception::Ignore)], "an older sequence changes nothing");
}

#[test]
fn a_refused_blob_leaves_the_set_and_is_not_fetched_again() {
    let mut machine = machine();
    handle(&mut machine, Input::Connected(7), 0);
    let record = announce(1, 1, b"a");
    gossip(&mut machine, &record);
    stored(&mut machine, &record);
    let adapter = record.announcement().unwrap().adapter;
    let outputs = handle(&mut machine, Input::BlobRefused { adapter, why: "nan".into() }, 0);
    assert_eq!(merges(&outputs), [0]);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Fetch { .. })));
    assert_eq!(handle(&mut machine, Input::BlobRefused { adapter, why: "nan".into() }, 0), [], "people are told once");
}

#[test]
fn an_announced_size_that_is_not_the_blobs_size_never_counts() {
    let mut machine = machine();
    let record = announce(1, 1, b"a");
    gossip(&mut machine, &record);
    let adapter = record.announcement().unwrap().adapter;
    let outputs = handle(&mut machine, Input::BlobStored { adapter, size: 901 }, 0);
    assert_eq!(merges(&outputs), [] as [usize; 0]);
}

#[test]
fn failed_fetches_wait_longer_each_time_and_a_new_neighbour_ends_the_wait() {
    let mut machine = machine();
    handle(&mut machine, Input::Connected(7), 0);
    let record = announce(1, 1, b"a");
    gossip(&mut machine, &record);
    let adapter = record.announcement().unwrap().adapter;
    let fetches = |outputs: &[Output<u32>]| outputs.iter().filter(|output| matches!(output, Output::Fetch { .. })).count();
    assert_eq!(fetches(&handle(&mut machine, Input::BlobFailed { adapter }, 0)), 0);
    assert_eq!(fetches(&handle(&mut machine, Input::Tick, 999)), 0);
    assert_eq!(fetches(&handle(&mut machine, Input::Tick, 1_000)), 1);
    for (failed, again) in [(1_000, 3_000), (3_000, 7_000)] {
        assert_eq!(fetches(&handle(&mut machine, Input::BlobFailed { adapter }, failed)), 0);
        assert_eq!(fetches(&handle(&mut machine, Input::Tick, again - 1)), 0);
        assert_eq!(fetches(&handle(&mut machine, Input::Tick, again)), 1);
    }
    assert_eq!(fetches(&handle(&mut machine, Input::BlobFailed { adapter }, 7_000)), 0);
    assert_eq!(fetches(&handle(&mut machine, Input::Tick, 13_000)), 0);
    assert_eq!(fetches(&handle(&mut machine, Input::Connected(8), 13_000)), 1);
}

#[test]
fn what_nobody_hands_over_is_not_waited_for_until_somebody_new_comes() {
    let mut machine = machine();
    handle(&mut machine, Input::Connected(7), 0);
    let record = announce(1, 1, b"a");
    gossip(&mut machine, &record);
    let adapter = record.announcement().unwrap().adapter;
    for tried in 0..fetches::TRIES_SETTLED {
        assert!(!machine.is_settled(), "after {tried} tries");
        handle(&mut machine, Input::BlobFailed { adapter }, 0);
        handle(&mut machine, Input::Tick, 40_000);
    }
    assert!(machine.is_settled() && !machine.is_complete());
    handle(&mut machine, Input::Connected(8), 50_000);
    assert!(!machine.is_settled(), "a new neighbour may have it");
}

#[test]
fn fetches_are_bounded_and_superseded_ones_cancelled() {
    let mut machine: Machine<u32> = Machine::new(round(), (1..=4).map(|member| announce(member, 1, &[member])));
    let outputs = handle(&mut machine, Input::Connected(7), 0);
    assert_eq!(outputs.iter().filter(|output| matches!(output, Output::Fetch { .. })).count(), FETCHES_MAX.min(4));
    let gone = announce(1, 1, &[1]).announcement().unwrap().adapter;
    let outputs = gossip(&mut machine, &withdraw(1, 2));
    assert!(outputs.contains(&Output::CancelFetch(gone)));
}

#[test]
fn periodic_reconciliation_visits_every_neighbour_in_turn() {
    let mut machine = machine();
    for peer in 0..10 {
        handle(&mut machine, Input::Connected(peer), 0);
    }
    let mut visited = BTreeSet::new();
    for turn in 1..=5 {
        for peer in 0..10 {
            answer(&mut machine, peer, sync::Answer::Same, 0);
        }
        for output in handle(&mut machine, Input::Tick, turn * SYNC_INTERVAL_MS) {
            let Output::Request { to, .. } = output else { panic!("{output:?}") };
            visited.insert(to);
        }
    }
    assert_eq!(visited.len(), 10);
}

/// Two machines joined by a perfect wire: every request is answered at once.
fn reconcile(left: &mut Machine<u32>, right: &mut Machine<u32>) {
    let mut pending = handle(left, Input::Connected(1), 0);
    for _ in 0..100 {
        let Some(index) = pending.iter().position(|output| matches!(output, Output::Request { .. })) else { return };
        let Output::Request { bytes, .. } = pending.swap_remove(index) else { return };
        let answers = handle(right, Input::SyncRequest { from: 0, bytes }, 0);
        let responses: Vec<_> =
            answers.into_iter().filter_map(|o| if let Output::Respond(bytes) = o { Some(bytes) } else { None }).collect();
        assert_eq!(responses.len(), 1, "each request has one answer");
        pending.extend(handle(left, Input::SyncResponse { from: 1, bytes: responses[0].clone() }, 0));
    }
    panic!("reconciliation does not end");
}

#[test]
fn a_peer_that_was_away_learns_everything_in_both_directions() {
    let mut left: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a"), announce(2, 2, b"b")]);
    let mut right: Machine<u32> = Machine::new(round(), [announce(2, 1, b"x"), announce(3, 1, b"c")]);
    reconcile(&mut left, &mut right);
    assert_eq!(left.ledger(), right.ledger());
    assert_eq!(left.ledger().record_count(), 3);
}

#[test]
fn more_records_than_one_batch_still_arrive() {
    let mut manifest = crate::round::tests::manifest();
    manifest.member_max = 200;
    let round = Round::new(manifest).unwrap();
    let records = |members: std::ops::Range<u8>| {
        let round = round.clone();
        members.map(move |member| {
            let mut announcement = crate::record::tests::announcement(member, 1, &[member]);
            announcement.round = round.id();
            SignedRecord::sign(&Record::Announcement(announcement), &key(member), &round).unwrap()
        })
    };
    let mut left: Machine<u32> = Machine::new(round.clone(), records(0..5));
    let mut right: Machine<u32> = Machine::new(round.clone(), records(5..180));
    reconcile(&mut left, &mut right);
    assert_eq!(left.ledger().record_count(), 180);
}

#[test]
fn a_peer_of_another_round_is_told_so() {
    let mut manifest = crate::round::tests::manifest();
    manifest.name.push_str(" two");
    let mut other: Machine<u32> = Machine::new(Round::new(manifest).unwrap(), []);
    let mut machine = machine();
    let Some(Output::Request { bytes, .. }) = handle(&mut machine, Input::Connected(1), 0).pop() else { panic!() };
    let Some(Output::Respond(bytes)) = handle(&mut other, Input::SyncRequest { from: 0, bytes }, 0).pop() else { panic!() };
    let outputs = handle(&mut machine, Input::SyncResponse { from: 1, bytes }, 0);
    assert!(matches!(outputs[..], [Output::Notice(Notice::SyncRefused(_))]));
}

#[test]
fn a_lie_about_an_adapters_size_keeps_nobody_from_the_adapter() {
    // Two members announce one blob with two sizes; only one can be true, and it must have its turn.
    let honest = announce(1, 1, b"a");
    let mut said = crate::record::tests::announcement(2, 1, b"a");
    said.size += 1;
    let liar = SignedRecord::sign(&Record::Announcement(said), &key(2), &round()).unwrap();
    let mut machine: Machine<u32> = Machine::new(round(), [honest.clone(), liar]);
    let mut sizes = BTreeSet::new();
    let mut outputs = handle(&mut machine, Input::Connected(7), 0);
    for turn in 1..4 {
        let mut next = Vec::new();
        for output in outputs {
            if let Output::Fetch { adapter, size } = output {
                sizes.insert(size);
                next.extend(handle(&mut machine, Input::BlobFailed { adapter }, turn * 60_000));
            }
        }
        next.extend(handle(&mut machine, Input::Tick, turn * 60_000 + 40_000));
        outputs = next;
    }
    assert_eq!(sizes, BTreeSet::from([900, 901]));
    assert_eq!(merges(&stored(&mut machine, &honest)), [1], "the one with the true size counts");
}

#[test]
fn dead_and_slow_adapters_do_not_starve_an_honest_one() {
    let mut manifest = crate::round::tests::manifest();
    manifest.member_max = 40;
    let round = Round::new(manifest).unwrap();
    let record = |member: u8| {
        let mut announcement = crate::record::tests::announcement(member, 1, &[member]);
        announcement.round = round.id();
        SignedRecord::sign(&Record::Announcement(announcement), &key(member), &round).unwrap()
    };
    let mut adapters: Vec<_> = (0..30).map(|member| record(member).announcement().unwrap().adapter).collect();
    adapters.sort();
    let honest = adapters[29];
    let mut machine: Machine<u32> = Machine::new(round.clone(), (0..30).map(record));
    let mut pending = handle(&mut machine, Input::Connected(7), 0);
    for second in 1..600 {
        let asked: Vec<_> =
            pending.drain(..).filter_map(|o| if let Output::Fetch { adapter, .. } = o { Some(adapter) } else { None }).collect();
        if asked.contains(&honest) {
            return;
        }
        // Half of them fail at once, half never answer.
        for adapter in asked.into_iter().filter(|adapter| adapter.0[0] % 2 == 0) {
            pending.extend(handle(&mut machine, Input::BlobFailed { adapter }, second * 1_000));
        }
        pending.extend(handle(&mut machine, Input::Tick, second * 1_000));
    }
    panic!("the honest adapter was never asked for");
}

#[test]
fn a_member_that_says_much_in_one_answer_costs_one_record() {
    let mut machine = machine();
    let records = (1..=48).map(|sequence| sync::RawRecord(announce(1, sequence, b"a").bytes().to_vec())).collect();
    let outputs = answer(&mut machine, 1, sync::Answer::Records(records), 0);
    let count = |kind: fn(&Output<u32>) -> bool| outputs.iter().filter(|output| kind(output)).count();
    assert_eq!(count(|output| matches!(output, Output::Keep(_))), 1);
    assert_eq!(count(|output| matches!(output, Output::Forget(_) | Output::Request { .. })), 0);
}

#[test]
fn only_a_finished_comparison_says_that_nothing_is_missing() {
    let mut machine = machine();
    handle(&mut machine, Input::Connected(1), 0);
    assert!(machine.is_settled() && !machine.has_compared());
    answer(&mut machine, 1, sync::Answer::Same, 0);
    assert!(machine.has_compared());
}

#[test]
fn who_belongs_is_taken_first_from_a_batch_and_a_stranger_is_not_blamed() {
    use crate::standing::Standing;
    use crate::standing::tests::{announce, change, founded};
    let mut machine: Machine<u32> = Machine::new(founded(), []);
    let (said, admits) = (announce(7, 1, b"a"), change(7, 1, Standing::Member, &[11, 12]));
    let outputs = gossip(&mut machine, &said);
    let member = key(7).member();
    let expected = [Output::Notice(Notice::RecordRefused(RecordError::NotInRoster { member })), Output::Reception(Reception::Ignore)];
    assert_eq!(outputs, expected, "the change that admits it may be on its way");
    let records = [&said, &admits].map(|record| sync::RawRecord(record.bytes().to_vec())).to_vec();
    answer(&mut machine, 1, sync::Answer::Records(records), 0);
    assert_eq!(machine.ledger().admitted().count(), 1);
    assert_eq!(merges(&stored(&mut machine, &said)), [1]);
    assert_eq!(merges(&gossip(&mut machine, &change(7, 2, Standing::Out, &[11, 13]))), [0]);
    assert_eq!(Machine::<u32>::new(founded(), [said, admits]).ledger().admitted().count(), 1, "as they lie in a store");
}

#[test]
fn a_change_of_standing_makes_a_peer_ask_soon_for_what_was_refused() {
    use crate::standing::Standing;
    use crate::standing::tests::{change, founded};
    let mut machine: Machine<u32> = Machine::new(founded(), []);
    handle(&mut machine, Input::Connected(7), 0);
    for now in [0, 1_000, 3_000, 7_000] {
        answer(&mut machine, 7, sync::Answer::Same, now);
        handle(&mut machine, Input::Tick, now);
    }
    answer(&mut machine, 7, sync::Answer::Same, 7_000);
    assert_eq!(asked(&handle(&mut machine, Input::Tick, 8_000)), [] as [u32; 0]);
    let bytes = change(7, 1, Standing::Member, &[11, 12]).bytes().to_vec();
    handle(&mut machine, Input::Gossip { bytes }, 8_000);
    assert_eq!(asked(&handle(&mut machine, Input::Tick, 9_000)), [7]);
}

#[test]
fn ones_own_record_that_has_no_place_is_told_to_nobody() {
    use crate::standing::tests::{announce, founded};
    let mut machine: Machine<u32> = Machine::new(founded(), []);
    // The founders have not admitted it, as far as this peer knows.
    let record = announce(7, 1, b"a");
    let outputs = handle(&mut machine, Input::Publish(record.clone()), 0);
    assert!(outputs.contains(&Output::Notice(Notice::NotKept(record))), "{outputs:?}");
    assert!(!outputs.iter().any(|output| matches!(output, Output::Gossip(_) | Output::Keep(_))), "{outputs:?}");
}
