//! The tree of a blob on disk, built with all cores: left and right halves beside each other, down to a megabyte.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bao_tree::blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use bao_tree::blake3::{self, Hasher};
use mingle_protocol::hash::ContentHash;

use super::tree_of;

const GROUP_BYTES: u64 = 16 << 10;
const NODE_BYTES: usize = 64;
/// Read at once by one thread; below it nothing is gained by more threads.
const SPAN_BYTES: u64 = 1 << 20;
/// The nodes of so much (4 MiB) are in memory before they are written.
const PART_BYTES: u64 = 1 << 30;

/// Builds the pre-order outboard of `data` into `target` (empty) and returns the root.
pub(super) fn build_outboard(data: &File, size: u64, target: &File) -> io::Result<ContentHash> {
    target.set_len(tree_of(size).outboard_size())?;
    if size <= GROUP_BYTES {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        data.read_exact_at(&mut bytes, 0)?;
        return Ok(ContentHash(*blake3::hash(&bytes).as_bytes()));
    }
    let (left, right) = halves(size, |start, length, place| part(data, start, length, target, place))?;
    target.write_all_at(&[left, right].concat(), 0)?;
    Ok(ContentHash(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()))
}

/// Nodes of a subtree of `length` bytes.
fn nodes(length: u64) -> u64 {
    length.div_ceil(GROUP_BYTES) - 1
}

/// Both halves of a tree of `length` bytes that begins at 0 and has its node at place 0, one after the other.
fn halves<T>(length: u64, mut half: impl FnMut(u64, u64, u64) -> io::Result<T>) -> io::Result<(T, T)> {
    let left = left_subtree_len(length);
    Ok((half(0, left, 1)?, half(left, length - left, 1 + nodes(left))?))
}

/// A subtree that may be larger than memory; its first node has this place in the outboard.
fn part(data: &File, start: u64, length: u64, target: &File, place: u64) -> io::Result<ChainingValue> {
    let at = place * NODE_BYTES as u64;
    if length <= PART_BYTES {
        let mut out = vec![0; usize::try_from(nodes(length)).unwrap_or_default() * NODE_BYTES];
        let value = subtree(data, start, length, &mut out)?;
        target.write_all_at(&out, at)?;
        return Ok(value);
    }
    let (left, right) = halves(length, |from, length, below| part(data, start + from, length, target, place + below))?;
    target.write_all_at(&[left, right].concat(), at)?;
    Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

/// A subtree whose nodes go to `out`.
fn subtree(data: &File, start: u64, length: u64, out: &mut [u8]) -> io::Result<ChainingValue> {
    if length <= SPAN_BYTES {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        data.read_exact_at(&mut bytes, start)?;
        return Ok(span(&bytes, start, out));
    }
    let left = left_subtree_len(length);
    let (node, below) = out.split_at_mut(NODE_BYTES.min(out.len()));
    let (of_left, of_right) = below.split_at_mut((nodes(left) as usize * NODE_BYTES).min(below.len()));
    let (one, other) = rayon::join(|| subtree(data, start, left, of_left), || subtree(data, start + left, length - left, of_right));
    Ok(join(one?, other?, node))
}

/// A subtree whose bytes are in memory.
fn span(bytes: &[u8], start: u64, out: &mut [u8]) -> ChainingValue {
    let length = bytes.len() as u64;
    if length <= GROUP_BYTES {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(start);
        return hasher.update(bytes).finalize_non_root();
    }
    let left = left_subtree_len(length);
    let (node, below) = out.split_at_mut(NODE_BYTES.min(out.len()));
    let (of_left, of_right) = below.split_at_mut((nodes(left) as usize * NODE_BYTES).min(below.len()));
    let (first, second) = bytes.split_at(left as usize);
    join(span(first, start, of_left), span(second, start + left, of_right), node)
}

fn join(left: ChainingValue, right: ChainingValue, node: &mut [u8]) -> ChainingValue {
    node.copy_from_slice(&[left, right].concat());
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use bao_tree::io::outboard::PreOrderOutboard;
    use bao_tree::io::sync::CreateOutboard;
    use proptest::prelude::*;
    use tempfile::tempfile;

    use super::*;
    use crate::store::GROUP;

    fn same(size: usize) {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(&size.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let (data, target) = (tempfile().unwrap(), tempfile().unwrap());
        data.write_all_at(&bytes, 0).unwrap();
        let root = build_outboard(&data, size as u64, &target).unwrap();
        assert_eq!(root, ContentHash::of(&bytes));
        let expected = PreOrderOutboard::<Vec<u8>>::create(io::Cursor::new(&bytes), GROUP).unwrap();
        let mut found = vec![0; expected.data.len()];
        target.read_exact_at(&mut found, 0).unwrap();
        assert_eq!((target.metadata().unwrap().len(), found), (expected.data.len() as u64, expected.data), "{size}");
    }

    #[test]
    fn sizes_at_every_border() {
        for border in [1, 1024, 16 << 10, 32 << 10, 1 << 20, 2 << 20, 5 << 20] {
            (border.max(2) - 1..=border + 1).for_each(same);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_bytes_are_those_of_bao_tree(size in 1..6_000_000_usize) {
            same(size);
        }
    }
}
