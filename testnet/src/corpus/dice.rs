//! A small seeded generator of chance (SplitMix64), the same on every machine and in every build.
//!
//! Refuses: to be used for keys or for anything an adversary might guess. Streams are named, so that the held-out
//! questions, each shard and the pre-training text never share a sequence although they share a seed.

/// One named stream of draws. Two dice with the same seed and name give the same draws for ever.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// The stream `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Dice {
        // FNV-1a of the name, stirred into the seed: enough to keep streams apart, and nothing more is claimed.
        let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in name.bytes() {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let mut dice = Dice { state };
        dice.bits();
        dice
    }

    /// The next 64 bits (SplitMix64, Steele, Lea and Flood 2014).
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A whole number below `bound`, which must not be zero. The bias of the multiply-shift is below 2^-32 here.
    pub fn below(&mut self, bound: usize) -> usize {
        let high = self.bits() >> 32;
        ((high * bound as u64) >> 32) as usize
    }

    /// A whole number from `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// One entry of a list that is not empty.
    pub fn pick<'list, T: ?Sized>(&mut self, list: &[&'list T]) -> &'list T {
        list[self.below(list.len())]
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// `count` different entries of a list of at least that many, in random order.
    pub fn several<'list, T: ?Sized>(&mut self, list: &[&'list T], count: usize) -> Vec<&'list T> {
        let mut places: Vec<usize> = (0..list.len()).collect();
        self.shuffle(&mut places);
        places.into_iter().take(count).map(|place| list[place]).collect()
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_apart() {
        let draw = |seed, name| {
            let mut dice = Dice::new(seed, name);
            (0..4).map(|_| dice.bits()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7, "corpus"), draw(7, "corpus"));
        assert_ne!(draw(7, "corpus"), draw(7, "held-out"));
        assert_ne!(draw(7, "corpus"), draw(8, "corpus"));
    }

    #[test]
    fn bounds_are_kept_and_reached() {
        let mut dice = Dice::new(1, "bounds");
        let mut seen = [false; 5];
        for _ in 0..400 {
            seen[dice.between(3, 7) - 3] = true;
        }
        assert!(seen.iter().all(|met| *met));
    }
}
