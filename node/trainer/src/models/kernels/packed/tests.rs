//! Both products against plain loops.

use super::super::panels::units;
use super::super::testing::noise;
use super::*;

/// `a (m, k) b (k, n)` in f64, with `b` given by a function.
fn plain(m: usize, n: usize, k: usize, a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32) -> Vec<f64> {
    let one = |i: usize, j: usize| (0..k).map(|l| f64::from(a(i, l)) * f64::from(b(l, j))).sum();
    (0..m * n).map(|at| one(at / n, at % n)).collect()
}

fn close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{at}: {found}, expected {expected}");
    }
}

/// Sizes with and without tails in every direction; one longer than a visit of a tile, one with more than one chunk.
const SIZES: [(usize, usize, usize); 7] =
    [(1, 32, 32), (3, 5, 7), (17, 40, 33), (64, 64, 96), (15, 1500, 70), (5, 40, 1450), (400, 31, 65)];

#[test]
fn both_products_agree_with_plain_loops() {
    for (rows, inputs, outputs) in SIZES {
        let (w, x, g) = (noise(1, outputs * inputs), noise(2, rows * inputs), noise(3, rows * outputs));
        let packed = Packed::new(&[&w], inputs);
        assert_eq!(packed.unpack(), w);
        let y = plain(rows, outputs, inputs, |i, l| x[i * inputs + l], |l, j| w[j * inputs + l]);
        let dx = plain(rows, inputs, outputs, |i, l| g[i * outputs + l], |l, j| w[l * inputs + j]);
        close(&packed.forward(&x, rows, &[], None, None), &y);
        close(&packed.backward(&g, rows, &[], None), &dx);
        let plus = |sum: &[f64], onto: &[f32]| sum.iter().zip(onto).map(|(a, b)| a + f64::from(*b)).collect::<Vec<_>>();
        close(&packed.forward(&x, rows, &[], None, Some(g.clone())), &plus(&y, &g));
        close(&packed.backward(&g, rows, &[], Some(x.clone())), &plus(&dx, &x));
    }
}

/// Over threads each element is the same chain of multiply-adds.
#[test]
fn split_products_have_the_bits_of_whole_ones() {
    for (rows, inputs, outputs) in [(1, 70, 300), (3, 1500, 129), (8, 40, 640), (33, 96, 31)] {
        let (w, x, onto) = (noise(1, outputs * inputs), noise(2, rows * inputs), noise(3, rows * outputs));
        let (u, b) = (noise(4, rows * 5), noise(5, (outputs - 9) * 5));
        let low = [Low { u: &u, b: &b, rank: 5, from: 9, count: outputs - 9, scale: 0.5, laid_out: None }];
        let rights = [low[0].right(outputs)];
        for packed in [Packed::new(&[&w], inputs), Packed::new_bf16(&[&w], inputs)] {
            for onto in [None, Some(onto.clone())] {
                let whole = packed.forward(&x, rows, &low, None, onto.clone());
                assert!(packed.forward_split(&x, rows, &low, &rights, onto) == whole, "{rows} {inputs} {outputs}");
            }
        }
    }
}

#[test]
fn low_rank_parts_and_bias_ride_along() {
    // Three maps of one input; the second begins within a panel. One rank is more than a panel wide.
    let (rows, inputs, counts, ranks) = (37, 70, [48, 20, 65], [8, 40, 3]);
    let outputs = counts.iter().sum();
    let weights: Vec<Vec<f32>> = counts.iter().enumerate().map(|(i, count)| noise(i as u64, count * inputs)).collect();
    let packed = Packed::new(&weights.iter().map(Vec::as_slice).collect::<Vec<_>>(), inputs);
    let (x, g, bias) = (noise(4, rows * inputs), noise(5, rows * outputs), noise(6, outputs));
    let mut w = weights.concat();
    let mut froms = Vec::new();
    let mut from = 0;
    let (mut us, mut bs, mut dus, mut a_s) = (vec![], vec![], vec![], vec![]);
    for (index, (count, rank)) in counts.into_iter().zip(ranks).enumerate() {
        let seed = 10 * (index as u64 + 1);
        froms.push(from);
        us.push(noise(seed, rows * rank));
        bs.push(noise(seed + 1, count * rank));
        dus.push(noise(seed + 2, rows * rank));
        a_s.push(noise(seed + 3, rank * inputs));
        from += count;
    }
    let low: Vec<Low> = (0..3)
        .map(|i| Low { u: &us[i], b: &bs[i], rank: ranks[i], from: froms[i], count: counts[i], scale: 0.5, laid_out: None })
        .collect();
    let back: Vec<LowBack> = (0..3).map(|i| LowBack { du: &dus[i], a: &a_s[i], rank: ranks[i], scale: 0.25 }).collect();
    let mut y = plain(rows, outputs, inputs, |i, l| x[i * inputs + l], |l, j| w[j * inputs + l]);
    let mut dx = plain(rows, inputs, outputs, |i, l| g[i * outputs + l], |l, j| w[l * inputs + j]);
    for i in 0..3 {
        let part = plain(rows, counts[i], ranks[i], |m, l| us[i][m * ranks[i] + l], |l, j| bs[i][j * ranks[i] + l]);
        for (at, part) in part.iter().enumerate() {
            y[at / counts[i] * outputs + froms[i] + at % counts[i]] += 0.5 * part;
        }
        let part = plain(rows, inputs, ranks[i], |m, l| dus[i][m * ranks[i] + l], |l, j| a_s[i][l * inputs + j]);
        dx.iter_mut().zip(part).for_each(|(dx, part)| *dx += 0.25 * part);
    }
    y.iter_mut().enumerate().for_each(|(at, y)| *y += f64::from(bias[at % outputs]));
    close(&packed.forward(&x, rows, &low, Some(&bias), None), &y);
    close(&packed.backward(&g, rows, &back, None), &dx);
    w.clear();
}

/// A row's result depends on nothing but the row: not on its neighbours, nor on threads.
#[test]
fn bits_do_not_depend_on_rows_or_threads() {
    let (rows, inputs, outputs) = (700, 1440, 1100);
    let (w, x, g) = (noise(1, outputs * inputs), noise(2, rows * inputs), noise(3, rows * outputs));
    let packed = Packed::new(&[&w], inputs);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (packed.forward(&x, rows, &[], None, None), packed.backward(&g, rows, &[], None)))
    };
    let (y, dx) = run(1);
    assert!((y.clone(), dx.clone()) == run(3));
    let row = 613;
    assert!(packed.forward(&x[row * inputs..][..inputs], 1, &[], None, None) == y[row * outputs..][..outputs]);
    assert!(packed.backward(&g[row * outputs..][..outputs], 1, &[], None) == dx[row * inputs..][..inputs]);
}

#[test]
fn every_unit_computes_the_same() {
    let (rows, inputs, outputs) = (29, 75, 50);
    let (w, x) = (noise(1, outputs * inputs), noise(2, rows * inputs));
    let expected = plain(rows, outputs, inputs, |i, l| x[i * inputs + l], |l, j| w[j * inputs + l]);
    let (w_rounded, x_rounded) = (rounded(&w), rounded(&x));
    let expected_rounded = plain(rows, outputs, inputs, |i, l| x_rounded[i * inputs + l], |l, j| w_rounded[j * inputs + l]);
    for unit in units() {
        for (element, length, expected) in [(Element::Single, inputs, &expected), (Element::Pair, inputs.div_ceil(2), &expected_rounded)] {
            let elements = |from: &[f32], rows: usize| match element {
                Element::Single => from.to_vec(),
                Element::Pair => {
                    let mut to = vec![0.0; rows * length];
                    paired(from, rows, inputs, &mut to);
                    to
                }
            };
            let (w, x) = (elements(&w, outputs), elements(&x, rows));
            let mut left = Lines::zeros(panels_length(rows, length));
            pack(&x, length, rows, length, left.values_mut());
            let mut right = Lines::zeros(panels_length(length, outputs));
            unit.pack_transposed(&w, length, outputs, length, right.values_mut());
            let product = Product {
                rows,
                columns: outputs,
                length,
                element,
                left: Panels { values: left.values(), rows },
                right: Right::Panels(Panels { values: right.values(), rows: length }),
                extras: &[],
            };
            let (mut y, mut across) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
            // SAFETY: both hold the whole product.
            unsafe {
                product.compute(unit, y.as_mut_ptr(), outputs, false, false, &mut Lines::default());
                product.compute(unit, across.as_mut_ptr(), rows, true, true, &mut Lines::default());
            }
            close(&y, expected);
            assert!((0..rows * outputs).all(|at| across[at % outputs * rows + at / outputs] == y[at]));
        }
    }
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect()
}

#[test]
fn pairs_of_bf16_agree_with_rounded_values() {
    for (rows, inputs, outputs) in SIZES {
        let (w, x, g) = (noise(1, outputs * inputs), noise(2, rows * inputs), noise(3, rows * outputs));
        let packed = Packed::new_bf16(&[&w], inputs);
        let (w, x_rounded, g_rounded) = (rounded(&w), rounded(&x), rounded(&g));
        assert_eq!(packed.unpack(), w);
        let y = plain(rows, outputs, inputs, |i, l| x_rounded[i * inputs + l], |l, j| w[j * inputs + l]);
        let dx = plain(rows, inputs, outputs, |i, l| g_rounded[i * outputs + l], |l, j| w[l * inputs + j]);
        close(&packed.forward(&x, rows, &[], None, None), &y);
        close(&packed.backward(&g, rows, &[], None), &dx);
        // Low-rank parts stay in f32. A rank above a panel's width meets every block of inputs.
        let rank = 35;
        let (u, b, a) = (noise(4, rows * rank), noise(5, outputs * rank), noise(6, rank * inputs));
        let mut sum = plain(rows, outputs, rank, |i, l| u[i * rank + l], |l, j| b[j * rank + l]);
        sum.iter_mut().zip(&y).for_each(|(sum, y)| *sum += y);
        let low = Low { u: &u, b: &b, rank, from: 0, count: outputs, scale: 1.0, laid_out: None };
        close(&packed.forward(&x, rows, &[low], None, None), &sum);
        let mut sum = plain(rows, inputs, rank, |i, l| u[i * rank + l], |l, j| a[l * inputs + j]);
        sum.iter_mut().zip(&dx).for_each(|(sum, dx)| *sum += dx);
        close(&packed.backward(&g, rows, &[LowBack { du: &u, a: &a, rank, scale: 1.0 }], None), &sum);
    }
}

#[test]
fn bf16_keeps_what_is_no_number() {
    for value in [f32::NAN, f32::INFINITY, f32::from_bits(0x7f80_0001)] {
        let y = Packed::new_bf16(&[&[1.0]], 1).forward(&[value], 1, &[], None, None);
        assert!(!y[0].is_finite(), "{value} became {}", y[0]);
    }
}
