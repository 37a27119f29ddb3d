//! The merged adapter: the means of the running sums, as the bytes of one canonical safetensors file.

use super::accumulator::Accumulator;
use super::error::MergeError;
use crate::adapter::{Dtype, canonical_header};
use crate::number::dispatch::finalise;

/// Sums that become bytes at a time: 64 KiB of file.
const PIECE_ELEMENTS: usize = 16_384;

impl Accumulator {
    /// The merged adapter's file: `f32`, sorted names, and nothing that depends on anything but the sums and the total
    /// weight.
    pub fn finalise(&self) -> Result<Vec<u8>, MergeError> {
        let mut file = Vec::new();
        self.finalise_to(|piece| {
            file.extend_from_slice(piece);
            Ok::<(), MergeError>(())
        })?;
        Ok(file)
    }

    /// As [`Accumulator::finalise`], in pieces of bounded size, in order. Stops at the first error of `sink`.
    pub fn finalise_to<E: From<MergeError>>(&self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let sums = self.complete_sums()?;
        sink(&canonical_header(self.tensors(), Dtype::F32))?;
        let mut piece = [[0u8; 4]; PIECE_ELEMENTS];
        for sums in sums.iter().flat_map(|sums| sums.chunks(PIECE_ELEMENTS)) {
            let bytes = piece.get_mut(..sums.len()).unwrap_or_default().as_flattened_mut();
            finalise(self.lanes(), sums, self.total_weight(), bytes);
            sink(bytes)?;
        }
        Ok(())
    }
}
