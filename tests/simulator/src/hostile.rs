//! Peers that break every rule they can: forged and contradicting records, old ones again and again, garbage for answers.
//!
//! They share what they hear. After the faults end they go on, but say nothing new that is valid: what all must agree on
//! must come to rest at some time.

use mingle_protocol::hash::ContentHash;
use mingle_protocol::record::Record;
use mingle_protocol::round::RoundId;
use mingle_protocol::sync;

use crate::Name;
use crate::ground::{Bytes, mark};
use crate::wire::Mail;
use crate::world::{Event, Visit, World};

/// Records that hostile peers remember in all.
const OVERHEARD_MAX: usize = 256;
/// Names in a false answer.
const NAMES_MAX: usize = sync::IDS_MAX;
/// Old records in one message.
const OLD_RECORDS: usize = 48;

impl World {
    pub fn overhear(&mut self, at: Name, bytes: Bytes) {
        if self.ground.said(&bytes).is_none() {
            return;
        }
        self.note(at, "overhears", 0);
        if self.overheard.len() < OVERHEARD_MAX {
            self.overheard.push(bytes);
        } else {
            let place = self.dice.below(OVERHEARD_MAX);
            self.overheard[place] = bytes;
        }
    }

    /// An old record; after the faults only one that somebody who keeps the rules has passed on.
    fn old_record(&mut self) -> Option<Bytes> {
        if self.overheard.is_empty() {
            return None;
        }
        let bytes = self.dice.one_of(&self.overheard).clone();
        let said = self.ground.said(&bytes)?;
        (!self.healed || self.checks.acknowledged.is_known(&said.id)).then_some(bytes)
    }

    pub fn drawn(&mut self, most: usize) -> Vec<u8> {
        let length = self.dice.below(most + 1);
        (0..length).map(|_| self.dice.number() as u8).collect()
    }

    pub fn mischief(&mut self, visit: Visit) {
        let at = visit.peer;
        let wait = 500 + self.dice.below(3_000) as u64;
        self.agenda.after(wait, Event::Mischief(visit));
        let neighbours: Vec<Name> = self.peers[at].neighbours.iter().copied().collect();
        if neighbours.is_empty() {
            return;
        }
        let to = *self.dice.one_of(&neighbours);
        match self.dice.below(8) {
            0 => self.forge(at, to),
            1 => {
                let garbage = self.drawn(300);
                self.whisper(at, to, garbage.into());
            }
            2 | 3 => {
                if let Some(bytes) = self.old_record() {
                    // As if it had been forgotten there.
                    self.peers[to].seen.remove(&mark(&bytes));
                    self.whisper(at, to, bytes);
                }
            }
            4 => self.question_falsely(at, to),
            _ if self.healed => {}
            5 => self.contradict(at, &neighbours),
            _ => self.claim(at, &neighbours),
        }
    }

    fn whisper(&mut self, at: Name, to: Name, bytes: Bytes) {
        self.send(at, to, Mail::Gossip { message: mark(&bytes), bytes });
    }

    /// A record of somebody else with a bit changed.
    fn forge(&mut self, at: Name, to: Name) {
        let Some(bytes) = self.old_record() else { return };
        let mut forged = bytes.to_vec();
        let bit = self.dice.below(forged.len() * 8);
        forged[bit / 8] ^= 1 << (bit % 8);
        self.whisper(at, to, forged.into());
    }

    /// A key that a hostile peer may speak with: its own, or one of the sybils'.
    fn false_key(&mut self, at: Name) -> Option<usize> {
        let sybils: Vec<usize> = (self.setting.speakers()..self.ground.keys.len()).collect();
        match self.peers[at].key {
            Some(key) if sybils.is_empty() || self.dice.once_in(2) => Some(key),
            _ if sybils.is_empty() => None,
            _ => Some(*self.dice.one_of(&sybils)),
        }
    }

    fn next_sequence(&mut self, key: usize) -> u64 {
        let sequence = self.false_sequences.entry(key).or_default();
        *sequence += 1;
        *sequence
    }

    /// Two records at one sequence, each told to one half of the neighbours.
    fn contradict(&mut self, at: Name, neighbours: &[Name]) {
        let Some(key) = self.false_key(at) else { return };
        let sequence = self.next_sequence(key);
        let files = [self.dice.below(self.ground.files.len()), self.dice.below(self.ground.files.len())];
        let records = files.map(|file| {
            let examples = 1 + self.dice.below(2_000) as u64;
            Bytes::from(self.ground.announce(key, sequence, file, examples).bytes())
        });
        for to in neighbours {
            let which = self.dice.below(2);
            self.whisper(at, *to, records[which].clone());
        }
    }

    /// One record, true, with a false size, or of an adapter that nobody has.
    fn claim(&mut self, at: Name, neighbours: &[Name]) {
        let Some(key) = self.false_key(at) else { return };
        let sequence = self.next_sequence(key);
        let file = self.dice.below(self.ground.files.len());
        let mut announcement = self.ground.announcement(key, sequence, file, 1 + self.dice.below(2_000) as u64);
        match self.dice.below(3) {
            0 => announcement.size += 1,
            1 => announcement.adapter = ContentHash::of(&self.drawn(40)),
            _ => {}
        }
        let bytes: Bytes = self.ground.sign(key, &Record::Announcement(announcement)).bytes().into();
        for to in neighbours {
            self.whisper(at, *to, bytes.clone());
        }
    }

    /// Names of records that nobody has.
    fn names(&mut self, most: usize) -> sync::ShortIds {
        let count = self.dice.below(most + 1);
        (0..count).map(|_| std::array::from_fn(|_| self.dice.number() as u8)).collect()
    }

    fn old_records(&mut self) -> Vec<sync::RawRecord> {
        (0..OLD_RECORDS).filter_map(|_| self.old_record()).map(|bytes| sync::RawRecord(bytes.to_vec())).collect()
    }

    fn question_falsely(&mut self, at: Name, to: Name) {
        let round = self.ground.round.id();
        let fingerprint = ContentHash::of(&self.drawn(8));
        let request = match self.dice.below(5) {
            0 => sync::Request::Compare { round, count: self.dice.number(), fingerprint, attestation: None, attestations: 3 },
            1 => sync::Request::Compare {
                round: RoundId(fingerprint),
                count: 0,
                fingerprint,
                attestation: Some(self.false_attestation(at)),
                attestations: 16,
            },
            2 => sync::Request::Exchange { round, wanted: self.names(sync::BATCH_MAX), records: self.old_records() },
            3 => sync::Request::Range { round, message: sync::RangeMessage(self.drawn(300)) },
            _ => {
                let garbage = self.drawn(500);
                return self.ask(at, to, garbage);
            }
        };
        self.ask(at, to, request.to_bytes().expect("a request within its bounds"));
    }

    pub fn answer_falsely(&mut self, at: Name, to: Name, token: u64) {
        let answer = match self.dice.below(9) {
            0 => return,
            1 => sync::Answer::Same,
            2 => sync::Answer::Ids(self.names(NAMES_MAX)),
            3 => sync::Answer::Records(self.old_records()),
            4 => sync::Answer::WrongRound(RoundId(ContentHash::of(&self.drawn(8)))),
            5 => sync::Answer::Differs,
            6 => sync::Answer::Range(sync::RangeMessage(self.drawn(300))),
            7 => sync::Answer::Refused,
            _ => {
                let garbage = self.drawn(2_000);
                return self.send(at, to, Mail::Answer { token, bytes: garbage.into() });
            }
        };
        let attestations = (0..self.dice.below(3)).map(|_| self.false_attestation(at)).collect();
        let bytes = sync::Response { answer, attestations }.to_bytes().expect("a response within its bounds");
        self.send(at, to, Mail::Answer { token, bytes: bytes.into() });
    }
}
