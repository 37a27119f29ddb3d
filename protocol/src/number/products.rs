//! Products of updates, for norms and distances: sums of floats, and so in one order that docs/protocol.md fixes.
//!
//! A dot product goes in blocks of [`BLOCK`] elements. In a block, element i is added to the sum i mod 8; the eight sums
//! become one as a tree; blocks are added in their order. Products of two elements are exact in an `f64`.

use super::Factor;

/// Elements of a dot product that are summed before the next are.
pub(crate) const BLOCK: usize = 1024;
const SUMS: usize = 8;
/// Rows that go through the processor together; each keeps its own sums.
const TOGETHER: usize = 4;

#[inline(always)]
fn tree([a, b, c, d, e, f, g, h]: [f64; SUMS]) -> f64 {
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// One block's products of a row with others of the same length.
#[inline(always)]
fn block<const N: usize>(left: &[f64], right: [&[f64]; N]) -> [f64; N] {
    let mut sums = [[0.0; SUMS]; N];
    let (chunks, rest) = left.as_chunks::<SUMS>();
    let split = right.map(|row| row.as_chunks::<SUMS>());
    for (index, x) in chunks.iter().enumerate() {
        for (sums, (chunks, _)) in sums.iter_mut().zip(&split) {
            if let Some(y) = chunks.get(index) {
                sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum += x * y);
            }
        }
    }
    for (sums, (_, last)) in sums.iter_mut().zip(&split) {
        sums.iter_mut().zip(rest.iter().zip(*last)).for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.map(tree)
}

#[inline(always)]
pub(super) fn gram_each(left: &[f64], right: &[f64], width: usize, out: &mut [f64]) {
    let width = width.max(1);
    let rows = right.chunks_exact(width).len();
    for (x, out) in left.chunks_exact(width).zip(out.chunks_exact_mut(rows.max(1))) {
        let (fours, rest) = out.as_chunks_mut::<TOGETHER>();
        let mut rights = right.chunks_exact(width.saturating_mul(TOGETHER));
        for (sums, four) in fours.iter_mut().zip(rights.by_ref()) {
            let mut four = four.chunks_exact(width);
            let four = [(); TOGETHER].map(|()| four.next().unwrap_or_default());
            for (sum, product) in sums.iter_mut().zip(block(x, four)) {
                *sum += product;
            }
        }
        for (sum, y) in rest.iter_mut().zip(rights.remainder().chunks_exact(width)) {
            let [product] = block(x, [y]);
            *sum += product;
        }
    }
}

/// The dot product of two rows of one length.
pub(crate) fn dot(left: &[f64], right: &[f64]) -> f64 {
    let blocks = left.chunks(BLOCK).zip(right.chunks(BLOCK));
    blocks.fold(0.0, |sum, (x, y)| {
        let [product] = block(x, [y]);
        sum + product
    })
}

/// `sum += left * right * product`, where the first two are scales.
pub(crate) fn add_scaled(sum: &mut f64, left: f64, right: f64, product: f64) {
    *sum += left * right * product;
}

/// Multi-Krum's choice among `factors.len()` members, from the products of their updates (a row a member, and only those
/// above the diagonal and on it): in ascending order, all but the `faulty` with the highest scores. A score is the sum of
/// the least squared distances to `members - faulty - 2` others, in ascending order. Of equal scores the first is lower.
pub(crate) fn chosen(products: &[f64], factors: &[Factor], faulty: usize) -> Vec<usize> {
    let members = factors.len();
    let nearest = members.saturating_sub(faulty).saturating_sub(2);
    let product = |one: usize, other: usize| products.get(one.saturating_mul(members).saturating_add(other)).copied().unwrap_or(f64::NAN);
    let clips: Vec<f64> = factors.iter().map(|factor| factor.value()).collect();
    let clip = |member: usize| clips.get(member).copied().unwrap_or(f64::NAN);
    let distance = |one: usize, other: usize| {
        let (one, other) = (one.min(other), one.max(other));
        let (c, d) = (clip(one), clip(other));
        let apart = c * c * product(one, one) + d * d * product(other, other) - 2.0 * (c * d * product(one, other));
        // Rounding may take what is nothing below it.
        apart.max(0.0)
    };
    let score = |member: usize| {
        let mut others: Vec<f64> = (0..members).filter(|other| *other != member).map(|other| distance(member, other)).collect();
        others.sort_by(f64::total_cmp);
        others.iter().take(nearest).fold(0.0, |sum, distance| sum + distance)
    };
    let scores: Vec<f64> = (0..members).map(score).collect();
    let mut order: Vec<(f64, usize)> = scores.into_iter().zip(0..).collect();
    order.sort_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    let mut kept: Vec<usize> = order.into_iter().take(members.saturating_sub(faulty)).map(|(_, member)| member).collect();
    kept.sort_unstable();
    kept
}
