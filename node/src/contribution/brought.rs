//! An adapter that any trainer made, brought into the form its round pins.
//!
//! Another scale is folded into B, which leaves the update as it is. What would change it, or the way it merges, is
//! refused.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use mingle_protocol::adapter::AdapterKind;
use mingle_protocol::round::{MergeRule, Round};

use crate::driver::Prepared;
use crate::home::Home;
use crate::merged::config_of;
use crate::peft::{self, Update};
use crate::sent::{sent_file, write_sent};

/// An adapter checked against the round as far as its configuration goes; its tensors are checked when it is announced.
/// Where it needs another form, or only a part of it travels, that is put into this peer's home.
///
/// # Errors
/// A rank other than the round's, matrices that are not those the round draws, or anything that is not additive, by name.
pub fn from_directory(folder: &Path, round: &Round, home: &Home, examples: u64) -> Result<Prepared> {
    let prepared = |weights| Ok(Prepared { weights, examples, losses: None, privacy: None, seconds: 0.0 });
    let Some(expected) = config_of(round) else { return prepared(sent_file(folder, round.kind())) };
    let config = peft::read_config(folder)?;
    let mut as_it_is = true;
    for module in round.kind().low_rank().iter().flat_map(|shape| &shape.modules) {
        let (found, rank) = (config.rank_of(&module.name), expected.rank_of(&module.name));
        let differs = || format!("{} has rank {found}, but round \"{}\" needs {rank}", folder.display(), round.manifest().name);
        ensure!(found <= rank, differs());
        if found < rank && !padded_is_the_same(round.manifest().rule) {
            bail!("{}: filled up with zeros, its A would not be one that began as all members' did", differs());
        }
        as_it_is &= (found, config.scale_of(&module.name)) == (rank, expected.scale_of(&module.name));
    }
    let weights = folder.join(peft::WEIGHTS);
    if as_it_is && weights.exists() && matches!(round.kind(), AdapterKind::Lora(_)) {
        return prepared(weights);
    }
    // Says by name what is wrong with a directory of pickled or missing weights.
    let adapter = peft::read(folder)?;
    let update = Update::Adapter(if as_it_is { adapter } else { adapter.under(expected)? });
    let own = home.round(round.id()).adapter();
    update.write(&own)?;
    prepared(write_sent(&own, &update, round)?)
}

/// Whether zeros beside a module's own rank change nothing of the merge. Where A and B are merged apart, they would pull the
/// others' A towards zero.
fn padded_is_the_same(rule: MergeRule) -> bool {
    match rule {
        MergeRule::Stack => true,
        MergeRule::Mean | MergeRule::TrimmedMean { .. } | MergeRule::Median | MergeRule::MultiKrum { .. } => false,
    }
}
