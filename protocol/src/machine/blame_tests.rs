//! What is held against who hands records over, and what never is.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
use super::tests::{answer, handle, machine};
use super::*;
use crate::attestation::RawAttestation;
use crate::record::tests::{announce, round, withdraw};
use crate::standing::Standing;
use crate::standing::tests as standing;
use crate::sync::{Answer, RawRecord, Request, Response, Session};

const SENDER: u32 = 9;

fn raw(records: &[SignedRecord]) -> Vec<RawRecord> {
    records.iter().map(|record| RawRecord(record.bytes().to_vec())).collect()
}

/// With a signature that is nobody's.
fn broken(number: u64) -> RawRecord {
    let mut bytes = announce(1, number, b"a").bytes().to_vec();
    bytes[0] ^= 1;
    RawRecord(bytes)
}

/// Who is blamed, and how often.
fn blamed(outputs: &[Output<u32>]) -> Vec<(u32, u32)> {
    outputs.iter().filter_map(|output| if let Output::Misled { by, times } = output { Some((*by, *times)) } else { None }).collect()
}

/// The same records as an answer and as a gift.
fn both_ways(round: &Round, held: &[SignedRecord], records: &[RawRecord]) -> [Vec<Output<u32>>; 2] {
    let of = || Machine::new(round.clone(), held.to_vec());
    let given = Request::Exchange { round: round.id(), wanted: Default::default(), records: records.to_vec() };
    let bytes = given.to_bytes().unwrap();
    [answer(&mut of(), SENDER, Answer::Records(records.to_vec()), 0), handle(&mut of(), Input::SyncRequest { from: SENDER, bytes }, 0)]
}

#[test]
fn broken_records_are_held_against_who_hands_them_over_and_the_right_ones_still_count() {
    let records = [vec![broken(1), RawRecord(vec![7; 10])], raw(&[announce(2, 1, b"b")]), vec![broken(2)]].concat();
    for outputs in both_ways(&round(), &[], &records) {
        assert_eq!(blamed(&outputs), [(SENDER, 3)]);
        assert!(outputs.iter().any(|output| matches!(output, Output::Keep(_))), "{outputs:?}");
    }
}

#[test]
fn a_message_of_broken_records_is_not_read_to_its_end() {
    let records: Vec<RawRecord> = (1..=200).map(broken).collect();
    for outputs in both_ways(&round(), &[], &records) {
        assert_eq!(blamed(&outputs), [(SENDER, 32)], "enough to be disconnected for");
        let refused = outputs.iter().filter(|output| matches!(output, Output::Notice(Notice::RecordRefused(_)))).count();
        assert_eq!(refused, 32);
    }
}

#[test]
fn what_another_ledger_has_a_place_for_is_held_against_nobody() {
    // Of strangers before the change that admits them, and of who is out by now.
    let out = standing::change(1, 1, Standing::Out, &[11, 12]);
    let said = [standing::announce(7, 1, b"a"), standing::announce(1, 1, b"b"), standing::change(1, 1, Standing::Member, &[12, 13])];
    for outputs in both_ways(&standing::founded(), &[out], &raw(&said)) {
        assert_eq!(blamed(&outputs), []);
    }
    // Held, superseded, redundant, in conflict, and beyond the four whom an open round has room for.
    let held = [announce(1, 3, b"a"), announce(2, 1, b"a"), announce(2, 1, b"b")];
    let said = [announce(1, 3, b"a"), announce(1, 2, b"x"), withdraw(1, 1), announce(2, 1, b"c"), announce(1, 3, b"other")];
    let others: Vec<SignedRecord> = (3..20).map(|member| announce(member, 1, b"a")).collect();
    for outputs in both_ways(&round(), &held, &raw(&[said.to_vec(), others].concat())) {
        assert_eq!(blamed(&outputs), []);
    }
}

#[test]
fn broken_attestations_are_held_against_who_passes_them_on() {
    let attestations = vec![RawAttestation(vec![7; 100]); 2];
    let bytes = Response { answer: Answer::Same, attestations }.to_bytes().unwrap();
    assert_eq!(blamed(&handle(&mut machine(), Input::SyncResponse { from: SENDER, bytes }, 0)), [(SENDER, 2)]);
    let Request::Compare { round, count, fingerprint, .. } = Session::compare(round().id(), machine().catalogue()) else { panic!() };
    let attestation = Some(RawAttestation(vec![7; 100]));
    let bytes = Request::Compare { round, count, fingerprint, attestation, attestations: 0 }.to_bytes().unwrap();
    assert_eq!(blamed(&handle(&mut machine(), Input::SyncRequest { from: SENDER, bytes }, 0)), [(SENDER, 1)]);
}
