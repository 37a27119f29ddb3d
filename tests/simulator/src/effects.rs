//! What the machine asks for, carried out.

use mingle_protocol::machine::{Notice, Output, Reception};

use crate::Name;
use crate::peer::Origin;
use crate::world::World;

impl World {
    pub fn perform(&mut self, at: Name, output: Output<Name>) {
        let origin = self.peers[at].driver.origin.clone();
        match output {
            Output::Keep(record) => {
                self.note(at, "keeps", record.record().sequence());
                self.peers[at].driver.unsaved.push(record);
            }
            Output::Forget(id) => self.peers[at].driver.forgotten.push(id),
            Output::Reception(verdict) => {
                if let Some(Origin::Gossip { from, message, bytes }) = origin {
                    self.judged(at, from, message, bytes, verdict);
                }
            }
            Output::Gossip(bytes) => {
                if let Some(said) = self.ground.said(&bytes)
                    && let Err(why) = self.checks.bounds.told(at, self.peers[at].life, said.id)
                {
                    self.fail(why);
                }
                self.let_out(at, &bytes);
                self.publish(at, bytes.into());
            }
            Output::Request { to, bytes } => self.ask(at, to, bytes),
            Output::Respond(bytes) => {
                if let Some(Origin::Question { from, token }) = origin {
                    self.answer(at, from, token, bytes);
                }
            }
            Output::Fetch { adapter, size } => {
                let fetching = &mut self.peers[at].driver.fetching;
                fetching.insert(adapter);
                let count = fetching.len();
                if let Err(why) = self.checks.bounds.fetches(at, count) {
                    self.fail(why);
                }
                self.begin_fetch(at, adapter, size);
            }
            Output::CancelFetch(adapter) => {
                self.peers[at].driver.fetching.remove(&adapter);
                self.end_transfer(at, &adapter);
            }
            Output::Misled { by, times } => {
                self.note(at, "holds broken records against", by as u64);
                if !self.peers[by].hostile {
                    self.fail(format!("peer {at} blames peer {by}, which keeps the rules, for {times} invalid records"));
                }
            }
            Output::Merge(set) => {
                self.note(at, "merges", set.len() as u64);
                self.order(at, set);
            }
            Output::Notice(notice) => self.notice(at, &notice),
        }
    }

    /// Nobody reads notices here, but they are part of what happened.
    fn notice(&mut self, at: Name, notice: &Notice) {
        let what = match notice {
            Notice::Recorded(_) => return,
            Notice::Conflict(_) => "sees a conflict",
            Notice::RecordRefused(_) => "refuses a record",
            Notice::SyncRefused(_) => "refuses an answer",
            Notice::NotKept(_) => "has no place for its own record",
            Notice::Fault(fault) => return self.found_fault(at, fault),
            Notice::AdapterRefused { .. } => "refuses an adapter",
        };
        self.note(at, what, 0);
    }

    /// What gossip does with a message once the machine has judged it.
    fn judged(&mut self, at: Name, from: Name, message: u64, bytes: crate::ground::Bytes, verdict: Reception) {
        match verdict {
            Reception::Accept => {
                self.let_out(at, &bytes);
                self.forward(at, from, message, bytes);
            }
            Reception::Reject => {
                *self.peers[at].invalid.entry(from).or_default() += 1;
                if !self.peers[from].hostile {
                    self.fail(format!("peer {at} blames peer {from}, which keeps the rules, for an invalid record"));
                }
            }
            Reception::Ignore => {}
        }
    }

    /// Writes down that others may know this record from this peer now.
    pub fn let_out(&mut self, at: Name, bytes: &[u8]) {
        if self.peers[at].hostile {
            return;
        }
        if let Some(said) = self.ground.said(bytes) {
            self.checks.acknowledged.let_out(at, said);
            if !said.standing && self.voices.get(&said.member) == Some(&at) {
                self.checks.convergence.said(said);
            }
        }
    }
}
