#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::identity::Roster;
use crate::record::tests::{announcement, key};
use crate::record::{RECORD_BYTES_MAX, Record, RecordError, SEQUENCE_MAX, SignedRecord, UnverifiedRecord};
use crate::round::tests::manifest;
use crate::round::{Manifest, Round};

fn keys(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<MemberKey> {
    numbers.into_iter().map(|number| key(number).member()).collect()
}

/// Founders 11, 12 and 13, two of whom must agree; members 1 and 2, reader 5.
pub(crate) fn founded() -> Round {
    let founders = Some(Founders { keys: keys([11, 12, 13]), threshold: 2 });
    let readers = Some(Readers::Listed(keys([5])));
    Round::new(Manifest { roster: Roster::Members(keys([1, 2])), founders, readers, ..manifest() }).unwrap()
}

pub(crate) fn statement(subject: u8, sequence: u64, becomes: Standing) -> Statement {
    Statement { round: founded().id(), subject: key(subject).member(), sequence, becomes }
}

/// Approved by some founders and sent by the first of them.
pub(crate) fn change(subject: u8, sequence: u64, becomes: Standing, founders: &[u8]) -> SignedRecord {
    let statement = statement(subject, sequence, becomes);
    let approvals = founders.iter().map(|founder| statement.approve(&key(*founder)));
    let change = StandingChange::new(&statement, key(founders[0]).member(), approvals);
    SignedRecord::sign(&Record::Standing(change), &key(founders[0]), &founded()).unwrap()
}

/// An announcement in the round of [`founded`].
pub(crate) fn announce(member: u8, sequence: u64, adapter: &[u8]) -> SignedRecord {
    let mut said = announcement(member, sequence, adapter);
    said.round = founded().id();
    SignedRecord::sign(&Record::Announcement(said), &key(member), &founded()).unwrap()
}

fn refused(sender: u8, spoil: impl Fn(&mut StandingChange)) -> RecordError {
    let statement = statement(7, 1, Standing::Member);
    let mut said = StandingChange::new(&statement, key(11).member(), [12, 11].map(|founder| statement.approve(&key(founder))));
    spoil(&mut said);
    SignedRecord::sign(&Record::Standing(said), &key(sender), &founded()).unwrap_err()
}

#[test]
fn a_change_that_enough_founders_approve_comes_back_as_it_was_signed() {
    let sent = change(7, 1, Standing::Member, &[13, 11]);
    let received = UnverifiedRecord(sent.bytes()).verify(&founded()).unwrap();
    assert_eq!(received, sent);
    assert_eq!(received.record().member(), key(7).member());
    assert_eq!(received.record().author(), key(13).member());
}

#[test]
fn too_few_forged_repeated_and_strangers_approvals_are_refused() {
    let founder = |number: u8| key(number).member();
    let other = statement(8, 1, Standing::Member);
    assert_eq!(refused(11, |c| c.approvals.truncate(0)), StandingError::SenderDoesNotApprove { by: founder(11) }.into());
    let alone = |c: &mut StandingChange| c.approvals.retain(|approval| approval.founder == c.by);
    assert_eq!(refused(11, alone), StandingError::TooFew { found: 1, threshold: 2 }.into());
    let twice = |c: &mut StandingChange| c.approvals = vec![c.approvals[0].clone(); 2];
    assert_eq!(refused(11, twice), StandingError::Order.into());
    assert_eq!(refused(11, |c| c.approvals.reverse()), StandingError::Order.into());
    let many = |c: &mut StandingChange| c.approvals = vec![c.approvals[0].clone(); FOUNDERS_MAX + 1];
    assert_eq!(refused(11, many), StandingError::TooMany { found: FOUNDERS_MAX + 1 }.into());
    let stranger = |c: &mut StandingChange| *c = StandingChange::new(&c.statement(), c.by, [c.statement().approve(&key(9))]);
    assert_eq!(refused(11, stranger), StandingError::NotFounder { key: founder(9) }.into());
    assert_eq!(refused(9, |c| c.by = founder(9)), StandingError::NotFounder { key: founder(9) }.into());
    assert_eq!(refused(13, |c| c.by = founder(13)), StandingError::SenderDoesNotApprove { by: founder(13) }.into());
    // The record's own signature is another founder's, or an approval is of another statement.
    assert_eq!(refused(12, |_| {}), RecordError::Signature { member: founder(11) });
    for at in 0..2 {
        let error = refused(11, |c| {
            let signer = [11, 12, 13].into_iter().find(|number| founder(*number) == c.approvals[at].founder).unwrap();
            c.approvals[at] = other.approve(&key(signer));
        });
        assert!(matches!(error, RecordError::Standing(StandingError::Approval { .. })), "{error}");
    }
}

#[test]
fn an_approval_is_of_one_subject_sequence_standing_and_round() {
    let said = statement(7, 1, Standing::Member);
    let approval = said.approve(&key(11));
    assert!(approval.is_of(&said));
    let elsewhere = RoundId(ContentHash::of(b"elsewhere"));
    for other in [
        Statement { subject: key(8).member(), ..said.clone() },
        Statement { sequence: 2, ..said.clone() },
        Statement { becomes: Standing::Reader, ..said.clone() },
        Statement { round: elsewhere, ..said.clone() },
    ] {
        assert!(!approval.is_of(&other), "{other:?}");
    }
}

#[test]
fn sequences_and_rounds_without_founders_are_refused() {
    assert_eq!(refused(11, |c| c.sequence = 0), RecordError::SequenceZero);
    assert_eq!(refused(11, |c| c.sequence = SEQUENCE_MAX + 1), RecordError::SequenceAboveMax { found: SEQUENCE_MAX + 1 });
    let round = Round::new(manifest()).unwrap();
    let mut statement = statement(7, 1, Standing::Out);
    statement.round = round.id();
    let said = StandingChange::new(&statement, key(11).member(), [statement.approve(&key(11))]);
    let error = SignedRecord::sign(&Record::Standing(said), &key(11), &round).unwrap_err();
    assert_eq!(error, StandingError::NoFounders.into());
}

#[test]
fn as_many_approvals_as_there_can_be_fit_into_a_record() {
    let numbers: Vec<u8> = (20..20 + FOUNDERS_MAX as u8).collect();
    let founders = Some(Founders { keys: keys(numbers.clone()), threshold: FOUNDERS_MAX as u32 });
    let round = Round::new(Manifest { founders, ..manifest() }).unwrap();
    let statement = Statement { round: round.id(), subject: key(7).member(), sequence: SEQUENCE_MAX, becomes: Standing::Reader };
    let approvals = numbers.iter().map(|number| statement.approve(&key(*number)));
    let said = StandingChange::new(&statement, key(20).member(), approvals);
    let record = SignedRecord::sign(&Record::Standing(said), &key(20), &round).unwrap();
    assert!(record.bytes().len() < RECORD_BYTES_MAX, "{} bytes", record.bytes().len());
}

#[derive(Deserialize)]
struct Vector {
    statement: Statement,
    digest: ContentHash,
}

/// The bytes that founders sign, by a second implementation.
#[test]
fn every_standing_vector_agrees() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("../../vectors/standings.json")).unwrap();
    assert!(vectors.len() >= 3);
    for Vector { statement, digest } in vectors {
        assert_eq!(statement.digest(), digest, "{statement:?}");
    }
}
