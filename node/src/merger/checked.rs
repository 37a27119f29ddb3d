//! One adapter's file: read whole once to check it, then folded into running sums, or read at any place for a rule that needs
//! several at once.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mingle_protocol::adapter::{AdapterError, Layout, TensorList, Updates, header_length};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::{Account, Accumulator, Direction, Factor, Made, Member, MergeError, Plan, ReadAt};

use crate::store::StoreError;

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
    pub layout: Layout,
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

    /// Moves the average by this adapter, times `clip`.
    ///
    /// # Errors
    /// A weight the sums have no room for, or a file that cannot be read any more; the accumulator may then be torn.
    pub fn fold(&mut self, into: &mut Accumulator, clip: Factor, weight: u64, direction: Direction) -> Result<(), FoldError> {
        let adapter = self.hash;
        let mut fold = into.begin_clipped(&self.layout, clip, weight, direction)?;
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

/// A checked adapter of a merge that is made from files. It is opened for each read, so that a thousand members take no
/// thousand open files.
pub struct Source {
    pub key: MemberKey,
    pub weight: u64,
    path: PathBuf,
    pub adapter: ContentHash,
    pub clip: Factor,
    layout: Layout,
    updates: Updates,
}

impl Source {
    /// Checks the whole file, and measures its update where the plan clips.
    ///
    /// # Errors
    /// A file that does not hold what the plan merges.
    pub fn read(plan: &Plan, key: MemberKey, weight: u64, path: &Path) -> Result<Self, FoldError> {
        Self::scaled(plan, plan.updates(), key, weight, path)
    }

    /// As [`Source::read`], of an adapter that has scales of its own.
    ///
    /// # Errors
    /// As there.
    pub fn scaled(plan: &Plan, updates: &Updates, key: MemberKey, weight: u64, path: &Path) -> Result<Self, FoldError> {
        Self::of(plan, updates, &CheckedAdapter::read(File::open(path)?, plan.tensors())?, key, weight, path)
    }

    pub(super) fn of(
        plan: &Plan,
        updates: &Updates,
        checked: &CheckedAdapter,
        key: MemberKey,
        weight: u64,
        path: &Path,
    ) -> Result<Self, FoldError> {
        let (adapter, layout, updates) = (checked.hash, checked.layout.clone(), updates.clone());
        let mut source = Self { key, weight, path: path.to_owned(), adapter, clip: Factor::ONE, layout, updates };
        source.clip = plan.clip(&source.layout, &source.updates, &source)?;
        Ok(source)
    }

    fn member(&self) -> Member<'_> {
        let Self { key, weight, adapter, clip, layout, updates, .. } = self;
        Member { key: *key, adapter: *adapter, weight: *weight, clip: *clip, layout, updates, data: self }
    }

    fn read_exact(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }
}

impl ReadAt for Source {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), MergeError> {
        self.read_exact(offset, out).map_err(|error| MergeError::Unread(format!("{}: {error}", self.path.display())))
    }
}

/// Merges files by any rule.
///
/// # Errors
/// Files that the rule cannot merge, or the first error of `sink`.
pub fn merge_files<'a, E: From<MergeError>>(
    plan: &Plan,
    sources: impl IntoIterator<Item = &'a Source>,
    sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Made, E> {
    let members: Vec<Member<'_>> = sources.into_iter().map(Source::member).collect();
    plan.recompute(&members, sink)
}

/// What a plan's running sums make of these.
pub(super) fn account<'a>(sources: impl IntoIterator<Item = &'a Source>) -> Account {
    Account::of_clips(sources.into_iter().map(|source| (source.key, source.clip)))
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
