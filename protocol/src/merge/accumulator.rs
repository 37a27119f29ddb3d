//! The running sums, and the fold that moves them by one adapter at a time.

use std::sync::Arc;

use super::TOTAL_WEIGHT_LIMIT;
use super::error::MergeError;
use super::extremes::Extremes;
use super::plan::Plan;
use super::rule::MergeRule;
use crate::adapter::{Cursor, Layout, RUN_ELEMENTS_MAX, TensorList, check_largest};
use crate::number::dispatch::{Lanes, fold, unfold};
use crate::number::{Factor, GRID};

/// Whether an adapter enters the mean or leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Add,
    Retract,
}

/// The running sums of a merge: eight bytes per element, whatever the number of adapters, and sixteen more for each adapter
/// that a trimmed mean leaves out at either end.
#[derive(Debug, Clone)]
pub struct Accumulator {
    tensors: TensorList,
    /// One per tensor, each element a sum of `weight * grid points`.
    pub(super) sums: Vec<Vec<i64>>,
    members: u64,
    total_weight: u64,
    /// What a trimmed mean leaves out, and how many that is of each end.
    extremes: Option<(Extremes, u32)>,
    /// Which tensors a clip changes.
    clipped: Arc<[bool]>,
    /// Set while an adapter is partly folded in.
    torn: bool,
    lanes: Lanes,
}

impl Accumulator {
    /// The merge of no adapters. Allocates eight bytes per element.
    pub fn new(tensors: &TensorList) -> Self {
        Self::with_lanes(tensors.clone(), Lanes::widest())
    }

    /// As [`Accumulator::new`], folding with given lanes: any give the same sums.
    pub fn with_lanes(tensors: TensorList, lanes: Lanes) -> Self {
        // Tensors of a checked list are far below the address space of any machine that can hold them.
        let zeros = |elements| vec![0; usize::try_from(elements).unwrap_or(usize::MAX)];
        let sums = tensors.iter().map(|tensor| zeros(tensor.elements())).collect();
        let clipped = Arc::default();
        Self { tensors, sums, members: 0, total_weight: 0, extremes: None, clipped, torn: false, lanes }
    }

    /// The running sums of a plan whose rule has any ([`MergeRule::runs`]).
    pub fn of(plan: &Plan) -> Self {
        let mut sums = Self::new(plan.tensors());
        if let MergeRule::TrimmedMean { trim } = plan.rule() {
            sums.extremes = Some((Extremes::new(plan.tensors(), trim), trim));
        }
        sums.clipped = plan.clipped().clone();
        sums
    }

    /// The tensors that are averaged, in the order of a file.
    pub fn tensors(&self) -> &TensorList {
        &self.tensors
    }

    /// How many adapters are in.
    pub fn members(&self) -> u64 {
        self.members
    }

    /// The sum of their weights; always below [`TOTAL_WEIGHT_LIMIT`].
    pub fn total_weight(&self) -> u64 {
        self.total_weight
    }

    /// Adds a whole file held in memory. Changes nothing when it refuses.
    pub fn add(&mut self, file: &[u8], weight: u64) -> Result<(), MergeError> {
        self.fold_file(file, weight, Direction::Add)
    }

    /// Takes a file out that was added with the same weight: afterwards it is as if it had never been in. Changes
    /// nothing when it refuses.
    pub fn retract(&mut self, file: &[u8], weight: u64) -> Result<(), MergeError> {
        self.fold_file(file, weight, Direction::Retract)
    }

    fn fold_file(&mut self, file: &[u8], weight: u64, direction: Direction) -> Result<(), MergeError> {
        let layout = Layout::parse(file, file.len() as u64, &self.tensors)?;
        let data = layout.data_of(file);
        let mut scan = layout.scan();
        scan.push(data)?;
        scan.finish()?;
        let mut fold = self.begin(&layout, weight, direction)?;
        fold.push(data)?;
        fold.finish()
    }

    /// Begins to fold a file in, piece by piece. Scan its values first ([`Layout::scan`]): an unfit value found half-way
    /// leaves a torn accumulator, which refuses everything from then on.
    pub fn begin(&mut self, layout: &Layout, weight: u64, direction: Direction) -> Result<Fold<'_>, MergeError> {
        self.begin_all(&[(layout, weight, direction)])
    }

    /// As [`Accumulator::begin`], for an update that is multiplied with a factor ([`Plan::clip`]).
    pub fn begin_clipped(&mut self, layout: &Layout, clip: Factor, weight: u64, direction: Direction) -> Result<Fold<'_>, MergeError> {
        let mut fold = self.begin(layout, weight, direction)?;
        fold.parts.iter_mut().for_each(|part| part.clip = clip);
        Ok(fold)
    }

    /// Begins to fold several files at once. Sums are most of the memory that a fold moves, so a peer that has many
    /// adapters to catch up with does well to push a small piece of each in turn, while those sums are in its caches.
    pub fn begin_all(&mut self, files: &[(&Layout, u64, Direction)]) -> Result<Fold<'_>, MergeError> {
        if self.torn {
            return Err(MergeError::Torn);
        }
        let (mut members, mut total) = (self.members, self.total_weight);
        let mut parts = Vec::new();
        for &(layout, weight, direction) in files {
            if *layout.tensors() != self.tensors {
                return Err(MergeError::OtherShape);
            }
            if self.extremes.is_some() && direction == Direction::Retract {
                return Err(MergeError::InsertOnly);
            }
            let factor;
            (members, total, factor) = count(members, total, weight, direction)?;
            parts.push(Part { layout: layout.clone(), cursor: Cursor::default(), direction, weight: factor, clip: Factor::ONE });
        }
        Ok(Fold { accumulator: self, parts, members, total })
    }

    /// The sums of a merge that can be finalised.
    pub(super) fn complete_sums(&self) -> Result<&[Vec<i64>], MergeError> {
        match (self.torn, self.members, &self.extremes) {
            (true, ..) => Err(MergeError::Torn),
            (false, 0, _) => Err(MergeError::Empty),
            (false, have, Some((_, trim))) => {
                let rule = MergeRule::TrimmedMean { trim: *trim };
                rule.check_enough(have).map(|()| self.sums.as_slice())
            }
            (false, ..) => Ok(&self.sums),
        }
    }

    /// What a trimmed mean leaves out, and how many adapters' values that is at every coordinate.
    pub(super) fn extremes(&self) -> Option<(&Extremes, u64)> {
        self.extremes.as_ref().map(|(extremes, trim)| (extremes, u64::from(*trim).saturating_mul(2)))
    }

    pub(super) fn lanes(&self) -> Lanes {
        self.lanes
    }
}

/// Members and total weight after one more adapter, and its weight in the fewer bits that the limit leaves it.
fn count(members: u64, total: u64, weight: u64, direction: Direction) -> Result<(u64, u64, u32), MergeError> {
    if weight == 0 {
        return Err(MergeError::ZeroWeight);
    }
    let (counted, refusal) = match direction {
        Direction::Add => {
            let sum = total.checked_add(weight).filter(|sum| *sum < TOTAL_WEIGHT_LIMIT);
            (sum.zip(members.checked_add(1)), MergeError::TotalWeight { total, adding: weight })
        }
        Direction::Retract => {
            let rest = total.checked_sub(weight).zip(members.checked_sub(1));
            // Weights are at least 1, so members that remain need weight that remains, and the other way round.
            let rest = rest.filter(|(total, members)| total >= members && (*total == 0) == (*members == 0));
            (rest, MergeError::NotAdded { weight, members, total })
        }
    };
    match (counted, u32::try_from(weight)) {
        (Some((total, members)), Ok(weight)) => Ok((members, total, weight)),
        _ => Err(refusal),
    }
}

/// Adapters on their way in or out. Dropped before [`Fold::finish`], it leaves a torn accumulator, unless nothing was
/// pushed yet.
#[derive(Debug)]
pub struct Fold<'a> {
    accumulator: &'a mut Accumulator,
    parts: Vec<Part>,
    /// What `finish` will set.
    members: u64,
    total: u64,
}

/// One file of a fold, and how far it has come.
#[derive(Debug)]
struct Part {
    layout: Layout,
    cursor: Cursor,
    direction: Direction,
    weight: u32,
    clip: Factor,
}

impl Fold<'_> {
    /// The next bytes of the only file's data, any number of them; the first piece begins at [`Layout::data_start`].
    pub fn push(&mut self, piece: &[u8]) -> Result<(), MergeError> {
        self.push_to(0, piece)
    }

    /// The next bytes of one file's data, the files counted as they were given to [`Accumulator::begin_all`].
    pub fn push_to(&mut self, file: usize, piece: &[u8]) -> Result<(), MergeError> {
        let Accumulator { sums, torn, lanes, extremes, clipped, .. } = &mut *self.accumulator;
        let Some(Part { layout, cursor, direction, weight, clip }) = self.parts.get_mut(file) else {
            return Err(MergeError::NoSuchFile { file, begun: self.parts.len() });
        };
        let step = match direction {
            Direction::Add => fold,
            Direction::Retract => unfold,
        };
        let (mut values, mut spare) = (Vec::new(), Vec::new());
        *torn = true;
        cursor.advance(layout, piece, RUN_ELEMENTS_MAX, |run| {
            // Runs come from a layout of the same shape as the sums, so the slice is always there.
            let Some(sums) = sums.get_mut(run.tensor).and_then(|sums| sums.get_mut(run.first..)) else {
                return Err(MergeError::OtherShape);
            };
            let grid = if clipped.get(run.tensor) == Some(&true) { clip.grid() } else { GRID };
            let largest = step(*lanes, run.dtype, sums, run.bytes, *weight, grid);
            if let Some((extremes, _)) = extremes {
                values.clear();
                values.resize(run.bytes.len().checked_div(run.dtype.bytes()).unwrap_or(0), 0);
                fold(*lanes, run.dtype, &mut values, run.bytes, *weight, grid);
                extremes.insert(run.tensor, run.first, &mut values, &mut spare);
            }
            // Checked again although scanned before: a fold of NaN would be silent.
            Ok(check_largest(largest, layout, &run)?)
        })
    }

    /// Counts the adapters in or out, once all their data has passed.
    pub fn finish(self) -> Result<(), MergeError> {
        self.parts.iter().try_for_each(|part| part.cursor.finish(&part.layout))?;
        let Self { accumulator, members, total, .. } = self;
        accumulator.members = members;
        accumulator.total_weight = total;
        accumulator.torn = false;
        Ok(())
    }
}
