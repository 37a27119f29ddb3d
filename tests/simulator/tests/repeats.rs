//! A seed names one history: played twice it is the same to the last event.

use mingle_simulator::{Class, play};

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..6 {
        let class = Class::small();
        let (once, again) = (play(seed, &class), play(seed, &class));
        match (once, again) {
            (Ok(once), Ok(again)) => assert_eq!(once, again, "seed {seed}"),
            (Err(once), Err(again)) => assert_eq!(once.last, again.last, "seed {seed}"),
            _ => panic!("seed {seed} fails only sometimes"),
        }
    }
    let traces: Vec<_> = (0..6).filter_map(|seed| play(seed, &Class::small()).ok()).map(|outcome| outcome.trace).collect();
    assert!(traces.windows(2).all(|pair| pair[0] != pair[1]), "different seeds give different histories");
}
