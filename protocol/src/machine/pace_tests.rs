//! When a machine asks its neighbours, in virtual time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
use super::tests::{answer, asked, handle, machine};
use super::*;
use crate::record::tests::announce;
use crate::sync::{Answer, ShortIds};

/// Ticks four times a second, answering every question `Same` at once; when questions were asked.
fn quiet(machine: &mut Machine<u32>, from: u64, to: u64) -> Vec<u64> {
    let mut times = Vec::new();
    for now in (from..to).step_by(250) {
        for peer in asked(&handle(machine, Input::Tick, now)) {
            times.push(now);
            answer(machine, peer, Answer::Same, now);
        }
    }
    times
}

fn with_neighbours(count: u32) -> Machine<u32> {
    let mut machine = machine();
    for peer in 0..count {
        handle(&mut machine, Input::Connected(peer), 0);
        answer(&mut machine, peer, Answer::Same, 0);
    }
    machine
}

#[test]
fn after_a_change_neighbours_are_asked_soon_and_then_ever_less_often() {
    let mut machine = with_neighbours(6);
    quiet(&mut machine, 0, 200_000);
    handle(&mut machine, Input::Publish(announce(2, 1, b"b")), 200_000);
    let times = quiet(&mut machine, 200_000, 300_000);
    let turns: Vec<u64> = times.chunks(2).map(|turn| turn[0] - 200_000).collect();
    assert_eq!(turns, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 62_000, 92_000]);
}

#[test]
fn while_changes_keep_coming_comparisons_wait_but_not_for_ever() {
    let mut machine = with_neighbours(6);
    quiet(&mut machine, 0, 200_000);
    let mut first = None;
    for step in 0..40 {
        let now = 200_000 + step * 500;
        handle(&mut machine, Input::Publish(announce(1, step + 1, b"a")), now);
        if !asked(&handle(&mut machine, Input::Tick, now)).is_empty() {
            first = first.or(Some(now - 200_000));
        }
    }
    assert_eq!(first, Some(5_000));
}

#[test]
fn a_silent_neighbour_is_asked_again_whether_or_not_the_driver_says_so() {
    let mut machine = machine();
    handle(&mut machine, Input::Connected(1), 0);
    handle(&mut machine, Input::SyncFailed { from: 1 }, 0);
    let times = |machine: &mut Machine<u32>, from: u64, to: u64, fails: bool| -> Vec<u64> {
        let mut times = Vec::new();
        for now in (from..to).step_by(250) {
            if !asked(&handle(machine, Input::Tick, now)).is_empty() {
                times.push(now);
                if fails {
                    handle(machine, Input::SyncFailed { from: 1 }, now);
                }
            }
        }
        times
    };
    assert_eq!(times(&mut machine, 0, 24_000, true), [1_000, 3_000, 7_000, 15_000, 23_000]);
    assert_eq!(times(&mut machine, 24_000, 70_000, false), [31_000, 49_000, 67_000], "ten seconds of patience, eight of rest");
    answer(&mut machine, 1, Answer::Same, 70_000);
    assert!(machine.has_compared());
}

#[test]
fn one_question_is_under_way_with_a_neighbour_at_a_time() {
    let mut machine = machine();
    assert_eq!(asked(&handle(&mut machine, Input::Connected(1), 0)), [1]);
    for now in (0..10_000).step_by(250) {
        assert_eq!(asked(&handle(&mut machine, Input::Tick, now)), [] as [u32; 0], "at {now}");
    }
}

#[test]
fn a_difference_makes_both_sides_look_around_again() {
    let mut machine = with_neighbours(6);
    quiet(&mut machine, 0, 200_000);
    let other = announce(3, 1, b"c");
    let theirs: ShortIds = [crate::sync::short(other.id())].into_iter().collect();
    assert_eq!(asked(&answer(&mut machine, 1, Answer::Ids(theirs), 200_000)), [1]);
    answer(&mut machine, 1, Answer::Records(vec![crate::sync::RawRecord(other.bytes().to_vec())]), 200_000);
    assert_eq!(machine.ledger().record_count(), 1);
    assert_eq!(quiet(&mut machine, 200_000, 202_000).len(), 2);
}
