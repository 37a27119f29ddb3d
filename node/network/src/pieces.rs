//! How a blob is cut: pieces, which peers tell each other about, and blocks, which travel and are verified as one.
//!
//! Both sides compute the cut from the size alone, so it is part of the protocol: change it only with the protocol's name.

use bao_tree::ChunkNum;

use crate::store::{ChunkRanges, tree_of};

/// 512 KiB in chunks of 1 KiB: large enough that its path of proofs weighs little (0.1 %) and a disk or a thread is
/// asked seldom, small enough to stay in a processor's cache from the read to the hash to the write.
pub const BLOCK_CHUNKS: u64 = 512;
const CHUNK_BYTES: u64 = 1024;
/// A blob has about so many pieces at least, unless it is small: several providers share it evenly.
const PIECES_WANTED: u64 = 128;
/// 16 MiB: what is claimed from one provider at once stays small against what a link moves in a minute.
const PIECE_BYTES_MAX: u64 = 16 << 20;

/// The cut of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    size: u64,
    chunks: u64,
    piece_chunks: u64,
}

impl Pieces {
    /// The least power of two that is at least a 128th of `size`, between one block and 16 MiB.
    pub fn of(size: u64) -> Self {
        let bytes = (size / PIECES_WANTED).min(PIECE_BYTES_MAX).next_power_of_two().clamp(BLOCK_CHUNKS * CHUNK_BYTES, PIECE_BYTES_MAX);
        Self { size, chunks: tree_of(size).chunks().0, piece_chunks: bytes / CHUNK_BYTES }
    }

    pub fn count(&self) -> u32 {
        u32::try_from(self.chunks.div_ceil(self.piece_chunks)).unwrap_or(u32::MAX)
    }

    /// The chunks of one piece.
    pub fn chunks_of(&self, piece: u32) -> ChunkRanges {
        let start = u64::from(piece) * self.piece_chunks;
        ChunkRanges::from(ChunkNum(start)..ChunkNum((start + self.piece_chunks).min(self.chunks)))
    }

    /// The pieces that `ranges` touch, ascending.
    pub fn touched(&self, ranges: &ChunkRanges) -> Vec<u32> {
        let mut touched = Vec::new();
        for bounds in ranges.boundaries().chunks(2) {
            let [start, end] = bounds else { continue };
            let first = (start.0 / self.piece_chunks).max(touched.last().map_or(0, |last: &u32| u64::from(*last) + 1));
            let end = end.0.min(self.chunks).div_ceil(self.piece_chunks);
            touched.extend((first..end).filter_map(|piece| u32::try_from(piece).ok()));
        }
        touched
    }

    /// The pieces of which `have` holds every chunk.
    pub fn complete(&self, have: &ChunkRanges) -> Bits {
        let mut bits = Bits::none(self.count());
        for piece in 0..self.count() {
            if have.is_superset(&self.chunks_of(piece)) {
                bits.set(piece);
            }
        }
        bits
    }

    /// Cuts `ranges` at the borders of blocks, ascending: what is sent, verified and written at once.
    pub fn blocks(ranges: &ChunkRanges) -> Vec<ChunkRanges> {
        let mut blocks: Vec<(u64, ChunkRanges)> = Vec::new();
        for bounds in ranges.boundaries().chunks(2) {
            let [start, end] = bounds else { continue };
            let mut from = start.0;
            while from < end.0 {
                let block = from / BLOCK_CHUNKS;
                let to = end.0.min((block + 1) * BLOCK_CHUNKS);
                let part = ChunkRanges::from(ChunkNum(from)..ChunkNum(to));
                match blocks.last_mut() {
                    Some((last, ranges)) if *last == block => *ranges |= part,
                    _ => blocks.push((block, part)),
                }
                from = to;
            }
        }
        blocks.into_iter().map(|(_, ranges)| ranges).collect()
    }
}

/// One bit a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bits {
    bytes: Vec<u8>,
    count: u32,
}

impl Bits {
    pub fn none(count: u32) -> Self {
        Self { bytes: vec![0; Self::length(count)], count }
    }

    /// Bytes that hold `count` bits.
    pub fn length(count: u32) -> usize {
        (count as usize).div_ceil(8)
    }

    /// `None` when the length is wrong or a bit beyond the last is set.
    pub fn read(bytes: Vec<u8>, count: u32) -> Option<Self> {
        let spare = (8 - count % 8) % 8;
        let honest = bytes.len() == Self::length(count) && bytes.last().is_none_or(|last| last.leading_zeros() >= spare);
        honest.then_some(Self { bytes, count })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn has(&self, bit: u32) -> bool {
        self.bytes.get(bit as usize / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }

    /// `true` when it was not set.
    pub fn set(&mut self, bit: u32) -> bool {
        let new = bit < self.count && !self.has(bit);
        if new && let Some(byte) = self.bytes.get_mut(bit as usize / 8) {
            *byte |= 1 << (bit % 8);
        }
        new
    }

    pub fn ones(&self) -> impl Iterator<Item = u32> {
        (0..self.count).filter(|bit| self.has(*bit))
    }

    pub fn is_full(&self) -> bool {
        self.bytes.iter().map(|byte| byte.count_ones()).sum::<u32>() == self.count
    }
}

/// What a peer holds of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    All,
    Some(Bits),
}

impl Holds {
    pub fn has(&self, piece: u32) -> bool {
        match self {
            Self::All => true,
            Self::Some(bits) => bits.has(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::all_chunks;

    #[test]
    fn the_cut_follows_the_size() {
        for (size, bytes, count) in [
            (1, 512 << 10, 1),
            (512 << 10, 512 << 10, 1),
            ((512 << 10) + 1, 512 << 10, 2),
            (64 << 20, 512 << 10, 128),
            ((64 << 20) + 128, 1 << 20, 65),
            (1 << 30, 8 << 20, 128),
            (5 << 30, 16 << 20, 320),
            (1 << 40, 16 << 20, 1 << 16),
        ] {
            let pieces = Pieces::of(size);
            assert_eq!((pieces.piece_chunks * CHUNK_BYTES, pieces.count()), (bytes, count), "{size}");
            let all = (0..count).fold(ChunkRanges::empty(), |all, piece| &all | &pieces.chunks_of(piece));
            assert_eq!(all, all_chunks(size));
        }
    }

    #[test]
    fn ranges_are_cut_at_blocks_and_none_is_lost() {
        let part = |start, end| ChunkRanges::from(ChunkNum(start)..ChunkNum(end));
        let ranges = &(&part(16, 32) | &part(480, 1040)) | &part(5000, 5001);
        let blocks = Pieces::blocks(&ranges);
        assert_eq!(blocks, [&part(16, 32) | &part(480, 512), part(512, 1024), part(1024, 1040), part(5000, 5001)]);
        assert!(Pieces::blocks(&ChunkRanges::empty()).is_empty());
    }

    #[test]
    fn pieces_are_complete_only_as_a_whole() {
        let size = (3 << 20) + 5;
        let pieces = Pieces::of(size);
        let all = all_chunks(size);
        assert!(pieces.complete(&all).is_full());
        let lacking = &all - &ChunkRanges::from(ChunkNum(1000)..ChunkNum(1016));
        let complete = pieces.complete(&lacking);
        assert_eq!(complete.ones().collect::<Vec<_>>(), [0, 2, 3, 4, 5, 6]);
        assert_eq!(pieces.touched(&(&all - &lacking)), [1]);
        assert_eq!(pieces.touched(&all), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn bits_from_outside_are_checked() {
        let mut bits = Bits::none(10);
        assert!(bits.set(9) && !bits.set(9) && !bits.set(10));
        assert_eq!(Bits::read(bits.bytes().to_vec(), 10), Some(bits));
        assert_eq!(Bits::read(vec![0xff], 10), None);
        assert_eq!(Bits::read(vec![0xff, 0x04], 10), None);
        assert!(Bits::read(vec![0xff, 0x03], 10).unwrap().is_full());
        assert!(Bits::read(vec![0xff], 8).unwrap().is_full());
    }
}
