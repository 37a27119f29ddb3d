//! Nothing acknowledged is lost: a record that a peer has let out, as its own or as another's, is in its ledger ever after,
//! or superseded, whatever crashes.

use std::collections::{BTreeMap, BTreeSet};

use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::{Ledger, SlotState};
use mingle_protocol::record::{RecordId, SignedRecord};

use crate::Name;
use crate::ground::Said;
use crate::peer::Peer;

/// What one peer let out of one member, or about it: the highest sequence, and the records at it.
#[derive(Default)]
struct Out {
    sequence: u64,
    records: BTreeSet<RecordId>,
}

/// What every peer has let out.
pub struct Acknowledged {
    out: Vec<BTreeMap<(bool, MemberKey), Out>>,
    known: BTreeSet<RecordId>,
    open_roster: bool,
}

impl Acknowledged {
    pub fn new(peers: usize, open_roster: bool) -> Self {
        Self { out: (0..peers).map(|_| BTreeMap::new()).collect(), known: BTreeSet::new(), open_roster }
    }

    pub fn let_out(&mut self, at: Name, said: Said) {
        self.known.insert(said.id);
        let out = self.out[at].entry((said.standing, said.member)).or_default();
        if said.sequence > out.sequence {
            *out = Out { sequence: said.sequence, records: BTreeSet::new() };
        }
        if said.sequence == out.sequence {
            out.records.insert(said.id);
        }
    }

    /// Whether any peer has let it out.
    pub fn is_known(&self, id: &RecordId) -> bool {
        self.known.contains(id)
    }

    /// How many records were let out by anybody.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// Whether a peer, as it begins anew or at the end, still knows what it has let out itself.
    ///
    /// # Errors
    /// The first record it has lost.
    pub fn remembers(&self, at: Name, ledger: &Ledger) -> Result<(), String> {
        self.holds(at, ledger).map_err(|what| format!("peer {at} has let out {what}, and does not know it any more"))
    }

    /// Whether what anybody let out who is still there is known to all.
    ///
    /// # Errors
    /// The first record that is lost.
    pub fn nothing_is_lost(&self, peers: &[Peer], ledger: &Ledger) -> Result<(), String> {
        let still_there = peers.iter().enumerate().filter(|(_, peer)| peer.is_judged());
        for (at, _) in still_there {
            self.holds(at, ledger).map_err(|what| format!("{what}, which peer {at} had let out, is lost to the others"))?;
        }
        Ok(())
    }

    fn holds(&self, at: Name, ledger: &Ledger) -> Result<(), String> {
        let held: BTreeSet<RecordId> = ledger.records().map(SignedRecord::id).collect();
        let greatest = ledger.slots().last().map(|(member, _)| member);
        for ((standing, member), out) in &self.out[at] {
            if *standing {
                // At one sequence the more restrictive change is kept, whichever that is.
                if ledger.standing_sequence(member) < out.sequence {
                    return Err(format!("the change of member {}'s standing (sequence {})", member.short(), out.sequence));
                }
                continue;
            }
            let sequence = ledger.sequence(member);
            let superseded = sequence > out.sequence || (sequence == out.sequence && is_conflict(ledger, member));
            // Beyond the member cap of an open round the greatest keys give way.
            let gave_way = self.open_roster && sequence == 0 && greatest.is_some_and(|greatest| *member > greatest);
            if superseded || gave_way {
                continue;
            }
            if let Some(lost) = out.records.iter().find(|id| !held.contains(id)) {
                return Err(format!("record {} (sequence {} of member {})", lost.0.short(), out.sequence, member.short()));
            }
        }
        Ok(())
    }
}

/// Of a conflict only the two least records are kept.
fn is_conflict(ledger: &Ledger, member: &MemberKey) -> bool {
    matches!(ledger.slot(member), Some(SlotState::Conflict(..)))
}
