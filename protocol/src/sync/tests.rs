#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
use std::collections::BTreeSet;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::encoding::to_cbor;
use crate::hash::ContentHash;
use crate::identity::SecretKey;
use crate::record::tests::announcement;
use crate::record::{Record, RecordId, UnverifiedRecord};
use crate::round::Round;

fn wide_round() -> Round {
    let mut manifest = crate::round::tests::manifest();
    manifest.member_max = 16_384;
    manifest.weight = crate::round::WeightRule::Equal;
    Round::new(manifest).unwrap()
}

/// A record of each member, made once: signing is slow.
fn record(member: u32) -> SignedRecord {
    static RECORDS: LazyLock<Vec<SignedRecord>> = LazyLock::new(|| (0..10_001).map(|member| sign(&wide_round(), member)).collect());
    RECORDS[member as usize].clone()
}

fn sign(round: &Round, member: u32) -> SignedRecord {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&member.to_le_bytes());
    let key = SecretKey::from_bytes(&seed);
    let mut said = announcement(1, 1, &member.to_le_bytes());
    (said.round, said.member, said.weight) = (round.id(), key.member(), 1);
    SignedRecord::sign(&Record::Announcement(said), &key, round).unwrap()
}

fn ledger(round: &Round, records: impl IntoIterator<Item = SignedRecord>) -> Ledger {
    let mut ledger = Ledger::new(round);
    for record in records {
        ledger.insert(record);
    }
    ledger
}

/// What a whole reconciliation took.
#[derive(Debug)]
struct Took {
    questions: u32,
    bytes: usize,
    records: usize,
}

/// Reconciles `ours` with `theirs` over bytes, each answer made from nothing but the ledger.
fn reconcile(round: &Round, ours: &mut Ledger, theirs: &mut Ledger) -> Took {
    let mut session = Session::default();
    let mut took = Took { questions: 0, bytes: 0, records: 0 };
    let mut next = Some(Session::compare(round.id(), &Catalogue::of(ours)));
    while let Some(request) = next {
        let asked = request.to_bytes().unwrap();
        assert!(asked.len() <= REQUEST_BYTES_MAX);
        let catalogue = Catalogue::of(theirs);
        let answer = match Request::from_bytes(&asked).unwrap() {
            Request::Compare { count, fingerprint, .. } => catalogue.compare(count, fingerprint),
            Request::Range { message, .. } => catalogue.answer(&message).unwrap(),
            Request::Exchange { wanted, records, .. } => {
                let answer = supply(theirs, &wanted);
                took.records += absorb(round, theirs, &records).len();
                answer
            }
        };
        let answered = Response::from(answer).to_bytes().unwrap();
        took.questions += 1;
        took.bytes += asked.len() + answered.len();
        let catalogue = Catalogue::of(ours);
        next = match Response::from_bytes(&answered).unwrap().answer {
            Answer::Same => None,
            Answer::Differs => Some(session.differs(round.id(), &catalogue).unwrap()),
            Answer::Range(message) => match session.ranged(round.id(), &catalogue, &message).unwrap() {
                None => session.exchange(round.id(), ours, &catalogue).unwrap(),
                more => more,
            },
            Answer::Ids(ids) => {
                session.listed(&catalogue, &ids);
                session.exchange(round.id(), ours, &catalogue).unwrap()
            }
            Answer::Records(records) => {
                let came = absorb(round, ours, &records);
                took.records += came.len();
                session.received(came);
                let catalogue = Catalogue::of(ours);
                session.exchange(round.id(), ours, &catalogue).unwrap()
            }
            other => panic!("{other:?}"),
        };
    }
    took
}

fn absorb(round: &Round, ledger: &mut Ledger, records: &[RawRecord]) -> Vec<RecordId> {
    let verified: Vec<_> = records.iter().map(|RawRecord(bytes)| UnverifiedRecord(bytes).verify(round).unwrap()).collect();
    verified
        .into_iter()
        .map(|record| {
            let id = record.id();
            ledger.insert(record);
            id
        })
        .collect()
}

#[test]
fn equal_ledgers_take_one_question_of_a_hundred_bytes() {
    let round = wide_round();
    let mut ours = ledger(&round, (0..50).map(record));
    let took = reconcile(&round, &mut ours.clone(), &mut ours);
    assert!(took.questions == 1 && took.bytes < 130, "{took:?}");
}

#[test]
fn small_ledgers_end_equal_after_one_list_and_one_exchange() {
    let round = wide_round();
    let mut ours = ledger(&round, (0..100).map(record));
    let mut theirs = ledger(&round, (20..120).map(record));
    let took = reconcile(&round, &mut ours, &mut theirs);
    assert_eq!(ours, theirs);
    assert_eq!((took.questions, took.records, ours.record_count()), (2, 40, 120));
}

#[test]
fn one_difference_among_ten_thousand_costs_a_few_kilobytes() {
    let round = wide_round();
    let all: Vec<SignedRecord> = (0..10_001).map(record).collect();
    let whole = ledger(&round, all.iter().cloned());
    // Missing here, and missing there.
    for (mut ours, mut theirs) in
        [(whole.clone(), ledger(&round, all[1..].iter().cloned())), (ledger(&round, all[..10_000].iter().cloned()), whole.clone())]
    {
        let took = reconcile(&round, &mut ours, &mut theirs);
        println!("{took:?}");
        assert_eq!((&ours, &theirs), (&whole, &whole));
        assert!(took.bytes < 4_096 && took.questions <= 5 && took.records == 1, "{took:?}");
    }
    // And as many as there can be on one side against none, in either direction.
    for (mut ours, mut theirs) in [(Ledger::new(&round), whole.clone()), (whole.clone(), Ledger::new(&round))] {
        let took = reconcile(&round, &mut ours, &mut theirs);
        println!("{took:?}");
        assert_eq!((&ours, &theirs), (&whole, &whole));
        let payload: usize = all.iter().map(|record| record.bytes().len()).sum();
        assert!(took.bytes < payload * 6 / 5 && took.questions < 100, "{took:?} for {payload}");
    }
}

#[test]
fn large_ledgers_with_nothing_in_common_come_to_an_end() {
    let round = wide_round();
    let mut ours = ledger(&round, (0..4_000).map(record));
    let mut theirs = ledger(&round, (4_000..8_000).map(record));
    let took = reconcile(&round, &mut ours, &mut theirs);
    println!("{took:?}");
    assert_eq!(ours, theirs);
    assert_eq!((took.records, ours.record_count()), (8_000, 8_000));
}

#[test]
fn a_neighbour_that_listed_what_it_does_not_have_is_asked_once() {
    let round = wide_round();
    let ours = Ledger::new(&round);
    let catalogue = Catalogue::of(&ours);
    let mut session = Session::default();
    session.listed(&catalogue, &(0..900u32).map(|n| short(RecordId(ContentHash::of(&n.to_le_bytes())))).collect());
    assert!(matches!(session.exchange(round.id(), &ours, &catalogue), Ok(Some(Request::Exchange { .. }))));
    session.received([]);
    assert_eq!(session.exchange(round.id(), &ours, &catalogue), Ok(None));
}

#[test]
fn a_neighbour_without_end_is_left() {
    let round = wide_round();
    let all = ledger(&round, (0..1_100).map(record));
    let catalogue = Catalogue::of(&all);
    // It always answers that everything differs.
    let forever = RangeMessage([vec![0x61, 0, 0, 1], vec![9; 16]].concat());
    let mut session = Session::default();
    let ended = (0..10_000).find_map(|_| session.ranged(round.id(), &catalogue, &forever).err());
    assert_eq!(ended, Some(SyncError::Endless { max: 2_048 }));
}

#[test]
fn messages_come_back_as_they_went_and_what_is_out_of_bounds_is_refused() {
    let round = wide_round();
    let names: ShortIds = (0..BATCH_MAX as u32).map(|n| short(RecordId(ContentHash::of(&n.to_le_bytes())))).collect();
    let records = vec![RawRecord(record(1).bytes().to_vec())];
    let request = Request::Exchange { round: round.id(), wanted: names.clone(), records };
    assert_eq!(Request::from_bytes(&request.to_bytes().unwrap()).unwrap(), request);
    let response = Response::from(Answer::Ids(names.clone()));
    assert_eq!(Response::from_bytes(&response.to_bytes().unwrap()).unwrap(), response);

    let more: ShortIds = names.iter().chain([[0; 16]]).collect();
    let reason = |bytes: Vec<u8>| Request::from_bytes(&bytes).unwrap_err().to_string();
    let greedy = Request::Exchange { round: round.id(), wanted: more, records: vec![] };
    assert!(reason(greedy.to_bytes().unwrap()).contains("a list of 257 where at most 256 are allowed"));
    let generous = Request::Exchange { round: round.id(), wanted: ShortIds::default(), records: vec![RawRecord(vec![1]); 257] };
    assert!(reason(generous.to_bytes().unwrap()).contains("a list of 257"));
    let wide = Request::Range { round: round.id(), message: RangeMessage(vec![0; RANGE_BYTES_MAX + 1]) };
    assert!(reason(wide.to_bytes().unwrap()).contains("larger than the 65536 allowed"));
    let odd = to_cbor(&std::collections::BTreeMap::from([("answer", std::collections::BTreeMap::from([("ids", RawRecord(vec![0; 17]))]))]));
    assert!(Response::from_bytes(&odd.unwrap()).unwrap_err().to_string().contains("17 bytes are no list"));
    let all: ShortIds = (0..=IDS_MAX as u32).map(|n| short(RecordId(ContentHash::of(&n.to_le_bytes())))).collect();
    assert!(Response::from_bytes(&Response::from(Answer::Ids(all)).to_bytes().unwrap()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_differences_end_in_the_union(
        shared in 0u32..2_500, left in proptest::collection::btree_set(5_000u32..6_000, 0..60),
        right in proptest::collection::btree_set(5_500u32..6_500, 0..60),
    ) {
        let round = wide_round();
        let of = |own: &BTreeSet<u32>| ledger(&round, (0..shared).chain(own.iter().copied()).map(record));
        let (mut ours, mut theirs) = (of(&left), of(&right));
        let mut union = ours.clone();
        union.join(&theirs);
        let took = reconcile(&round, &mut ours, &mut theirs);
        prop_assert_eq!(&ours, &union);
        prop_assert_eq!(&theirs, &union);
        prop_assert_eq!(took.records, left.symmetric_difference(&right).count());
    }

    #[test]
    fn no_bytes_make_a_peer_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..400) {
        let round = wide_round();
        let catalogue = Catalogue::of(&ledger(&round, (0..64).map(record)));
        let mut whole = catalogue.ask().unwrap().0;
        whole.truncate(cut);
        for hostile in [bytes.clone(), [vec![0x61], bytes.clone()].concat(), [whole, bytes.clone()].concat()] {
            let _ = catalogue.answer(&RangeMessage(hostile.clone()));
            let _ = Session::default().ranged(round.id(), &catalogue, &RangeMessage(hostile));
        }
        let _ = Request::from_bytes(&bytes);
        let _ = Response::from_bytes(&bytes);
    }
}

#[test]
fn verdicts_travel_and_are_named_after_all_else() {
    use crate::standing::Standing;
    use crate::verdict::tests::{announce, change, judge, judged};
    let round = judged(1);
    let admits: Vec<_> = (21..25).map(|number| change(&round, number, 1, Standing::Member)).collect();
    let said: Vec<_> = (21..25).map(|number| announce(&round, number, 1, &[number])).collect();
    let verdicts: Vec<_> = said.iter().flat_map(|said| [1, 2, 3].map(|by| judge(&round, by, said, 1, true))).collect();
    let whole = ledger(&round, [admits.clone(), said, verdicts.clone()].concat());
    let (mut ours, mut theirs) = (ledger(&round, admits.iter().cloned().chain(verdicts[..7].iter().cloned())), whole.clone());
    assert_eq!(reconcile(&round, &mut ours, &mut theirs).records, 4 + 5);
    assert_eq!((&ours, &theirs), (&whole, &whole));
    // A peer with nothing is told the names in the order in which the records are of use.
    let Answer::Ids(names) = Catalogue::of(&whole).compare(0, ContentHash::of(b"nothing")) else { panic!("no list") };
    let rank = |name: &ShortId| whole.records().find(|record| short(record.id()) == *name).unwrap().record().rank();
    assert_eq!(names.iter().map(|name| rank(&name)).collect::<Vec<_>>(), [vec![0; 4], vec![1; 4], vec![2; 12]].concat());
}
