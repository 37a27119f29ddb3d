//! Who is connected to whom: the dialler's habits, connections that break, and how late each end hears of it.

use mingle_protocol::machine::Input;

use crate::Name;
use crate::figures::{BACKOFF_FIRST, BACKOFF_LONGEST, CONNECTIONS_MAX, DIAL_INTERVAL, DIALS_AT_ONCE, MESH, REDIAL_PAUSE, SILENCE_MAX};
use crate::wire::{Link, pair};
use crate::world::{Event, Visit, World};

impl World {
    /// The dialler's turn: bootstrap peers for ever, known ones while neighbours are missing.
    pub fn dial(&mut self, visit: Visit) {
        let at = visit.peer;
        self.agenda.after(DIAL_INTERVAL, Event::Dial(visit));
        if self.peers[at].paused_until > self.agenda.now() {
            return;
        }
        self.drop_silent(at);
        self.heartbeat(at);
        let now = self.agenda.now();
        for to in self.bootstraps.clone() {
            let due = self.peers[at].dialler.not_before.get(&to).is_none_or(|until| *until <= now);
            if to == at || !due || self.peers[at].neighbours.contains(&to) {
                continue;
            }
            let attempts = self.peers[at].dialler.attempts.entry(to).or_default();
            let whole = (BACKOFF_FIRST << (*attempts).min(16)).min(BACKOFF_LONGEST);
            *attempts += 1;
            let pause = whole - self.dice.below(whole as usize / 4) as u64;
            self.peers[at].dialler.not_before.insert(to, now + pause);
            self.reach(at, to);
        }
        let missing = self.setting.degree.saturating_sub(self.peers[at].neighbours.len()).min(DIALS_AT_ONCE);
        for _ in 0..missing {
            let to = self.dice.below(self.peers.len());
            let due = self.peers[at].dialler.not_before.get(&to).is_none_or(|until| *until <= now);
            if to != at && due && !self.peers[at].neighbours.contains(&to) {
                self.peers[at].dialler.not_before.insert(to, now + REDIAL_PAUSE);
                self.reach(at, to);
            }
        }
    }

    /// Begins to open a connection.
    pub fn reach(&mut self, at: Name, to: Name) {
        let places = self.peers[to].neighbours.len() < CONNECTIONS_MAX;
        if places && self.can_meet(at, to) && !self.links.contains_key(&pair(at, to)) {
            let wait = 4 * self.way(at, to);
            self.agenda.after(wait, Event::Met { one: at, other: to });
        }
    }

    pub fn met(&mut self, one: Name, other: Name) {
        if self.links.contains_key(&pair(one, other)) || !self.can_meet(one, other) {
            return;
        }
        self.links_made += 1;
        let delay = self.setting.delay.base + if self.setting.delay.more > 0 { self.dice.below(50) as u64 } else { 0 };
        let link = Link { number: self.links_made, delay, silent_since: None };
        self.links.insert(pair(one, other), link);
        self.graft(one, other, MESH);
        for (at, with) in [(one, other), (other, one)] {
            self.peers[at].dialler.attempts.remove(&with);
            // An end that has not noticed the break of an earlier connection does not notice this one either.
            if self.peers[at].neighbours.insert(with) {
                self.input(at, Input::Connected(with));
                self.empty_outbox(at);
            }
        }
    }

    /// Gives up links over which nothing has come for long.
    fn drop_silent(&mut self, at: Name) {
        let now = self.agenda.now();
        let neighbours: Vec<Name> = self.peers[at].neighbours.iter().copied().collect();
        for with in neighbours {
            let silent = self.is_blocked(at, with) || self.is_blocked(with, at) || self.peers[with].paused_until > now;
            let Some(link) = self.links.get_mut(&pair(at, with)) else { continue };
            match (silent, link.silent_since) {
                (false, _) => link.silent_since = None,
                (true, None) => link.silent_since = Some(now),
                (true, Some(since)) if now - since >= SILENCE_MAX => {
                    let late = self.dice.below(5_000) as u64;
                    self.sever(at, with, 0, late);
                }
                (true, Some(_)) => {}
            }
        }
    }

    /// A connection breaks; each end hears of it in its own time.
    pub fn sever(&mut self, one: Name, other: Name, one_hears: u64, other_hears: u64) {
        let Some(link) = self.links.remove(&pair(one, other)) else { return };
        for (at, with, wait) in [(one, other, one_hears), (other, one, other_hears)] {
            self.peers[at].mesh.remove(&with);
            let visit = self.visit(at);
            self.agenda.after(wait, Event::Parted { at: visit, with, link: link.number });
        }
    }

    pub fn parted(&mut self, at: Name, with: Name, link: u64) {
        let newer = self.links.get(&pair(at, with)).is_some_and(|held| held.number > link);
        if newer || !self.peers[at].neighbours.remove(&with) {
            return;
        }
        let lost: Vec<u64> = self.peers[at].asked.iter().filter(|(_, to)| **to == with).map(|(token, _)| *token).collect();
        for token in lost {
            self.unanswered(at, token);
        }
        self.input(at, Input::Disconnected(with));
    }

    /// All connections of a process that is gone. Its machine says goodbye to none of them, or its power is out.
    pub fn vanish(&mut self, at: Name) {
        let others: Vec<Name> = (0..self.peers.len()).filter(|other| self.links.contains_key(&pair(at, *other))).collect();
        let silent = self.dice.once_in(3);
        for other in others {
            let hears = if silent { SILENCE_MAX + self.dice.below(5_000) as u64 } else { self.way(at, other) };
            self.sever(at, other, 0, hears);
        }
    }
}
