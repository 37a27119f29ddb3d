//! Who belongs to the round, as far as the loop has to act on it: whom the network lets in, an adapter that waits until
//! founders admit its member, and changes that founders hand to a peer that runs.

use std::collections::BTreeSet;

use anyhow::Result;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::machine::{Input, Machine, Output};
use mingle_protocol::record::{SignedRecord, UnverifiedRecord};
use mingle_protocol::round::Round;
use mingle_protocol::standing::Standing;

use super::{Driver, Event, Phase, Prepared, Work};
use crate::network::PeerId;
use crate::roster::handed_over;

/// Whether a key can ever announce: founders may admit one that is not in the roster now.
pub(super) fn check_may_announce(round: &Round, member: &MemberKey) -> Result<()> {
    let manifest = round.manifest();
    let may = manifest.roster.admits(member) || manifest.founders.is_some();
    anyhow::ensure!(may, "member {member} is not in the roster of round \"{}\"", manifest.name);
    Ok(())
}

/// Whom the network lets in at the start. A founder's errand may be to tell the very peer that goes: whom the round ever
/// named may hear it.
pub(super) fn access(work: &Work, machine: &Machine<PeerId>) -> Option<BTreeSet<MemberKey>> {
    let mut access = machine.ledger().access();
    if let (Some(keys), Work::Tell(_)) = (&mut access, work) {
        keys.extend(machine.round().manifest().named());
        keys.extend(machine.ledger().standing_records().filter_map(|record| Some(record.standing()?.subject)));
    }
    access
}

/// Whether an output is a change of who belongs.
pub(super) fn is_change(output: &Output<PeerId>) -> bool {
    matches!(output, Output::Keep(record) if record.standing().is_some())
}

impl<F: FnMut(&Event)> Driver<F> {
    pub(super) fn is_member(&self) -> bool {
        self.machine.ledger().standing(&self.key.member()) == Some(Standing::Member)
    }

    /// Keeps an adapter until founders admit its member: announced now, every peer would refuse it.
    pub(super) fn wait_for_admission(&mut self, prepared: Prepared) {
        let (member, name) = (self.key.member(), &self.machine.round().manifest().name);
        let why = format!(
            "member {member} is not in the roster of round \"{name}\" now; its adapter is announced as soon as the founders admit it"
        );
        (self.observe)(&Event::Trouble { why });
        self.waiting = Some(prepared);
        self.phase = Phase::Waiting;
        self.write_status();
    }

    /// What follows from a change of who belongs: at once, or when the network takes it.
    pub(super) fn follow_changes(&mut self) -> Result<()> {
        if self.access_due && !self.telling {
            let access = self.machine.ledger().access();
            self.access_due = access != self.access && !self.send(|network| network.set_allowed(access.clone()));
            if !self.access_due {
                self.access = access;
            }
        }
        match self.waiting.take() {
            Some(prepared) if self.is_member() => self.announce(prepared),
            waiting => {
                self.waiting = waiting;
                Ok(())
            }
        }
    }

    /// Takes the changes that a verb has left for this peer. A file goes when its record is durable, or is none.
    pub(super) fn take_inbox(&mut self) -> Result<()> {
        for (path, bytes) in handed_over(&self.home.inbox()) {
            match UnverifiedRecord(&bytes).verify(self.machine.round()) {
                Ok(record) if record.standing().is_some() => self.handle(Input::Publish(record))?,
                Ok(_) => (self.observe)(&Event::RecordRefused { why: "only changes of the roster are taken from the inbox".into() }),
                Err(error) => (self.observe)(&Event::RecordRefused { why: error.to_string() }),
            }
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "cannot empty the inbox");
            }
        }
        Ok(())
    }

    pub(super) fn tell(&mut self, records: Vec<SignedRecord>) -> Result<()> {
        self.telling = true;
        records.into_iter().try_for_each(|record| self.handle(Input::Publish(record)))
    }
}
