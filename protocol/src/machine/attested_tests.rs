//! Members that vouch, one that lies, and a reader that believes enough of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
use super::tests::handle;
use super::*;
use crate::attestation::{Attestation, Fault, SignedAttestation};
use crate::receipt::set_root;
use crate::record::tests::{announce, key, round};

const SIZE: u64 = 900;

/// A member that has announced, fetched and merged what these members announced.
fn member(members: &[u8]) -> Machine<u32> {
    let records: Vec<SignedRecord> = members.iter().map(|member| announce(*member, 1, &[*member])).collect();
    let mut machine = Machine::new(round(), records.clone());
    for record in records {
        let said = record.announcement().unwrap();
        handle(&mut machine, Input::BlobStored { adapter: said.adapter, size: said.size }, 0);
    }
    machine
}

fn word(machine: &Machine<u32>, by: u8, merged: &[u8]) -> SignedAttestation {
    let attestation = Attestation {
        round: round().id(),
        member: key(by).member(),
        set_root: set_root(round().id(), machine.merge_set()),
        merged: ContentHash::of(merged),
        size: SIZE,
        excluded: machine.attestable().unwrap(),
    };
    SignedAttestation::sign(&attestation, &key(by), &round()).unwrap()
}

fn vouch(machine: &mut Machine<u32>, by: u8, merged: &[u8]) -> Vec<Output<u32>> {
    let word = word(machine, by, merged);
    handle(machine, Input::Attest(word), 0)
}

/// `left` asks `right` until it has no more to ask; what else both had to do.
fn reconcile(left: &mut Machine<u32>, right: &mut Machine<u32>, begin: Input<u32>, now: u64) -> Vec<Output<u32>> {
    let mut pending = handle(left, begin, now);
    let mut others = Vec::new();
    for _ in 0..100 {
        let Some(index) = pending.iter().position(|output| matches!(output, Output::Request { .. })) else {
            return others.into_iter().chain(pending).collect();
        };
        let Output::Request { to, bytes } = pending.remove(index) else { panic!() };
        for output in handle(right, Input::SyncRequest { from: 0, bytes }, now) {
            match output {
                Output::Respond(bytes) => pending.extend(handle(left, Input::SyncResponse { from: to, bytes }, now)),
                other => others.push(other),
            }
        }
    }
    panic!("no end");
}

fn faults(outputs: &[Output<u32>]) -> Vec<&Fault> {
    outputs.iter().filter_map(|output| if let Output::Notice(Notice::Fault(fault)) = output { Some(&**fault) } else { None }).collect()
}

fn reader(members: usize, adapters: usize) -> Machine<u32> {
    Machine::new(round(), []).believing(Quorum { members, adapters })
}

fn fetches(outputs: &[Output<u32>]) -> Vec<(ContentHash, u64)> {
    outputs.iter().filter_map(|output| if let Output::Fetch { adapter, size } = output { Some((*adapter, *size)) } else { None }).collect()
}

#[test]
fn a_reader_of_one_neighbour_gathers_the_words_of_two_members_and_fetches_one_file() {
    let (mut one, mut two) = (member(&[1, 2]), member(&[1, 2]));
    vouch(&mut one, 1, b"merged");
    vouch(&mut two, 2, b"merged");
    assert_eq!(faults(&reconcile(&mut one, &mut two, Input::Connected(2), 0)), [] as [&Fault; 0]);
    let merged = ContentHash::of(b"merged");
    assert_eq!(one.vouching(set_root(round().id(), one.merge_set()), merged), 2);

    let mut reader = reader(2, 2);
    let mut outputs = reconcile(&mut reader, &mut one, Input::Connected(1), 0);
    outputs.extend(reconcile(&mut reader, &mut one, Input::Tick, 1_000));
    assert_eq!(fetches(&outputs), [(merged, SIZE)], "and no member's adapter");
    outputs.extend(handle(&mut reader, Input::BlobStored { adapter: merged, size: SIZE }, 2_000));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Merge(_))));
    let vouched = reader.vouched().unwrap();
    assert_eq!((vouched.admitted.as_slice(), vouched.attestations.len()), (one.merge_set(), 2));
    assert!(reader.is_complete());

    let mut cautious = self::reader(3, 2);
    let mut outputs = reconcile(&mut cautious, &mut one, Input::Connected(1), 0);
    outputs.extend(reconcile(&mut cautious, &mut one, Input::Tick, 1_000));
    assert_eq!((fetches(&outputs), cautious.vouched()), (vec![], None), "two are not three");
}

#[test]
fn a_member_that_lies_is_found_out_by_whoever_hears_both() {
    let (mut one, mut liar) = (member(&[1, 2]), member(&[1, 2]));
    vouch(&mut one, 1, b"merged");
    vouch(&mut liar, 2, b"lie");
    let outputs = reconcile(&mut one, &mut liar, Input::Connected(2), 0);
    let found = faults(&outputs);
    assert_eq!(found.len(), 2, "both sides see it: {outputs:?}");
    for fault in found {
        assert_eq!(Fault::between(&fault.one, &fault.other).as_ref(), Some(fault));
        for signed in [&fault.one, &fault.other] {
            assert_eq!(signed.raw().verify(&round()).as_ref(), Ok(signed), "evidence stands by itself");
        }
    }
    assert_eq!(one.faults().len(), 1);
    assert_eq!(faults(&reconcile(&mut one, &mut liar, Input::Connected(2), 0)), [] as [&Fault; 0], "told once");

    // A reader that hears both believes neither; one more honest member is enough again.
    let mut reader = reader(2, 2);
    reconcile(&mut reader, &mut one, Input::Connected(1), 0);
    let told = reconcile(&mut reader, &mut liar, Input::Connected(2), 0);
    assert_eq!(fetches(&told), []);
    reconcile(&mut reader, &mut one, Input::Connected(1), 1_000);
    assert!(reader.faults().len() == 1 && reader.vouched().is_none());
}

#[test]
fn a_word_of_who_is_no_member_here_counts_for_nothing() {
    let mut one = member(&[1, 2]);
    // The round is open, but key 3 has announced nothing.
    let word = word(&one, 3, b"lie");
    vouch(&mut one, 1, b"merged");
    let request = crate::sync::Request::Compare {
        round: round().id(),
        count: 0,
        fingerprint: ContentHash::default(),
        attestation: Some(word.raw().clone()),
        attestations: 16,
    };
    let outputs = handle(&mut one, Input::SyncRequest { from: 2, bytes: request.to_bytes().unwrap() }, 0);
    assert_eq!(faults(&outputs), [] as [&Fault; 0]);
    let Some(Output::Respond(bytes)) = outputs.last() else { panic!() };
    assert_eq!(crate::sync::Response::from_bytes(bytes).unwrap().attestations.len(), 1);
}

#[test]
fn an_older_word_does_not_displace_one_for_our_own_set() {
    let (mut one, mut two) = (member(&[1, 2]), member(&[1, 2]));
    let older = word(&member(&[1]), 2, b"older");
    vouch(&mut one, 1, b"merged");
    vouch(&mut two, 2, b"merged");
    reconcile(&mut one, &mut two, Input::Connected(2), 0);
    let mut out = Vec::new();
    one.hear(&2, &[older.raw().clone()], &mut out);
    assert_eq!(one.vouching(set_root(round().id(), one.merge_set()), ContentHash::of(b"merged")), 2);
}

#[test]
fn a_refused_adapter_is_named_as_left_out_and_a_reader_follows() {
    let mut one = member(&[1, 2, 3]);
    let unfit = announce(3, 1, &[3]);
    let adapter = unfit.announcement().unwrap().adapter;
    handle(&mut one, Input::BlobRefused { adapter, why: "nan".into() }, 0);
    assert_eq!(one.attestable(), Some(vec![unfit.id()]));
    vouch(&mut one, 1, b"merged");
    let mut reader = reader(1, 2);
    reconcile(&mut reader, &mut one, Input::Connected(1), 0);
    reconcile(&mut reader, &mut one, Input::Tick, 1_000);
    let vouched = reader.vouched().unwrap();
    assert_eq!((vouched.admitted.len(), &vouched.excluded), (2, &vec![unfit.id()]));
}

#[test]
fn who_still_waits_for_adapters_attests_nothing() {
    let mut one = member(&[1, 2]);
    handle(&mut one, Input::Gossip { bytes: announce(3, 1, &[3]).bytes().to_vec() }, 0);
    assert_eq!(one.attestable(), None);
}

#[test]
fn a_reader_that_is_handed_nothing_chooses_anew() {
    let mut one = member(&[1, 2]);
    vouch(&mut one, 1, b"merged");
    let mut reader = reader(1, 2);
    reconcile(&mut reader, &mut one, Input::Connected(1), 0);
    reconcile(&mut reader, &mut one, Input::Tick, 1_000);
    let first = reader.vouched().unwrap().merged;
    // The set has moved on, and nobody serves what was vouched for before.
    let mut later = member(&[1, 2, 4]);
    vouch(&mut later, 1, b"merged again");
    reconcile(&mut reader, &mut later, Input::Connected(2), 2_000);
    assert_eq!(reader.vouched().unwrap().merged, first, "what is being fetched is fetched to its end");
    reconcile(&mut reader, &mut later, Input::Tick, 5_000);
    for now in [10_000, 50_000, 90_000] {
        handle(&mut reader, Input::BlobFailed { adapter: first }, now);
        reconcile(&mut reader, &mut later, Input::Tick, now + 35_000);
    }
    reconcile(&mut reader, &mut later, Input::Tick, 130_000);
    assert_eq!(reader.vouched().unwrap().merged, ContentHash::of(b"merged again"));
}
