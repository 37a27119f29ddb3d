//! The merger beside the driver: it works towards the newest set, one adapter out, one adapter in, and reports.

use std::collections::BTreeMap;

use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::machine::Input;
use mingle_protocol::merge::Accumulator;
use mingle_protocol::receipt::set_root;
use mingle_protocol::round::Round;

use crate::Name;
use crate::peer::{Origin, Waiting};
use crate::setting::Planted;
use crate::vouching::MergedAs;
use crate::world::{Event, World};

/// Longest that one step of the merger takes, in milliseconds.
const STEP_MAX: usize = 200;

pub struct Merging {
    average: Accumulator,
    held: BTreeMap<MemberKey, Admitted>,
    /// What the driver was last told.
    merged: Vec<Admitted>,
    published: Option<MergedAs>,
    /// The newest set that was asked for and not begun.
    ordered: Option<Vec<Admitted>>,
    /// The set being worked on.
    under_way: Option<Vec<Admitted>>,
}

/// What came of an order.
pub struct Report {
    refused: Vec<ContentHash>,
    lost: Vec<ContentHash>,
    merged: Vec<Admitted>,
    published: Option<MergedAs>,
}

impl Merging {
    pub fn new(round: &Round) -> Self {
        Self {
            average: Accumulator::new(round.tensors()),
            held: BTreeMap::new(),
            merged: Vec::new(),
            published: None,
            ordered: None,
            under_way: None,
        }
    }

    /// What is in the merged adapter, as the driver knows it.
    pub fn in_merge(&self) -> impl Iterator<Item = &Admitted> {
        self.merged.iter()
    }

    pub fn published(&self) -> Option<MergedAs> {
        self.published
    }

    pub fn is_at(&self, set: &[Admitted]) -> bool {
        self.under_way.is_none() && self.ordered.is_none() && self.merged == set
    }
}

impl World {
    pub fn order(&mut self, at: Name, set: Vec<Admitted>) {
        self.peers[at].merging.ordered = Some(set);
        self.begin_step(at);
    }

    fn begin_step(&mut self, at: Name) {
        let merging = &mut self.peers[at].merging;
        if merging.under_way.is_none()
            && let Some(set) = merging.ordered.take()
        {
            merging.under_way = Some(set);
            let takes = 1 + self.dice.below(STEP_MAX) as u64;
            let visit = self.visit(at);
            self.agenda.after(takes, Event::Averaged(visit));
        }
    }

    /// A step is done: the average is at the set, less what could not be used.
    pub fn step_done(&mut self, at: Name) {
        let Some(set) = self.peers[at].merging.under_way.take() else { return };
        let mut report = self.follow(at, &set);
        if !report.merged.is_empty() && self.setting.fold_always {
            let root = set_root(self.ground.round.id(), &report.merged);
            match self.peers[at].merging.average.finalise() {
                Err(why) => self.fail(why.to_string()),
                Ok(file) => {
                    let merged = ContentHash::of(&file);
                    report.published = Some(MergedAs { root, merged, size: file.len() as u64 });
                    if let Err(why) = self.checks.agreement.merged(at, root, merged) {
                        self.fail(why);
                    }
                }
            }
        }
        self.begin_step(at);
        self.wait(at, Waiting::Averaged(report));
    }

    fn follow(&mut self, at: Name, set: &[Admitted]) -> Report {
        let folds = self.setting.fold_always;
        let peer = &mut self.peers[at];
        let Merging { average, held, .. } = &mut peer.merging;
        let target: BTreeMap<MemberKey, &Admitted> = set.iter().map(|entry| (entry.member, entry)).collect();
        let leaving: Vec<Admitted> = held.values().filter(|held| target.get(&held.member) != Some(held)).cloned().collect();
        for entry in leaving {
            if peer.disk.blobs.get(&entry.adapter) != Some(&true) {
                // What cannot be read any more cannot be subtracted; what remains is added up again.
                *average = Accumulator::new(self.ground.round.tensors());
                held.clear();
                break;
            }
            if folds && self.planted != Planted::NoRetraction {
                let file = self.ground.file(&entry.adapter).expect("it was folded in");
                average.retract(&file.bytes, entry.weight).expect("it was folded in");
            }
            held.remove(&entry.member);
        }
        let (mut refused, mut lost) = (Vec::new(), Vec::new());
        for (member, entry) in target {
            if held.contains_key(&member) {
                continue;
            }
            match (peer.disk.blobs.get(&entry.adapter), self.ground.file(&entry.adapter)) {
                (Some(true), Some(file)) if !file.fit => refused.push(entry.adapter),
                (Some(true), Some(file)) => {
                    if folds {
                        average.add(&file.bytes, entry.weight).expect("a file that fits");
                    }
                    held.insert(member, entry.clone());
                }
                _ => {
                    peer.disk.blobs.remove(&entry.adapter);
                    lost.push(entry.adapter);
                }
            }
        }
        Report { refused, lost, merged: held.values().cloned().collect(), published: None }
    }

    /// What the driver makes of a report: the machine hears of what was unusable, then garbage is collected.
    pub fn averaged(&mut self, at: Name, report: Report) {
        let Report { refused, lost, merged, published } = report;
        self.merge_changed(at);
        let peer = &mut self.peers[at];
        (peer.merging.merged, peer.merging.published) = (merged, published);
        let mut next = Vec::new();
        for adapter in refused {
            peer.disk.blobs.remove(&adapter);
            peer.disk.refused.insert(adapter);
            next.push(Input::BlobRefused { adapter, why: "does not fit".into() });
        }
        next.extend(lost.into_iter().map(|adapter| Input::BlobLost { adapter }));
        peer.driver.inbox.push_front(Waiting::CollectGarbage);
        for input in next.into_iter().rev() {
            peer.driver.inbox.push_front(Waiting::Input(input, Origin::Nothing));
        }
    }
}
