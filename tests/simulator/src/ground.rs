//! What a history is made of: a round, its members' keys, small but whole adapter files, and every record that was ever
//! signed, so that a checker knows a record by its bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use mingle_protocol::adapter::{Dtype, LoraShape, Module, canonical_header};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::{MemberKey, Roster, SecretKey};
use mingle_protocol::record::{Announcement, Record, RecordId, SignedRecord, Withdrawal};
use mingle_protocol::round::{AdapterKind, BaseModel, Manifest, MergeRule, Round, VERSION, WeightRule};
use mingle_protocol::standing::{Founders, Standing, StandingChange, Statement};

use crate::dice::Dice;
use crate::setting::Setting;

/// Most examples that count.
pub const WEIGHT_CAP: u64 = 1_000;
/// All but one of them must agree.
pub const FOUNDERS: usize = 3;
/// One in so many adapter files holds values that no round accepts.
const UNFIT_ONE_IN: usize = 12;

/// Bytes as they travel, shared by all copies under way.
pub type Bytes = Rc<[u8]>;

/// The first bytes of a hash: enough to tell a few thousand messages apart.
pub fn mark(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    u64::from_le_bytes(std::array::from_fn(|index| hash.as_bytes()[index]))
}

pub struct File {
    pub hash: ContentHash,
    pub bytes: Vec<u8>,
    /// Whether it fits the round.
    pub fit: bool,
}

/// A record somebody signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub id: RecordId,
    /// Whether it says who belongs; then of the key it speaks of.
    pub standing: bool,
    pub member: MemberKey,
    pub sequence: u64,
}

pub struct Ground {
    pub round: Round,
    /// Of members, then of those who are to become members, then of sybils.
    pub keys: Vec<SecretKey>,
    founders: Vec<SecretKey>,
    pub files: Vec<File>,
    by_hash: BTreeMap<ContentHash, usize>,
    said: BTreeMap<u64, Said>,
}

impl Ground {
    pub fn new(setting: &Setting, dice: &mut Dice) -> Self {
        let mut key = |_| SecretKey::from_bytes(&std::array::from_fn(|_| dice.number() as u8));
        let keys: Vec<SecretKey> = (0..setting.speakers() + setting.sybils).map(&mut key).collect();
        let founders: Vec<SecretKey> = (0..FOUNDERS).map(&mut key).collect();
        let members: BTreeSet<MemberKey> = keys.iter().take(setting.members).map(SecretKey::member).collect();
        let module = Module { name: "q_proj".into(), inputs: 3, outputs: 2 };
        let round = Round::new(Manifest {
            version: VERSION,
            name: "simulated".into(),
            base: BaseModel { name: "none".into(), digest: ContentHash::of(b"no base") },
            kind: AdapterKind::Lora(LoraShape::new(1, 2, [1; 32], vec![module])),
            rule: MergeRule::Mean,
            weight: WeightRule::Examples { cap: WEIGHT_CAP },
            // With sybils, and with some of those who join, the cap is too low for all who speak.
            member_max: (setting.members + (setting.newcomers + setting.sybils) / 2) as u32,
            roster: if setting.open_roster { Roster::Open } else { Roster::Members(members) },
            parent: None,
            founders: (!setting.open_roster)
                .then(|| Founders { keys: founders.iter().map(SecretKey::member).collect(), threshold: FOUNDERS as u32 - 1 }),
            readers: None,
            clip_millionths: None,
            verdicts: None,
        })
        .expect("a round within its bounds");
        let files: Vec<File> = (0..2 * setting.speakers() + 4).map(|_| file(&round, dice)).collect();
        let by_hash = files.iter().enumerate().map(|(index, file)| (file.hash, index)).collect();
        Self { round, keys, founders, files, by_hash, said: BTreeMap::new() }
    }

    pub fn file(&self, adapter: &ContentHash) -> Option<&File> {
        self.by_hash.get(adapter).and_then(|index| self.files.get(*index))
    }

    /// What an announcement of one of the files says.
    pub fn announcement(&self, key: usize, sequence: u64, file: usize, examples: u64) -> Announcement {
        Announcement {
            round: self.round.id(),
            member: self.keys[key].member(),
            sequence,
            adapter: self.files[file].hash,
            size: self.files[file].bytes.len() as u64,
            weight: self.round.manifest().weight.weight(examples),
            base: self.round.manifest().base.digest,
            examples,
            losses: None,
            privacy: None,
        }
    }

    pub fn announce(&mut self, key: usize, sequence: u64, file: usize, examples: u64) -> SignedRecord {
        let announcement = self.announcement(key, sequence, file, examples);
        self.sign(key, &Record::Announcement(announcement))
    }

    pub fn withdraw(&mut self, key: usize, sequence: u64) -> SignedRecord {
        let member = self.keys[key].member();
        self.sign(key, &Record::Withdrawal(Withdrawal { round: self.round.id(), member, sequence }))
    }

    /// Signs, and writes down that it was said.
    pub fn sign(&mut self, key: usize, record: &Record) -> SignedRecord {
        let signed = SignedRecord::sign(record, &self.keys[key], &self.round).expect("a record within the rules");
        self.write_down(signed)
    }

    /// Two of the three founders agree that a key has this standing from now on.
    pub fn change_standing(&mut self, key: usize, sequence: u64, becomes: Standing, without: usize) -> SignedRecord {
        let statement = Statement { round: self.round.id(), subject: self.keys[key].member(), sequence, becomes };
        let agreeing: Vec<&SecretKey> =
            (0..FOUNDERS).filter(|founder| *founder != without % FOUNDERS).map(|founder| &self.founders[founder]).collect();
        let approvals = agreeing.iter().map(|founder| statement.approve(founder));
        let change = StandingChange::new(&statement, agreeing[0].member(), approvals);
        let signed = SignedRecord::sign(&Record::Standing(change), agreeing[0], &self.round).expect("a change within the rules");
        self.write_down(signed)
    }

    fn write_down(&mut self, signed: SignedRecord) -> SignedRecord {
        let record = signed.record();
        let said = Said { id: signed.id(), standing: signed.standing().is_some(), member: record.member(), sequence: record.sequence() };
        self.said.insert(mark(signed.bytes()), said);
        signed
    }

    /// The record that these bytes are, if anybody signed it.
    pub fn said(&self, bytes: &[u8]) -> Option<Said> {
        self.said.get(&mark(bytes)).copied()
    }
}

fn file(round: &Round, dice: &mut Dice) -> File {
    let fit = !dice.once_in(UNFIT_ONE_IN);
    let mut bytes = canonical_header(round.tensors(), Dtype::F32);
    for index in 0..round.tensors().elements() {
        let value = if !fit && index == 0 { f32::NAN } else { dice.value() };
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    // Unlike any other file even when it does not fit: the rest is drawn.
    File { hash: ContentHash::of(&bytes), bytes, fit }
}
