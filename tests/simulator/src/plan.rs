//! What will befall a history, drawn before it begins: who is who, what members do, and which faults strike when.

use mingle_protocol::standing::Standing;

use crate::Name;
use crate::deeds::Deed;
use crate::dice::Dice;
use crate::ground::FOUNDERS;
use crate::setting::Setting;
use crate::wire::Split;

/// Members say nothing before the network stands, where nothing goes wrong.
const CALM_BEGINNING_MS: u64 = 5_000;
/// Peers are looked at before the last deed for so long.
const LOOK_BACK_MS: u64 = 15_000;

#[derive(Clone, Copy, Debug)]
pub enum Strike {
    /// The process dies after so many more outputs and comes back after `away` milliseconds.
    Crash {
        peer: Name,
        after: u64,
        away: u64,
    },
    /// The process stands still for so long.
    Pause {
        peer: Name,
        for_ms: u64,
    },
    Split {
        which: usize,
        active: bool,
    },
    /// A connection breaks.
    Cut {
        peer: Name,
    },
    /// A stored blob goes bad.
    Damage {
        peer: Name,
    },
    Join {
        peer: Name,
    },
    Leave {
        peer: Name,
    },
}

pub struct Plan {
    /// The peer that speaks with each key.
    pub members: Vec<Name>,
    pub hostile: Vec<Name>,
    pub slow: Vec<Name>,
    /// Peers that everybody dials for ever.
    pub bootstraps: Vec<Name>,
    pub late: Vec<Name>,
    pub deeds: Vec<(u64, Name, Deed)>,
    pub strikes: Vec<(u64, Strike)>,
    pub splits: Vec<Split>,
    /// When the faults end; without faults, when the last deed is done.
    pub heal_at: u64,
    /// From when on peers are looked at.
    pub look_from: u64,
}

impl Plan {
    pub fn draw(setting: &Setting, faults: bool, files: usize, dice: &mut Dice) -> Self {
        let mut names: Vec<Name> = (0..setting.peers).collect();
        dice.shuffle(&mut names);
        let (bootstraps, others) = names.split_at((setting.peers / 100).max(2));
        let mut others = others.to_vec();
        let hostile: Vec<Name> = others.iter().copied().take(setting.hostile).collect();
        others.drain(..hostile.len());
        let late: Vec<Name> = others.iter().copied().take(setting.late).collect();
        let leavers: Vec<Name> = others.iter().rev().copied().take(setting.leavers).filter(|name| !late.contains(name)).collect();
        let slow = names.iter().copied().filter(|_| setting.slow_one_in > 0 && dice.once_in(setting.slow_one_in)).collect();
        let mut members = names.clone();
        dice.shuffle(&mut members);
        members.truncate(setting.speakers());
        let mut plan = Self {
            members,
            hostile,
            slow,
            bootstraps: bootstraps.to_vec(),
            late,
            deeds: Vec::new(),
            strikes: Vec::new(),
            splits: Vec::new(),
            heal_at: setting.troubled_ms,
            look_from: setting.troubled_ms,
        };
        plan.draw_deeds(setting, faults, files, dice);
        plan.draw_roster(setting, dice);
        plan.draw_strikes(setting, &leavers, dice);
        if !faults {
            plan.heal_at = plan.deeds.iter().map(|(at, ..)| *at).max().unwrap_or(CALM_BEGINNING_MS);
            // The last deeds may turn out to be none: what is there to be said may have been said before.
            plan.look_from = plan.heal_at.saturating_sub(LOOK_BACK_MS);
        }
        plan
    }

    fn draw_deeds(&mut self, setting: &Setting, faults: bool, files: usize, dice: &mut Dice) {
        let from = if faults { 0 } else { CALM_BEGINNING_MS };
        for member in &self.members {
            let mut times: Vec<u64> =
                (0..1 + dice.below(setting.deeds_max)).map(|_| from + dice.below((setting.troubled_ms - from) as usize) as u64).collect();
            times.sort_unstable();
            let mut last = None;
            for at in times {
                let examples = 1 + dice.below(2_000) as u64;
                let deed = match last {
                    Some(_) if dice.once_in(4) => Deed::Withdraw,
                    // The same adapter again, after a withdrawal or with another weight.
                    Some(file) if dice.once_in(3) => Deed::Announce { file, examples },
                    _ => Deed::Announce { file: dice.below(files), examples },
                };
                if let Deed::Announce { file, .. } = deed {
                    last = Some(file);
                }
                self.deeds.push((at, *member, deed));
            }
        }
    }

    /// Founders act through any peer that keeps the rules; they let everybody in who is to join, some only after a while.
    fn draw_roster(&mut self, setting: &Setting, dice: &mut Dice) {
        let hands: Vec<Name> = (0..setting.peers).filter(|name| !self.hostile.contains(name) && !self.late.contains(name)).collect();
        let changes = (setting.members..setting.speakers()).map(|key| (key, Standing::Member));
        let changes: Vec<(usize, Standing)> = changes.collect();
        let more = (0..setting.roster_changes).map(|_| {
            let key = dice.below(setting.speakers());
            (key, *dice.one_of(&[Standing::Out, Standing::Reader, Standing::Member]))
        });
        let more: Vec<(usize, Standing)> = more.collect();
        for (key, becomes) in changes.into_iter().chain(more) {
            let at = dice.below(setting.troubled_ms as usize) as u64;
            let deed = Deed::ChangeStanding { key, becomes, without: dice.below(FOUNDERS) };
            self.deeds.push((at, *dice.one_of(&hands), deed));
        }
    }

    fn draw_strikes(&mut self, setting: &Setting, leavers: &[Name], dice: &mut Dice) {
        let end = setting.troubled_ms as usize;
        let when = |dice: &mut Dice| dice.below(end) as u64;
        let anybody = |dice: &mut Dice| dice.below(setting.peers);
        for _ in 0..setting.crashes {
            let strike = Strike::Crash { peer: anybody(dice), after: dice.below(12) as u64, away: 100 + dice.below(20_000) as u64 };
            self.strikes.push((when(dice), strike));
        }
        for _ in 0..setting.pauses {
            self.strikes.push((when(dice), Strike::Pause { peer: anybody(dice), for_ms: 500 + dice.below(20_000) as u64 }));
        }
        for _ in 0..setting.cuts {
            self.strikes.push((when(dice), Strike::Cut { peer: anybody(dice) }));
        }
        for _ in 0..setting.damages {
            self.strikes.push((when(dice), Strike::Damage { peer: anybody(dice) }));
        }
        for peer in self.late.clone() {
            self.strikes.push((when(dice), Strike::Join { peer }));
        }
        for peer in leavers {
            self.strikes.push((when(dice), Strike::Leave { peer: *peer }));
        }
        for which in 0..setting.splits {
            self.draw_split(which, setting, dice);
        }
    }

    /// A split may be short, long, or come and go many times.
    fn draw_split(&mut self, which: usize, setting: &Setting, dice: &mut Dice) {
        let thirds = 1 + dice.below(2);
        let side = (0..setting.peers).map(|_| dice.below(3) < thirds).collect();
        self.splits.push(Split { side, one_way: dice.once_in(3), active: false });
        let end = setting.troubled_ms as usize;
        let mut at = dice.below(end);
        let flaps = if dice.once_in(3) { 1 + dice.below(10) } else { 1 };
        for _ in 0..flaps {
            let lasts = 1 + dice.below(if flaps > 1 { 3_000 } else { end });
            self.strikes.push((at as u64, Strike::Split { which, active: true }));
            self.strikes.push(((at + lasts) as u64, Strike::Split { which, active: false }));
            at += lasts + 1 + dice.below(3_000);
        }
    }
}
