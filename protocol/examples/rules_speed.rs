//! What each rule costs, made anew from adapters in memory: seconds of the processor, the least of three runs.
//! `cargo run --release -p mingle-protocol --example rules_speed -- [members] [millions of elements]`

use mingle_protocol::adapter::{Dtype, Layout, LoraShape, MergedFile, Module, Updates, canonical_header};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::{Factor, Member, MergeError, MergeRule, Plan};
use mingle_protocol::number::seeded_uniform;

const WIDTH: u64 = 2048;
const RANK: u32 = 16;
const RUNS: usize = 3;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>().expect("a whole number"));
    let (members, millions) = (numbers.next().unwrap_or(20), numbers.next().unwrap_or(4));
    let modules = (millions * 1_000_000).div_ceil(2 * WIDTH as usize * RANK as usize);
    let module = |index| Module { name: format!("layers.{index}"), inputs: WIDTH, outputs: WIDTH };
    let shape = LoraShape::new(RANK, RANK, [0; 32], (0..modules).map(module).collect());
    let tensors = shape.tensors().expect("a shape within its bounds");
    let file = |member: usize| {
        let mut file = canonical_header(&tensors, Dtype::F32);
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&member.to_le_bytes());
        let values = seeded_uniform(&seed, "rules", 1 << 20, 4096).collect::<Vec<f32>>();
        for value in values.iter().cycle().take(tensors.elements() as usize) {
            file.extend_from_slice(&value.to_le_bytes());
        }
        file
    };
    let files: Vec<Vec<u8>> = (0..members).map(file).collect();
    let layouts: Vec<Layout> =
        files.iter().map(|file| Layout::parse(file, file.len() as u64, &tensors).expect("a canonical file")).collect();
    let updates = Updates::of_pairs(&tensors, |_| 1.0);
    let bad = (members as u32 - 3) / 2;
    println!("{members} adapters of {} elements", tensors.elements());
    let rules = [
        (MergeRule::Mean, None),
        (MergeRule::Mean, Some(1_000_000)),
        (MergeRule::Stack, None),
        (MergeRule::TrimmedMean { trim: bad }, None),
        (MergeRule::Median, None),
        (MergeRule::MultiKrum { faulty: bad }, None),
    ];
    for (rule, clip) in rules {
        let plan = Plan::new(rule, clip, updates.clone(), MergedFile::of_means(tensors.clone()));
        let least = (0..RUNS).map(|_| seconds(&plan, &files, &layouts, &updates)).fold(f64::INFINITY, f64::min);
        println!("{:24} {least:8.3} s", format!("{}{}", rule.name(), if clip.is_some() { " + clip" } else { "" }));
    }
}

/// Clips, where the plan does, and merges.
fn seconds(plan: &Plan, files: &[Vec<u8>], layouts: &[Layout], updates: &Updates) -> f64 {
    let begun = processor_s();
    let mut members = Vec::new();
    for (index, (file, layout)) in files.iter().zip(layouts).enumerate() {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&index.to_be_bytes());
        let clip: Factor = plan.clip(layout, updates, file).expect("bytes in memory");
        members.push(Member { key: MemberKey(key), adapter: ContentHash(key), weight: 1, clip, layout, updates, data: file });
    }
    let mut bytes = 0;
    plan.recompute(&members, |piece| {
        bytes += piece.len();
        Ok::<(), MergeError>(())
    })
    .expect("enough adapters");
    assert!(bytes > 0);
    processor_s() - begun
}

/// Seconds that this thread has had a processor, as Linux tells them.
fn processor_s() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with its scheduler's statistics");
    told.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}
