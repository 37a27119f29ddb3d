//! One peer: the machine under test, a disk, and what a crash takes away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mingle_protocol::hash::ContentHash;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::machine::{Input, Machine, Millis, Output};
use mingle_protocol::record::{RecordId, SignedRecord};
use mingle_protocol::round::Round;

use crate::Name;
use crate::deeds::Deed;
use crate::ground::Bytes;
use crate::merging::{Merging, Report};
use crate::transfers::Transfer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Has not come yet.
    Absent,
    Up,
    /// Crashed, and comes back.
    Down,
    /// Does not come back.
    Gone,
}

/// What survives a crash.
#[derive(Default)]
pub struct Disk {
    pub records: BTreeMap<RecordId, SignedRecord>,
    /// Whole blobs, and whether their bytes are still right.
    pub blobs: BTreeMap<ContentHash, bool>,
    /// How much of a blob is there, in thousandths.
    pub parts: BTreeMap<ContentHash, u64>,
    /// Adapters found not to fit.
    pub refused: BTreeSet<ContentHash>,
    /// What this member means to have said in the end.
    pub wish: Option<Deed>,
}

/// What waits for the driver.
pub enum Waiting {
    Input(Input<Name>, Origin),
    Tick,
    Deed(Deed),
    Averaged(Report),
    CollectGarbage,
}

/// What a verdict or an answer is for.
#[derive(Clone)]
pub enum Origin {
    Nothing,
    Gossip { from: Name, message: u64, bytes: Bytes },
    Question { from: Name, token: u64 },
}

/// The driver between two moments.
#[derive(Default)]
pub struct Driver {
    pub inbox: VecDeque<Waiting>,
    /// Outputs of the input being handled, not yet carried out.
    pub pending: VecDeque<Output<Name>>,
    pub origin: Option<Origin>,
    pub unsaved: Vec<SignedRecord>,
    pub forgotten: Vec<RecordId>,
    /// The disk is at work until the driver is visited.
    pub saving: bool,
    pub withdrawing: bool,
    /// Fetches in flight, as the machine has them.
    pub fetching: BTreeSet<ContentHash>,
}

/// A peer's own clock: it starts anew with each process, and runs a little fast or slow.
#[derive(Clone, Copy)]
pub struct Clock {
    pub begun: u64,
    pub ahead: u64,
    /// Thousandths of a second in a second.
    pub rate: u64,
}

impl Clock {
    pub fn read(self, now: u64) -> Millis {
        Millis(self.ahead + (now - self.begun) * self.rate / 1_000)
    }
}

/// Whom the dialler has tried, and when it may try again.
#[derive(Default)]
pub struct Dialler {
    pub not_before: BTreeMap<Name, u64>,
    pub attempts: BTreeMap<Name, u32>,
}

pub struct Peer {
    pub hostile: bool,
    /// Which of the ground's keys it speaks with.
    pub key: Option<usize>,
    pub presence: Presence,
    /// Processes it has had; what was meant for an earlier one finds nobody.
    pub life: u32,
    pub paused_until: u64,
    pub slow: bool,
    pub clock: Clock,
    pub disk: Disk,
    // From here on: lost in a crash.
    pub machine: Machine<Name>,
    pub driver: Driver,
    pub neighbours: BTreeSet<Name>,
    /// Of these, to whom the gossip of others is passed on.
    pub mesh: BTreeSet<Name>,
    /// Gossip that was seen, by its mark.
    pub seen: BTreeSet<u64>,
    pub outbox: VecDeque<Bytes>,
    /// Invalid messages of each neighbour.
    pub invalid: BTreeMap<Name, u32>,
    /// Questions without an answer yet.
    pub asked: BTreeMap<u64, Name>,
    pub dialler: Dialler,
    pub transfers: BTreeMap<ContentHash, Transfer>,
    pub serving: u32,
    /// When the merge is vouched for, if it is still by then.
    pub vouch_at: Option<u64>,
    pub merging: Merging,
    /// The process dies after so many more outputs.
    pub dies_after: Option<u64>,
}

impl Peer {
    pub fn new(round: &Round) -> Self {
        Self {
            hostile: false,
            key: None,
            presence: Presence::Absent,
            life: 0,
            paused_until: 0,
            slow: false,
            clock: Clock { begun: 0, ahead: 0, rate: 1_000 },
            disk: Disk::default(),
            machine: Machine::new(round.clone(), []),
            driver: Driver::default(),
            neighbours: BTreeSet::new(),
            mesh: BTreeSet::new(),
            seen: BTreeSet::new(),
            outbox: VecDeque::new(),
            invalid: BTreeMap::new(),
            asked: BTreeMap::new(),
            dialler: Dialler::default(),
            transfers: BTreeMap::new(),
            serving: 0,
            vouch_at: None,
            merging: Merging::new(round),
            dies_after: None,
        }
    }

    /// A new process over the same disk.
    pub fn reborn(&mut self, round: &Round, records: Vec<SignedRecord>, now: u64) {
        let old = std::mem::replace(self, Self::new(round));
        let refused: Vec<_> = old.disk.refused.iter().map(|adapter| (*adapter, "does not fit".to_owned())).collect();
        *self = Self {
            hostile: old.hostile,
            key: old.key,
            presence: Presence::Up,
            life: old.life + 1,
            slow: old.slow,
            clock: Clock { begun: now, ..old.clock },
            disk: old.disk,
            machine: Machine::new(round.clone(), records).remember_refused(refused),
            ..Self::new(round)
        };
    }

    /// Whether it runs, keeps the rules, and is judged by the checkers.
    pub fn is_judged(&self) -> bool {
        !self.hostile && self.presence == Presence::Up
    }

    pub fn merge_set(&self) -> &[Admitted] {
        self.machine.merge_set()
    }
}
