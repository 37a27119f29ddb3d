//! The same set gives the same bytes: whoever merged it, in whatever order it came.

use std::collections::BTreeMap;

use mingle_protocol::hash::ContentHash;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::merge::Accumulator;
use mingle_protocol::receipt::set_root;

use crate::Name;
use crate::ground::Ground;

/// The merged adapter of each set, as the first peer to have it published it.
#[derive(Default)]
pub struct Agreement {
    seen: BTreeMap<ContentHash, (ContentHash, Name)>,
}

impl Agreement {
    /// A peer publishes a merged adapter.
    ///
    /// # Errors
    /// Another peer has published other bytes for this set.
    pub fn merged(&mut self, at: Name, root: ContentHash, merged: ContentHash) -> Result<(), String> {
        let (first, by) = *self.seen.entry(root).or_insert((merged, at));
        if first == merged {
            return Ok(());
        }
        let (root, first, merged) = (root.short(), first.short(), merged.short());
        Err(format!("peers {by} and {at} merge set {root} to different bytes: {first} and {merged}"))
    }

    /// Whether all ended at one set, and whether whoever published it published what folding it afresh gives.
    ///
    /// # Errors
    /// Two sets, or other bytes.
    pub fn of_one_ground<'a>(&self, ground: &Ground, sets: impl Iterator<Item = &'a [Admitted]>) -> Result<(), String> {
        let round = ground.round.id();
        let distinct: BTreeMap<ContentHash, &[Admitted]> = sets.map(|set| (set_root(round, set), set)).collect();
        if distinct.len() > 1 {
            return Err(format!("peers ended at {} different sets", distinct.len()));
        }
        for (root, set) in distinct {
            let mut fresh = Accumulator::new(ground.round.tensors());
            for entry in set {
                let file = ground.file(&entry.adapter).ok_or("an adapter that never was is merged")?;
                fresh.add(&file.bytes, entry.weight).map_err(|why| why.to_string())?;
            }
            let afresh = fresh.finalise().ok().map(|file| ContentHash::of(&file));
            if let (Some(afresh), Some((merged, by))) = (afresh, self.seen.get(&root))
                && afresh != *merged
            {
                return Err(format!("peer {by} has merged {}, but folding the set afresh gives {}", merged.short(), afresh.short()));
            }
        }
        Ok(())
    }
}
