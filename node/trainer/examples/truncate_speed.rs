//! How long it takes to bring what ten members' adapters of rank 16 are together, rank 160, on a weight of 4096 x 4096, down
//! to rank 16: one module on one thread, the least of several runs. The bar is 0.2 s.
//! `RAYON_NUM_THREADS=1 cargo run --release -p mingle-trainer --example truncate_speed`

use std::time::Instant;

use mingle_protocol::number::seeded_uniform;
use mingle_trainer::peft::{Adapter, AdapterConfig, AdapterTensor, truncate};

const WIDTH: usize = 4096;
const RANK: usize = 160;
const KEPT: usize = 16;
const RUNS: usize = 7;

fn main() {
    let tensor = |which, dims: [usize; 2]| AdapterTensor {
        name: Adapter::tensor_name("m", which),
        dims: dims.to_vec(),
        values: seeded_uniform(&[1; 32], &which.to_string(), dims[0] * dims[1], 4096).collect(),
    };
    let config = AdapterConfig::plain(RANK, RANK as f64, vec!["m".into()]);
    let adapter = Adapter { config, tensors: vec![tensor('A', [RANK, WIDTH]), tensor('B', [WIDTH, RANK])] };
    let run = |_| {
        let begun = Instant::now();
        let (_, lost) = truncate(&adapter, KEPT).expect("an adapter of drawn numbers");
        println!("{:.3} s, {:.4} of the energy left out", begun.elapsed().as_secs_f64(), lost[0].discarded / lost[0].energy);
        begun.elapsed().as_secs_f64()
    };
    let least = (0..RUNS).map(run).fold(f64::INFINITY, f64::min);
    println!("rank {RANK} to {KEPT} of {WIDTH} x {WIDTH}: {least:.3} s");
}
