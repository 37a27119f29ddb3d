//! Whether all peers have come to the same: one set of records, and of these the adapters that can be had, merged.
//!
//! What must be merged follows here from the words of the protocol and not from its code.

use std::collections::{BTreeMap, BTreeSet};

use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::{Admitted, Ledger, SlotState};
use mingle_protocol::record::{RecordId, SignedRecord};
use mingle_protocol::standing::Standing;

use crate::ground::{Ground, Said};
use crate::peer::Peer;

pub struct Convergence {
    open_roster: bool,
    /// Records that members let out who keep the rules.
    said: BTreeMap<MemberKey, BTreeMap<u64, RecordId>>,
    contradiction: Option<MemberKey>,
    /// Whom to look at first: the last one that did not agree.
    suspect: std::cell::Cell<usize>,
}

impl Convergence {
    pub fn new(open_roster: bool) -> Self {
        Self { open_roster, said: BTreeMap::new(), contradiction: None, suspect: std::cell::Cell::new(0) }
    }

    /// A member that keeps the rules lets out a record of its own.
    pub fn said(&mut self, said: Said) {
        let before = self.said.entry(said.member).or_default().insert(said.sequence, said.id);
        if before.is_some_and(|before| before != said.id) {
            self.contradiction = Some(said.member);
        }
    }

    /// Whether all peers agree now.
    ///
    /// # Errors
    /// Who does not, and in what.
    pub fn look(&self, peers: &[Peer], ground: &Ground) -> Result<(), String> {
        let judged = || peers.iter().enumerate().filter(|(_, peer)| peer.is_judged());
        let Some((_, first)) = judged().next() else { return Ok(()) };
        let ledger = first.machine.ledger();
        let mut merged = None;
        // Whoever did not agree a moment ago most likely still does not.
        for (at, peer) in judged().find(|(at, _)| *at == self.suspect.get()).into_iter().chain(judged()) {
            self.suspect.set(at);
            if peer.machine.ledger() != ledger {
                let (has, have) = (peer.machine.ledger().record_count(), ledger.record_count());
                return Err(format!("peer {at} knows {has} records, others {have}, or others than these"));
            }
            let target: &Vec<Admitted> = merged.get_or_insert_with(|| target(ledger, peers, ground));
            if peer.merge_set() != target {
                let has = peer.merge_set().len();
                return Err(format!("peer {at} has {has} adapters to merge, but {} can be had", target.len()));
            }
            if !peer.merging.is_at(target) {
                return Err(format!("peer {at} has not merged its set"));
            }
        }
        Ok(())
    }

    /// A member with one key in one place that keeps the rules is never found to contradict itself.
    ///
    /// # Errors
    /// The member that is.
    pub fn nobody_honest_contradicts(&self, ledger: &Ledger, peers: &[Peer], ground: &Ground) -> Result<(), String> {
        // A member that gave way to lesser keys in an open round forgets what it has said, and so may contradict it.
        if self.open_roster {
            return Ok(());
        }
        let keys = peers.iter().filter(|peer| !peer.hostile).filter_map(|peer| peer.key);
        let members: BTreeSet<MemberKey> = keys.map(|key| ground.keys[key].member()).collect();
        let conflict = ledger.slots().find(|(member, state)| members.contains(member) && matches!(state, SlotState::Conflict(..)));
        match conflict.map(|(member, _)| member).or(self.contradiction) {
            Some(member) => Err(format!("member {} keeps the rules, and yet has said two things at one sequence", member.short())),
            None => Ok(()),
        }
    }
}

/// The set that these records admit, less what does not fit and what nobody has.
fn target(ledger: &Ledger, peers: &[Peer], ground: &Ground) -> Vec<Admitted> {
    let mut slots: BTreeMap<MemberKey, (u64, Vec<&SignedRecord>)> = BTreeMap::new();
    let mut standings: BTreeMap<MemberKey, (u64, Standing)> = BTreeMap::new();
    for record in ledger.records() {
        let (member, sequence) = (record.record().member(), record.record().sequence());
        if let Some(change) = record.standing() {
            standings.insert(member, (sequence, change.becomes));
            continue;
        }
        let slot = slots.entry(member).or_default();
        if sequence > slot.0 {
            *slot = (sequence, Vec::new());
        }
        if sequence == slot.0 {
            slot.1.push(record);
        }
    }
    let manifest = ground.round.manifest();
    let is_member = |member: &MemberKey| match standings.get(member) {
        Some((_, standing)) => *standing == Standing::Member,
        None => manifest.roster.admits(member),
    };
    let can_be_had = |adapter: &ContentHash| peers.iter().any(|peer| peer.is_judged() && peer.disk.blobs.get(adapter) == Some(&true));
    let one = |(member, (_, records)): (MemberKey, (u64, Vec<&SignedRecord>))| {
        let [record] = records.as_slice() else { return None };
        let said = record.announcement()?;
        let (adapter, size, weight) = (said.adapter, said.size, said.weight);
        is_member(&member).then(|| Admitted { member, record: record.id(), adapter, size, weight })
    };
    // The places of the round are given in the order of the keys, whether or not the adapters can be had.
    let admitted = slots.into_iter().filter_map(one).take(manifest.member_max as usize);
    let fits = |entry: &Admitted| ground.file(&entry.adapter).is_some_and(|file| file.fit && file.bytes.len() as u64 == entry.size);
    admitted.filter(|entry| fits(entry) && can_be_had(&entry.adapter)).collect()
}
