//! The bytes of `/mingle/blob/bao16k/1`: one request frame, one response header, then bao-encoded ranges.
//!
//! ```text
//! request   hash 32 | count u16 | count times (start u64, end u64)      chunks of 1024 bytes, ascending, disjoint
//! response  0 | size u64 | the ranges, bao-encoded with 16 KiB groups
//!           1                                                           not found
//!           2                                                           busy, ask again later
//!           3                                                           ranges that the blob does not have
//! ```
//! Integers are little-endian. The group size is in the protocol's name because both sides must agree on it.

use std::io;

use bao_tree::ChunkNum;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use mingle_protocol::hash::ContentHash;

use super::limits::{REQUEST_CHUNKS_MAX, REQUEST_RANGES_MAX};
use crate::store::ChunkRanges;

pub const BLOB_PROTOCOL: StreamProtocol = StreamProtocol::new("/mingle/blob/bao16k/1");

/// One request: at most `REQUEST_RANGES_MAX` ranges of `REQUEST_CHUNKS_MAX` chunks in all.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub hash: ContentHash,
    pub ranges: ChunkRanges,
}

/// The answer's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The ranges follow; the whole blob has `size` bytes.
    Ranges {
        size: u64,
    },
    NotFound,
    Busy,
    OutOfRange,
}

const RANGES: u8 = 0;
const NOT_FOUND: u8 = 1;
const BUSY: u8 = 2;
const OUT_OF_RANGE: u8 = 3;

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Request {
    /// The first ranges of `missing` that fit into one request.
    pub fn first_of(hash: ContentHash, missing: &ChunkRanges) -> Self {
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
        Self { hash, ranges }
    }

    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let bounds = self.ranges.boundaries();
        let count = u16::try_from(bounds.len() / 2).map_err(|_| refused("too many ranges"))?;
        let mut frame = [self.hash.0.as_slice(), &count.to_le_bytes()].concat();
        for bound in bounds {
            frame.extend_from_slice(&bound.0.to_le_bytes());
        }
        to.write_all(&frame).await?;
        to.flush().await
    }

    /// Reads a stranger's request; refuses what no honest peer sends.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut hash = [0; 32];
        from.read_exact(&mut hash).await?;
        let mut count = [0; 2];
        from.read_exact(&mut count).await?;
        let count = usize::from(u16::from_le_bytes(count));
        if count == 0 || count > REQUEST_RANGES_MAX {
            return Err(refused("the number of ranges is out of bounds"));
        }
        let (mut ranges, mut reached, mut chunks) = (ChunkRanges::empty(), 0, 0_u64);
        for number in 0..count {
            let (start, end) = (read_u64(from).await?, read_u64(from).await?);
            if start >= end || (number > 0 && start <= reached) {
                return Err(refused("the ranges are empty, overlapping or out of order"));
            }
            chunks = chunks.saturating_add(end - start);
            reached = end;
            ranges |= ChunkRanges::from(ChunkNum(start)..ChunkNum(end));
        }
        if chunks > REQUEST_CHUNKS_MAX {
            return Err(refused("more chunks are asked for than one request may"));
        }
        Ok(Self { hash: ContentHash(hash), ranges })
    }
}

impl Answer {
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Ranges { size } => [[RANGES].as_slice(), &size.to_le_bytes()].concat(),
            Self::NotFound => vec![NOT_FOUND],
            Self::Busy => vec![BUSY],
            Self::OutOfRange => vec![OUT_OF_RANGE],
        }
    }

    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut status = [0; 1];
        from.read_exact(&mut status).await?;
        match status {
            [RANGES] => Ok(Self::Ranges { size: read_u64(from).await? }),
            [NOT_FOUND] => Ok(Self::NotFound),
            [BUSY] => Ok(Self::Busy),
            [OUT_OF_RANGE] => Ok(Self::OutOfRange),
            _ => Err(refused("the answer begins with an unknown status")),
        }
    }
}

async fn read_u64(from: &mut (impl AsyncRead + Unpin)) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes).await?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::all_chunks;

    fn read(bytes: &[u8]) -> io::Result<Request> {
        futures::executor::block_on(Request::read(&mut &*bytes))
    }

    fn frame(bounds: &[u64]) -> Vec<u8> {
        let mut frame = vec![7; 32];
        frame.extend_from_slice(&u16::try_from(bounds.len() / 2).unwrap().to_le_bytes());
        bounds.iter().for_each(|bound| frame.extend_from_slice(&bound.to_le_bytes()));
        frame
    }

    #[test]
    fn a_request_survives_its_own_frame() {
        let hash = ContentHash([7; 32]);
        let missing = &all_chunks(100 << 20) - &ChunkRanges::from(ChunkNum(16)..ChunkNum(64));
        let request = Request::first_of(hash, &missing);
        let mut bytes = Vec::new();
        futures::executor::block_on(request.write(&mut bytes)).unwrap();
        assert_eq!(read(&bytes).unwrap(), request);
        let chunks: u64 = request.ranges.boundaries().chunks(2).map(|bounds| bounds[1].0 - bounds[0].0).sum();
        assert_eq!(chunks, REQUEST_CHUNKS_MAX);
    }

    #[test]
    fn requests_that_no_honest_peer_sends_are_refused() {
        assert!(read(&frame(&[0, 16])).is_ok());
        for bounds in [&[][..], &[5, 5], &[9, 4], &[0, 16, 8, 32], &[16, 32, 0, 8], &[0, u64::MAX], &[0, 1 << 15]] {
            assert!(read(&frame(bounds)).is_err(), "{bounds:?}");
        }
        let many: Vec<u64> = (0..2 * (REQUEST_RANGES_MAX as u64 + 1)).collect();
        assert!(read(&frame(&many)).is_err());
        assert!(read(&frame(&[0, 16])[..40]).is_err());
    }
}
