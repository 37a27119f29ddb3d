#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;

use super::*;
use crate::hash::{ContentHash, encode_hex};
use crate::record::tests::{announcement, key};
use crate::record::{Record, RecordError, SEQUENCE_MAX, SignedRecord, UnverifiedRecord};
use crate::round::tests::manifest;
use crate::round::{Round, RoundError, RoundId};
use crate::standing::{Founders, Standing, StandingChange, Statement};

fn keys(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<MemberKey> {
    numbers.into_iter().map(|number| key(number).member()).collect()
}

fn rules(approvals: u32) -> Manifest {
    let founders = Some(Founders { keys: keys([11]), threshold: 1 });
    Manifest { roster: Roster::Members(keys([1, 2, 3, 4])), founders, verdicts: Some(VerdictRule { approvals }), ..manifest() }
}

/// Members 1 to 4 judge each other; founder 11 may change who they are.
pub(crate) fn judged(approvals: u32) -> Round {
    Round::new(rules(approvals)).unwrap()
}

pub(crate) fn announce(round: &Round, member: u8, sequence: u64, adapter: &[u8]) -> SignedRecord {
    let said = crate::record::Announcement { round: round.id(), ..announcement(member, sequence, adapter) };
    SignedRecord::sign(&Record::Announcement(said), &key(member), round).unwrap()
}

pub(crate) fn change(round: &Round, subject: u8, sequence: u64, becomes: Standing) -> SignedRecord {
    let statement = Statement { round: round.id(), subject: key(subject).member(), sequence, becomes };
    let said = StandingChange::new(&statement, key(11).member(), [statement.approve(&key(11))]);
    SignedRecord::sign(&Record::Standing(said), &key(11), round).unwrap()
}

fn said(round: &Round, judge: u8, on: &SignedRecord, sequence: u64, approves: bool) -> Verdict {
    Verdict {
        round: round.id(),
        member: key(judge).member(),
        subject: on.record().member(),
        announcement: on.id(),
        sequence,
        approves,
        losses: TrialLosses { base_micronats: 3_000_000, merged_micronats: Some(2_500_000), with_micronats: Some(2_400_000) },
        examples: 7,
    }
}

/// A verdict on what an announcement announces.
pub(crate) fn judge(round: &Round, judge: u8, on: &SignedRecord, sequence: u64, approves: bool) -> SignedRecord {
    SignedRecord::sign(&Record::Verdict(said(round, judge, on, sequence, approves)), &key(judge), round).unwrap()
}

fn refused(spoil: impl Fn(&mut Verdict)) -> RecordError {
    let round = judged(1);
    let mut verdict = said(&round, 2, &announce(&round, 1, 1, b"a"), 1, true);
    spoil(&mut verdict);
    SignedRecord::sign(&Record::Verdict(verdict), &key(2), &round).unwrap_err()
}

#[test]
fn a_verdict_comes_back_as_it_was_signed_and_no_flipped_bit_is_accepted() {
    let round = judged(1);
    let sent = judge(&round, 2, &announce(&round, 1, 1, b"a"), 1, true);
    assert_eq!(UnverifiedRecord(sent.bytes()).verify(&round), Ok(sent.clone()));
    assert_eq!((sent.record().author(), sent.record().member()), (key(2).member(), key(2).member()));
    assert!(sent.bytes().len() < 500, "{} bytes", sent.bytes().len());
    for bit in 0..sent.bytes().len() * 8 {
        let mut bytes = sent.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(UnverifiedRecord(&bytes).verify(&round).is_err(), "bit {bit}");
    }
}

#[test]
fn a_verdict_outside_the_rules_is_refused() {
    let member = key(2).member();
    assert_eq!(refused(|v| v.subject = member), VerdictError::OwnAdapter { member }.into());
    assert_eq!(refused(|v| v.examples = 0), VerdictError::NoExamples.into());
    assert_eq!(refused(|v| v.losses.with_micronats = None), VerdictError::ApprovesNoLoss.into());
    assert_eq!(refused(|v| v.sequence = 0), RecordError::SequenceZero);
    assert_eq!(refused(|v| v.sequence = SEQUENCE_MAX + 1), RecordError::SequenceAboveMax { found: SEQUENCE_MAX + 1 });
    assert_eq!(refused(|v| v.member = key(3).member()), RecordError::Signature { member: key(3).member() });
    let elsewhere = RoundId(ContentHash::of(b"elsewhere"));
    assert_eq!(refused(|v| v.round = elsewhere), RecordError::WrongRound { found: elsewhere, expected: judged(1).id() });
    // A loss that is no number is a reason against, and nothing else is refused for it.
    let round = judged(1);
    let on = announce(&round, 1, 1, b"a");
    let mut against = said(&round, 2, &on, 1, false);
    (against.losses.with_micronats, against.losses.merged_micronats) = (None, None);
    assert!(SignedRecord::sign(&Record::Verdict(against), &key(2), &round).is_ok());
    // A round that does not ask for verdicts takes none.
    let silent = Round::new(Manifest { verdicts: None, ..rules(0) }).unwrap();
    let unasked = said(&silent, 2, &announce(&silent, 1, 1, b"a"), 1, true);
    assert_eq!(SignedRecord::sign(&Record::Verdict(unasked), &key(2), &silent).unwrap_err(), VerdictError::NotAsked.into());
}

#[test]
fn a_rule_that_no_adapter_could_satisfy_or_no_ledger_hold_is_refused() {
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut changed = rules(1);
        change(&mut changed);
        Round::new(changed)
    };
    let field = |what| {
        move |round: Result<Round, RoundError>| assert!(matches!(round, Err(RoundError::Field { what: found, .. }) if found == what))
    };
    field("the roster")(refused(&|m| m.roster = Roster::Open));
    field("the member cap")(refused(&|m| m.member_max = JUDGED_MEMBERS_MAX + 1));
    field("the number of approvals")(refused(&|m| m.verdicts = Some(VerdictRule { approvals: 4 })));
    // Founders may add a judge; without them there are only the other members.
    let two = |m: &mut Manifest| (m.roster, m.verdicts) = (Roster::Members(keys([1, 2])), Some(VerdictRule { approvals: 2 }));
    assert!(refused(&two).is_ok());
    field("the number of approvals")(refused(&|m| {
        two(m);
        m.founders = None;
    }));
    assert!(refused(&|m| (m.member_max, m.verdicts) = (JUDGED_MEMBERS_MAX, Some(VerdictRule { approvals: 0 }))).is_ok());
}

#[derive(Deserialize)]
struct Vectors {
    rounds: Vec<Identified>,
    records: Vec<Vector>,
}

#[derive(Deserialize)]
struct Identified {
    manifest: Manifest,
    id: RoundId,
}

#[derive(Deserialize)]
struct Vector {
    record: Record,
    payload: String,
    id: RecordId,
}

/// The manifests that ask for verdicts, and the bytes that judges sign, by a second implementation.
#[test]
fn every_verdict_vector_agrees() {
    let vectors: Vectors = serde_json::from_str(include_str!("../../vectors/verdicts.json")).unwrap();
    assert!(vectors.rounds.len() >= 3 && vectors.records.len() >= 3);
    for Identified { manifest, id } in vectors.rounds {
        assert_eq!(Round::new(manifest).unwrap().id(), id);
    }
    for Vector { record, payload, id } in vectors.records {
        let written = crate::encoding::to_cbor(&record).unwrap();
        assert_eq!(encode_hex(&written), payload, "{record:?}");
        let signed = [&[0; 64], written.as_slice()].concat();
        assert_eq!(UnverifiedRecord(&signed).claims().unwrap().0, id);
        assert!(matches!(record, Record::Verdict(_)));
    }
}
