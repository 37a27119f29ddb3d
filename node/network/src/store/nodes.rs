//! Nodes of an outboard, written and read many at a time: a block has some forty, most of them side by side.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bao_tree::io::sync::ReadAt;

/// Two hashes of 32 bytes.
const NODE_BYTES: u64 = 64;
/// More than the inner nodes of a block, which lie side by side.
const READ_BYTES: usize = 4096;
/// Runs remembered while a block is read: the path to it, and itself.
const RUNS_MAX: usize = 64;

/// Nodes that came and are to be written.
#[derive(Default)]
pub(super) struct Nodes {
    /// First place, and the bytes of the nodes from there on.
    runs: Vec<(u64, Vec<u8>)>,
}

impl Nodes {
    pub fn push(&mut self, place: u64, pair: [&[u8; 32]; 2]) {
        let follows = |(first, bytes): &(u64, Vec<u8>)| first + bytes.len() as u64 / NODE_BYTES == place;
        let bytes = pair.iter().flat_map(|hash| hash.iter().copied());
        match self.runs.last_mut() {
            Some(run) if follows(run) => run.1.extend(bytes),
            _ => self.runs.push((place, bytes.collect())),
        }
    }

    pub fn write_to(&self, outboard: &File) -> io::Result<()> {
        self.runs.iter().try_for_each(|(place, bytes)| outboard.write_all_at(bytes, place * NODE_BYTES))
    }
}

/// Reads a page where a node is asked for, because its neighbours are asked for next.
pub(super) struct Paged<'a> {
    file: &'a File,
    pages: RefCell<Vec<(u64, Vec<u8>)>>,
}

impl<'a> Paged<'a> {
    pub fn new(file: &'a File) -> Self {
        Self { file, pages: RefCell::default() }
    }
}

impl ReadAt for Paged<'_> {
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pages = self.pages.borrow_mut();
        let held = |(from, bytes): &(u64, Vec<u8>)| {
            let start = usize::try_from(at.checked_sub(*from)?).ok()?;
            bytes.get(start..start.checked_add(buffer.len())?).map(<[u8]>::to_vec)
        };
        if let Some(bytes) = pages.iter().rev().find_map(held) {
            buffer.copy_from_slice(&bytes);
            return Ok(buffer.len());
        }
        if pages.len() >= RUNS_MAX {
            pages.clear();
        }
        let mut page = vec![0; READ_BYTES.max(buffer.len())];
        let mut read = 0;
        while let Some(rest) = page.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self.file, rest, at + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        page.truncate(read);
        let given = read.min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..given), page.get(..given)) {
            to.copy_from_slice(from);
        }
        pages.push((at, page));
        Ok(given)
    }
}
