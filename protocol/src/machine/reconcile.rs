//! With whom a peer reconciles, and when.
//!
//! Gossip carries what is new; reconciliation makes up for what gossip lost. So a new neighbour is asked at once; after
//! anything changed, or a comparison found a difference, a few neighbours are asked as soon as the change had time to
//! spread, then later and later up to [`SYNC_INTERVAL_MS`]; and whoever left a question without an answer is asked again
//! by itself. One question a neighbour is under way at a time.

use std::collections::BTreeMap;

use super::{Heard, Machine, Millis, Notice, Output};
use crate::hash::ContentHash;
use crate::record::RecordId;
use crate::sync::{Answer, RawRecord, Request, Response, Session, SyncError};

/// How often a peer reconciles with some of its neighbours although nothing happened.
pub const SYNC_INTERVAL_MS: u64 = 30_000;
/// Neighbours it then reconciles with.
pub(super) const SYNC_FANOUT: usize = 2;
/// The first wait after a change: gossip is nearly everywhere by then, and comparing earlier would find differences that
/// are gone a moment later.
const QUIET_MS: u64 = 1_000;
/// How often a reader asks that waits for members to vouch for a merge.
const HURRY_MS: u64 = 2_000;
/// How many attestations it asks for.
const ATTESTATIONS_ASKED: u8 = 16;
/// While changes keep coming, the longest wait.
const BUSY_MS: u64 = 5_000;
/// A neighbour that says nothing for so long has not heard the question.
pub(super) const PATIENCE_MS: u64 = 10_000;
/// Records that break a rule after which the rest of a message is not looked at: they are enough to be disconnected for,
/// and each costs the check of a signature.
const BROKEN_MAX: u32 = 32;
/// First and longest wait before a silent neighbour is asked again.
const SILENT_MS: u64 = 1_000;
pub(super) const SILENT_MS_MAX: u64 = 8_000;

/// A neighbour, as reconciliation sees it.
#[derive(Default)]
pub(super) struct Neighbour {
    /// When the question under way was asked.
    asked: Option<Millis>,
    session: Session,
    /// Questions in a row that came to nothing.
    failures: u32,
    retry_at: Millis,
    /// Which of our attestations it was sent.
    told: Option<ContentHash>,
    /// The set root for which it gave us its own.
    heard: Option<ContentHash>,
}

/// When the next neighbours are asked, and who.
pub(super) struct Pace<P> {
    wait: u64,
    next: Millis,
    /// The first change since the last turn.
    stirred: Option<Millis>,
    /// The neighbour after which the next turn starts.
    last: Option<P>,
}

impl<P> Default for Pace<P> {
    fn default() -> Self {
        Self { wait: QUIET_MS, next: Millis::default(), stirred: None, last: None }
    }
}

impl<P> Pace<P> {
    /// Something changed.
    pub fn stir(&mut self, now: Millis) {
        let since = *self.stirred.get_or_insert(now);
        self.wait = QUIET_MS;
        self.next = now.after(QUIET_MS).min(since.after(BUSY_MS));
    }

    /// What is waited for may be there at any moment.
    fn hurry(&mut self, now: Millis) {
        self.next = self.next.min(now.after(HURRY_MS));
    }

    fn turned(&mut self, now: Millis) {
        self.stirred = None;
        self.next = now.after(self.wait);
        self.wait = self.wait.saturating_mul(2).min(SYNC_INTERVAL_MS);
    }
}

impl<P: Clone + Ord> Machine<P> {
    pub(super) fn connected(&mut self, peer: P, now: Millis, out: &mut Vec<Output<P>>) {
        self.neighbours.insert(peer.clone(), Neighbour::default());
        self.compare_with(peer, now, out);
        self.pace.stir(now);
        self.prompt_wants(now);
    }

    /// Lets time pass: gives up waiting, asks again, and asks some in turn.
    pub(super) fn reconcile(&mut self, now: Millis, out: &mut Vec<Output<P>>) {
        let named = |neighbours: &BTreeMap<P, Neighbour>, which: &dyn Fn(&Neighbour) -> bool| -> Vec<P> {
            neighbours.iter().filter(|(_, neighbour)| which(neighbour)).map(|(peer, _)| peer.clone()).collect()
        };
        for peer in named(&self.neighbours, &|n| n.asked.is_some_and(|asked| asked.after(PATIENCE_MS) <= now)) {
            self.unanswered(&peer, SILENT_MS_MAX, now);
        }
        for peer in named(&self.neighbours, &|n| n.failures > 0 && n.asked.is_none() && n.retry_at <= now) {
            self.compare_with(peer, now, out);
        }
        if now >= self.pace.next && !self.neighbours.is_empty() {
            self.pace.turned(now);
            if self.looks_for_vouchers() {
                self.pace.hurry(now);
            }
            let idle = |(peer, neighbour): (&P, &Neighbour)| (neighbour.asked.is_none() && neighbour.failures == 0).then(|| peer.clone());
            let idle: Vec<P> = self.neighbours.iter().filter_map(idle).collect();
            let ahead = idle.iter().filter(|peer| self.pace.last.as_ref().is_none_or(|last| *peer > last));
            let peers: Vec<P> = ahead.chain(&idle).take(SYNC_FANOUT.min(idle.len())).cloned().collect();
            self.pace.last = peers.last().cloned().or(self.pace.last.take());
            for peer in peers {
                self.compare_with(peer, now, out);
            }
        }
    }

    fn compare_with(&mut self, peer: P, now: Millis, out: &mut Vec<Output<P>>) {
        let mut request = Session::compare(self.round.id(), self.catalogue());
        if let Request::Compare { attestation, attestations, .. } = &mut request {
            let own = self.attested.own().map(|own| (own.id(), own.attestation().set_root, own.raw().clone()));
            let (told, heard) = self.neighbours.get(&peer).map_or((None, None), |neighbour| (neighbour.told, neighbour.heard));
            *attestations = if self.looks_for_vouchers() { ATTESTATIONS_ASKED } else { 0 };
            if let Some((id, set_root, raw)) = own {
                *attestation = (told != Some(id)).then_some(raw);
                *attestations = u8::from(heard != Some(set_root)).max(*attestations);
                if let Some(neighbour) = self.neighbours.get_mut(&peer) {
                    neighbour.told = Some(id);
                }
            }
        }
        self.ask(peer, &request, now, out);
    }

    fn ask(&mut self, to: P, request: &Request, now: Millis, out: &mut Vec<Output<P>>) {
        match request.to_bytes() {
            Ok(bytes) => {
                if let Some(neighbour) = self.neighbours.get_mut(&to) {
                    neighbour.asked = Some(now);
                }
                out.push(Output::Request { to, bytes });
            }
            Err(error) => out.push(Output::Notice(Notice::SyncRefused(error.to_string()))),
        }
    }

    /// A question came to nothing; it is asked again after at most `wait`, sooner the first times.
    pub(super) fn unanswered(&mut self, peer: &P, wait: u64, now: Millis) {
        if let Some(neighbour) = self.neighbours.get_mut(peer) {
            let wait = SILENT_MS.checked_shl(neighbour.failures).unwrap_or(wait).min(wait);
            let failures = neighbour.failures.saturating_add(1);
            // What it was sent with the question may not have come either.
            *neighbour = Neighbour { failures, retry_at: now.after(wait), heard: neighbour.heard, ..Neighbour::default() };
        }
    }

    fn finished(&mut self, peer: &P) {
        self.compared = true;
        if let Some(neighbour) = self.neighbours.get_mut(peer) {
            *neighbour = Neighbour { told: neighbour.told, heard: neighbour.heard, ..Neighbour::default() };
        }
    }

    pub(super) fn sync_request(&mut self, from: &P, bytes: &[u8], now: Millis, out: &mut Vec<Output<P>>) {
        let response = match Request::from_bytes(bytes) {
            Ok(request) if request.round() != self.round.id() => Answer::WrongRound(self.round.id()).into(),
            Ok(request) => self.answer(from, request, now, out),
            Err(error) => Self::refuse(&error, out).into(),
        };
        out.push(Output::Respond(response.to_bytes().unwrap_or_default()));
    }

    fn refuse(error: &SyncError, out: &mut Vec<Output<P>>) -> Answer {
        out.push(Output::Notice(Notice::SyncRefused(error.to_string())));
        Answer::Refused
    }

    fn answer(&mut self, from: &P, request: Request, now: Millis, out: &mut Vec<Output<P>>) -> Response {
        match request {
            Request::Compare { count, fingerprint, attestation, attestations, .. } => {
                let answer = self.catalogue().compare(count, fingerprint);
                if answer != Answer::Same {
                    self.pace.stir(now);
                }
                self.hear(from, attestation.as_slice(), out);
                Response { answer, attestations: self.vouchers(usize::from(attestations)) }
            }
            Request::Range { message, .. } => self.catalogue().answer(&message).unwrap_or_else(|error| Self::refuse(&error, out)).into(),
            Request::Exchange { wanted, records, .. } => {
                // Answer from what was held before: the asker need not be told what it has just said.
                let answer = crate::sync::supply(&self.ledger, &wanted);
                self.absorb(from, &records, now, out);
                answer.into()
            }
        }
    }

    pub(super) fn sync_response(&mut self, from: &P, bytes: &[u8], now: Millis, out: &mut Vec<Output<P>>) {
        let next = match Response::from_bytes(bytes) {
            Ok(response) => self.follow(from, response, now, out),
            Err(error) => Err(error.to_string()),
        };
        match next {
            Ok(Some(request)) if self.neighbours.contains_key(from) => self.ask(from.clone(), &request, now, out),
            Ok(_) => self.finished(from),
            Err(why) => {
                out.push(Output::Notice(Notice::SyncRefused(why)));
                self.unanswered(from, SYNC_INTERVAL_MS, now);
            }
        }
    }

    /// What an answer makes us ask next: nothing when all is done, or why it cannot go on.
    fn follow(&mut self, from: &P, response: Response, now: Millis, out: &mut Vec<Output<P>>) -> Result<Option<Request>, String> {
        // Whoever is no neighbour any more may still hand over what it was asked for.
        if !response.attestations.is_empty() {
            let own = self.attested.own().map(|own| own.attestation().set_root);
            let heard = self.hear(from, &response.attestations, out);
            if let Some(neighbour) = self.neighbours.get_mut(from)
                && own.is_some()
                && heard == own
            {
                neighbour.heard = own;
            }
        }
        let mut session = self.neighbours.get_mut(from).map(|neighbour| std::mem::take(&mut neighbour.session)).unwrap_or_default();
        let next = self.proceed(from, &mut session, response.answer, now, out);
        if let Some(neighbour) = self.neighbours.get_mut(from) {
            neighbour.session = session;
        }
        next
    }

    fn proceed(
        &mut self,
        from: &P,
        session: &mut Session,
        answer: Answer,
        now: Millis,
        out: &mut Vec<Output<P>>,
    ) -> Result<Option<Request>, String> {
        let round = self.round.id();
        let words = |error: SyncError| error.to_string();
        match answer {
            Answer::Same => return Ok(None),
            Answer::Ids(ids) => session.listed(self.catalogue(), &ids),
            Answer::Differs => return session.differs(round, self.catalogue()).map(Some).map_err(words),
            Answer::Range(message) => {
                if let Some(request) = session.ranged(round, self.catalogue(), &message).map_err(words)? {
                    return Ok(Some(request));
                }
            }
            Answer::Records(records) => session.received(self.absorb(from, &records, now, out)),
            Answer::WrongRound(found) => return Err(format!("neighbour is in round {found}, not in this one")),
            Answer::Refused => return Err("neighbour does not understand our questions; it may run another version".into()),
        }
        self.pace.stir(now);
        self.catalogue();
        let Self { ledger, catalogue: Some(catalogue), .. } = self else { return Ok(None) };
        session.exchange(round, ledger, catalogue).map_err(words)
    }

    /// Takes records from a reconciliation; which of them were right. News is gossiped on, so that a member that was cut
    /// off reaches everybody through the first peer it meets. What needs no other record to be refused is held against the
    /// sender; what the ledger has no place for (of strangers, superseded, beyond the cap) is not: others' ledgers differ.
    fn absorb(&mut self, from: &P, records: &[RawRecord], now: Millis, out: &mut Vec<Output<P>>) -> Vec<RecordId> {
        let (mut right, mut verified, mut broken) = (Vec::new(), Vec::new(), 0);
        for RawRecord(bytes) in records {
            if broken >= BROKEN_MAX {
                break;
            }
            match self.recognise(bytes) {
                Ok(Heard::Before(id)) => right.push(id),
                Ok(Heard::Now(record)) => {
                    right.push(record.id());
                    verified.push(*record);
                }
                Err(error) => {
                    broken = u32::saturating_add(broken, 1);
                    out.push(Output::Notice(Notice::RecordRefused(error)));
                }
            }
        }
        misled(from, broken, out);
        // Who belongs first. Then the highest sequence: what it supersedes is stale by then and costs neither disk nor gossip.
        verified.sort_by_key(|record| (record.record().rank(), std::cmp::Reverse(record.record().sequence())));
        for record in verified {
            let bytes = record.bytes().to_vec();
            if self.admit(record, now, out) {
                out.push(Output::Gossip(bytes));
            }
        }
        right
    }
}

/// Tells that a neighbour handed over what no honest one has.
pub(super) fn misled<P: Clone>(by: &P, times: u32, out: &mut Vec<Output<P>>) {
    if times > 0 {
        out.push(Output::Misled { by: by.clone(), times });
    }
}
