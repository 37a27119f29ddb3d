//! What members vouch for: who gave which word, whether two contradict each other, and what a reader may believe.
//!
//! Of each member one attestation is kept, in memory: the newest heard. Own ones go to each neighbour once, others' only
//! to who asks; none is flooded.

use std::collections::{BTreeMap, BTreeSet};

use super::fetches::{Missing, Want};
use super::reconcile::misled;
use super::{Machine, Millis, Notice, Output};
use crate::attestation::{EXCLUDED_MAX, Fault, RawAttestation, SignedAttestation};
use crate::hash::ContentHash;
use crate::identity::{MemberKey, Roster};
use crate::ledger::{Admitted, SlotState};
use crate::receipt::set_root;
use crate::record::{RecordId, SignedRecord};
use crate::standing::Standing;
use crate::sync::ATTESTATIONS_MAX;

/// Contradictions kept: one is enough to look into.
const FAULTS_MAX: usize = 16;

/// What a reader that fetches no members' adapters believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// Members that must vouch for the same merge of the same set.
    pub members: usize,
    /// Adapters that must be in it.
    pub adapters: usize,
}

/// A merge that enough members vouch for, as a reader chose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    pub merged: ContentHash,
    pub size: u64,
    /// The set, in order of the members' keys.
    pub admitted: Vec<Admitted>,
    pub set_root: ContentHash,
    /// Announcements that count, but that the members left out.
    pub excluded: Vec<RecordId>,
    /// What admits the set: every record the reader held, changes of standing first.
    pub records: Vec<SignedRecord>,
    pub attestations: Vec<SignedAttestation>,
}

#[derive(Default)]
pub(super) struct Attested {
    own: Option<MemberKey>,
    newest: BTreeMap<MemberKey, SignedAttestation>,
    faults: Vec<Fault>,
    quorum: Option<Quorum>,
    vouched: Option<Vouched>,
}

impl Attested {
    pub fn own(&self) -> Option<&SignedAttestation> {
        self.newest.get(self.own.as_ref()?)
    }

    pub fn quorum(&self) -> Option<Quorum> {
        self.quorum
    }
}

impl<P: Clone + Ord> Machine<P> {
    /// Makes it a reader that fetches one merged file instead of the members' adapters.
    pub fn believing(mut self, quorum: Quorum) -> Self {
        self.attested.quorum = Some(quorum);
        self
    }

    /// What this reader has chosen to believe; its file is fetched, or was.
    pub fn vouched(&self) -> Option<&Vouched> {
        self.attested.vouched.as_ref()
    }

    /// Contradictions among members found since the start.
    pub fn faults(&self) -> &[Fault] {
        &self.attested.faults
    }

    /// How many members vouch for this merge, as far as is known here.
    pub fn vouching(&self, root: ContentHash, merged: ContentHash) -> usize {
        self.counting().filter(|signed| (signed.attestation().set_root, signed.attestation().merged) == (root, merged)).count()
    }

    /// What a member that attests its merge set now has to name as left out. `None` while more may come, or when too much
    /// is missing.
    pub fn attestable(&self) -> Option<Vec<RecordId>> {
        if !self.is_settled() || self.unsettled || self.merged.is_empty() {
            return None;
        }
        let merged: BTreeSet<RecordId> = self.merged.iter().map(|entry| entry.record).collect();
        let mut excluded: Vec<RecordId> = self.ledger.admitted().map(|entry| entry.record).filter(|id| !merged.contains(id)).collect();
        excluded.sort_unstable();
        (excluded.len() <= EXCLUDED_MAX).then_some(excluded)
    }

    pub(super) fn attest(&mut self, attestation: SignedAttestation, now: Millis, out: &mut Vec<Output<P>>) {
        self.attested.own = Some(attestation.attestation().member);
        self.keep(attestation, out);
        self.pace.stir(now);
    }

    /// Whether this is a reader that still waits for enough members to vouch.
    pub(super) fn looks_for_vouchers(&self) -> bool {
        self.attested.quorum.is_some() && self.attested.vouched.is_none()
    }

    /// Takes attestations that a neighbour hands over; the set root of the first one that is worth anything.
    pub(super) fn hear(&mut self, from: &P, raw: &[RawAttestation], out: &mut Vec<Output<P>>) -> Option<ContentHash> {
        let (mut first, mut broken) = (None, 0);
        for raw in raw.iter().take(ATTESTATIONS_MAX) {
            if let Some(known) = self.attested.newest.values().find(|known| known.raw() == raw) {
                first = first.or(Some(known.attestation().set_root));
                continue;
            }
            match raw.verify(&self.round) {
                // Whoever is no member here may be one by a record that is on its way; its word comes again.
                Ok(signed) if self.has_word(&signed.attestation().member) => {
                    first = first.or(Some(signed.attestation().set_root));
                    if self.attested.own != Some(signed.attestation().member) {
                        self.keep(signed, out);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    broken = u32::saturating_add(broken, 1);
                    out.push(Output::Notice(Notice::SyncRefused(error.to_string())));
                }
            }
        }
        misled(from, broken, out);
        first
    }

    /// Whether a key's word counts: a member of the roster, or, where anybody may join, one whose adapter counts.
    pub fn has_word(&self, member: &MemberKey) -> bool {
        let open = self.round.manifest().roster == Roster::Open;
        self.ledger.standing(member) == Some(Standing::Member) && (!open || matches!(self.ledger.slot(member), Some(SlotState::Adapter(_))))
    }

    fn counting(&self) -> impl Iterator<Item = &SignedAttestation> {
        self.attested.newest.values().filter(|signed| self.has_word(&signed.attestation().member))
    }

    fn keep(&mut self, signed: SignedAttestation, out: &mut Vec<Output<P>>) {
        let fault = self.attested.newest.values().find_map(|known| Fault::between(known, &signed));
        if let Some(fault) = fault.filter(|fault| self.is_news(fault)) {
            self.attested.faults.push(fault.clone());
            out.push(Output::Notice(Notice::Fault(Box::new(fault))));
        }
        // An older word that others pass on must not displace one that is good for our own set.
        let current = self.attested.own().map(|own| own.attestation().set_root);
        let member = signed.attestation().member;
        let displaces = |known: &SignedAttestation| {
            self.attested.own == Some(member)
                || Some(known.attestation().set_root) != current
                || Some(signed.attestation().set_root) == current
        };
        if self.attested.newest.get(&member).is_none_or(displaces) {
            self.attested.newest.insert(member, signed);
            self.unsettled |= self.attested.quorum.is_some();
        }
    }

    fn is_news(&self, fault: &Fault) -> bool {
        let hashes = |fault: &Fault| {
            let (one, other) = (fault.one.attestation(), fault.other.attestation());
            (one.set_root, BTreeSet::from([(one.merged, one.size), (other.merged, other.size)]))
        };
        let faults = &self.attested.faults;
        faults.len() < FAULTS_MAX && faults.iter().all(|known| hashes(known) != hashes(fault))
    }

    /// At most `count` attestations for who asks: our own, then those of members that vouch for the same set.
    pub(super) fn vouchers(&self, count: usize) -> Vec<RawAttestation> {
        let own = self.attested.own();
        let vouched = self.attested.vouched.as_ref().map(|vouched| vouched.set_root);
        let root = own.map(|own| own.attestation().set_root).or(vouched).or_else(|| self.most_vouched());
        let others = self.counting().filter(|signed| Some(signed.attestation().set_root) == root && Some(*signed) != own);
        own.into_iter().chain(others).take(count.min(ATTESTATIONS_MAX)).map(|signed| signed.raw().clone()).collect()
    }

    /// The set root that most members vouch for: what a peer passes on that merges nothing itself.
    fn most_vouched(&self) -> Option<ContentHash> {
        let mut counts: BTreeMap<ContentHash, usize> = BTreeMap::new();
        for signed in self.counting() {
            let count = counts.entry(signed.attestation().set_root).or_default();
            *count = count.saturating_add(1);
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(root, _)| root)
    }

    /// A reader's choice, and the one blob it fetches.
    pub(super) fn settle_vouched(&mut self, admitted: &[Admitted], now: Millis, out: &mut Vec<Output<P>>) {
        let unusable = |vouched: &Vouched| {
            let in_vain = self.wants.get(&vouched.merged).is_some_and(Want::is_vain);
            in_vain || self.refused.contains_key(&vouched.merged)
        };
        // What is being fetched is fetched to its end, however the set moves on: it stays a merge that was vouched for.
        if self.attested.vouched.as_ref().is_none_or(unusable) {
            self.attested.vouched = self.choose(admitted);
        }
        let mut missing = Missing::new();
        if let Some(vouched) = self.attested.vouched.as_ref().filter(|vouched| !self.stored.contains_key(&vouched.merged)) {
            missing.entry(vouched.merged).or_default().insert(vouched.size);
        }
        self.settle_wants(missing, now, out);
        self.start_fetches(now, out);
    }

    /// The merge of the ledger's own set that most members vouch for, if they are enough.
    fn choose(&self, admitted: &[Admitted]) -> Option<Vouched> {
        let quorum = self.attested.quorum?;
        let mut groups: BTreeMap<(ContentHash, ContentHash, u64), Vec<&SignedAttestation>> = BTreeMap::new();
        for signed in self.counting().filter(|signed| !self.refused.contains_key(&signed.attestation().merged)) {
            let said = signed.attestation();
            groups.entry((said.set_root, said.merged, said.size)).or_default().push(signed);
        }
        groups.retain(|_, group| group.len() >= quorum.members.max(1));
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.len()));
        groups.into_iter().find_map(|((root, merged, size), group)| {
            let excluded = &group.first()?.attestation().excluded;
            let set: Vec<Admitted> = admitted.iter().filter(|entry| excluded.binary_search(&entry.record).is_err()).cloned().collect();
            // Where anybody may join, only who is in the set has a word about it.
            let open = self.round.manifest().roster == Roster::Open;
            let in_set = |signed: &&SignedAttestation| set.iter().any(|entry| entry.member == signed.attestation().member);
            let group: Vec<SignedAttestation> = group.iter().copied().filter(|signed| !open || in_set(signed)).cloned().collect();
            let enough = group.len() >= quorum.members.max(1) && set.len() >= quorum.adapters.max(1);
            let right = enough && set_root(self.round.id(), &set) == root;
            right.then(|| Vouched {
                merged,
                size,
                admitted: set,
                set_root: root,
                excluded: excluded.clone(),
                records: self.ledger.records().cloned().collect(),
                attestations: group,
            })
        })
    }
}
