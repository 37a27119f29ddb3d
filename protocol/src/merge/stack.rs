//! The stack: A = [A_1; ...; A_n] and B = [f_1 B_1, ..., f_n B_n], whose product is the weighted mean of the updates. The
//! members are in the order of their files' hashes. Every module is padded with zeros to the rank of the largest one, so
//! that one rank describes the file; its scale is 1.

use super::error::MergeError;
use super::merged::Sink;
use super::plan::Member;
use crate::adapter::{Dtype, Half, Layout, MergedFile, Part, Placed, TensorList, canonical_header};
use crate::number::{stacked, times, widened};

/// Bytes that are written at a time.
const PIECE_BYTES: usize = 4 << 20;

/// The tensors of the members' stack.
pub(super) fn file(sent: &TensorList, members: &[Member<'_>]) -> Result<MergedFile, MergeError> {
    let rank_of = |layout: &Layout, tensor: usize| layout.tensors().get(tensor).and_then(|found| found.dims.first()).copied().unwrap_or(0);
    let mut most = 0;
    for (index, _) in sent.iter().enumerate().filter(|(_, tensor)| tensor.name.ends_with("lora_A.weight")) {
        let ranks = members.iter().map(|member| rank_of(member.layout, index));
        most = most.max(ranks.fold(0_u64, u64::saturating_add));
    }
    Ok(MergedFile::stack(sent.clone(), most).map_err(crate::adapter::AdapterError::Shape)?)
}

/// One member's half of a module.
struct Piece<'a> {
    member: Member<'a>,
    placed: Placed,
    rank: usize,
    factor: f64,
}

impl Piece<'_> {
    /// Its elements from `first` on.
    fn elements(&self, first: usize, count: usize) -> Result<Vec<f32>, MergeError> {
        let size = self.placed.dtype.bytes();
        let begin = self.member.layout.data_start().saturating_add(self.placed.begin);
        let mut bytes = vec![0; count.saturating_mul(size)];
        self.member.data.read(begin.saturating_add(first.saturating_mul(size) as u64), &mut bytes)?;
        Ok(widened(self.placed.dtype, &bytes).collect())
    }
}

/// Writes the stack of the members, whom it puts in order.
pub(super) fn write<E: From<MergeError>>(
    merged: &MergedFile,
    members: &mut [Member<'_>],
    total_weight: u64,
    sink: &mut impl Sink<E>,
) -> Result<(), E> {
    members.sort_by_key(|member| (member.adapter, member.key));
    sink(&canonical_header(merged.tensors(), Dtype::F32))?;
    for (index, tensor) in merged.tensors().iter().enumerate() {
        let pieces = members.iter().map(|member| piece(member, index, total_weight)).collect::<Result<Vec<_>, MergeError>>()?;
        let dimension = |place: usize| tensor.dims.get(place).and_then(|found| usize::try_from(*found).ok()).unwrap_or(0);
        if tensor.name.ends_with("lora_A.weight") {
            write_rows(&pieces, dimension(0), dimension(1), sink)?;
        } else {
            write_columns(&pieces, dimension(0), dimension(1), sink)?;
        }
    }
    Ok(())
}

fn piece<'a>(member: &Member<'a>, tensor: usize, total_weight: u64) -> Result<Piece<'a>, MergeError> {
    let found = member.layout.place_of(tensor).zip(member.layout.tensors().get(tensor));
    let (placed, described) = found.ok_or(MergeError::OtherShape)?;
    // Which part of the update this tensor is, and with it which dimension is the rank.
    let part = member.updates.parts().iter().find_map(|part| match part {
        Part::Product { b, scale, .. } if *b == tensor => Some((1, stacked(member.weight, *scale, member.clip, total_weight))),
        Part::Product { a: Half::Sent(a), .. } if *a == tensor => Some((0, 1.0)),
        _ => None,
    });
    let (place, factor) = part.ok_or(MergeError::OtherShape)?;
    let rank = described.dims.get(place).and_then(|rank| usize::try_from(*rank).ok()).ok_or(MergeError::OtherShape)?;
    Ok(Piece { member: *member, placed, rank, factor })
}

/// One below the other, then rows of zeros.
fn write_rows<E: From<MergeError>>(pieces: &[Piece<'_>], rows: usize, inputs: usize, sink: &mut impl Sink<E>) -> Result<(), E> {
    let at_once = PIECE_BYTES / 4;
    let mut left = rows.saturating_mul(inputs);
    for piece in pieces {
        let elements = piece.rank.saturating_mul(inputs);
        for first in (0..elements).step_by(at_once) {
            let values = piece.elements(first, at_once.min(elements.saturating_sub(first)))?;
            sink(&bytes_of(values.into_iter()))?;
        }
        left = left.saturating_sub(elements);
    }
    for first in (0..left).step_by(at_once) {
        sink(&vec![0; at_once.min(left.saturating_sub(first)).saturating_mul(4)])?;
    }
    Ok(())
}

/// Side by side, then columns of zeros.
fn write_columns<E: From<MergeError>>(pieces: &[Piece<'_>], outputs: usize, rank: usize, sink: &mut impl Sink<E>) -> Result<(), E> {
    let at_once = (PIECE_BYTES / 4).checked_div(rank.max(1)).unwrap_or(1).max(1);
    for first in (0..outputs).step_by(at_once) {
        let count = at_once.min(outputs.saturating_sub(first));
        let mut out = vec![0.0; count.saturating_mul(rank)];
        let mut column = 0;
        for piece in pieces {
            let values = piece.elements(first.saturating_mul(piece.rank), count.saturating_mul(piece.rank))?;
            let lines = out.chunks_mut(rank.max(1)).zip(values.chunks(piece.rank.max(1)));
            for (line, values) in lines {
                line.iter_mut().skip(column).zip(values).for_each(|(out, value)| *out = times(*value, piece.factor));
            }
            column = column.saturating_add(piece.rank);
        }
        sink(&bytes_of(out.into_iter()))?;
    }
    Ok(())
}

fn bytes_of(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(f32::to_le_bytes).collect()
}
