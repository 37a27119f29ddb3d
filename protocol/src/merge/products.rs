//! Products of updates with each other, never forming an update: of `s B A` and `t D C` it is `s t` times the sum of
//! `(B^T D) * (A C^T)`, element by element. Their own product is the square of their norm.
//!
//! Read from the members' files in blocks, so that no memory grows with a module's width. The order of every sum is fixed
//! (docs/protocol.md, section "Norms and distances").

use super::error::MergeError;
use super::plan::{Member, ReadAt};
use crate::adapter::{DrawnTensor, Half, Layout, Part, Updates};
use crate::number::dispatch::{Lanes, gram};
use crate::number::{BLOCK, Dtype, add_scaled, dot, widened};

/// Rows of one matrix of products: with both matrices, and a block of every row, 32 MiB.
const ROWS_MAX: usize = 1024;

/// The rows of a matrix, to be multiplied with others of the same length.
#[derive(Clone, Copy)]
struct Rows<'a> {
    rows: usize,
    length: usize,
    /// Whether a row's elements lie side by side; else those of a column do.
    by_row: bool,
    from: Origin<'a>,
}

#[derive(Clone, Copy)]
enum Origin<'a> {
    Stored { data: &'a dyn ReadAt, begin: u64, dtype: Dtype },
    Drawn(&'a DrawnTensor),
}

impl Rows<'_> {
    /// `count` elements from the element at `first` on.
    fn elements(&self, first: usize, count: usize) -> Result<Vec<f64>, MergeError> {
        match self.from {
            Origin::Drawn(drawn) => Ok(drawn.values_from(first as u64, count).map(f64::from).collect()),
            Origin::Stored { data, begin, dtype } => {
                let size = dtype.bytes();
                let mut bytes = vec![0; count.saturating_mul(size)];
                data.read(begin.saturating_add(first.saturating_mul(size) as u64), &mut bytes)?;
                Ok(widened(dtype, &bytes).map(f64::from).collect())
            }
        }
    }

    /// Appends `count` elements of every row, from the one at `first` on, row by row.
    fn block(&self, first: usize, count: usize, out: &mut Vec<f64>) -> Result<(), MergeError> {
        if self.by_row {
            for row in 0..self.rows {
                out.extend(self.elements(row.saturating_mul(self.length).saturating_add(first), count)?);
            }
        } else {
            let columns = self.elements(first.saturating_mul(self.rows), count.saturating_mul(self.rows))?;
            for row in 0..self.rows {
                out.extend(columns.iter().skip(row).step_by(self.rows.max(1)));
            }
        }
        Ok(())
    }
}

/// A block of all rows.
fn blocks(rows: &[Rows<'_>], first: usize, width: usize) -> Result<Vec<f64>, MergeError> {
    let mut block = Vec::with_capacity(count(rows).saturating_mul(width));
    rows.iter().try_for_each(|rows| rows.block(first, width, &mut block))?;
    Ok(block)
}

fn count(rows: &[Rows<'_>]) -> usize {
    rows.iter().fold(0, |sum, rows| sum.saturating_add(rows.rows))
}

/// The first element and the width of every block of these rows.
fn widths(rows: &[Rows<'_>]) -> impl Iterator<Item = (usize, usize)> + use<> {
    let length = rows.first().map_or(0, |rows| rows.length);
    (0..length).step_by(BLOCK).map(move |first| (first, BLOCK.min(length.saturating_sub(first))))
}

/// The products of all rows of `left` with all of `right`, a row for each of `left`.
fn products_of(left: &[Rows<'_>], right: &[Rows<'_>]) -> Result<Vec<f64>, MergeError> {
    let lanes = Lanes::widest();
    let mut out = vec![0.0; count(left).saturating_mul(count(right))];
    for (first, width) in widths(left) {
        gram(lanes, &blocks(left, first, width)?, &blocks(right, first, width)?, width, &mut out);
    }
    Ok(out)
}

/// The same of rows with themselves, at half the cost: two rows have one product, whichever comes first.
fn own_products_of(rows: &[Rows<'_>]) -> Result<Vec<f64>, MergeError> {
    let (lanes, count) = (Lanes::widest(), count(rows));
    let mut out = vec![0.0; count.saturating_mul(count)];
    for (first, width) in widths(rows) {
        let block = blocks(rows, first, width)?;
        for (index, line) in out.chunks_mut(count.max(1)).enumerate() {
            let from_here = block.get(index.saturating_mul(width)..).unwrap_or_default();
            let row = from_here.get(..width).unwrap_or_default();
            gram(lanes, row, from_here, width, line.get_mut(index..).unwrap_or_default());
        }
    }
    for row in 0..count {
        for column in 0..row {
            let product = out.get(column.saturating_mul(count).saturating_add(row)).copied().unwrap_or_default();
            if let Some(same) = out.get_mut(row.saturating_mul(count).saturating_add(column)) {
                *same = product;
            }
        }
    }
    Ok(out)
}

/// One member's tensor as rows; `as_b` for an `[outputs, rank]` one, `whole` for one long row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    A,
    B,
    Whole,
}

fn rows<'a>(layout: &Layout, data: &'a dyn ReadAt, tensor: usize, read: Read) -> Result<Rows<'a>, MergeError> {
    let (placed, described) = layout.place_of(tensor).zip(layout.tensors().get(tensor)).ok_or(MergeError::OtherShape)?;
    let [first, second] = match (read, described.dims.as_slice()) {
        (Read::Whole, _) => [1, placed.elements],
        (_, [first, second]) => [first, second].map(|dimension| usize::try_from(*dimension).unwrap_or(usize::MAX)),
        _ => return Err(MergeError::OtherShape),
    };
    let (rows, length) = if read == Read::B { (second, first) } else { (first, second) };
    let begin = layout.data_start().saturating_add(placed.begin);
    Ok(Rows { rows, length, by_row: read != Read::B, from: Origin::Stored { data, begin, dtype: placed.dtype } })
}

/// What [`products`] needs of a member.
#[derive(Clone, Copy)]
pub(super) struct Updated<'a> {
    layout: &'a Layout,
    updates: &'a Updates,
    data: &'a dyn ReadAt,
}

impl<'a> From<&Member<'a>> for Updated<'a> {
    fn from(member: &Member<'a>) -> Self {
        Self { layout: member.layout, updates: member.updates, data: member.data }
    }
}

/// The square of an update's norm.
pub(super) fn norm_squared(layout: &Layout, updates: &Updates, data: &dyn ReadAt) -> Result<f64, MergeError> {
    let own = products(&[Updated { layout, updates, data }])?;
    Ok(own.first().copied().unwrap_or_default())
}

/// The products of every two members' updates, a row a member; those below the diagonal stay zero.
pub(super) fn products(members: &[Updated<'_>]) -> Result<Vec<f64>, MergeError> {
    let mut out = vec![0.0; members.len().saturating_mul(members.len())];
    let parts = members.iter().map(|member| member.updates.parts().len()).min().unwrap_or(0);
    for part in 0..parts {
        let sides = members.iter().map(|member| side(member, part)).collect::<Result<Vec<_>, MergeError>>()?;
        let most = sides.iter().map(|side| side.own.rows).max().unwrap_or(1);
        let group = ROWS_MAX.checked_div(most).unwrap_or(1).max(1);
        let groups: Vec<(usize, &[Side<'_>])> = (0..).step_by(group).zip(sides.chunks(group)).collect();
        for (index, &(left_first, left)) in groups.iter().enumerate() {
            for &(right_first, right) in groups.iter().skip(index) {
                add_products((left_first, left), (right_first, right), members.len(), &mut out)?;
            }
        }
    }
    Ok(out)
}

/// A member's part: B, or all of it, and A where there is one.
#[derive(Clone, Copy)]
struct Side<'a> {
    own: Rows<'a>,
    a: Option<Rows<'a>>,
    scale: f64,
}

fn side<'a>(member: &Updated<'a>, part: usize) -> Result<Side<'a>, MergeError> {
    let of = |tensor, read| rows(member.layout, member.data, tensor, read);
    match member.updates.parts().get(part) {
        Some(Part::Whole(tensor)) => Ok(Side { own: of(*tensor, Read::Whole)?, a: None, scale: 1.0 }),
        Some(Part::Product { a: Half::Sent(a), b, scale }) => Ok(Side { own: of(*b, Read::B)?, a: Some(of(*a, Read::A)?), scale: *scale }),
        Some(Part::Product { a: Half::Drawn(drawn), b, scale }) => {
            let dimension = |place: usize| drawn.tensor.dims.get(place).and_then(|found| usize::try_from(*found).ok()).unwrap_or(0);
            let a = Rows { rows: dimension(0), length: dimension(1), by_row: true, from: Origin::Drawn(drawn) };
            Ok(Side { own: of(*b, Read::B)?, a: Some(a), scale: *scale })
        }
        None => Err(MergeError::OtherShape),
    }
}

/// Adds the part's product for every two of the sides, each given with the number of its first member.
fn add_products<'a>(
    (left_first, left): (usize, &[Side<'a>]),
    (right_first, right): (usize, &[Side<'a>]),
    members: usize,
    out: &mut [f64],
) -> Result<(), MergeError> {
    let of = |sides: &[Side<'a>]| sides.iter().map(|side| side.own).collect::<Vec<Rows<'a>>>();
    let a_of = |sides: &[Side<'a>]| sides.iter().filter_map(|side| side.a).collect::<Vec<Rows<'a>>>();
    let of_every_two = |left: Vec<Rows<'a>>, right: Vec<Rows<'a>>| match left_first == right_first {
        true => own_products_of(&left),
        false => products_of(&left, &right),
    };
    let own_products = of_every_two(of(left), of(right))?;
    // Drawn by everybody alike, so the same for every two.
    let drawn = left.first().and_then(|side| side.a).filter(|rows| matches!(rows.from, Origin::Drawn(_)));
    let a_products = match drawn {
        Some(drawn) => own_products_of(&[drawn])?,
        None => of_every_two(a_of(left), a_of(right))?,
    };
    let width = right.iter().fold(0_usize, |sum, side| sum.saturating_add(side.own.rows));
    let mut row = 0_usize;
    for (i, one) in left.iter().enumerate() {
        let mut column = 0_usize;
        for (j, other) in right.iter().enumerate() {
            let (member, partner) = (left_first.saturating_add(i), right_first.saturating_add(j));
            let (rows, columns) = (one.own.rows, other.own.rows);
            let within = |products: &[f64], row: usize, column: usize, width: usize| -> Vec<f64> {
                let lines = products.chunks(width.max(1)).skip(row).take(rows);
                lines.flat_map(|line| line.iter().skip(column).take(columns).copied()).collect()
            };
            let place = member.saturating_mul(members).saturating_add(partner);
            if let Some(sum) = out.get_mut(place).filter(|_| member <= partner) {
                let own = within(&own_products, row, column, width);
                let product = match (one.a, drawn) {
                    (None, _) => own.iter().copied().next().unwrap_or_default(),
                    (Some(_), Some(drawn)) => dot(&own, &within(&a_products, 0, 0, drawn.rows)),
                    (Some(_), None) => dot(&own, &within(&a_products, row, column, width)),
                };
                add_scaled(sum, one.scale, other.scale, product);
            }
            column = column.saturating_add(columns);
        }
        row = row.saturating_add(one.own.rows);
    }
    Ok(())
}
