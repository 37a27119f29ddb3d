//! The bytes of `/mingle/blob/bao16k/2`: one stream is a conversation about one blob between who asks and who holds.
//!
//! ```text
//! asker     hash 32                                              once
//!           1 | count u16 | count times (start u64, end u64)     wants chunks of 1024 bytes, ascending, disjoint
//!           2 | start u64                                        no longer wants what began at this chunk
//! holder    0 | size u64                                         holds all of it
//!           1 | size u64 | one bit a piece                       holds these pieces, lowest bit first
//!           2                                                    does not hold it; ends
//!           3                                                    busy, ask again later; ends, at any time
//!           4 | count u16 | count times piece u32                holds these pieces as well
//!           5 | start u64 | bao encoding                         one block of what is wanted
//!           6                                                    wait: others are served first
//!           7 | start u64                                        cannot serve what began at this chunk
//! ```
//! Integers are little-endian. A want is answered block by block in ascending order, wants in the order they came. A block
//! is what a want holds of 512 chunks from a multiple of 512, encoded by itself with groups of 16 KiB: its length
//! follows from its chunks. Group size, pieces and blocks are in the protocol's name because both sides must agree.

use std::io;

use bao_tree::ChunkNum;
use bao_tree::io::sync::truncate_ranges;
use bao_tree::iter::{BaoChunk, ResponseIterRef};
use libp2p::StreamProtocol;
use mingle_protocol::hash::ContentHash;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits::{REQUEST_CHUNKS_MAX, REQUEST_RANGES_MAX};
use crate::pieces::{BLOCK_CHUNKS, Bits, Holds, Pieces};
use crate::store::{BLOB_BYTES_MAX, ChunkRanges, tree_of};

pub const BLOB_PROTOCOL: StreamProtocol = StreamProtocol::new("/mingle/blob/bao16k/2");

/// One block with every proof on its way: the whole block, its inner nodes and at most 48 above it.
pub const BLOCK_WIRE_BYTES_MAX: usize = (BLOCK_CHUNKS as usize) * 1024 + 64 * (32 + 48 + 16 * 64);
/// Kind and first chunk before a block's encoding.
pub const BLOCK_HEAD_BYTES: usize = 9;

const WANT: u8 = 1;
const DROP: u8 = 2;

const ALL: u8 = 0;
const SOME: u8 = 1;
const NOT_FOUND: u8 = 2;
const BUSY: u8 = 3;
const HAVE: u8 = 4;
const BLOCK: u8 = 5;
const WAIT: u8 = 6;
const CANNOT: u8 = 7;

/// From who asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// At most `REQUEST_RANGES_MAX` ranges of `REQUEST_CHUNKS_MAX` chunks in all.
    Want(ChunkRanges),
    Drop(u64),
}

/// From who holds; the first is one of the first four.
#[derive(Debug, Clone, PartialEq)]
pub enum Tell {
    Holds {
        size: u64,
        holds: Holds,
    },
    NotFound,
    Busy,
    Have(Vec<u32>),
    /// The encoding of the block that begins here follows.
    Block(u64),
    Wait,
    Cannot(u64),
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Ask {
    /// The first ranges of `missing` that fit into one want.
    pub fn first_of(missing: &ChunkRanges) -> ChunkRanges {
        let mut ranges = ChunkRanges::empty();
        let mut left = REQUEST_CHUNKS_MAX;
        for bounds in missing.boundaries().chunks(2).take(REQUEST_RANGES_MAX) {
            let [start, end] = bounds else { break };
            let taken = (end.0 - start.0).min(left);
            ranges |= ChunkRanges::from(*start..ChunkNum(start.0 + taken));
            left -= taken;
            if left == 0 {
                break;
            }
        }
        ranges
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Want(ranges) => {
                let bounds = ranges.boundaries();
                // Never more than `first_of` lets through.
                let count = u16::try_from(bounds.len() / 2).unwrap_or(u16::MAX);
                let mut frame = vec![WANT];
                frame.extend_from_slice(&count.to_le_bytes());
                bounds.iter().for_each(|bound| frame.extend_from_slice(&bound.0.to_le_bytes()));
                frame
            }
            Self::Drop(start) => [[DROP].as_slice(), &start.to_le_bytes()].concat(),
        }
    }

    /// Reads what follows the first byte of a stranger's frame; refuses what no honest peer sends.
    pub async fn read(kind: u8, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        match kind {
            WANT => {}
            DROP => return Ok(Self::Drop(from.read_u64_le().await?)),
            _ => return Err(refused("a question of an unknown kind")),
        }
        let count = usize::from(from.read_u16_le().await?);
        if count == 0 || count > REQUEST_RANGES_MAX {
            return Err(refused("the number of ranges is out of bounds"));
        }
        let (mut ranges, mut reached, mut chunks) = (ChunkRanges::empty(), 0, 0_u64);
        for number in 0..count {
            let (start, end) = (from.read_u64_le().await?, from.read_u64_le().await?);
            if start >= end || (number > 0 && start <= reached) {
                return Err(refused("the ranges are empty, overlapping or out of order"));
            }
            chunks = chunks.saturating_add(end - start);
            reached = end;
            ranges |= ChunkRanges::from(ChunkNum(start)..ChunkNum(end));
        }
        if chunks > REQUEST_CHUNKS_MAX {
            return Err(refused("more chunks are asked for than one want may"));
        }
        Ok(Self::Want(ranges))
    }
}

impl Tell {
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Holds { size, holds: Holds::All } => [[ALL].as_slice(), &size.to_le_bytes()].concat(),
            Self::Holds { size, holds: Holds::Some(bits) } => [[SOME].as_slice(), &size.to_le_bytes(), bits.bytes()].concat(),
            Self::NotFound => vec![NOT_FOUND],
            Self::Busy => vec![BUSY],
            Self::Have(pieces) => {
                let count = u16::try_from(pieces.len()).unwrap_or(u16::MAX);
                let mut frame = [[HAVE].as_slice(), &count.to_le_bytes()].concat();
                pieces.iter().take(count.into()).for_each(|piece| frame.extend_from_slice(&piece.to_le_bytes()));
                frame
            }
            Self::Block(start) => [[BLOCK].as_slice(), &start.to_le_bytes()].concat(),
            Self::Wait => vec![WAIT],
            Self::Cannot(start) => [[CANNOT].as_slice(), &start.to_le_bytes()].concat(),
        }
    }

    /// Reads what follows the first byte of a frame, up to the encoding of a block. `announced` is the blob's size: a
    /// holder that speaks of another one is not believed its bits either.
    pub async fn read(kind: u8, announced: u64, from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        Ok(match kind {
            ALL => Self::Holds { size: from.read_u64_le().await?, holds: Holds::All },
            SOME => {
                let size = from.read_u64_le().await?;
                let count = Pieces::of(announced.clamp(1, BLOB_BYTES_MAX)).count();
                if size != announced {
                    return Ok(Self::Holds { size, holds: Holds::Some(Bits::none(count)) });
                }
                let mut bits = vec![0; Bits::length(count)];
                from.read_exact(&mut bits).await?;
                let bits = Bits::read(bits, count).ok_or_else(|| refused("bits beyond the last piece"))?;
                Self::Holds { size, holds: Holds::Some(bits) }
            }
            NOT_FOUND => Self::NotFound,
            BUSY => Self::Busy,
            HAVE => {
                let mut pieces = Vec::new();
                for _ in 0..from.read_u16_le().await? {
                    pieces.push(from.read_u32_le().await?);
                }
                Self::Have(pieces)
            }
            BLOCK => Self::Block(from.read_u64_le().await?),
            WAIT => Self::Wait,
            CANNOT => Self::Cannot(from.read_u64_le().await?),
            _ => return Err(refused("an answer of an unknown kind")),
        })
    }
}

/// The hash that opens a conversation.
pub async fn read_hash(from: &mut (impl AsyncRead + Unpin)) -> io::Result<ContentHash> {
    let mut hash = [0; 32];
    from.read_exact(&mut hash).await?;
    Ok(ContentHash(hash))
}

/// How long the encoding of `ranges` of a blob of `size` bytes is.
pub fn encoded_length(size: u64, ranges: &ChunkRanges) -> usize {
    let length = |item| match item {
        BaoChunk::Parent { .. } => 64,
        BaoChunk::Leaf { size, .. } => size,
    };
    ResponseIterRef::new(tree_of(size), truncate_ranges(ranges, size)).map(length).sum()
}

/// The first chunk of ranges that are not empty.
pub fn first_chunk(ranges: &ChunkRanges) -> u64 {
    ranges.boundaries().first().map_or(0, |start| start.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::all_chunks;

    fn read(bytes: &[u8]) -> io::Result<Ask> {
        let (kind, mut rest) = bytes.split_first().unwrap();
        futures::executor::block_on(Ask::read(*kind, &mut rest))
    }

    fn hear(bytes: &[u8], announced: u64) -> io::Result<Tell> {
        let (kind, mut rest) = bytes.split_first().unwrap();
        futures::executor::block_on(Tell::read(*kind, announced, &mut rest))
    }

    fn want(bounds: &[u64]) -> Vec<u8> {
        let mut frame = vec![WANT];
        frame.extend_from_slice(&u16::try_from(bounds.len() / 2).unwrap().to_le_bytes());
        bounds.iter().for_each(|bound| frame.extend_from_slice(&bound.to_le_bytes()));
        frame
    }

    #[test]
    fn what_is_asked_survives_its_own_frame() {
        let missing = &all_chunks(100 << 20) - &ChunkRanges::from(ChunkNum(16)..ChunkNum(64));
        let ranges = Ask::first_of(&missing);
        let chunks: u64 = ranges.boundaries().chunks(2).map(|bounds| bounds[1].0 - bounds[0].0).sum();
        assert_eq!(chunks, REQUEST_CHUNKS_MAX);
        for ask in [Ask::Want(ranges), Ask::Drop(77)] {
            assert_eq!(read(&ask.to_bytes()).unwrap(), ask);
        }
    }

    #[test]
    fn what_is_told_survives_its_own_frame() {
        let size = 10 << 20;
        let mut bits = Bits::none(Pieces::of(size).count());
        bits.set(3);
        let tells = [
            Tell::Holds { size, holds: Holds::All },
            Tell::Holds { size, holds: Holds::Some(bits) },
            Tell::NotFound,
            Tell::Busy,
            Tell::Have(vec![1, 2, u32::MAX]),
            Tell::Block(512),
            Tell::Wait,
            Tell::Cannot(5),
        ];
        for tell in tells {
            assert_eq!(hear(&tell.to_bytes(), size).unwrap(), tell);
        }
        // Of another size only the size is heard.
        assert!(matches!(hear(&[[SOME].as_slice(), &7_u64.to_le_bytes()].concat(), size), Ok(Tell::Holds { size: 7, .. })));
        assert!(hear(&[77], size).is_err());
        let beyond = [[SOME].as_slice(), &size.to_le_bytes(), &[0, 0, 0x10]].concat();
        assert!(hear(&beyond, size).is_err());
    }

    #[test]
    fn questions_that_no_honest_peer_asks_are_refused() {
        assert!(read(&want(&[0, 16])).is_ok());
        for bounds in [&[][..], &[5, 5], &[9, 4], &[0, 16, 8, 32], &[16, 32, 0, 8], &[0, u64::MAX], &[0, 1 << 15]] {
            assert!(read(&want(bounds)).is_err(), "{bounds:?}");
        }
        let many: Vec<u64> = (0..2 * (REQUEST_RANGES_MAX as u64 + 1)).collect();
        assert!(read(&want(&many)).is_err());
        assert!(read(&want(&[0, 16])[..9]).is_err() && read(&[9]).is_err());
    }

    #[test]
    fn the_length_of_an_encoding_is_known_beforehand() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = crate::store::Store::open(folder.path()).unwrap();
        for size in [1, 1024, 1025, 16 << 10, (16 << 10) + 1, (512 << 10) + 7, (1 << 20) + 12345] {
            let content = vec![7; size];
            let (hash, size) = store.put_blob(&content).unwrap();
            let blob = store.open_blob(hash).unwrap();
            let odd = &all_chunks(size) & &(&ChunkRanges::from(..ChunkNum(16)) | &ChunkRanges::from(ChunkNum(48)..));
            for ranges in Pieces::blocks(&all_chunks(size)).into_iter().chain(Pieces::blocks(&odd)) {
                let mut encoded = Vec::new();
                blob.encode(&ranges, &mut encoded).unwrap();
                assert_eq!(encoded_length(size, &ranges), encoded.len(), "{ranges:?} of {size}");
            }
        }
    }

    #[test]
    fn no_block_is_longer_than_its_bound() {
        let size = BLOB_BYTES_MAX;
        let block = ChunkRanges::from(ChunkNum(512 * 77)..ChunkNum(512 * 78));
        assert!(encoded_length(size, &block) <= BLOCK_WIRE_BYTES_MAX);
        // At its worst every second chunk of it, which brings the proofs inside the groups as well.
        let ranges = (512 * 77..512 * 78).step_by(8).map(|chunk| ChunkRanges::from(ChunkNum(chunk)..ChunkNum(chunk + 1)));
        let worst = ranges.fold(ChunkRanges::empty(), |all, range| &all | &range);
        assert!(encoded_length(size, &worst) <= BLOCK_WIRE_BYTES_MAX);
    }
}
