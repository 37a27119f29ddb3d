//! The schedule against simulated providers: everything arrives, nothing is asked of who lacks it, little twice.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn pieces(count: usize) -> Vec<(u64, u64)> {
    vec![(MIB, MIB); count]
}

fn bits(count: u32, ones: impl IntoIterator<Item = u32>) -> Holds {
    let mut bits = Bits::none(count);
    ones.into_iter().for_each(|one| _ = bits.set(one));
    Holds::Some(bits)
}

/// A provider as the simulation moves it.
#[derive(Clone, Debug)]
struct Source {
    /// Bytes a second.
    speed: u64,
    holds: Holds,
    /// Stops sending after so many seconds, without a word.
    dies: Option<u64>,
}

struct Run {
    seconds: f64,
    sent: u64,
    by: Vec<u64>,
    asked: Vec<Vec<u32>>,
}

/// Moves time in steps of 10 ms until the schedule is complete. `None` when it does not end.
fn simulate(count: u32, sources: &[Source], seed: u64) -> Option<Run> {
    const STEP: Duration = Duration::from_millis(10);
    let mut schedule = Schedule::new(pieces(count as usize), seed);
    let mut left = vec![MIB; count as usize];
    let mut queues: Vec<VecDeque<(u32, u64)>> = vec![VecDeque::new(); sources.len()];
    let mut run = Run { seconds: 0.0, sent: 0, by: vec![0; sources.len()], asked: vec![Vec::new(); sources.len()] };
    let mut now = Duration::ZERO;
    for (peer, source) in sources.iter().enumerate() {
        schedule.holds(peer, source.holds.clone(), now);
    }
    for _ in 0..1_000_000 {
        for step in schedule.plan(now, u64::MAX) {
            match step {
                Step::Ask { peer, piece } => {
                    assert!(sources[peer].holds.has(piece), "asked of {peer}, who lacks it");
                    assert!(left[piece as usize] > 0, "asked for what is here");
                    queues[peer].push_back((piece, left[piece as usize]));
                    run.asked[peer].push(piece);
                    assert!(queues[peer].len() <= DEPTH_MAX_SMALL);
                }
                Step::Drop { peer, piece } => queues[peer].retain(|(queued, _)| *queued != piece),
            }
        }
        let alive = |peer: usize| sources[peer].dies.is_none();
        let twice = (0..count).find(|piece| {
            let asked = |peer: &usize| alive(*peer) && queues[*peer].iter().any(|(queued, _)| queued == piece);
            (0..sources.len()).filter(asked).count() > 2
        });
        assert_eq!(twice, None, "a piece is asked of more than two who send");
        if schedule.is_complete() {
            run.seconds = now.as_secs_f64();
            return Some(run);
        }
        now += STEP;
        for (peer, source) in sources.iter().enumerate() {
            let mut budget = source.speed / 100;
            if source.dies.is_some_and(|at| now.as_secs() >= at) {
                budget = 0;
            }
            while let Some((piece, owed)) = queues[peer].front_mut().filter(|_| budget > 0) {
                let moved = budget.min(*owed);
                (budget, *owed) = (budget - moved, *owed - moved);
                run.sent += moved;
                run.by[peer] += moved;
                let (piece, ended) = (*piece, *owed == 0);
                let missing = &mut left[piece as usize];
                let new = moved.min(*missing);
                *missing -= new;
                schedule.moved(peer, piece, moved, new, now);
                if ended {
                    queues[peer].pop_front();
                }
                if *missing == 0 {
                    for step in schedule.finished(piece, peer, now) {
                        let Step::Drop { peer, piece } = step else { panic!("{step:?}") };
                        queues[peer].retain(|(queued, _)| *queued != piece);
                    }
                    queues[peer].retain(|(queued, _)| *queued != piece);
                } else if ended {
                    schedule.released(peer, piece, *missing, now);
                }
            }
        }
    }
    None
}

fn honest(speed: u64) -> Source {
    Source { speed, holds: Holds::All, dies: None }
}

#[test]
fn four_equal_providers_are_four_times_as_fast() {
    let alone = simulate(128, &[honest(8 * MIB)], 1).unwrap();
    let four = simulate(128, &vec![honest(8 * MIB); 4], 1).unwrap();
    assert!(alone.seconds / four.seconds > 3.7, "{} s and {} s", alone.seconds, four.seconds);
    assert!(four.sent <= 130 * MIB, "{}", four.sent);
}

#[test]
fn a_slow_provider_does_not_hold_up_the_end() {
    let run = simulate(64, &[honest(16 * MIB), honest(100_000)], 2).unwrap();
    assert!(run.seconds < 5.0, "{} s", run.seconds);
    assert!(run.sent <= 67 * MIB, "{}", run.sent);
}

#[test]
fn who_goes_silent_loses_its_pieces() {
    let dying = Source { dies: Some(1), ..honest(8 * MIB) };
    let run = simulate(64, &[honest(8 * MIB), dying], 3).unwrap();
    assert!(run.seconds < 12.0, "{} s", run.seconds);
}

/// Two peers of which the first is asked for the only piece; what is asked of the second at each of these times.
fn second_asked(while_at_work: impl Fn(&mut Schedule<u32>, Duration), until: u64) -> Vec<(u64, Step<u32>)> {
    let mut schedule = Schedule::new(pieces(1), 6);
    schedule.holds(0, Holds::All, Duration::ZERO);
    assert_eq!(schedule.plan(Duration::ZERO, u64::MAX), [Step::Ask { peer: 0, piece: 0 }]);
    let mut steps = Vec::new();
    for second in 1..=until {
        let now = Duration::from_secs(second);
        while_at_work(&mut schedule, now);
        if second == 1 {
            schedule.holds(1, Holds::All, now);
        }
        steps.extend(schedule.plan(now, u64::MAX).into_iter().map(|step| (second, step)));
    }
    steps
}

#[test]
fn a_provider_that_is_slow_but_at_work_is_not_doubled_by_one_that_is_no_faster() {
    // 20 KiB a second: its piece of a MiB takes a minute, and the newcomer is not known to be any better.
    assert_eq!(second_asked(|schedule, now| schedule.alive(0, 20 << 10, now), 40), []);
    // Of the silent one it is asked again.
    assert_eq!(second_asked(|_, _| (), 40), [(3, Step::Ask { peer: 1, piece: 0 })]);
}

#[test]
fn what_a_provider_has_not_begun_for_others_are_served_first_goes_to_somebody_else() {
    let steps = second_asked(|schedule, now| schedule.alive(0, 0, now), 3);
    assert_eq!(steps, [(1, Step::Drop { peer: 0, piece: 0 }), (1, Step::Ask { peer: 1, piece: 0 })]);
}

#[test]
fn the_rarest_pieces_are_asked_first() {
    let mut schedule = Schedule::new(pieces(40), 4);
    let now = Duration::ZERO;
    (0..3_u32).for_each(|peer| schedule.holds(peer, bits(40, 0..30), now));
    (0..4).for_each(|piece| _ = schedule.finished(piece, 0, now));
    schedule.holds(9, Holds::All, now);
    let rare: BTreeSet<u32> = (30..40).collect();
    for step in schedule.plan(now, u64::MAX) {
        let Step::Ask { peer, piece } = step else { panic!("{step:?}") };
        assert_eq!(peer == 9, rare.contains(&piece), "{step:?}");
    }
    // Before a few pieces are there, the lot decides: different seeds begin differently.
    let first = |seed| {
        let mut schedule = Schedule::new(pieces(40), seed);
        schedule.holds(0, Holds::All, now);
        schedule.plan(now, u64::MAX).first().copied()
    };
    let firsts: BTreeSet<_> = (0..20).map(|seed| format!("{:?}", first(seed))).collect();
    assert!(firsts.len() > 5, "{firsts:?}");
}

#[test]
fn a_peer_that_lacks_what_it_promised_is_not_asked_for_it_again() {
    let mut schedule = Schedule::new(pieces(2), 5);
    let now = Duration::ZERO;
    schedule.holds(0, Holds::All, now);
    assert_eq!(schedule.plan(now, u64::MAX).len(), 2);
    schedule.lacks(0, 1, now);
    assert!(schedule.plan(now, u64::MAX).is_empty());
    schedule.finished(0, 0, now);
    assert!(schedule.plan(now + Duration::from_secs(60), u64::MAX).is_empty() && !schedule.is_complete());
    schedule.has(0, 1);
    assert_eq!(schedule.plan(now, u64::MAX), [Step::Ask { peer: 0, piece: 1 }]);
}

fn source(count: u32) -> impl Strategy<Value = Source> {
    let holds = prop_oneof![
        Just(Holds::All),
        prop::collection::vec(any::<bool>(), count as usize)
            .prop_map(move |held| bits(count, (0..).zip(held).filter(|(_, held)| *held).map(|(piece, _)| piece))),
    ];
    (prop_oneof![Just(200_000), Just(2 * MIB), Just(20 * MIB)], holds, prop::option::weighted(0.3, 0..5_u64))
        .prop_map(|(speed, holds, dies)| Source { speed, holds, dies })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With one that stays and has everything, it ends; what was sent beyond the blob is bounded.
    #[test]
    fn whatever_the_others_do_it_ends(count in 1..40_u32, others in prop::collection::vec(source(40), 0..5), seed: u64) {
        let mut sources = vec![honest(2 * MIB)];
        sources.extend(others.into_iter().map(|mut source| {
            if let Holds::Some(bits) = &source.holds {
                let ones: Vec<u32> = bits.ones().filter(|one| *one < count).collect();
                source.holds = super::tests::bits(count, ones);
            }
            source
        }));
        let dying = sources.iter().filter(|source| source.dies.is_some() || source.speed < MIB).count() as u64;
        let run = simulate(count, &sources, seed).expect("it does not end");
        let size = u64::from(count) * MIB;
        let bound = size + (size / REPEATED_PART).max(2 * MIB) + dying * DEPTH_MAX_SMALL as u64 * MIB;
        prop_assert!(run.sent <= bound, "{} of {size}", run.sent);
    }
}

#[test]
fn no_more_is_asked_for_than_there_is_room_for_and_nothing_twice_meanwhile() {
    let now = Duration::ZERO;
    let mut schedule = Schedule::new(pieces(64), 9);
    (0..8).for_each(|peer| schedule.holds(peer, Holds::All, now));
    assert_eq!(schedule.plan(now, 0).len(), 1, "one piece is always on its way");
    assert!(schedule.plan(now, 0).is_empty());
    // A second piece of one peer waits there, and is not on its way.
    while schedule.on_its_way(now) < 4 * MIB {
        let steps = schedule.plan(now, MIB);
        assert!(!steps.is_empty() && steps.iter().all(|step| matches!(step, Step::Ask { .. })));
    }
    assert!(schedule.plan(now, 0).is_empty());
    // Silent peers fill nothing, and idle ones that could be asked for something new take nothing over.
    let later = now + SILENT;
    assert_eq!(schedule.on_its_way(later), 0);
    let steps = schedule.plan(later, MIB);
    assert!(!steps.is_empty() && steps.iter().all(|step| matches!(step, Step::Ask { .. })), "{steps:?}");
    assert!(schedule.on_its_way(later) <= 2 * MIB);
}
