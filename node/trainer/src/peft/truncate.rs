//! An adapter of a lower rank: of each module's update the best approximation of that rank, and what it leaves out.
//!
//! `B A` has the size of the base's weight and is never formed. With B = Q R and A^T = P S the update is Q (R S^T) P^T, and
//! the singular values of the small core R S^T are its own. Their square roots go to both sides. It is computed in f64,
//! and on another machine its last bits may differ: this is what one does with a merge, not how peers make one.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder;
use faer::linalg::solvers::Qr;
use faer::{Conj, Mat, MatRef, Par};
use rayon::prelude::*;

use super::{Adapter, AdapterTensor, PeftError};

/// What of a module's update was left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Truncated {
    pub module: String,
    /// Its rank before.
    pub rank: usize,
    /// The squared Frobenius norm of its update.
    pub energy: f64,
    /// That of what was left out.
    pub discarded: f64,
}

impl Truncated {
    /// The part left out of these modules together, from 0 to 1.
    pub fn share(modules: &[Self]) -> f64 {
        let sum = |of: fn(&Self) -> f64| modules.iter().map(of).sum::<f64>();
        let (energy, discarded) = (sum(|module| module.energy), sum(|module| module.discarded));
        if energy > 0.0 { discarded / energy } else { 0.0 }
    }
}

/// Plain LoRA of one rank, and what every module lost. A module whose rank is no greater loses nothing, and keeps its
/// factors.
///
/// # Errors
/// Values that are not finite.
pub fn truncate(adapter: &Adapter, rank: usize) -> Result<(Adapter, Vec<Truncated>), PeftError> {
    let modules = adapter.modules();
    let one = |module: &String| {
        let (a, b) = adapter.halves(module)?;
        let (found, scale) = (adapter.config.rank_of(module), adapter.config.scale_of(module));
        let lost = |energy, discarded| Truncated { module: module.clone(), rank: found, energy, discarded };
        let refuse = || PeftError::NotFinite { module: module.clone() };
        if found <= rank {
            let energy = energy(a, b, scale);
            return if energy.is_finite() { Ok((None, lost(energy, 0.0))) } else { Err(refuse()) };
        }
        let Factors { a, b, values } = factors(a, b, scale, rank).ok_or_else(refuse)?;
        let square = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        Ok((Some([a, b]), lost(square(&values), square(values.get(rank..).unwrap_or_default()))))
    };
    let found = modules.par_iter().map(one).collect::<Result<Vec<_>, PeftError>>()?;
    let mut kept = Adapter { config: adapter.config.clone(), tensors: adapter.saved_tensors().cloned().collect() };
    let mut cut = Vec::new();
    let mut modules = Vec::with_capacity(found.len());
    for (factors, lost) in found {
        match factors {
            Some(factors) => cut.extend(factors),
            None => {
                let (a, b) = adapter.halves(&lost.module)?;
                kept.tensors.extend([a.clone(), b.clone()]);
            }
        }
        modules.push(lost);
    }
    let mut plain = kept.plain(rank)?;
    plain.tensors.extend(cut);
    plain.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((plain, modules))
}

/// The two halves of one rank, and all singular values, the greatest first.
struct Factors {
    a: AdapterTensor,
    b: AdapterTensor,
    values: Vec<f64>,
}

fn factors(a: &AdapterTensor, b: &AdapterTensor, scale: f64, rank: usize) -> Option<Factors> {
    let (found, inputs, outputs) = (a.dims[0], a.dims[1], b.dims[0]);
    let finite = |tensor: &AdapterTensor| tensor.values.iter().all(|value| value.is_finite());
    if !finite(a) || !finite(b) || !scale.is_finite() {
        return None;
    }
    let left = Mat::from_fn(outputs, found, |row, column| f64::from(b.values[row * found + column]) * scale).qr();
    let right = Mat::from_fn(inputs, found, |row, column| f64::from(a.values[column * inputs + row])).qr();
    let core = (left.thin_R() * right.thin_R().transpose()).thin_svd().ok()?;
    let values: Vec<f64> = core.S().column_vector().iter().copied().collect();
    let kept = rank.min(values.len());
    let roots: Vec<f64> = values.iter().take(kept).map(|value| value.sqrt()).collect();
    let (left, right) = (rotated(&left, core.U(), &roots, outputs), rotated(&right, core.V(), &roots, inputs));
    let mut b = AdapterTensor { name: b.name.clone(), dims: vec![outputs, rank], values: vec![0.0; outputs * rank] };
    let mut a = AdapterTensor { name: a.name.clone(), dims: vec![rank, inputs], values: vec![0.0; rank * inputs] };
    for column in 0..kept {
        (0..outputs).for_each(|row| b.values[row * rank + column] = left[(row, column)] as f32);
        (0..inputs).for_each(|row| a.values[column * inputs + row] = right[(row, column)] as f32);
    }
    Some(Factors { a, b, values })
}

/// Q times the first `roots.len()` of `vectors`, each times its root. Q is applied as it was found, which is less work than
/// to form it: only a few columns are wanted.
fn rotated(qr: &Qr<f64>, vectors: MatRef<f64>, roots: &[f64], rows: usize) -> Mat<f64> {
    let start = |row: usize, column: usize| if row < vectors.nrows() { vectors[(row, column)] * roots[column] } else { 0.0 };
    let mut columns = Mat::from_fn(rows, roots.len(), start);
    let (basis, factor) = (qr.Q_basis(), qr.Q_coeff());
    let room = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(rows, factor.nrows(), roots.len());
    let (mut buffer, to) = (MemBuffer::new(room), columns.as_mut());
    let stack = MemStack::new(&mut buffer);
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(basis, factor, Conj::No, to, Par::Seq, stack);
    columns
}

/// `||scale B A||^2`, as the trace of (B^T B)(A A^T).
fn energy(a: &AdapterTensor, b: &AdapterTensor, scale: f64) -> f64 {
    let (rank, inputs, outputs) = (a.dims[0], a.dims[1], b.dims[0]);
    let right = Mat::from_fn(inputs, rank, |row, column| f64::from(a.values[column * inputs + row]));
    let left = Mat::from_fn(outputs, rank, |row, column| f64::from(b.values[row * rank + column]) * scale);
    let (left, right) = (left.transpose() * &left, right.transpose() * &right);
    (0..rank).flat_map(|row| (0..rank).map(move |column| (row, column))).map(|at| left[at] * right[at]).sum()
}

#[cfg(test)]
mod tests {
    use super::super::plain::tests::{furthest, mixed, scattered, update};
    use super::*;

    /// The eigenvalues of (s B A)^T (s B A), largest first, by Jacobi's rotations: the squares of the singular values.
    fn squared_singular_values(update: &[f64], inputs: usize) -> Vec<f64> {
        let mut matrix = vec![vec![0.0; inputs]; inputs];
        for row in update.chunks_exact(inputs) {
            for (i, j) in (0..inputs).flat_map(|i| (0..inputs).map(move |j| (i, j))) {
                matrix[i][j] += row[i] * row[j];
            }
        }
        for _ in 0..50 {
            for (p, q) in (0..inputs).flat_map(|p| (p + 1..inputs).map(move |q| (p, q))) {
                let angle = 0.5 * (2.0 * matrix[p][q]).atan2(matrix[q][q] - matrix[p][p]);
                let (sine, cosine) = angle.sin_cos();
                for row in &mut matrix {
                    (row[p], row[q]) = (cosine * row[p] - sine * row[q], sine * row[p] + cosine * row[q]);
                }
                let (above, below) = matrix.split_at_mut(q);
                for (a, b) in above[p].iter_mut().zip(&mut below[0]) {
                    (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
                }
            }
        }
        let mut found: Vec<f64> = (0..inputs).map(|i| matrix[i][i]).collect();
        found.sort_by(|a, b| b.total_cmp(a));
        found
    }

    #[test]
    fn what_is_left_out_is_what_is_said_and_no_more_than_must_be() {
        let mixed = mixed();
        for rank in 1..=5 {
            let (cut, lost) = truncate(&mixed, rank).unwrap();
            assert_eq!((cut.config.rank, cut.config.alpha, cut.config.rslora), (rank, rank as f64, false));
            assert_eq!(cut.tensor("base_model.model.score.weight"), mixed.tensor("base_model.model.score.weight"));
            for found in &lost {
                let (a, b) = cut.halves(&found.module).unwrap();
                assert_eq!((a.dims[0], b.dims[1]), (rank, rank));
                let (before, after) = (update(&mixed, &found.module), update(&cut, &found.module));
                let squares = squared_singular_values(&before, a.dims[1]);
                let least: f64 = squares[rank..].iter().sum();
                let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
                let gone = norm(&mut before.iter().zip(&after).map(|(a, b)| a - b));
                let all = norm(&mut before.iter().copied());
                assert!((gone - least).abs() < 1e-5 * all && (found.discarded - least).abs() < 1e-9 * all, "{found:?} {gone} {least}");
                assert!((found.energy - all).abs() < 1e-9 * all && found.discarded <= found.energy, "{found:?} {all}");
                if rank >= found.rank {
                    assert_eq!(found.discarded, 0.0);
                    assert!(furthest(&before, &after) < 1e-6);
                }
            }
            let least = lost.iter().map(|module| module.discarded).sum::<f64>() / lost.iter().map(|module| module.energy).sum::<f64>();
            assert_eq!(Truncated::share(&lost), least);
            assert!(rank >= 4 || least > 1e-3, "rank {rank} loses something: {least}");
        }
    }

    #[test]
    fn both_halves_get_the_same_share_of_every_singular_value() {
        let (cut, _) = truncate(&mixed(), 2).unwrap();
        let (a, b) = cut.halves("model.layers.0.self_attn.v_proj").unwrap();
        for k in 0..2 {
            let row: f64 = a.values[k * 6..][..6].iter().map(|x| f64::from(x * x)).sum();
            let column: f64 = b.values.chunks_exact(2).map(|row| f64::from(row[k] * row[k])).sum();
            assert!((row - column).abs() < 1e-5 * row && row > 0.1, "{row} {column}");
        }
    }

    /// Of 8 inputs and rank 12 there are no more than 8 singular values: the rest is filled up with zeros.
    #[test]
    fn a_rank_above_what_a_matrix_can_have_is_filled_up() {
        let tensor = |which, dims: [usize; 2]| AdapterTensor {
            name: Adapter::tensor_name("m", which),
            dims: dims.to_vec(),
            values: (0..dims[0] * dims[1]).map(|i| scattered(i + dims[0])).collect(),
        };
        let config = super::super::AdapterConfig::plain(12, 6.0, vec!["m".into()]);
        let wide = Adapter { config, tensors: vec![tensor('A', [12, 8]), tensor('B', [9, 12])] };
        let (cut, lost) = truncate(&wide, 10).unwrap();
        assert!(lost[0].discarded < 1e-20 * lost[0].energy);
        assert!(furthest(&update(&wide, "m"), &update(&cut, "m")) < 1e-5);
        let (a, b) = cut.halves("m").unwrap();
        assert!(a.values[8 * 8..].iter().all(|x| *x == 0.0) && b.values.chunks_exact(10).all(|row| row[8..] == [0.0, 0.0]));
    }

    #[test]
    fn nothing_is_made_of_values_that_are_no_numbers() {
        for (place, rank) in [(0, 1), (3, 2), (2, 4)] {
            let mut broken = mixed();
            broken.tensors[place].values[1] = f32::NAN;
            let refused = truncate(&broken, rank).unwrap_err().to_string();
            assert!(refused.ends_with("holds values that are no numbers"), "{refused}");
        }
        // An adapter that was never trained has nothing to lose.
        let mut untrained = mixed();
        untrained.tensors.iter_mut().filter(|tensor| tensor.name.contains("lora_B")).for_each(|b| b.values.fill(0.0));
        let (cut, lost) = truncate(&untrained, 1).unwrap();
        assert_eq!(Truncated::share(&lost), 0.0);
        assert!(cut.modules().iter().all(|module| update(&cut, module).iter().all(|x| *x == 0.0)));
    }
}
