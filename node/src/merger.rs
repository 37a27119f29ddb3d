//! Keeps the running average in step with the ledger, and writes it where people use it.
//!
//! Each adapter that comes moves the average by itself alone, each one that goes is taken out exactly. Files are read in
//! bounded pieces, twice: once to check every byte against its hash and every value against the round, once to fold. A
//! file that changed on disk in between, or since it was fetched, is found by its hash and reported as lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use mingle_protocol::adapter::{AdapterError, Layout, TensorList, header_length};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::merge::{Accumulator, Direction, MergeError};
use mingle_protocol::round::Round;

use crate::store::{Store, StoreError};

/// Bytes of an adapter in memory at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Why an adapter could not be folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// It is what its hash says, but does not fit the round: no peer will merge it.
    #[error(transparent)]
    Refused(#[from] AdapterError),
    /// The bytes at hand are not the ones announced.
    #[error("the stored file of adapter {adapter} is gone or damaged")]
    Lost { adapter: ContentHash },
    #[error("the file of adapter {adapter} changed while it was merged")]
    Changed { adapter: ContentHash },
    #[error(transparent)]
    Merge(MergeError),
    #[error("cannot read an adapter: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Store(StoreError),
}

impl From<MergeError> for FoldError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Adapter(error) => Self::Refused(error),
            other => Self::Merge(other),
        }
    }
}

/// An adapter file whose every byte was checked.
pub struct CheckedAdapter {
    file: File,
    layout: Layout,
    pub hash: ContentHash,
    pub size: u64,
}

impl CheckedAdapter {
    /// Reads the whole file once in bounded memory.
    ///
    /// # Errors
    /// A file that does not hold exactly these tensors.
    pub fn read(mut file: File, tensors: &TensorList) -> Result<Self, FoldError> {
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(0))?;
        let mut head = vec![0; usize::try_from(size.min(8)).unwrap_or(8)];
        file.read_exact(&mut head)?;
        let length = header_length(&head, size)?;
        head.resize(length.max(head.len()), 0);
        let (_, rest) = head.split_at_mut(8.min(length));
        file.read_exact(rest)?;
        let layout = Layout::parse(&head, size, tensors)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head);
        let mut scan = layout.scan();
        pieces(&mut file, |piece| {
            hasher.update(piece);
            Ok(scan.push(piece)?)
        })?;
        scan.finish()?;
        Ok(Self { file, layout, hash: ContentHash(*hasher.finalize().as_bytes()), size })
    }

    /// Moves the average by this adapter.
    ///
    /// # Errors
    /// A weight the sums have no room for, or a file that cannot be read any more; the accumulator may then be torn.
    pub fn fold(&mut self, into: &mut Accumulator, weight: u64, direction: Direction) -> Result<(), FoldError> {
        let adapter = self.hash;
        let mut fold = into.begin(&self.layout, weight, direction)?;
        let mut hasher = blake3::Hasher::new();
        self.file.seek(SeekFrom::Start(0))?;
        let mut head = vec![0; usize::try_from(self.layout.data_start()).unwrap_or(0)];
        self.file.read_exact(&mut head)?;
        hasher.update(&head);
        pieces(&mut self.file, |piece| {
            hasher.update(piece);
            // Every value was fit a moment ago.
            fold.push(piece).map_err(|_| FoldError::Changed { adapter })
        })?;
        if hasher.finalize() != adapter.0 {
            return Err(FoldError::Changed { adapter });
        }
        Ok(fold.finish()?)
    }
}

fn pieces(file: &mut File, mut each: impl FnMut(&[u8]) -> Result<(), FoldError>) -> Result<(), FoldError> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(()),
            read => each(piece.get(..read).unwrap_or_default())?,
        }
    }
}

/// What a step of the merger could not use.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    Refused { adapter: ContentHash, why: String },
    Lost { adapter: ContentHash },
}

/// The running average and what is in it.
pub struct Merger {
    round: Round,
    store: Store,
    accumulator: Accumulator,
    held: BTreeMap<MemberKey, Admitted>,
}

impl Merger {
    /// An average of nothing; eight bytes for each element of the round's adapter.
    ///
    /// # Errors
    /// None for a checked round.
    pub fn new(round: Round, store: Store) -> Result<Self> {
        let accumulator = Accumulator::new(round.tensors());
        Ok(Self { round, store, accumulator, held: BTreeMap::new() })
    }

    /// What is in the average, in order of the members' keys.
    pub fn held(&self) -> impl Iterator<Item = &Admitted> {
        self.held.values()
    }

    pub fn accumulator(&self) -> &Accumulator {
        &self.accumulator
    }

    /// Moves the average to exactly `whole` minus what is unusable, one adapter at a time.
    ///
    /// # Errors
    /// Trouble of this machine alone (disk, memory). The average is then started anew by the next step.
    pub fn step(&mut self, whole: &[Admitted]) -> Result<Vec<Unusable>> {
        let target: BTreeMap<MemberKey, &Admitted> = whole.iter().map(|entry| (entry.member, entry)).collect();
        let leaving: Vec<Admitted> = self.held.values().filter(|held| target.get(&held.member) != Some(held)).cloned().collect();
        for entry in leaving {
            if let Err(error) = self.fold(&entry, Direction::Retract) {
                // What cannot be read any more cannot be subtracted; what remains can be added up again.
                tracing::warn!(%error, adapter = %entry.adapter, "taking out an adapter by starting the merge anew");
                self.restart()?;
                break;
            }
            self.held.remove(&entry.member);
        }
        let mut unusable = Vec::new();
        for (member, entry) in target {
            if self.held.contains_key(&member) {
                continue;
            }
            match self.fold(entry, Direction::Add) {
                Ok(()) => {
                    self.held.insert(member, entry.clone());
                }
                Err(FoldError::Refused(error)) => unusable.push(Unusable::Refused { adapter: entry.adapter, why: error.to_string() }),
                Err(FoldError::Lost { adapter }) => unusable.push(Unusable::Lost { adapter }),
                Err(FoldError::Changed { adapter }) => {
                    // The sums are spoilt: begin anew, without a file that changes under our hands.
                    self.restart()?;
                    self.store.demote_blob(adapter)?;
                    return self.step(whole);
                }
                Err(error) => {
                    self.restart()?;
                    return Err(error).with_context(|| format!("cannot merge adapter {}", entry.adapter));
                }
            }
        }
        Ok(unusable)
    }

    fn restart(&mut self) -> Result<()> {
        self.accumulator = Accumulator::new(self.round.tensors());
        self.held.clear();
        Ok(())
    }

    fn fold(&mut self, entry: &Admitted, direction: Direction) -> Result<(), FoldError> {
        let lost = || FoldError::Lost { adapter: entry.adapter };
        let blob = match self.store.open_blob(entry.adapter) {
            Ok(blob) => blob,
            Err(StoreError::NotFound { .. } | StoreError::Damaged { .. }) => return Err(lost()),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return self.demote(entry.adapter),
            Err(error) => return Err(FoldError::Store(error)),
        };
        match CheckedAdapter::read(blob.data, self.round.tensors()) {
            Ok(checked) if checked.hash != entry.adapter => self.demote(entry.adapter),
            Ok(mut checked) => checked.fold(&mut self.accumulator, entry.weight, direction),
            // Bytes that are wrong may be wrong because they changed here: only the announced bytes can be refused.
            Err(FoldError::Refused(error)) if hash_of(&self.store.blob_path(entry.adapter))? == entry.adapter => Err(error.into()),
            Err(FoldError::Refused(_)) => self.demote(entry.adapter),
            Err(error) => Err(error),
        }
    }

    fn demote(&self, adapter: ContentHash) -> Result<(), FoldError> {
        self.store.demote_blob(adapter).map_err(FoldError::Store)?;
        Err(FoldError::Lost { adapter })
    }
}

/// BLAKE3 of a file, in bounded memory.
///
/// # Errors
/// What the file system says.
pub fn hash_of(path: &Path) -> Result<ContentHash, std::io::Error> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}
