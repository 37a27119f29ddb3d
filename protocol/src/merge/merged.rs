//! The merged adapter: the means of the running sums, as the bytes of one canonical safetensors file, with what every
//! member draws from the round's seed in its place.

use super::accumulator::Accumulator;
use super::error::MergeError;
use crate::adapter::{Dtype, MergedFile, Source, canonical_header};
use crate::number::dispatch::finalise;

/// Sums that become bytes at a time: 64 KiB of file.
pub(super) const PIECE_ELEMENTS: usize = 16_384;

/// Takes a file in pieces, in order.
pub(super) trait Sink<E>: FnMut(&[u8]) -> Result<(), E> {}
impl<E, F: FnMut(&[u8]) -> Result<(), E>> Sink<E> for F {}

/// Writes a merged file, where `mean` writes the data of each tensor that was sent, by its place among those.
pub(super) fn write_file<E, S: Sink<E>>(
    merged: &MergedFile,
    sink: &mut S,
    mut mean: impl FnMut(usize, &mut S) -> Result<(), E>,
) -> Result<(), E> {
    sink(&canonical_header(merged.tensors(), Dtype::F32))?;
    let mut piece = [[0u8; 4]; PIECE_ELEMENTS];
    for source in merged.sources() {
        match source {
            Source::Mean(index) => mean(*index, sink)?,
            Source::Drawn(drawn) => {
                let mut values = drawn.values();
                loop {
                    let drawn = piece.iter_mut().zip(values.by_ref()).map(|(bytes, value)| *bytes = value.to_le_bytes()).count();
                    if drawn == 0 {
                        break;
                    }
                    sink(piece.get(..drawn).unwrap_or_default().as_flattened())?;
                }
            }
        }
    }
    Ok(())
}

impl Accumulator {
    /// The file of the means alone: `f32`, sorted names, and nothing that depends on anything but the sums and the total
    /// weight.
    pub fn finalise(&self) -> Result<Vec<u8>, MergeError> {
        self.finalise_as(&MergedFile::of_means(self.tensors().clone()))
    }

    /// A round's merged file.
    pub fn finalise_as(&self, merged: &MergedFile) -> Result<Vec<u8>, MergeError> {
        let mut file = Vec::new();
        self.finalise_to(merged, |piece| {
            file.extend_from_slice(piece);
            Ok::<(), MergeError>(())
        })?;
        Ok(file)
    }

    /// As [`Accumulator::finalise_as`], in pieces of bounded size, in order. Stops at the first error of `sink`.
    pub fn finalise_to<E: From<MergeError>>(&self, merged: &MergedFile, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let sums = self.complete_sums()?;
        if merged.sent() != self.tensors() {
            return Err(MergeError::OtherShape.into());
        }
        let mut piece = [[0u8; 4]; PIECE_ELEMENTS];
        let mut middle = Vec::new();
        write_file(merged, &mut sink, |index, sink| {
            let tensor = sums.get(index).map(Vec::as_slice).unwrap_or_default();
            for (first, sums) in (0..).step_by(PIECE_ELEMENTS).zip(tensor.chunks(PIECE_ELEMENTS)) {
                let bytes = piece.get_mut(..sums.len()).unwrap_or_default().as_flattened_mut();
                match self.extremes() {
                    None => finalise(self.lanes(), sums, self.total_weight(), bytes),
                    Some((extremes, ends)) => {
                        middle.clear();
                        middle.extend_from_slice(sums);
                        extremes.take_off(index, first, &mut middle);
                        finalise(self.lanes(), &middle, self.members().saturating_sub(ends), bytes);
                    }
                }
                sink(bytes)?;
            }
            Ok(())
        })
    }
}
