//! What of a blob a download is after: all of it, or the groups that the judge of its head has named.

use std::ops::Range;
use std::sync::Arc;

use crate::pieces::Pieces;
use crate::store::{ChunkRanges, PartialBlob, byte_count, groups_of};

pub struct Extent {
    partial: Arc<PartialBlob>,
    pieces: Pieces,
    /// `None`: all of it.
    part: Option<ChunkRanges>,
}

impl Extent {
    pub fn whole(partial: Arc<PartialBlob>) -> Self {
        Self { pieces: Pieces::of(partial.size()), partial, part: None }
    }

    /// From now on only `head` and the groups that these bytes lie in are wanted.
    pub fn narrow(&mut self, bytes: &[Range<u64>], head: &ChunkRanges) {
        self.part = Some(&groups_of(bytes, self.partial.size()) | head);
    }

    /// Whether the blob will not be whole when all that is wanted is here.
    pub fn is_part(&self) -> bool {
        self.part.is_some() && !self.partial.missing_ranges().is_empty()
    }

    /// What is wanted of a piece and is not here.
    pub fn missing_of(&self, piece: u32) -> ChunkRanges {
        self.partial.missing_of(&self.chunks_of(piece))
    }

    /// How many bytes that is.
    pub fn left_of(&self, piece: u32) -> u64 {
        byte_count(&self.missing_of(piece), self.partial.size())
    }

    /// Of each piece, how many bytes are wanted, and how many of these are not here.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        let size = self.partial.size();
        let missing = self.partial.missing_ranges();
        (0..self.pieces.count()).map(move |piece| {
            let chunks = self.chunks_of(piece);
            (byte_count(&chunks, size), byte_count(&(&missing & &chunks), size))
        })
    }

    /// Verified bytes of what is wanted, of how many.
    pub fn have(&self) -> (u64, u64) {
        let size = self.partial.size();
        match &self.part {
            None => (self.partial.have_bytes(), size),
            Some(part) => {
                let wanted = byte_count(part, size);
                (wanted - byte_count(&self.partial.missing_of(part), size), wanted)
            }
        }
    }

    fn chunks_of(&self, piece: u32) -> ChunkRanges {
        let chunks = self.pieces.chunks_of(piece);
        match &self.part {
            None => chunks,
            Some(part) => &chunks & part,
        }
    }
}

#[cfg(test)]
mod tests {
    use bao_tree::ChunkNum;
    use tempfile::TempDir;

    use super::*;
    use crate::store::Store;
    use mingle_protocol::hash::ContentHash;

    #[test]
    fn only_what_is_wanted_counts() {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let size = (2 << 20) + 100;
        let mut extent = Extent::whole(Arc::new(store.begin_download(ContentHash([7; 32]), size).unwrap()));
        assert_eq!(extent.pieces().collect::<Vec<_>>()[3..], [(512 << 10, 512 << 10), (100, 100)]);
        let head = ChunkRanges::from(ChunkNum(0)..ChunkNum(16));
        // A byte of the third piece, a run over a border, the very end, and nonsense that a judge might say.
        let last = size - 1;
        extent.narrow(&[1_100_000..1_100_001, (1536 << 10) - 1..(1536 << 10) + 1, last..u64::MAX, 5..5, u64::MAX..u64::MAX], &head);
        let group = 16 << 10;
        assert_eq!(extent.pieces().collect::<Vec<_>>(), [(group, group), (0, 0), (2 * group, 2 * group), (group, group), (100, 100)]);
        assert_eq!(extent.missing_of(1), ChunkRanges::empty());
        assert_eq!((extent.have(), extent.left_of(2), extent.is_part()), ((0, 4 * group + 100), 2 * group, true));
    }
}
