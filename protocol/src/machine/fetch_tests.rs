//! Who takes which place and turn when others lie, stall and connect again and again, in virtual time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
use super::fetches::TRIES_SETTLED;
use super::tests::{handle, machine};
use super::*;
use crate::record::tests::{announce, announcement, key, round};
use crate::record::{Record, SignedRecord};

/// A member announces the blob that member 1 has, `more` bytes larger or smaller than it is.
fn lie(member: u8, sequence: u64, more: i64) -> SignedRecord {
    let mut said = announcement(member, sequence, b"a");
    said.size = said.size.checked_add_signed(more).unwrap();
    SignedRecord::sign(&Record::Announcement(said), &key(member), &round()).unwrap()
}

/// Sizes of what is fetched.
fn sizes(outputs: &[Output<u32>]) -> Vec<u64> {
    outputs.iter().filter_map(|output| if let Output::Fetch { size, .. } = output { Some(*size) } else { None }).collect()
}

fn cancels(outputs: &[Output<u32>]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::CancelFetch(_))).count()
}

/// Ticks from one time to the other; what was fetched when.
fn play(machine: &mut Machine<u32>, from: u64, to: u64) -> Vec<(u64, u64)> {
    (from..to).step_by(250).flat_map(|now| sizes(&handle(machine, Input::Tick, now)).into_iter().map(move |size| (now, size))).collect()
}

/// Members of one round with as many adapters, and what they say.
fn crowd(count: u8) -> (Round, Vec<SignedRecord>) {
    let mut manifest = crate::round::tests::manifest();
    manifest.member_max = 40;
    let round = Round::new(manifest).unwrap();
    let record = |member: u8| {
        let mut said = announcement(member, 1, &[member]);
        said.round = round.id();
        SignedRecord::sign(&Record::Announcement(said), &key(member), &round).unwrap()
    };
    let mut records: Vec<_> = (0..count).map(record).collect();
    records.sort_by_key(|record| record.announcement().unwrap().adapter);
    (round, records)
}

#[test]
fn a_false_size_that_is_stalled_has_a_short_turn_though_no_other_blob_waits() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a"), lie(2, 1, -1), lie(3, 1, 1)]);
    assert_eq!(sizes(&handle(&mut machine, Input::Connected(7), 0)), [899]);
    // No fetch ever ends: each size has its turn at once after the others, then a longer one.
    assert_eq!(play(&mut machine, 250, 36_000), [(3_000, 900), (6_000, 901), (10_000, 899), (16_000, 900), (22_000, 901), (30_000, 899)]);
}

#[test]
fn a_size_without_contradiction_has_no_end_of_its_turn() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a")]);
    assert_eq!(sizes(&handle(&mut machine, Input::Connected(7), 0)), [900]);
    assert_eq!(play(&mut machine, 250, 600_000), []);
}

#[test]
fn the_other_size_is_asked_for_as_soon_as_one_fails() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a"), lie(2, 1, -1)]);
    let adapter = announce(1, 1, b"a").announcement().unwrap().adapter;
    assert_eq!(sizes(&handle(&mut machine, Input::Connected(7), 0)), [899]);
    assert_eq!(sizes(&handle(&mut machine, Input::BlobFailed { adapter }, 100)), [900]);
    assert_eq!(sizes(&handle(&mut machine, Input::BlobFailed { adapter }, 200)), [] as [u64; 0], "all have had their turn");
    assert_eq!(play(&mut machine, 250, 2_000), [(1_250, 899)]);
}

#[test]
fn who_changes_its_lie_takes_no_turn_from_the_truth() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a"), lie(2, 1, -100)]);
    assert_eq!(sizes(&handle(&mut machine, Input::Connected(7), 0)), [800]);
    let bytes = lie(2, 2, -99).bytes().to_vec();
    let outputs = handle(&mut machine, Input::Gossip { bytes }, 1_000);
    assert_eq!((cancels(&outputs), sizes(&outputs)), (1, vec![900]));
    // While the truth has its turn, a lie that changes takes nothing; its new size is the last in the line.
    for sequence in 3..10 {
        let bytes = lie(2, sequence, sequence as i64 - 200).bytes().to_vec();
        assert_eq!(cancels(&handle(&mut machine, Input::Gossip { bytes }, 1_000)), 0);
    }
    assert_eq!(sizes(&handle(&mut machine, Input::Tick, 4_000)), [709]);
    // What the truth has had counts: its second turn is twice as long, whatever the lie is by then.
    let bytes = lie(2, 10, -50).bytes().to_vec();
    assert_eq!(sizes(&handle(&mut machine, Input::Gossip { bytes }, 5_000)), [900]);
    assert_eq!(play(&mut machine, 5_250, 11_250), [(11_000, 850)]);
}

#[test]
fn nobody_seems_to_have_a_blob_only_when_every_size_was_tried_often_enough() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a"), lie(2, 1, -1), lie(3, 1, -2)]);
    let adapter = announce(1, 1, b"a").announcement().unwrap().adapter;
    handle(&mut machine, Input::Connected(7), 0);
    let mut now = 0;
    for tried in 0..3 * TRIES_SETTLED {
        assert!(!machine.is_settled(), "after {tried} tries");
        if sizes(&handle(&mut machine, Input::BlobFailed { adapter }, now)).is_empty() {
            now += 10_000;
            handle(&mut machine, Input::Tick, now);
        }
    }
    assert!(machine.is_settled());
}

#[test]
fn who_connects_again_and_again_has_dead_adapters_tried_no_more_than_every_few_seconds() {
    let mut machine = machine();
    let record = announce(1, 1, b"a");
    handle(&mut machine, Input::Publish(record.clone()), 0);
    let adapter = record.announcement().unwrap().adapter;
    let mut tries = Vec::new();
    for now in (0..120_000).step_by(250) {
        // Under a new name each time.
        if !sizes(&handle(&mut machine, Input::Connected(now as u32), now)).is_empty() {
            tries.push(now);
            handle(&mut machine, Input::BlobFailed { adapter }, now);
        }
    }
    assert_eq!(tries[..6], [0, 1_000, 3_000, 7_000, 11_000, 15_000]);
    assert_eq!(tries.len(), 32, "{tries:?}");
}

#[test]
fn who_connects_again_and_again_does_not_make_others_wait_for_ever() {
    let mut machine = machine();
    let record = announce(1, 1, b"a");
    handle(&mut machine, Input::Publish(record.clone()), 0);
    let adapter = record.announcement().unwrap().adapter;
    let mut unsettled = 0;
    for now in (0..300_000).step_by(1_000) {
        if !sizes(&handle(&mut machine, Input::Connected(now as u32), now)).is_empty() {
            handle(&mut machine, Input::BlobFailed { adapter }, now);
        }
        unsettled += u32::from(!machine.is_settled());
    }
    assert!(machine.is_settled());
    assert!(unsettled < 60, "{unsettled} s");
}

#[test]
fn after_a_long_absence_of_all_others_a_new_neighbour_is_asked_at_once() {
    let mut machine = machine();
    let record = announce(1, 1, b"a");
    handle(&mut machine, Input::Connected(7), 0);
    handle(&mut machine, Input::Publish(record.clone()), 0);
    let adapter = record.announcement().unwrap().adapter;
    for now in [0, 1_000, 3_000, 7_000, 15_000, 31_000] {
        handle(&mut machine, Input::BlobFailed { adapter }, now);
        handle(&mut machine, Input::Tick, now + 31_000);
    }
    handle(&mut machine, Input::BlobFailed { adapter }, 62_000);
    assert_eq!(sizes(&handle(&mut machine, Input::Connected(8), 66_000)), [900]);
    handle(&mut machine, Input::BlobFailed { adapter }, 66_100);
    assert_eq!(play(&mut machine, 66_250, 75_000), [(70_250, 900)], "and the wait has not grown to its longest again");
}

#[test]
fn a_fetch_steps_back_only_when_no_place_is_free_and_the_longest_does() {
    let (round, records) = crowd(10);
    let mut machine: Machine<u32> = Machine::new(round, records[5..9].iter().cloned());
    handle(&mut machine, Input::Connected(7), 0);
    let say = |machine: &mut Machine<u32>, record: &SignedRecord, now| handle(machine, Input::Publish(record.clone()), now);
    for record in &records[..4] {
        say(&mut machine, record, 10_000);
    }
    // Eight places are taken; one waits, and then one of the first four steps back, not one with a lesser hash that is over its turn as well.
    let outputs = say(&mut machine, &records[4], 26_000);
    assert_eq!((cancels(&outputs), sizes(&outputs).len()), (1, 1));
    assert!(outputs.contains(&Output::CancelFetch(records[5].announcement().unwrap().adapter)), "{outputs:?}");
    // Four end: there is room for all, however long the others take.
    for record in &records[..4] {
        let said = record.announcement().unwrap();
        handle(&mut machine, Input::BlobStored { adapter: said.adapter, size: said.size }, 27_000);
    }
    let outputs = say(&mut machine, &records[9], 60_000);
    assert_eq!((cancels(&outputs), sizes(&outputs).len()), (0, 1));
}

#[test]
fn what_steps_back_for_others_waits_behind_them() {
    let (round, records) = crowd(9);
    // The one that waits has the greatest hash.
    let mut machine: Machine<u32> = Machine::new(round, records[..8].iter().cloned());
    handle(&mut machine, Input::Connected(7), 0);
    let outputs = handle(&mut machine, Input::Publish(records[8].clone()), 15_000);
    let adapter = records[8].announcement().unwrap().adapter;
    assert!(outputs.contains(&Output::Fetch { adapter, size: 900 }), "{outputs:?}");
    assert_eq!((cancels(&outputs), sizes(&outputs).len()), (1, 1));
}

#[test]
fn a_failure_of_what_was_called_off_takes_no_turn() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a"), lie(2, 1, -1)]);
    let adapter = announce(1, 1, b"a").announcement().unwrap().adapter;
    handle(&mut machine, Input::Connected(7), 0);
    handle(&mut machine, Input::BlobFailed { adapter }, 0);
    handle(&mut machine, Input::BlobFailed { adapter }, 0);
    // Nothing is under way.
    for now in 1..5 {
        handle(&mut machine, Input::BlobFailed { adapter }, now);
    }
    assert_eq!(play(&mut machine, 0, 1_250), [(1_000, 899)]);
}

#[test]
fn a_size_that_makes_room_for_other_blobs_has_the_rest_of_its_turn_later() {
    let (round, others) = crowd(8);
    let said = |member: u8, more: u64| {
        let mut said = announcement(member, 1, b"a");
        (said.round, said.size) = (round.id(), said.size + more);
        SignedRecord::sign(&Record::Announcement(said), &key(member), &round).unwrap()
    };
    let mut machine: Machine<u32> = Machine::new(round.clone(), [said(20, 0), said(21, 1)]);
    let adapter = said(20, 0).announcement().unwrap().adapter;
    handle(&mut machine, Input::Connected(7), 0);
    assert_eq!(play(&mut machine, 250, 46_000).last(), Some(&(33_000, 901)));
    // Its third turn of 12 s is over and the third of the other begins; then the fourth, of 24 s, and all places are wanted.
    assert_eq!(play(&mut machine, 46_000, 60_000), [(49_000, 900)]);
    for record in others {
        handle(&mut machine, Input::Publish(record), 50_000);
    }
    assert!(handle(&mut machine, Input::Tick, 64_000).contains(&Output::CancelFetch(adapter)));
    assert!(handle(&mut machine, Input::Tick, 65_000).contains(&Output::Fetch { adapter, size: 900 }));
    assert!(handle(&mut machine, Input::Tick, 74_000).contains(&Output::Fetch { adapter, size: 901 }));
}

#[test]
fn a_turn_that_is_over_is_no_failure() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a"), lie(2, 1, -1)]);
    handle(&mut machine, Input::Connected(7), 0);
    assert!(play(&mut machine, 250, 600_000).len() > 6);
    assert!(!machine.is_settled(), "a large blob on a slow line may be coming all the while");
}

#[test]
fn a_lie_that_comes_late_does_not_break_off_what_has_long_been_coming() {
    let mut machine: Machine<u32> = Machine::new(round(), [announce(1, 1, b"a")]);
    assert_eq!(sizes(&handle(&mut machine, Input::Connected(7), 0)), [900]);
    for sequence in 1..10 {
        // It stays at twice what it had when it was contradicted first, however often that is.
        let bytes = lie(2, sequence, sequence as i64).bytes().to_vec();
        let outputs = handle(&mut machine, Input::Gossip { bytes }, 60_000 + 6_000 * (sequence - 1));
        assert_eq!((cancels(&outputs), sizes(&outputs).len()), (0, 0));
    }
    assert_eq!(play(&mut machine, 108_250, 124_500), [(120_000, 909), (124_000, 900)]);
}
