//! Dropout whose mask is a function of a seed and an element's index, so that the backward draws the same mask again
//! instead of keeping it, and every device draws the same.

use super::vector::vectorised;

/// What survives is drawn from 32 bits of index and seed, mixed by the finaliser of MurmurHash3 after a multiplication.
#[inline(always)]
fn mix(index: u32, seed: u64) -> u32 {
    let mut h = index.wrapping_mul(0x9e37_79b9) ^ seed as u32;
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b) ^ (seed >> 32) as u32;
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Draws below this are dropped.
pub(crate) fn threshold(p: f32) -> u32 {
    (f64::from(p) * 4_294_967_296.0) as u32
}

vectorised! {
    fn apply(x: &mut [f32], threshold: u32, keep: f32, seed: u64) {
        for (index, x) in x.iter_mut().enumerate() {
            *x = if mix(index as u32, seed) < threshold { 0.0 } else { *x * keep };
        }
    }
}

/// Sets a part `p` of `x` to 0 and scales the rest by `1 / (1 - p)`. Its own backward: the gradient meets the same mask.
pub(crate) fn dropout(x: &[f32], p: f32, seed: u64) -> Vec<f32> {
    let mut y = x.to_vec();
    apply(&mut y, threshold(p), 1.0 / (1.0 - p), seed);
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_dropped_and_the_mean_stays() {
        let ones = vec![1.0; 100_000];
        let y = dropout(&ones, 0.3, 7);
        let dropped = y.iter().filter(|y| **y == 0.0).count() as f64 / 1e5;
        assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
        assert!((y.iter().sum::<f32>() / 1e5 - 1.0).abs() < 0.01);
        assert_eq!(y, dropout(&ones, 0.3, 7));
        // Another seed draws independently: both drop 0.09 of all.
        let both = y.iter().zip(dropout(&ones, 0.3, 8)).filter(|(a, b)| **a == 0.0 && *b == 0.0).count() as f64 / 1e5;
        assert!((both - 0.09).abs() < 0.01, "{both}");
        assert_eq!(dropout(&ones, 0.0, 7), ones);
    }
}
