//! What a seed is played with: how many peers of which kind, which faults, how bad.

use std::ops::RangeInclusive;

use crate::dice::Dice;

/// Worst share of messages that are lost, in thousandths.
const LOSS_MAX: usize = 300;
/// Worst share of messages that come once more much later, in thousandths.
const REPLAY_MAX: usize = 500;

/// Faults planted in the imitation, each to be found by a checker: a simulation that finds nothing shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// Peers never ask each other what they miss.
    NoReconciliation,
    /// A record is passed on before it is durable.
    GossipBeforeKeep,
    /// The merger adds what enters the set and takes nothing out.
    NoRetraction,
}

/// A family of seeds.
#[derive(Clone, Debug)]
pub struct Class {
    pub peers: RangeInclusive<usize>,
    /// Those that announce; the others read.
    pub members_max: usize,
    /// Without, links take 50 ms and everything works.
    pub faults: bool,
    /// Longest that peers may take to agree, after the last fault or, without faults, after the last record.
    pub patience_ms: u64,
    pub planted: Planted,
}

impl Class {
    /// 8 to 32 peers with every fault.
    pub fn small() -> Self {
        Self { peers: 8..=32, members_max: 24, faults: true, patience_ms: 30_000, planted: Planted::Nothing }
    }

    /// No faults, links of 50 ms.
    pub fn clean() -> Self {
        Self { faults: false, patience_ms: 3_000, ..Self::small() }
    }

    /// As many peers, a few dozen of which announce.
    pub fn large(peers: usize) -> Self {
        Self { peers: peers..=peers, members_max: 40, ..Self::small() }
    }

    pub fn planted(self, planted: Planted) -> Self {
        Self { planted, ..self }
    }

    /// Words that replay one seed of this family with the program.
    pub fn words(&self) -> String {
        let faults = if self.faults { "" } else { " --clean" };
        format!("--peers {}..{} --members {}{faults}", self.peers.start(), self.peers.end(), self.members_max)
    }
}

/// How long something takes: at least `base`, and up to `more` on top, mostly little of it.
#[derive(Clone, Copy, Debug)]
pub struct Takes {
    pub base: u64,
    pub more: u64,
}

impl Takes {
    pub fn draw(self, dice: &mut Dice) -> u64 {
        if self.more == 0 {
            return self.base;
        }
        let far = dice.below(1_000) as u64;
        // The square makes long delays rare.
        self.base + self.more * far * far / 1_000_000
    }
}

/// Everything drawn before the first event.
#[derive(Clone, Debug)]
pub struct Setting {
    pub peers: usize,
    pub members: usize,
    /// Peers that break every rule; some of them are members.
    pub hostile: usize,
    /// Keys of nobody's peer that hostile peers speak for, where the roster is open.
    pub sybils: usize,
    pub open_roster: bool,
    /// Peers that founders make members while the round runs.
    pub newcomers: usize,
    /// How often founders change who belongs, beside that.
    pub roster_changes: usize,
    /// Neighbours each peer looks for.
    pub degree: usize,
    /// The time of faults.
    pub troubled_ms: u64,
    pub deeds_max: usize,
    pub delay: Takes,
    pub loss: usize,
    pub duplicated: usize,
    pub replayed: usize,
    pub disk: Takes,
    pub blob: Takes,
    /// One in so many peers is slow in everything; 0 for none.
    pub slow_one_in: usize,
    pub crashes: usize,
    pub pauses: usize,
    pub splits: usize,
    pub cuts: usize,
    pub damages: usize,
    pub leavers: usize,
    pub late: usize,
    pub skewed: bool,
    /// Whether every peer folds every merge; otherwise sets are compared, and folded once at the end.
    pub fold_always: bool,
    pub tick_ms: u64,
}

impl Setting {
    pub fn draw(class: &Class, dice: &mut Dice) -> Self {
        let (least, most) = (*class.peers.start(), *class.peers.end());
        let peers = least + dice.below(most - least + 1);
        let small = peers <= 64;
        let members = if small { 2 + dice.below(peers.min(class.members_max) - 1) } else { class.members_max };
        let mut setting = Self {
            peers,
            members,
            hostile: 0,
            sybils: 0,
            open_roster: false,
            newcomers: 0,
            roster_changes: 0,
            degree: if small { 3 + dice.below(10) } else { 12 },
            troubled_ms: 20_000 + dice.below(40_000) as u64,
            deeds_max: if small { 4 } else { 2 },
            delay: Takes { base: 50, more: 0 },
            loss: 0,
            duplicated: 0,
            replayed: 0,
            disk: Takes { base: 0, more: 0 },
            blob: Takes { base: 100, more: 0 },
            slow_one_in: 0,
            crashes: 0,
            pauses: 0,
            splits: 0,
            cuts: 0,
            damages: 0,
            leavers: 0,
            late: 0,
            skewed: false,
            fold_always: small,
            tick_ms: if small { super::figures::TICK } else { 2 * super::figures::TICK },
        };
        if class.faults {
            setting.trouble(dice);
        }
        setting
    }

    /// Keys that a peer speaks with, now or later.
    pub fn speakers(&self) -> usize {
        self.members + self.newcomers
    }

    /// Each kind of fault is there in half of the seeds, and in one seed of eight all are there at once.
    fn trouble(&mut self, dice: &mut Dice) {
        let all = dice.once_in(8);
        let mut at_most = |most: usize| if all || dice.once_in(2) { 1 + dice.below(most) } else { 0 };
        let peers = self.peers;
        self.hostile = at_most((peers / 5).clamp(1, 60));
        self.delay = Takes { base: 1 + at_most(100) as u64, more: at_most(1_500) as u64 };
        self.loss = at_most(LOSS_MAX);
        self.duplicated = at_most(300);
        self.replayed = at_most(REPLAY_MAX);
        self.disk = Takes { base: 0, more: at_most(800) as u64 };
        self.blob = Takes { base: 20 + at_most(100) as u64, more: at_most(300) as u64 };
        self.slow_one_in = at_most(6);
        self.crashes = at_most(peers);
        self.pauses = at_most(peers / 2);
        self.splits = at_most(4);
        self.cuts = at_most(peers);
        self.damages = at_most(peers / 2);
        self.leavers = at_most((peers / 6).max(1));
        self.late = at_most((peers / 3).max(1));
        self.skewed = at_most(1) == 1;
        self.open_roster = at_most(4) == 1;
        let changes = at_most(6);
        if !self.open_roster {
            self.roster_changes = changes;
            self.newcomers = if changes > 0 { dice.below(peers - self.members + 1).min(6) } else { 0 };
        }
        self.sybils = if self.open_roster && self.hostile > 0 { dice.below(8) } else { 0 };
    }
}
