//! The values of an adapter, checked as they stream by: finite, and at most [`MAGNITUDE_MAX`](super::MAGNITUDE_MAX) either way.
//!
//! Files arrive in pieces of any size. The [`Cursor`] cuts them into runs of whole elements of one tensor; the check
//! here and the fold both walk with it.

use super::error::AdapterError;
use super::layout::{Layout, Placed};
use crate::number::dispatch::{Lanes, largest};
use crate::number::{Dtype, Unfit, unfit, widened};

/// Whole elements of one tensor.
pub(crate) struct Run<'a> {
    pub tensor: usize,
    /// Index of the first element in the tensor.
    pub first: usize,
    pub dtype: Dtype,
    pub bytes: &'a [u8],
}

/// How far into a file's data a stream of pieces has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cursor {
    /// Index into [`Layout::placed`] of the tensor that comes next.
    place: usize,
    /// Elements of that tensor that have passed.
    element: usize,
    /// The first bytes of an element that the last piece cut.
    cut: [u8; 4],
    cut_length: usize,
    /// Bytes of data that have passed.
    passed: u64,
}

impl Cursor {
    /// Hands the elements in `piece` on, in runs of at most `run_max` elements. Fails when there is more data than the
    /// layout has, or with the first failure of `each`; after a failure it never finishes.
    pub fn advance<E: From<AdapterError>>(
        &mut self,
        layout: &Layout,
        mut piece: &[u8],
        run_max: usize,
        mut each: impl FnMut(Run<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !piece.is_empty() {
            let Some(&Placed { tensor, dtype, elements, .. }) = layout.placed().get(self.place) else {
                self.passed = self.passed.saturating_add(piece.len() as u64);
                return Err(self.size_error(layout).into());
            };
            let size = dtype.bytes();
            let mut run = |first, bytes| each(Run { tensor, first, dtype, bytes });
            let run_length = if self.cut_length > 0 || piece.len() < size {
                // The missing bytes of an element that lies across two pieces, or more.
                let taken = size.saturating_sub(self.cut_length).min(piece.len());
                let (head, rest) = piece.split_at_checked(taken).unwrap_or((piece, &[]));
                for (slot, byte) in self.cut.iter_mut().skip(self.cut_length).zip(head) {
                    *slot = *byte;
                }
                self.cut_length = self.cut_length.saturating_add(taken);
                self.passed = self.passed.saturating_add(taken as u64);
                piece = rest;
                if self.cut_length < size {
                    return Ok(());
                }
                self.cut_length = 0;
                run(self.element, self.cut.get(..size).unwrap_or_default()).inspect_err(|_| self.place = usize::MAX)?;
                1
            } else {
                let here = piece.len().checked_div(size).unwrap_or(0);
                let run_length = elements.saturating_sub(self.element).min(here).min(run_max.max(1));
                let bytes = run_length.saturating_mul(size);
                let (head, rest) = piece.split_at_checked(bytes).unwrap_or((piece, &[]));
                piece = rest;
                self.passed = self.passed.saturating_add(bytes as u64);
                run(self.element, head).inspect_err(|_| self.place = usize::MAX)?;
                run_length
            };
            self.element = self.element.saturating_add(run_length);
            if self.element >= elements {
                self.place = self.place.saturating_add(1);
                self.element = 0;
            }
        }
        Ok(())
    }

    /// Succeeds when all data of the layout has passed.
    pub fn finish(&self, layout: &Layout) -> Result<(), AdapterError> {
        if self.place == layout.placed().len() { Ok(()) } else { Err(self.size_error(layout)) }
    }

    fn size_error(&self, layout: &Layout) -> AdapterError {
        AdapterError::Size { expected: layout.file_size(), found: layout.data_start().saturating_add(self.passed) }
    }
}

/// Refuses a run whose largest element has these magnitude bits, naming the first element that is NaN, infinite or too
/// large.
#[inline]
pub(crate) fn check_largest(magnitude: u32, layout: &Layout, run: &Run<'_>) -> Result<(), AdapterError> {
    let most = layout.tensors().magnitude_max();
    if magnitude <= most.to_bits() {
        return Ok(());
    }
    let elements = widened(run.dtype, run.bytes).enumerate();
    let first_unfit = elements.filter_map(|(offset, value)| Some((offset, unfit(value, most)?))).next();
    let Some((offset, unfit)) = first_unfit else { return Ok(()) };
    let tensor = layout.name_of(run.tensor);
    let index = run.first.saturating_add(offset) as u64;
    Err(match unfit {
        Unfit::Nan => AdapterError::Nan { tensor, index },
        Unfit::Infinite => AdapterError::Infinite { tensor, index },
        Unfit::TooLarge(found) => AdapterError::TooLarge { tensor, index, found },
    })
}

/// A check of every value of a file, fed with its data in order, in pieces of any size.
#[derive(Debug, Clone)]
pub struct ValueScan {
    layout: Layout,
    cursor: Cursor,
    lanes: Lanes,
}

/// Elements checked or folded at a time: enough that the calls are nothing, few enough to name one of them quickly.
pub(crate) const RUN_ELEMENTS_MAX: usize = 8192;

impl ValueScan {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, cursor: Cursor::default(), lanes: Lanes::widest() }
    }

    /// The next bytes of the data; the first piece begins at [`Layout::data_start`].
    pub fn push(&mut self, piece: &[u8]) -> Result<(), AdapterError> {
        let (layout, lanes) = (&self.layout, self.lanes);
        self.cursor.advance(layout, piece, RUN_ELEMENTS_MAX, |run| check_largest(largest(lanes, run.dtype, run.bytes), layout, &run))
    }

    /// Succeeds when every byte of the file has passed.
    pub fn finish(&self) -> Result<(), AdapterError> {
        self.cursor.finish(&self.layout)
    }
}
