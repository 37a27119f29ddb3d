//! Header first: the first groups of a blob are fetched and judged before the rest, so that a file of the wrong kind
//! costs kilobytes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bao_tree::ChunkNum;
use libp2p::PeerId;

use crate::store::{ChunkRanges, PartialBlob, StoreError, all_chunks};

/// What a judge may ask to see: the longest header of an adapter with room.
const HEAD_BYTES_MAX: u64 = 2 << 20;
/// Whoever was asked for the head and has not sent it after this is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const GROUP_BYTES: u64 = 16 << 10;

/// Judges a blob by its first bytes, which are verified.
pub trait HeadCheck: Send + Sync {
    fn judge(&self, head: &[u8], size: u64) -> HeadVerdict;
}

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadVerdict {
    /// The rest is worth fetching.
    Fits,
    /// Of the rest only the groups that these bytes lie in are.
    Part(Vec<Range<u64>>),
    /// So many bytes from the start are needed to tell; at most 2 MiB are ever looked at.
    More(u64),
    /// It is not what it should be.
    Refused(String),
}

/// The head of one download.
pub struct Head {
    check: Arc<dyn HeadCheck>,
    bytes: u64,
    asked: Option<(PeerId, Duration)>,
    /// Who was asked and did not bring it.
    tried: BTreeSet<PeerId>,
}

impl Head {
    pub fn new(check: Arc<dyn HeadCheck>, size: u64) -> Self {
        Self { check, bytes: GROUP_BYTES.min(size), asked: None, tried: BTreeSet::new() }
    }

    /// The groups that are looked at now.
    pub fn ranges(&self, size: u64) -> ChunkRanges {
        &ChunkRanges::from(ChunkNum(0)..ChunkNum(self.bytes.div_ceil(GROUP_BYTES) * (GROUP_BYTES / 1024))) & &all_chunks(size)
    }

    /// Judges what is here. `More` never comes out of it: then more is to be fetched, and `None` says so.
    pub fn judge(&mut self, partial: &PartialBlob) -> Result<Option<HeadVerdict>, StoreError> {
        let size = partial.size();
        while partial.missing_of(&self.ranges(size)).is_empty() {
            match self.check.judge(&partial.head(self.bytes)?, size) {
                HeadVerdict::More(bytes) if bytes > self.bytes && bytes <= HEAD_BYTES_MAX.min(size) => {
                    self.bytes = bytes;
                    (self.asked, self.tried) = (None, BTreeSet::new());
                }
                // Whoever cannot tell from all it may see has nothing against it.
                HeadVerdict::More(_) | HeadVerdict::Fits => return Ok(Some(HeadVerdict::Fits)),
                part_or_refused => return Ok(Some(part_or_refused)),
            }
        }
        Ok(None)
    }

    /// Whom to ask next, if it is time for that: each once, then all anew.
    pub fn next(&mut self, holders: impl Iterator<Item = PeerId>, now: Duration) -> Option<PeerId> {
        if self.asked.is_some_and(|(_, at)| now.saturating_sub(at) < PATIENCE) {
            return None;
        }
        let holders: Vec<PeerId> = holders.collect();
        let next = match holders.iter().find(|peer| !self.tried.contains(peer)) {
            Some(next) => *next,
            None => {
                self.tried.clear();
                *holders.first()?
            }
        };
        self.tried.insert(next);
        self.asked = Some((next, now));
        Some(next)
    }

    /// Who was asked will not bring it, or has brought it.
    pub fn settled(&mut self, peer: PeerId) {
        self.asked = self.asked.filter(|(asked, _)| *asked != peer);
    }
}
