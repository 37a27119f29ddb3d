//! How long the exact mean of ten adapters of 40 million elements takes on one core (seconds of the processor, so that others'
//! work does not count), all of it in memory: values checked, folded, and the merged file made. Also what the tenth and the thousandth member of a
//! running mean cost. `tests/by_hand/merge_speed.py` runs it beside other programs' means.
//! `cargo run --release -p mingle-protocol --example mean_speed`

use mingle_protocol::adapter::{Dtype, Layout, LoraShape, MergedFile, Module, TensorList, Updates, canonical_header};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::{Accumulator, Direction, Factor, Member, MergeError, MergeRule, Plan};
use mingle_protocol::number::seeded_uniform;

const MEMBERS: usize = 10;
const MODULES: usize = 152;
const WIDTH: u64 = 2048;
const RANK: u32 = 64;
const RUNS: usize = 5;
/// What is taken of every file before more of the first is: small enough to stay in the cache.
const PIECE_BYTES: usize = 16_384;

fn main() {
    let module = |index| Module { name: format!("layers.{index}"), inputs: WIDTH, outputs: WIDTH };
    let shape = LoraShape::new(RANK, RANK, [0; 32], (0..MODULES).map(module).collect());
    let tensors = shape.tensors().expect("a shape within its bounds");
    let elements = tensors.elements();
    let file = |member: usize| {
        let mut file = canonical_header(&tensors, Dtype::F32);
        let values = seeded_uniform(&[member as u8; 32], "mean", 1 << 20, 4096).collect::<Vec<f32>>();
        for value in values.iter().cycle().take(elements as usize) {
            file.extend_from_slice(&value.to_le_bytes());
        }
        file
    };
    let files: Vec<Vec<u8>> = (0..MEMBERS).map(file).collect();
    let layout = |file: &Vec<u8>| Layout::parse(file, file.len() as u64, &tensors).expect("a canonical file");
    let layouts: Vec<Layout> = files.iter().map(layout).collect();

    let one_by_one = least(|| {
        let mut mean = Accumulator::new(&tensors);
        for (member, file) in files.iter().enumerate() {
            mean.add(file, 100 + member as u64).expect("a canonical file");
        }
        mean.finalise().expect("adapters")
    });
    let together = least(|| {
        let mut mean = Accumulator::new(&tensors);
        let begun: Vec<_> = layouts.iter().enumerate().map(|(member, layout)| (layout, 100 + member as u64, Direction::Add)).collect();
        let mut fold = mean.begin_all(&begun).expect("weights within their bounds");
        let data: Vec<&[u8]> = files.iter().zip(&layouts).map(|(file, layout)| layout.data_of(file)).collect();
        for start in (0..data[0].len()).step_by(PIECE_BYTES) {
            for (member, data) in data.iter().enumerate() {
                fold.push_to(member, &data[start..data.len().min(start + PIECE_BYTES)]).expect("values within their bounds");
            }
        }
        fold.finish().expect("whole files");
        mean.finalise().expect("adapters")
    });
    // Without running sums: a piece of every file at a time, as `mingle merge` and `mingle verify` do.
    let updates = Updates::of_pairs(&tensors, |_| 1.0);
    let plan = Plan::new(MergeRule::Mean, None, updates.clone(), MergedFile::of_means(tensors.clone()));
    let anew = least(|| {
        let mut members = Vec::new();
        for (index, (file, layout)) in files.iter().zip(&layouts).enumerate() {
            let (key, weight) = ([index as u8; 32], 100 + index as u64);
            let (key, adapter) = (MemberKey(key), ContentHash(key));
            members.push(Member { key, adapter, weight, clip: Factor::ONE, layout, updates: &updates, data: file });
        }
        let mut merged = Vec::with_capacity(files[0].len());
        plan.recompute(&members, |piece| {
            merged.extend_from_slice(piece);
            Ok::<(), MergeError>(())
        })
        .expect("adapters");
        merged
    });
    assert_eq!(one_by_one.1, together.1, "in any order the same bytes");
    assert_eq!(one_by_one.1, anew.1, "in any way the same bytes");
    let [tenth, thousandth] = late_members(&tensors, &files);
    println!(
        "{{\"elements\": {elements}, \"members\": {MEMBERS}, \"one_by_one_s\": {:.3}, \"together_s\": {:.3}, \"anew_s\": {:.3}, \
         \"member_10_s\": {tenth:.4}, \"member_1000_s\": {thousandth:.4}}}",
        one_by_one.0, together.0, anew.0
    );
}

/// What it costs a running mean to take in one more adapter when it has ten, and when it has a thousand: the median of those
/// around.
fn late_members(tensors: &TensorList, files: &[Vec<u8>]) -> [f64; 2] {
    let mut mean = Accumulator::new(tensors);
    let mut seconds = Vec::new();
    for member in 0..1010 {
        let begun = processor_s();
        mean.add(&files[member % files.len()], 100 + member as u64).expect("a canonical file");
        seconds.push(processor_s() - begun);
    }
    [10, 1000].map(|member| {
        let mut around = seconds[member - 5..member + 5].to_vec();
        around.sort_by(f64::total_cmp);
        around[5]
    })
}

fn least(run: impl Fn() -> Vec<u8>) -> (f64, Vec<u8>) {
    let mut found = (f64::INFINITY, Vec::new());
    for _ in 0..RUNS {
        let begun = processor_s();
        let merged = run();
        found = (found.0.min(processor_s() - begun), merged);
    }
    found
}

/// Seconds that this thread has had a processor, as Linux tells them.
fn processor_s() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with its scheduler's statistics");
    told.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}
