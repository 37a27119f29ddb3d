//! How fast an adapter is folded in, on one core, beside a plain copy of the same elements: the bar is 0.7 of the copy.
//!
//! `fold` is what a peer runs on data it holds, value check and streaming included; `loop` is the bare inner loop for
//! each set of vector instructions. Sizes: one that stays in the second cache, one of a
//! usual adapter, in the third, and one far beyond every cache. A fold must read and write sums of eight bytes beside the
//! four it reads, so several files at once share that.
//! `cargo bench -p mingle-protocol --bench fold`

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mingle_protocol::adapter::{Dtype, Layout, LoraShape, Module, canonical_header};
use mingle_protocol::merge::{Accumulator, Direction};
use mingle_protocol::number::dispatch::{Lanes, fold};
use mingle_protocol::number::{GRID, seeded_uniform};

/// A shape of `modules` modules of `16 * 2 * width` elements each.
fn shape(modules: usize, width: u64) -> LoraShape {
    let module = |index| Module { name: format!("layers.{index}"), inputs: width, outputs: width };
    LoraShape::new(16, 16, [0; 32], (0..modules).map(module).collect())
}

/// A canonical file of random values.
fn file(shape: &LoraShape, dtype: Dtype) -> Vec<u8> {
    let tensors = shape.tensors().unwrap();
    let mut file = canonical_header(&tensors, dtype);
    for value in seeded_uniform(&[1; 32], "bench", tensors.elements() as usize, 4096) {
        let bytes = value.to_le_bytes();
        match dtype {
            Dtype::F32 => file.extend(bytes),
            Dtype::Bf16 => file.extend(&bytes[2..]),
            Dtype::F16 => unreachable!("not measured"),
        }
    }
    file
}

fn folds(criterion: &mut Criterion) {
    for (name, shape) in [("32 Ki", shape(1, 1024)), ("1 Mi", shape(4, 8192)), ("16 Mi", shape(16, 32_768))] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
        let tensors = shape.tensors().unwrap();
        let elements = tensors.elements();
        group.throughput(Throughput::Elements(elements));

        let source: Vec<f32> = seeded_uniform(&[1; 32], "bench", elements as usize, 4096).collect();
        let mut target = vec![0f32; source.len()];
        group.bench_function("copy_from_slice f32", |bencher| {
            bencher.iter(|| {
                target.copy_from_slice(black_box(&source));
                black_box(&mut target);
            })
        });

        for dtype in [Dtype::F32, Dtype::Bf16] {
            let file = file(&shape, dtype);
            let layout = Layout::parse(&file, file.len() as u64, &tensors).unwrap();
            let data = layout.data_of(&file);
            let mut accumulator = Accumulator::new(&tensors);
            let mut direction = Direction::Add;
            group.bench_function(format!("fold {dtype}"), |bencher| {
                bencher.iter(|| {
                    let mut fold = accumulator.begin(&layout, 7, direction).unwrap();
                    fold.push(black_box(data)).unwrap();
                    fold.finish().unwrap();
                    direction = if direction == Direction::Add { Direction::Retract } else { Direction::Add };
                })
            });
            let mut accumulator = Accumulator::new(&tensors);
            let mut direction = Direction::Add;
            group.throughput(Throughput::Elements(4 * elements));
            group.bench_function(format!("fold {dtype}, 4 files at once"), |bencher| {
                bencher.iter(|| {
                    let mut fold = accumulator.begin_all(&[(&layout, 7, direction); 4]).unwrap();
                    for piece in black_box(data).chunks(16_384) {
                        (0..4).for_each(|file| fold.push_to(file, piece).unwrap());
                    }
                    fold.finish().unwrap();
                    direction = if direction == Direction::Add { Direction::Retract } else { Direction::Add };
                })
            });
            group.throughput(Throughput::Elements(elements));
            let mut sums = vec![0i64; elements as usize];
            for lanes in Lanes::all() {
                group.bench_function(format!("loop {dtype} {lanes:?}"), |bencher| {
                    bencher.iter(|| fold(lanes, dtype, black_box(&mut sums), black_box(data), 7, GRID))
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, folds);
criterion_main!(benches);
