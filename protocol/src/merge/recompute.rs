//! Merges that are made anew from all adapters at once, a piece of every file at a time: what median, multi-Krum and a
//! large trim need, and what any rule gives whoever has the files.

use std::collections::{BTreeMap, BTreeSet};

use super::error::MergeError;
use super::merged::{PIECE_ELEMENTS, write_file};
use super::plan::{Account, Member, Plan};
use super::products::products;
use super::rule::MergeRule;
use super::stack;
use super::{TOTAL_WEIGHT_LIMIT, merged::Sink};
use crate::adapter::{MergedFile, Run, TensorList, check_largest};
use crate::number::dispatch::{Lanes, finalise, fold};
use crate::number::{Dtype, GRID};
use crate::number::{chosen, finalise as mean_of};

/// Bytes of all members' values of a piece, which are held at once.
const TILE_BYTES: usize = 32 << 20;

/// A merge that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The tensors of its file.
    pub tensors: TensorList,
    pub account: Account,
}

impl Plan {
    /// Merges the members' adapters, whoever they are given by first, and writes the merged file in pieces of bounded size.
    ///
    /// # Errors
    /// Too few adapters, too much weight, bytes that cannot be read, or the first error of `sink`.
    pub fn recompute<E: From<MergeError>>(&self, members: &[Member<'_>], mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<Made, E> {
        let mut members = members.to_vec();
        members.sort_by_key(|member| member.key);
        self.check(&members)?;
        let mut account = Account::of_clips(members.iter().map(|member| (member.key, member.clip)));
        let total = members.iter().fold(0_u64, |sum, member| sum.saturating_add(member.weight));
        let merged = match self.rule() {
            MergeRule::Stack => {
                let merged = stack::file(self.tensors(), &members)?;
                stack::write(&merged, &mut members, total, &mut sink)?;
                merged
            }
            MergeRule::Mean => self.mean(&members, total, &mut sink)?,
            MergeRule::Median => self.by_coordinate(&members, &mut sink, median)?,
            MergeRule::TrimmedMean { trim } => self.by_coordinate(&members, &mut sink, |column| trimmed(column, trim as usize))?,
            MergeRule::MultiKrum { faulty } => {
                let updates: Vec<_> = members.iter().map(Into::into).collect();
                let clips: Vec<_> = members.iter().map(|member| member.clip).collect();
                let kept = chosen(&products(&updates)?, &clips, faulty as usize);
                let all: BTreeSet<_> = members.iter().map(|member| member.key).collect();
                members = kept.iter().filter_map(|index| members.get(*index)).copied().collect();
                account.left_out = members.iter().fold(all, |mut rest, kept| {
                    rest.remove(&kept.key);
                    rest
                });
                self.mean(&members, members.len() as u64, &mut sink)?
            }
        };
        Ok(Made { tensors: merged.tensors().clone(), account })
    }

    /// Whether these members can be merged: as a running merge refuses what it cannot count.
    fn check(&self, members: &[Member<'_>]) -> Result<(), MergeError> {
        self.check_enough(members.len() as u64)?;
        let mut by_key = BTreeMap::new();
        let mut total = 0_u64;
        for member in members {
            if member.weight == 0 {
                return Err(MergeError::ZeroWeight);
            }
            if by_key.insert(member.key, ()).is_some() {
                return Err(MergeError::Twice { member: member.key });
            }
            let fits = self.tensors().is_up_to() || member.layout.tensors() == self.tensors();
            if !fits || member.layout.tensors().len() != self.tensors().len() {
                return Err(MergeError::OtherShape);
            }
            let sum = total.checked_add(member.weight).filter(|sum| *sum < TOTAL_WEIGHT_LIMIT);
            total = sum.ok_or(MergeError::TotalWeight { total, adding: member.weight })?;
        }
        Ok(())
    }

    /// Writes the file of the members' sums, divided by their total weight.
    fn mean<E: From<MergeError>>(&self, members: &[Member<'_>], total: u64, sink: &mut impl Sink<E>) -> Result<MergedFile, E> {
        let lanes = Lanes::widest();
        // Sums and a member's bytes of one tile stay in the caches, whatever the number of members.
        let (mut sums, mut bytes) = (Vec::new(), Vec::new());
        self.by_tile(PIECE_ELEMENTS, sink, |tensor, first, out| {
            sums.clear();
            sums.resize(out.as_chunks::<4>().0.len(), 0);
            members.iter().try_for_each(|member| self.add(lanes, member, tensor, first, &mut bytes, &mut sums))?;
            finalise(lanes, &sums, total, out);
            Ok(())
        })
    }

    /// Writes the file of what `combine` makes of each coordinate's values, which it may reorder: a sum of grid points, and
    /// what to divide it by.
    fn by_coordinate<E: From<MergeError>>(
        &self,
        members: &[Member<'_>],
        sink: &mut impl Sink<E>,
        combine: impl Fn(&mut [i64]) -> (i64, u64),
    ) -> Result<MergedFile, E> {
        let lanes = Lanes::widest();
        let held = members.len().saturating_mul(8).max(1);
        let tile = TILE_BYTES.checked_div(held).unwrap_or(1).clamp(1, PIECE_ELEMENTS);
        let (mut column, mut bytes) = (vec![0; members.len()], Vec::new());
        let mut planes = vec![Vec::new(); members.len()];
        self.by_tile(tile, sink, |tensor, first, out| {
            for (member, plane) in members.iter().zip(&mut planes) {
                plane.clear();
                plane.resize(out.as_chunks::<4>().0.len(), 0);
                self.add(lanes, member, tensor, first, &mut bytes, plane)?;
            }
            for (place, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                for (value, plane) in column.iter_mut().zip(&planes) {
                    *value = plane.get(place).copied().unwrap_or_default();
                }
                let (sum, divisor) = combine(&mut column);
                *out = mean_of(sum, divisor).to_le_bytes();
            }
            Ok(())
        })
    }

    /// Writes the file, where `fill` makes so many elements of a tensor at a time, given the first of them.
    fn by_tile<E: From<MergeError>>(
        &self,
        tile: usize,
        sink: &mut impl Sink<E>,
        mut fill: impl FnMut(usize, usize, &mut [u8]) -> Result<(), MergeError>,
    ) -> Result<MergedFile, E> {
        let mut bytes = Vec::new();
        write_file(self.merged(), sink, |tensor, sink| {
            let elements = self.tensors().get(tensor).map_or(0, |tensor| usize::try_from(tensor.elements()).unwrap_or(usize::MAX));
            for first in (0..elements).step_by(tile) {
                bytes.resize(tile.min(elements.saturating_sub(first)).saturating_mul(Dtype::F32.bytes()), 0);
                fill(tensor, first, &mut bytes)?;
                sink(&bytes)?;
            }
            Ok(())
        })?;
        Ok(self.merged().clone())
    }

    /// Adds a member's values times its weight, as grid points, from the one at `first` on; `bytes` is room to read them into.
    fn add(
        &self,
        lanes: Lanes,
        member: &Member<'_>,
        tensor: usize,
        first: usize,
        bytes: &mut Vec<u8>,
        sums: &mut [i64],
    ) -> Result<(), MergeError> {
        let placed = member.layout.place_of(tensor).ok_or(MergeError::OtherShape)?;
        let size = placed.dtype.bytes();
        let begin = member.layout.data_start().saturating_add(placed.begin);
        let (offset, length) = (begin.saturating_add(first.saturating_mul(size) as u64), sums.len().saturating_mul(size));
        let bytes = match member.data.held(offset, length) {
            Some(held) => held,
            None => {
                bytes.resize(length, 0);
                member.data.read(offset, bytes)?;
                bytes
            }
        };
        let grid = if self.clipped().get(tensor) == Some(&true) { member.clip.grid() } else { GRID };
        let weight = u32::try_from(member.weight).map_err(|_| MergeError::TotalWeight { total: 0, adding: member.weight })?;
        let largest = fold(lanes, placed.dtype, sums, bytes, weight, grid);
        Ok(check_largest(largest, member.layout, &Run { tensor, first, dtype: placed.dtype, bytes })?)
    }
}

/// The middle one, or the mean of the two.
fn median(column: &mut [i64]) -> (i64, u64) {
    let half = column.len() / 2;
    let even = column.len().is_multiple_of(2);
    if column.is_empty() {
        return (0, 1);
    }
    let (below, middle, _) = column.select_nth_unstable(half);
    match below.iter().max() {
        Some(other) if even => (middle.wrapping_add(*other), 2),
        _ => (*middle, 1),
    }
}

/// The sum without the ends, and how many are left.
fn trimmed(column: &mut [i64], trim: usize) -> (i64, u64) {
    column.sort_unstable();
    let rest = column.len().saturating_sub(trim.saturating_mul(2));
    let middle = column.iter().skip(trim).take(rest);
    (middle.fold(0, |sum: i64, value| sum.wrapping_add(*value)), rest as u64)
}
