//! Reading what is on disk against its hash, on all cores.

use std::fs::File;
use std::io;

use bao_tree::blake3;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::valid_ranges;
use mingle_protocol::hash::ContentHash;
use rayon::prelude::*;

use super::{ChunkRanges, all_chunks, tree_of};
use crate::pieces::Pieces;

/// Which groups of `ranges` verify under `outboard`. Reads everything that the outboard vouches for.
pub(super) fn scan(hash: ContentHash, size: u64, data: &File, outboard: &File, ranges: &ChunkRanges) -> io::Result<ChunkRanges> {
    let pieces = Pieces::of(size);
    let parts: Vec<ChunkRanges> = pieces.touched(ranges).into_iter().map(|piece| &pieces.chunks_of(piece) & ranges).collect();
    let valid = parts.par_iter().map(|part| {
        let outboard = PreOrderOutboard { root: blake3::Hash::from(hash.0), tree: tree_of(size), data: outboard };
        let mut valid = ChunkRanges::empty();
        for range in valid_ranges(outboard, data, part) {
            valid |= ChunkRanges::from(range?);
        }
        Ok::<_, io::Error>(&valid & part)
    });
    let valid = valid.try_reduce(ChunkRanges::empty, |one, other| Ok(&one | &other))?;
    Ok(&valid & &all_chunks(size))
}

pub(super) fn scan_all(hash: ContentHash, size: u64, data: &File, outboard: &File) -> io::Result<ChunkRanges> {
    scan(hash, size, data, outboard, &all_chunks(size))
}
