//! Row arithmetic that the compiler vectorises, compiled for AVX-512 and AVX2 beside the portable form and chosen at run
//! time. All forms compute the same values bit for bit: multiply-adds are fused in each.

/// Declares a function whose body is also compiled for wider vector units.
macro_rules! vectorised {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $visibility fn $name($($arg: $type),*) {
            #[inline(always)]
            fn portable($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512($($arg: $type),*) {
                    portable($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) {
                    portable($($arg),*)
                }
                let fma = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
                let wide = std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq");
                if fma && wide {
                    // SAFETY: the processor has every feature that the function was compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if fma {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// Independent partial sums of a reduction: as many as the widest vector has lanes, and always as many, so that the
/// order of additions does not depend on the processor.
pub(crate) const LANES: usize = 16;

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for lane in 0..LANES {
            sums[lane] = a[lane].mul_add(b[lane], sums[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).fold(0.0, |sum, (a, b)| a.mul_add(*b, sum));
    sums.iter().sum::<f32>() + rest
}

/// Sum of `a b c`.
#[inline(always)]
pub(crate) fn dot_of_three(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    let (c_whole, c_rest) = c.as_chunks::<LANES>();
    for ((a, b), c) in a_whole.iter().zip(b_whole).zip(c_whole) {
        for lane in 0..LANES {
            sums[lane] = (a[lane] * b[lane]).mul_add(c[lane], sums[lane]);
        }
    }
    let rest = a_rest.iter().zip(b_rest).zip(c_rest).fold(0.0, |sum, ((a, b), c)| (a * b).mul_add(*c, sum));
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
pub(crate) fn max(row: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            most[lane] = if chunk[lane] > most[lane] { chunk[lane] } else { most[lane] };
        }
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a })
}

/// Replaces each `x` by `exp((x - shift) * scale)` and returns their sum.
#[inline(always)]
pub(crate) fn exp_in_place(row: &mut [f32], shift: f32, scale: f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            let value = exp((chunk[lane] - shift) * scale);
            chunk[lane] = value;
            sums[lane] += value;
        }
    }
    let mut sum = sums.iter().sum::<f32>();
    for value in rest {
        *value = exp((*value - shift) * scale);
        sum += *value;
    }
    sum
}

/// `exp` as `2^n * p(r)` (the polynomial of Cephes `expf`): relative error below 2e-7, no branch, no table.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, coefficient);
    }
    let y = (p * r).mul_add(r, r) + 1.0;
    y * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_parts_in_ten_million() {
        for step in -8600..8700 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) - expected).abs() <= 2e-7 * expected, "{x}");
        }
    }

    #[test]
    fn reductions_take_every_element() {
        for length in [1, 15, 16, 17, 40] {
            let row: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(max(&row), (length - 1) as f32);
            assert_eq!(dot(&row, &vec![1.0; length]), (length * (length - 1) / 2) as f32);
            let mut zeros = vec![0.0; length];
            assert_eq!(exp_in_place(&mut zeros, 0.0, 1.0), length as f32);
        }
    }
}
