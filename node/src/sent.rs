//! What of a training travels, and under which file names it lies in a member's and in a merged directory.
//!
//! Of a plain LoRA round the whole PEFT file travels. Where A follows from the round's seed only the rest does, in a file
//! of its own beside the PEFT directory that people use. Of a full training the difference of every weight travels.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mingle_protocol::adapter::{AdapterKind, Dtype, canonical_header};
use mingle_protocol::round::Round;

use crate::files;
use crate::peft::{self, AdapterTensor, DIFFERENCE, Update};

/// The part of an adapter that travels where A does not.
pub const SENT: &str = "sent.safetensors";

/// The file in a member's adapter directory that it announces.
pub fn sent_file(folder: &Path, kind: &AdapterKind) -> PathBuf {
    folder.join(match kind {
        AdapterKind::Lora(_) => peft::WEIGHTS,
        AdapterKind::FrozenA(_) | AdapterKind::Subspace(_) => SENT,
        AdapterKind::Full(_) => DIFFERENCE,
    })
}

/// The file of a merged directory that the receipt's merged hash is the hash of.
pub fn merged_file(folder: &Path, kind: &AdapterKind) -> PathBuf {
    folder.join(match kind {
        AdapterKind::Full(_) => DIFFERENCE,
        _ => peft::WEIGHTS,
    })
}

/// Writes what travels of `update`, which lies in `folder` already, and gives its path.
///
/// # Errors
/// An adapter whose A is not the round's, or that lacks a tensor of the round.
pub fn write_sent(folder: &Path, update: &Update, round: &Round) -> Result<PathBuf> {
    let path = sent_file(folder, round.kind());
    if matches!(round.kind(), AdapterKind::Lora(_) | AdapterKind::Full(_)) {
        return Ok(path);
    }
    check_drawn(update, round).with_context(|| format!("the adapter in {} is none of this round", folder.display()))?;
    let mut bytes = canonical_header(round.tensors(), Dtype::F32);
    for tensor in round.tensors().iter() {
        let held = update.tensor(&tensor.name).with_context(|| format!("{} lacks {}", folder.display(), tensor.name))?;
        ensure!(dims(held) == tensor.dims, "{} has {} of shape {:?}, not {:?}", folder.display(), tensor.name, held.dims, tensor.dims);
        bytes.extend(held.values.iter().flat_map(|value| value.to_le_bytes()));
    }
    files::replace(&path, &bytes, files::PUBLIC).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Whether the matrices that nobody sends are those everybody will draw: with others the sent ones would mean something
/// else.
fn check_drawn(update: &Update, round: &Round) -> Result<()> {
    for drawn in round.kind().drawn() {
        let name = &drawn.tensor.name;
        let held = update.tensor(name).with_context(|| format!("{name} is missing"))?;
        ensure!(dims(held) == drawn.tensor.dims, "{name} has shape {:?}, but the round draws {:?}", held.dims, drawn.tensor.dims);
        ensure!(
            drawn.values().eq(held.values.iter().copied()),
            "{name} is not what the round's seed gives, and it must stay as drawn in a {} round",
            round.kind().name()
        );
    }
    Ok(())
}

fn dims(tensor: &AdapterTensor) -> Vec<u64> {
    tensor.dims.iter().map(|dimension| *dimension as u64).collect()
}
