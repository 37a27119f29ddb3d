//! Links and what happens to a message on one: it takes its time, is lost, comes twice, or comes again much later.

use crate::Name;
use crate::figures::ANSWER_MAX;
use crate::ground::Bytes;
use crate::peer::Presence;
use crate::world::{Event, World};

/// Messages remembered so that they can be replayed.
const REMEMBERED: usize = 64;

/// What travels.
#[derive(Clone)]
pub enum Mail {
    Gossip { message: u64, bytes: Bytes },
    Question { token: u64, bytes: Bytes },
    Answer { token: u64, bytes: Bytes },
}

/// A connection of two peers.
pub struct Link {
    /// Tells this connection from earlier ones of the same two.
    pub number: u64,
    pub delay: u64,
    /// Since when nothing comes through.
    pub silent_since: Option<u64>,
}

/// A split of the network into two sides.
#[derive(Clone)]
pub struct Split {
    pub side: Vec<bool>,
    /// Only from the first side to the second nothing comes through.
    pub one_way: bool,
    pub active: bool,
}

pub fn pair(one: Name, other: Name) -> (Name, Name) {
    (one.min(other), one.max(other))
}

impl World {
    /// Whether a split keeps messages from reaching `to`.
    pub fn is_blocked(&self, from: Name, to: Name) -> bool {
        let parts = |split: &Split| split.active && split.side[from] != split.side[to] && (!split.one_way || split.side[from]);
        self.splits.iter().any(parts)
    }

    /// Whether a connection could be opened: both run, and messages pass both ways.
    pub fn can_meet(&self, one: Name, other: Name) -> bool {
        let now = self.agenda.now();
        let there = |name: Name| self.peers[name].presence == Presence::Up && self.peers[name].paused_until <= now;
        there(one) && there(other) && !self.is_blocked(one, other) && !self.is_blocked(other, one)
    }

    /// A message's way over a link, without what happens to it there.
    pub fn way(&mut self, from: Name, to: Name) -> u64 {
        let link = self.links.get(&pair(from, to)).map_or(self.setting.delay.base, |link| link.delay);
        let more = self.setting.delay.more;
        let jitter = if self.healed || more == 0 { 0 } else { crate::setting::Takes { base: 0, more }.draw(&mut self.dice) };
        let slow = if self.peers[from].slow || self.peers[to].slow { link + 100 } else { 0 };
        link + jitter + slow
    }

    /// Puts a message on its way. The sender does not learn what becomes of it.
    pub fn send(&mut self, from: Name, to: Name, mail: Mail) {
        self.sent += 1;
        self.sent_bytes += match &mail {
            Mail::Gossip { bytes, .. } | Mail::Question { bytes, .. } | Mail::Answer { bytes, .. } => bytes.len() as u64,
        };
        let Some(link) = self.links.get(&pair(from, to)) else { return };
        let number = link.number;
        if self.is_blocked(from, to) || self.by_chance(self.setting.loss) {
            return;
        }
        let wait = self.way(from, to);
        if self.by_chance(self.setting.duplicated) {
            let again = wait + 1 + self.dice.below(2_000) as u64;
            self.agenda.after(again, Event::Arrive { from, to, link: number, mail: mail.clone() });
        }
        if self.setting.replayed > 0 && !self.healed {
            if self.remembered.len() < REMEMBERED {
                self.remembered.push((from, to, mail.clone()));
            } else {
                let place = self.dice.below(REMEMBERED);
                self.remembered[place] = (from, to, mail.clone());
            }
            if self.by_chance(self.setting.replayed / 8) {
                self.replay();
            }
        }
        self.agenda.after(wait, Event::Arrive { from, to, link: number, mail });
    }

    /// One of the messages of before arrives once more, as if nobody had seen it.
    fn replay(&mut self) {
        let place = self.dice.below(self.remembered.len());
        let (from, to, mail) = self.remembered[place].clone();
        if let Mail::Gossip { message, .. } = &mail {
            self.peers[to].seen.remove(message);
        }
        if let Some(link) = self.links.get(&pair(from, to)) {
            let number = link.number;
            let wait = self.dice.below(10_000) as u64;
            self.agenda.after(wait, Event::Arrive { from, to, link: number, mail });
        }
    }

    /// True in so many of a thousand cases while there is trouble.
    pub fn by_chance(&mut self, of_thousand: usize) -> bool {
        !self.healed && of_thousand > 0 && self.dice.below(1_000) < of_thousand
    }

    pub fn arrive(&mut self, from: Name, to: Name, link: u64, mail: Mail) {
        // A connection that is gone delivers nothing, and neither does one to a process that is gone.
        if self.links.get(&pair(from, to)).is_none_or(|held| held.number != link) || self.peers[to].presence != Presence::Up {
            return;
        }
        if !self.reads(to) {
            let again = self.setting.tick_ms;
            return self.agenda.after(again, Event::Arrive { from, to, link, mail });
        }
        match mail {
            Mail::Gossip { message, bytes } => self.heard(to, from, message, bytes),
            Mail::Question { token, bytes } => self.questioned(to, from, token, bytes),
            Mail::Answer { token, bytes } => self.answered(to, from, token, bytes),
        }
    }

    /// The longest a question can be without an answer.
    pub fn patience(&self) -> u64 {
        ANSWER_MAX
    }
}
