//! From a stopped peer's store to a bundle.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::Ledger;
use mingle_protocol::record::SignedRecord;
use mingle_protocol::round::Round;

use super::format::{Index, MergedParts, Part, frame, write_head};
use crate::files;
use crate::merged::{CheckedProof, Proof, RECEIPT_FILE};
use crate::merger::hash_of;
use crate::sent::merged_file;
use crate::store::{Store, all_chunks};

const WRITE_BYTES: usize = 256 * 1024;

/// Whose adapters travel. All records always do: they are small, and withdrawals must reach everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    All,
    /// One member's.
    Of(MemberKey),
    None,
}

/// What was put into a bundle.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Exported {
    pub records: u64,
    pub adapters: usize,
    /// Adapters that were chosen and are not in this store.
    pub missing: Vec<ContentHash>,
    pub merged: Option<ContentHash>,
    /// Of the bundle.
    pub bytes: u64,
}

/// Writes what `store` holds of a round as the file `out`: whole or not at all. `merged` is a merged directory that shall
/// travel along; `progress` is told the bytes of adapters written so far and in all.
///
/// # Errors
/// A store that cannot be read, an adapter that its disk has damaged, or a file that cannot be written.
pub fn export(
    out: &Path,
    (round, round_file): (&Round, &[u8]),
    (store, ledger): (&Store, &Ledger),
    selection: Selection,
    merged: Option<&Path>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Exported> {
    let chosen: BTreeSet<(ContentHash, u64)> = ledger
        .candidates()
        .filter(|entry| match selection {
            Selection::All => true,
            Selection::Of(member) => entry.member == member,
            Selection::None => false,
        })
        .map(|entry| (entry.adapter, entry.size))
        .collect();
    let (mut adapters, mut missing) = (Vec::new(), BTreeSet::new());
    for (hash, size) in chosen {
        // Of one adapter that was announced with two sizes, the stored one is true.
        match store.blob_size(hash)? {
            Some(stored) if stored == size => adapters.push(Part { hash, size }),
            Some(_) => {}
            None => _ = missing.insert(hash),
        }
    }
    let records = frame(ledger.records().map(SignedRecord::bytes));
    let travelling = merged.map(|folder| Travelling::read(folder, round)).transpose()?;
    let index = Index {
        round: round.id(),
        round_file: Part::of(round_file),
        records: Part::of(&records),
        adapters: adapters.clone(),
        merged: travelling.as_ref().map(|merged| merged.parts),
    };
    let written = |file: &mut File| {
        let mut to = BufWriter::with_capacity(WRITE_BYTES, file);
        write_head(&mut to, &index, round_file, &records).map_err(io::Error::other)?;
        let all = adapters.iter().map(Part::encoded).sum();
        let mut done = 0;
        for part in &adapters {
            let blob = store.open_blob(part.hash).map_err(io::Error::other)?;
            let mut told = Told { to: &mut to, tell: &mut |bytes| progress(done + bytes, all), written: 0 };
            blob.encode(&all_chunks(part.size), &mut told).map_err(io::Error::other)?;
            done += part.encoded();
        }
        if let Some(merged) = &travelling {
            to.write_all(&merged.receipt)?;
            let copied = io::copy(&mut File::open(&merged.file)?, &mut to)?;
            if copied != merged.parts.file.size {
                return Err(io::Error::other("the merged adapter changed while it was read"));
            }
        }
        to.flush()
    };
    files::replace_by(out, files::PUBLIC, written).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(Exported {
        records: ledger.record_count(),
        adapters: adapters.len(),
        missing: missing.into_iter().collect(),
        merged: travelling.map(|merged| merged.parts.file.hash),
        bytes: std::fs::metadata(out).with_context(|| format!("cannot read {}", out.display()))?.len(),
    })
}

/// A merged directory on its way into a bundle.
struct Travelling {
    parts: MergedParts,
    receipt: Vec<u8>,
    file: std::path::PathBuf,
}

impl Travelling {
    fn read(folder: &Path, round: &Round) -> Result<Self> {
        let checked = Proof::read(folder)?
            .check()
            .and_then(CheckedProof::whole)
            .with_context(|| format!("{} is not a merged adapter", folder.display()))?;
        anyhow::ensure!(checked.round.id() == round.id(), "{} is of round {}", folder.display(), checked.round.id());
        let (path, file) = (folder.join(RECEIPT_FILE), merged_file(folder, round.kind()));
        let receipt = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let hash = hash_of(&file).with_context(|| format!("cannot read {}", file.display()))?;
        anyhow::ensure!(hash == checked.receipt.merged, "{} is not the merged adapter its receipt speaks of", file.display());
        let size = std::fs::metadata(&file)?.len();
        Ok(Self { parts: MergedParts { receipt: Part::of(&receipt), file: Part { hash, size } }, receipt, file })
    }
}

/// Tells how many bytes went by.
struct Told<'a, W> {
    to: W,
    tell: &'a mut dyn FnMut(u64),
    written: u64,
}

impl<W: Write> Write for Told<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.written += count as u64;
        (self.tell)(self.written);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
