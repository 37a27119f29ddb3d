//! Any order, any repetition, any pieces, any coming and going: one hash.

use proptest::prelude::*;

use super::*;
use crate::number::dispatch::Lanes;

/// Members of every history here.
const MEMBERS: usize = 6;

/// What happens to one member's adapter.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// It arrives, perhaps again: then the caller takes the first out.
    Arrives,
    /// It arrives cut into pieces at places drawn from a seed.
    ArrivesInPieces(u64),
    /// It is withdrawn, if it is there.
    Withdrawn,
    /// It is superseded by one of other values, weight and dtype, if it is there.
    Superseded,
    /// A poisoned copy is refused.
    Refused(u64),
}

#[derive(Clone)]
struct Adapter {
    file: Vec<u8>,
    weight: u64,
}

impl Adapter {
    fn drawn(draw: &mut Draw) -> Self {
        let dtype = DTYPES[draw.below(3) as usize];
        Self { file: any_file(draw.next(), dtype), weight: draw.weight() }
    }
}

fn fold_in_pieces(accumulator: &mut Accumulator, adapter: &Adapter, direction: Direction, seed: u64) {
    let layout = Layout::parse(&adapter.file, adapter.file.len() as u64, &small_tensors()).unwrap();
    let mut data = layout.data_of(&adapter.file);
    let mut draw = Draw(seed);
    let longest = [3, 9, 60, 1000][draw.below(4) as usize];
    let mut fold = accumulator.begin(&layout, adapter.weight, direction).unwrap();
    while !data.is_empty() {
        let (piece, rest) = data.split_at((draw.below(longest) as usize).min(data.len()));
        fold.push(piece).unwrap();
        data = rest;
    }
    fold.finish().unwrap();
}

fn poison(file: &mut [u8], draw: &mut Draw) {
    let data = file.len() - 84;
    // Two neighbouring bytes of all ones make NaN of any dtype, if they are the upper bytes of an element.
    let element = data + 4 * draw.below(21) as usize;
    file[element..element + 4].fill(0xff);
}

fn happen(
    accumulator: &mut Accumulator,
    present: &mut [Option<Adapter>],
    member: usize,
    happening: Happening,
    adapter: &Adapter,
    draw: &mut Draw,
) {
    let slot = &mut present[member];
    match happening {
        Happening::Arrives => {
            if let Some(old) = slot.take() {
                accumulator.retract(&old.file, old.weight).unwrap();
            }
            accumulator.add(&adapter.file, adapter.weight).unwrap();
            *slot = Some(adapter.clone());
        }
        Happening::ArrivesInPieces(seed) => {
            if let Some(old) = slot.take() {
                fold_in_pieces(accumulator, &old, Direction::Retract, !seed);
            }
            fold_in_pieces(accumulator, adapter, Direction::Add, seed);
            *slot = Some(adapter.clone());
        }
        Happening::Withdrawn => {
            if let Some(old) = slot.take() {
                accumulator.retract(&old.file, old.weight).unwrap();
            }
        }
        Happening::Superseded => {
            if let Some(old) = slot.take() {
                let new = Adapter::drawn(draw);
                accumulator.retract(&old.file, old.weight).unwrap();
                accumulator.add(&new.file, new.weight).unwrap();
                *slot = Some(new);
            }
        }
        Happening::Refused(seed) => {
            let mut file = adapter.file.clone();
            poison(&mut file, &mut Draw(seed));
            assert!(matches!(accumulator.add(&file, 1), Err(MergeError::Adapter(AdapterError::Nan { .. }))));
        }
    }
}

fn happenings() -> impl Strategy<Value = Vec<(usize, Happening)>> {
    let happening = prop_oneof![
        3 => Just(Happening::Arrives),
        3 => any::<u64>().prop_map(Happening::ArrivesInPieces),
        2 => Just(Happening::Withdrawn),
        1 => Just(Happening::Superseded),
        1 => any::<u64>().prop_map(Happening::Refused),
    ];
    prop::collection::vec((0..MEMBERS, happening), 1..16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_merges_to_the_bytes_of_its_last_state(seed in any::<u64>(), history in happenings()) {
        let mut draw = Draw(seed);
        let adapters: Vec<Adapter> = (0..MEMBERS).map(|_| Adapter::drawn(&mut draw)).collect();
        let lanes = Lanes::all();
        let lanes = lanes[draw.below(lanes.len() as u64) as usize];
        let mut accumulator = Accumulator::with_lanes(small_tensors(), lanes);
        let mut present = vec![None; MEMBERS];
        for (member, happening) in history {
            happen(&mut accumulator, &mut present, member, happening, &adapters[member], &mut draw);
        }
        let mut fresh = Accumulator::new(&small_tensors());
        for adapter in present.iter().flatten() {
            fresh.add(&adapter.file, adapter.weight).unwrap();
        }
        prop_assert_eq!(&accumulator.sums, &fresh.sums);
        prop_assert_eq!(accumulator.members(), present.iter().flatten().count() as u64);
        prop_assert_eq!(accumulator.total_weight(), fresh.total_weight());
        prop_assert_eq!(accumulator.finalise(), fresh.finalise());
    }
}

#[test]
fn several_files_at_once_are_the_same_as_one_after_another() {
    let mut draw = Draw(9);
    for _ in 0..300 {
        let adapters: Vec<Adapter> = (0..MEMBERS).map(|_| Adapter::drawn(&mut draw)).collect();
        let layouts: Vec<Layout> = adapters.iter().map(|adapter| crate::adapter::check(&adapter.file, &small_tensors()).unwrap()).collect();
        let mut accumulator = Accumulator::new(&small_tensors());
        accumulator.add(&adapters[0].file, adapters[0].weight).unwrap();
        // The first goes out while the others come in.
        let direction = |index| if index == 0 { Direction::Retract } else { Direction::Add };
        let files: Vec<_> = (0..MEMBERS).map(|index| (&layouts[index], adapters[index].weight, direction(index))).collect();
        let mut fold = accumulator.begin_all(&files).unwrap();
        let mut data: Vec<&[u8]> = (0..MEMBERS).map(|index| layouts[index].data_of(&adapters[index].file)).collect();
        while data.iter().any(|data| !data.is_empty()) {
            let file = draw.below(MEMBERS as u64) as usize;
            let (piece, rest) = data[file].split_at((draw.below(40) as usize).min(data[file].len()));
            fold.push_to(file, piece).unwrap();
            data[file] = rest;
        }
        assert_eq!(fold.push_to(MEMBERS, &[]), Err(MergeError::NoSuchFile { file: MEMBERS, begun: MEMBERS }));
        fold.finish().unwrap();
        let mut fresh = Accumulator::new(&small_tensors());
        for adapter in &adapters[1..] {
            fresh.add(&adapter.file, adapter.weight).unwrap();
        }
        assert_eq!(accumulator.sums, fresh.sums);
        assert_eq!((accumulator.members(), accumulator.total_weight()), (fresh.members(), fresh.total_weight()));
    }
}

#[test]
fn every_order_of_six_adapters_merges_to_one_hash() {
    let mut draw = Draw(6);
    let adapters: Vec<Adapter> = (0..MEMBERS).map(|_| Adapter::drawn(&mut draw)).collect();
    let merge = |order: &[usize]| {
        let mut accumulator = Accumulator::new(&small_tensors());
        for member in order {
            accumulator.add(&adapters[*member].file, adapters[*member].weight).unwrap();
        }
        (ContentHash::of(&accumulator.finalise().unwrap()), accumulator.sums)
    };
    let expected = merge(&[0, 1, 2, 3, 4, 5]);
    let mut orders = 0;
    let mut order = [0, 1, 2, 3, 4, 5];
    every_order(&mut order, 0, &mut |order| {
        assert!(merge(order) == expected, "{order:?}");
        orders += 1;
    });
    assert_eq!(orders, 720);
    assert_ne!(merge(&[0, 1, 2, 3, 4]).0, expected.0);
}

fn every_order(items: &mut [usize; MEMBERS], from: usize, visit: &mut impl FnMut(&[usize; MEMBERS])) {
    if from == MEMBERS {
        return visit(items);
    }
    for next in from..MEMBERS {
        items.swap(from, next);
        every_order(items, from + 1, visit);
        items.swap(from, next);
    }
}
