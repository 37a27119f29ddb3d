//! Some layers of a merged adapter as people use them: a PEFT directory with the receipt of the whole merge, and the
//! proof that the tensors here are those of the merged file.
//!
//! `layers.proof` holds what the tensors do not of the bao encoding of their groups; nothing is kept twice. Checked is a
//! directory against its receipt alone: which bytes they must be follows from the round and the layers.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mingle_protocol::adapter::{AdapterKind, Layers, LoraShape, Slice, layer_of};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::round::Round;
use serde_json::{Value, json};

use crate::files;
use crate::merged::{self, CheckedProof, Proof, module_of};
use crate::merger::{CheckedAdapter, FoldError};
use crate::peft::{self, Targets};
use crate::sent::merged_file;
use crate::store::{self, ServeError, StoredBlob};

/// What proves the tensors of a directory that holds some layers.
pub const PROOF_FILE: &str = "layers.proof";

/// 256 KiB: what is read or written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Why layers could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SliceError {
    /// Whoever vouches for it.
    #[error("the file that members vouch for is no merge: {0}")]
    NoMerge(FoldError),
    #[error(transparent)]
    Blob(#[from] ServeError),
    #[error(transparent)]
    Files(#[from] anyhow::Error),
}

/// Writes the layers of the merged file `blob` under `root`, makes them `current`, and removes what was current before.
///
/// # Errors
/// See [`SliceError`].
pub fn publish(root: &Path, round: &Round, slice: &Slice, proof: &Proof, blob: &StoredBlob) -> Result<PathBuf, SliceError> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    let building = root.join("next");
    write(&building, round, slice, proof, blob)?;
    let layers = ContentHash::of(slice.layers().to_string().as_bytes());
    let name = [proof.receipt.merged, proof.receipt.set_root, layers].map(|hash| hash.short()).join("-");
    Ok(merged::make_current(root, &building, &name)?)
}

/// Writes `target`, whole or not at all.
fn write(target: &Path, round: &Round, slice: &Slice, proof: &Proof, blob: &StoredBlob) -> Result<(), SliceError> {
    let folder = files::unfinished_folder(target)?;
    let weights = merged_file(&folder, round.kind());
    let create = |path: &Path| {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok::<_, anyhow::Error>(BufWriter::with_capacity(BUFFER_BYTES, file))
    };
    let (mut tensors, mut proving) = (create(&weights)?, create(&folder.join(PROOF_FILE))?);
    let failed = |error: io::Error| anyhow::Error::from(error).context(format!("cannot write {}", folder.display()));
    tensors.write_all(&slice.own_header()).map_err(failed)?;
    let behind = Behind { header: slice.whole_header().len(), to: &mut tensors };
    blob.prove(slice.places(), behind, &mut proving)?;
    for written in [tensors, proving] {
        written.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()).map_err(failed)?;
    }
    let file = File::open(&weights).map_err(failed)?;
    CheckedAdapter::read(file, slice.tensors()).map_err(SliceError::NoMerge)?;
    if let Some(config) = config_of(round, slice) {
        files::write(&folder.join(peft::CONFIG), format!("{config:#}\n").as_bytes())?;
    }
    merged::write_beside(&folder, round, &Proof { layers: Some(slice.layers().clone()), ..proof.clone() })?;
    files::replace_folder(&folder, target)?;
    Ok(())
}

/// Checks that the directory holds exactly these layers of the merged file that its receipt speaks of.
///
/// # Errors
/// The first contradiction, in one sentence.
pub fn check(folder: &Path, checked: &CheckedProof, slice: &Slice) -> Result<()> {
    let open = |path: PathBuf| {
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok::<_, anyhow::Error>((BufReader::with_capacity(BUFFER_BYTES, file), path))
    };
    let (mut tensors, weights) = open(merged_file(folder, checked.round.kind()))?;
    let (proof, proof_path) = open(folder.join(PROOF_FILE))?;
    let mut header = vec![0; slice.own_header().len()];
    let read = tensors.read_exact(&mut header);
    ensure!(read.is_ok() && header == slice.own_header(), "{} does not hold layers {} and nothing else", weights.display(), slice.layers());
    let bytes = slice.whole_header().chain(tensors);
    let merged = checked.receipt.merged;
    store::check_proof(merged, slice.whole_size(), slice.places(), bytes, proof)
        .with_context(|| format!("{} and {} do not prove layers {} of {merged}", weights.display(), proof_path.display(), slice.layers()))
}

/// Leaves out the whole file's header.
struct Behind<W> {
    header: usize,
    to: W,
}

impl<W: Write> Write for Behind<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left_out = self.header.min(bytes.len());
        self.header -= left_out;
        self.to.write_all(bytes.get(left_out..).unwrap_or_default())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The round's configuration as far as these layers go. PEFT looks at `layers_to_transform` where modules are named by
/// their last parts, and reads a layer's number behind a part named `layers_pattern`; older versions take the last number of
/// a name without it, newer ones the first.
fn config_of(round: &Round, slice: &Slice) -> Option<Value> {
    let mut config = merged::config_of(round)?;
    let shape = round.kind().low_rank()?;
    let modules: Vec<&str> = shape.modules.iter().map(|module| module.name.as_str()).filter(|name| slice.layers().hold(name)).collect();
    let numbered: Option<Vec<&str>> = modules.iter().map(|name| pattern_of(name)).collect();
    let short = |list: &[String]| shape.modules.iter().all(|module| !list.contains(&module.name));
    let targets = match &config.targets {
        // Those of other layers have no tensors here.
        Targets::List(list) if modules.is_empty() || (numbered.is_some() && short(list)) => {
            let of_these = |target: &&String| modules.is_empty() || modules.iter().any(|name| last(name) == target.as_str());
            list.iter().filter(of_these).cloned().collect()
        }
        _ => modules.iter().map(|name| (*name).to_owned()).collect(),
    };
    config.targets = Targets::List(targets);
    config.saved = saved(shape, slice.layers());
    let mut json = config.to_json();
    if let (Some(mut patterns), false, Some(fields)) = (numbered, modules.is_empty(), json.as_object_mut()) {
        patterns.sort_unstable();
        patterns.dedup();
        fields.insert("layers_to_transform".into(), json!(slice.layers().numbers().collect::<Vec<_>>()));
        fields.insert("layers_pattern".into(), json!(patterns));
    }
    Some(json)
}

/// The part of a module's name before its layer's number, where PEFT finds it: behind another part.
fn pattern_of(module: &str) -> Option<&str> {
    let layer = layer_of(module)?.to_string();
    let parts: Vec<&str> = module.split('.').collect();
    let place = parts.iter().position(|part| *part == layer).filter(|place| *place >= 2)?;
    parts.get(place.checked_sub(1)?).copied()
}

fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

fn saved(shape: &LoraShape, layers: &Layers) -> Vec<String> {
    let mut saved: Vec<String> =
        shape.saved.iter().filter(|tensor| layers.hold(&tensor.name)).map(|tensor| module_of(&tensor.name).to_owned()).collect();
    saved.sort();
    saved.dedup();
    saved
}

/// What the text for people calls the merge.
pub fn named(kind: &AdapterKind, layers: Option<&Layers>) -> String {
    let whole = match kind {
        AdapterKind::Full(_) => "merged difference of all weights",
        _ => "merged LoRA adapter",
    };
    layers.map_or_else(|| format!("A {whole}"), |layers| format!("Layers {layers} of a {whole}"))
}

#[cfg(test)]
mod tests;
