//! Reconciliation as requests and responses over links that lose either.

use mingle_protocol::machine::Input;
use mingle_protocol::sync;

use crate::Name;
use crate::figures::QUESTIONS_MAX;
use crate::ground::Bytes;
use crate::peer::{Origin, Waiting};
use crate::wire::Mail;
use crate::world::{Event, World};

/// Records that a message of the reconciliation hands over.
fn records_in(bytes: &[u8], is_question: bool) -> Vec<sync::RawRecord> {
    if is_question {
        match sync::Request::from_bytes(bytes) {
            Ok(sync::Request::Exchange { records, .. }) => records,
            _ => Vec::new(),
        }
    } else {
        match sync::Response::from_bytes(bytes).map(|response| response.answer) {
            Ok(sync::Answer::Records(records)) => records,
            _ => Vec::new(),
        }
    }
}

impl World {
    pub fn ask(&mut self, at: Name, to: Name, bytes: Vec<u8>) {
        self.asked += 1;
        let token = self.asked;
        for record in records_in(&bytes, true) {
            self.let_out(at, &record.0);
        }
        if !self.peers[at].hostile {
            self.note(at, "asks", to as u64);
        }
        self.peers[at].asked.insert(token, to);
        let visit = self.visit(at);
        let patience = if self.peers[at].neighbours.contains(&to) { self.patience() } else { 0 };
        self.agenda.after(patience, Event::Unanswered { at: visit, token });
        self.send(at, to, Mail::Question { token, bytes: bytes.into() });
    }

    pub fn questioned(&mut self, at: Name, from: Name, token: u64, bytes: Bytes) {
        if self.peers[at].hostile {
            return self.answer_falsely(at, from, token);
        }
        let waits = |waiting: &&Waiting| matches!(waiting, Waiting::Input(_, Origin::Question { .. }));
        if self.peers[at].driver.inbox.iter().filter(waits).count() < QUESTIONS_MAX {
            let input = Input::SyncRequest { from, bytes: bytes.to_vec() };
            self.wait(at, Waiting::Input(input, Origin::Question { from, token }));
        }
    }

    pub fn answer(&mut self, at: Name, to: Name, token: u64, bytes: Vec<u8>) {
        for record in records_in(&bytes, false) {
            self.let_out(at, &record.0);
        }
        self.send(at, to, Mail::Answer { token, bytes: bytes.into() });
    }

    pub fn answered(&mut self, at: Name, from: Name, token: u64, bytes: Bytes) {
        // Answers to nothing that is still asked are not heard.
        if self.peers[at].asked.get(&token) == Some(&from) {
            self.peers[at].asked.remove(&token);
            self.input(at, Input::SyncResponse { from, bytes: bytes.to_vec() });
        }
    }

    /// A question that has no answer: the time is over, or the connection is.
    pub fn unanswered(&mut self, at: Name, token: u64) {
        if let Some(from) = self.peers[at].asked.remove(&token) {
            self.note(at, "hears nothing from", from as u64);
            self.input(at, Input::SyncFailed { from });
        }
    }
}
