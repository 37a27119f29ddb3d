#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::round::tests::manifest;
use crate::round::{Manifest, WeightRule};

pub(crate) fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32])
}

pub(crate) fn round() -> Round {
    Round::new(manifest()).unwrap()
}

pub(crate) fn announcement(member: u8, sequence: u64, adapter: &[u8]) -> Announcement {
    let round = round();
    Announcement {
        round: round.id(),
        member: key(member).member(),
        sequence,
        adapter: ContentHash::of(adapter),
        size: 900,
        weight: 10,
        base: round.manifest().base.digest,
        examples: 10,
        losses: Some(Losses { before_micronats: 3_000_000, after_micronats: 2_000_000 }),
        privacy: None,
    }
}

pub(crate) fn announce(member: u8, sequence: u64, adapter: &[u8]) -> SignedRecord {
    SignedRecord::sign(&Record::Announcement(announcement(member, sequence, adapter)), &key(member), &round()).unwrap()
}

pub(crate) fn withdraw(member: u8, sequence: u64) -> SignedRecord {
    let record = Record::Withdrawal(Withdrawal { round: round().id(), member: key(member).member(), sequence });
    SignedRecord::sign(&record, &key(member), &round()).unwrap()
}

/// What `change` makes of an announcement, refused.
fn refused(change: impl Fn(&mut Announcement), manifest_change: impl Fn(&mut Manifest)) -> RecordError {
    let mut manifest = manifest();
    manifest_change(&mut manifest);
    let round = Round::new(manifest).unwrap();
    let mut announcement = announcement(1, 1, b"adapter");
    announcement.round = round.id();
    change(&mut announcement);
    SignedRecord::sign(&Record::Announcement(announcement), &key(1), &round).unwrap_err()
}

#[test]
fn a_record_comes_back_as_it_was_signed() {
    let sent = announce(1, 1, b"adapter");
    let received = UnverifiedRecord(sent.bytes()).verify(&round()).unwrap();
    assert_eq!(received, sent);
    assert!(sent.bytes().len() < 600, "{} bytes", sent.bytes().len());
}

#[test]
fn a_wrong_signature_is_refused() {
    let sent = announce(1, 1, b"adapter");
    for byte in 0..64 {
        let mut bytes = sent.bytes().to_vec();
        bytes[byte] ^= 1;
        assert_eq!(UnverifiedRecord(&bytes).verify(&round()), Err(RecordError::Signature { member: key(1).member() }));
    }
    // Signed by another member's key.
    let error = SignedRecord::sign(&Record::Announcement(announcement(1, 1, b"a")), &key(2), &round()).unwrap_err();
    assert_eq!(error.to_string(), format!("signature does not belong to member {}", key(1).member()));
}

#[test]
fn no_flipped_bit_anywhere_is_accepted() {
    let sent = announce(1, 1, b"adapter");
    for bit in 0..sent.bytes().len() * 8 {
        let mut bytes = sent.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(UnverifiedRecord(&bytes).verify(&round()).is_err(), "bit {bit}");
    }
}

#[test]
fn another_round_is_refused() {
    let other = RoundId(ContentHash::of(b"another round"));
    assert_eq!(refused(|a| a.round = other, |_| {}), RecordError::WrongRound { found: other, expected: round().id() });
}

#[test]
fn another_base_is_refused() {
    let found = ContentHash::of(b"other weights");
    let expected = manifest().base.digest;
    assert_eq!(refused(|a| a.base = found, |_| {}), RecordError::WrongBase { found, expected });
}

#[test]
fn weights_outside_the_rule_are_refused() {
    assert_eq!(refused(|a| (a.weight, a.examples) = (0, 0), |_| {}), RecordError::WeightZero);
    assert_eq!(refused(|a| (a.weight, a.examples) = (1_001, 1_001), |_| {}), RecordError::WeightAboveCap { found: 1_001, max: 1_000 });
    assert_eq!(refused(|a| a.weight = 11, |_| {}), RecordError::WeightNotByRule { found: 11, examples: 10, expected: 10 });
    assert_eq!(refused(|a| a.weight = 2, |m| m.weight = WeightRule::Equal), RecordError::WeightAboveCap { found: 2, max: 1 });
    // Above the cap a member's examples count as the cap.
    let capped = Announcement { weight: 1_000, examples: 70_000, ..announcement(1, 1, b"a") };
    assert!(SignedRecord::sign(&Record::Announcement(capped), &key(1), &round()).is_ok());
}

#[test]
fn sequence_zero_and_giant_adapters_are_refused() {
    assert_eq!(refused(|a| a.sequence = 0, |_| {}), RecordError::SequenceZero);
    let found = SEQUENCE_MAX + 1;
    assert_eq!(refused(|a| a.sequence = found, |_| {}), RecordError::SequenceAboveMax { found });
    let last = Withdrawal { round: round().id(), member: key(1).member(), sequence: found };
    let error = SignedRecord::sign(&Record::Withdrawal(last), &key(1), &round()).unwrap_err();
    assert_eq!(error, RecordError::SequenceAboveMax { found });
    let max = round().adapter_bytes_max();
    assert_eq!(refused(|a| a.size = max + 1, |_| {}), RecordError::AdapterTooLarge { found: max + 1, max });
}

#[test]
fn malformed_bytes_are_refused() {
    let sent = announce(1, 1, b"adapter");
    let verify = |bytes: &[u8]| UnverifiedRecord(bytes).verify(&round()).unwrap_err();
    assert_eq!(verify(&[0; 63]), RecordError::Encoding(EncodingError::Truncated));
    assert_eq!(verify(&[0; RECORD_BYTES_MAX + 1]), RecordError::Encoding(EncodingError::TooLarge { found: 4_097, max: 4_096 }));
    let trailing = [sent.bytes(), &[0]].concat();
    assert_eq!(verify(&trailing), RecordError::Encoding(EncodingError::TrailingBytes { extra: 1 }));
    let deep = [&[0u8; 64][..], &[0x81; 100], &[0]].concat();
    assert_eq!(verify(&deep), RecordError::Encoding(EncodingError::TooDeep));
    for length in 0..sent.bytes().len() {
        assert!(UnverifiedRecord(&sent.bytes()[..length]).verify(&round()).is_err(), "cut at {length}");
    }
}
