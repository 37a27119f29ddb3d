//! What does not count yet is fetched all the same, and what members say of it decides whether it is merged.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
use super::tests::{answer, handle};
use super::*;
use crate::record::tests::key;
use crate::standing::Standing;
use crate::sync;
use crate::verdict::tests::{announce, change, judge, judged};

fn gossip(machine: &mut Machine<u32>, record: &SignedRecord) -> Vec<Output<u32>> {
    handle(machine, Input::Gossip { bytes: record.bytes().to_vec() }, 0)
}

fn merges(outputs: &[Output<u32>]) -> Vec<usize> {
    outputs.iter().filter_map(|output| if let Output::Merge(set) = output { Some(set.len()) } else { None }).collect()
}

#[test]
fn a_candidate_is_fetched_and_kept_and_merged_only_while_enough_members_approve() {
    let round = judged(2);
    let mut machine: Machine<u32> = Machine::new(round.clone(), []);
    handle(&mut machine, Input::Connected(7), 0);
    let one = announce(&round, 1, 1, b"a");
    let said = one.announcement().unwrap();
    assert!(gossip(&mut machine, &one).contains(&Output::Fetch { adapter: said.adapter, size: said.size }));
    assert!(!machine.is_complete(), "whoever judges has to have it");
    assert_eq!(merges(&handle(&mut machine, Input::BlobStored { adapter: said.adapter, size: said.size }, 0)), [] as [usize; 0]);
    assert!(machine.is_complete() && machine.merge_set().is_empty());
    assert_eq!(machine.attestable(), None, "nothing is merged, so there is nothing to vouch for");
    let first = judge(&round, 2, &one, 1, true);
    let outputs = gossip(&mut machine, &first);
    assert_eq!(outputs[0], Output::Keep(first.clone()), "durable before it is passed on");
    assert!(outputs.contains(&Output::Reception(Reception::Accept)) && merges(&outputs).is_empty());
    assert_eq!(gossip(&mut machine, &first), [Output::Reception(Reception::Ignore)]);
    assert_eq!(merges(&gossip(&mut machine, &judge(&round, 3, &one, 1, true))), [1]);
    // What waits for approvals is no more left out of an attestation than what was never announced.
    let two = announce(&round, 2, 1, b"b");
    gossip(&mut machine, &two);
    handle(&mut machine, Input::BlobStored { adapter: two.announcement().unwrap().adapter, size: 900 }, 0);
    assert_eq!(machine.attestable(), Some(vec![]));
    // A judge takes its word back, another is put out.
    assert_eq!(merges(&gossip(&mut machine, &judge(&round, 3, &one, 2, false))), [0]);
    assert_eq!(merges(&gossip(&mut machine, &judge(&round, 3, &one, 3, true))), [1]);
    assert_eq!(merges(&gossip(&mut machine, &change(&round, 2, 1, Standing::Out))), [0]);
}

#[test]
fn one_answer_with_all_records_in_the_wrong_order_is_taken_whole() {
    let round = judged(1);
    let one = announce(&round, 7, 1, b"a");
    let records = [judge(&round, 2, &one, 1, true), one.clone(), change(&round, 7, 1, Standing::Member)];
    let mut machine: Machine<u32> = Machine::new(round.clone(), []);
    handle(&mut machine, Input::Connected(1), 0);
    let raw = records.iter().map(|record| sync::RawRecord(record.bytes().to_vec())).collect();
    answer(&mut machine, 1, sync::Answer::Records(raw), 0);
    assert_eq!(machine.ledger().admitted().count(), 1);
    assert_eq!(Machine::<u32>::new(round, records).ledger(), machine.ledger(), "as they lie in a store");
}

#[test]
fn a_verdict_on_a_stranger_is_refused_by_the_strangers_name_and_nobody_is_blamed() {
    let round = judged(1);
    let mut machine: Machine<u32> = Machine::new(round.clone(), []);
    let member = key(7).member();
    let outputs = gossip(&mut machine, &judge(&round, 2, &announce(&round, 7, 1, b"a"), 1, true));
    let refused = Output::Notice(Notice::RecordRefused(RecordError::NotInRoster { member }));
    assert_eq!(outputs, [refused, Output::Reception(Reception::Ignore)]);
}
