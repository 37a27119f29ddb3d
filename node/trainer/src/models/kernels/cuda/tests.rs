//! The kernels, run on the processor by the emulator and on a GPU where there is one, against the portable ops; and the PTX
//! against the sources.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::Module;
use super::emulator::emulated;
use crate::models::kernels::activation::Activation;
use crate::models::kernels::adamw::AdamW;
use crate::models::kernels::attention::{Heads, Mask};
use crate::models::kernels::rope::RopeTable;
use crate::models::kernels::testing;
use crate::models::ops::{Norm, NormKind, device};

const MODULES: [Module; 4] = [Module::Norm, Module::Elements, Module::Softmax, Module::Flash];

#[test]
fn the_ptx_was_made_of_these_sources() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/kernels");
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    for module in MODULES {
        let source = format!("{}.cu", module.name());
        let all = [bytes("common.cuh"), bytes(&source)].concat();
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let hash = all.iter().fold(0xcbf2_9ce4_8422_2325, fold);
        let expected = format!("// FNV-1a of common.cuh and {source}: {hash:016x}");
        assert_eq!(module.ptx().lines().next(), Some(expected.as_str()), "{source} has changed: run node/trainer/cuda/ptx.sh");
    }
}

#[test]
fn the_ptx_has_every_kernel_that_is_asked_for() {
    let mut names: Vec<(Module, String)> = vec![(Module::Elements, "adamw".into()), (Module::Elements, "squared_sums".into())];
    for dtype in ["f32", "bf16", "f16"] {
        for kind in ["rms", "layer"] {
            names.push((Module::Norm, format!("{kind}_rows_{dtype}")));
            for weight in ["f32", dtype] {
                names.push((Module::Norm, format!("{kind}_{dtype}_{weight}")));
                names.push((Module::Norm, format!("{kind}_backward_{dtype}_{weight}")));
            }
        }
        names.extend(["norm_weight", "column_sums"].map(|op| (Module::Norm, format!("{op}_{dtype}"))));
        let ops = ["rope", "activate", "activate_backward", "gate", "gate_backward", "dropout"];
        names.extend(ops.map(|op| (Module::Elements, format!("{op}_{dtype}"))));
        let ops = ["masked_softmax", "softmax_backward", "cross_entropy"];
        names.extend(ops.map(|op| (Module::Softmax, format!("{op}_{dtype}"))));
    }
    for dtype in ["bf16", "f16"] {
        names.push((Module::Flash, format!("flash_deltas_{dtype}")));
        for op in ["forward_64", "forward_128", "forward_256", "queries_64", "queries_128", "queries_256"] {
            let (op, width) = op.split_once('_').unwrap();
            names.push((Module::Flash, format!("flash_{op}_{dtype}_{width}")));
        }
        for (op, width) in [("keys_values", 64), ("keys_values", 128), ("keys", 256), ("values", 256)] {
            names.push((Module::Flash, format!("flash_{op}_{dtype}_{width}")));
        }
    }
    for (module, name) in names {
        assert!(module.ptx().contains(&format!(".entry {name}(")), "{module:?} has no kernel {name}");
    }
}

/// Runs `body` on this machine's first GPU; without one it says so and does not.
pub(crate) fn on_a_gpu(body: impl FnOnce(&Device)) {
    #[cfg(feature = "cuda")]
    match super::open(0) {
        Ok(gpu) => body(&gpu),
        Err(error) => println!("skipped: no GPU answers: {}", error.to_string().lines().next().unwrap_or_default()),
    }
    #[cfg(not(feature = "cuda"))]
    drop(body);
}

/// Matrix products by cuBLAS, which has no emulation.
#[test]
fn products_on_a_gpu() {
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let dims = |rows: usize, columns: usize, transposed: bool| if transposed { [columns, rows] } else { [rows, columns] };
        let inputs = [noise(1, &dims(30, 50, transpose_a)), noise(2, &dims(50, 20, transpose_b)), noise(3, &[30, 20])];
        agree(&[(DType::F32, 1e-4), (DType::BF16, 8e-2), (DType::F16, 1e-2)], &inputs, |v| {
            let sum = v[2].to_dtype(DType::F32)?.copy()?;
            Ok(vec![
                device::product(&v[0], transpose_a, &v[1], transpose_b, 0.5)?,
                device::product_onto(v[2].copy()?, &v[0], transpose_a, &v[1], transpose_b, 0.5)?,
                device::product_onto(sum, &v[0], transpose_a, &v[1], transpose_b, 0.5)?,
            ])
        });
    }
}

fn noise(seed: u64, dims: &[usize]) -> Tensor {
    Tensor::from_vec(testing::noise(seed, dims.iter().product()), dims, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Runs `op` on f32 tensors as the portable form, and on the same values in each dtype as kernels. Inputs are rounded to
/// that dtype first, so what differs is the arithmetic.
fn agree(dtypes: &[(DType, f32)], inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    for (dtype, tolerance) in dtypes {
        let cast = |tensors: &[Tensor], dtype: DType| -> Vec<Tensor> {
            tensors.iter().map(|tensor| tensor.to_dtype(dtype).unwrap().copy().unwrap()).collect()
        };
        let narrow = cast(inputs, *dtype);
        let expected = op(&cast(&narrow, DType::F32)).unwrap();
        let check = |inputs: &[Tensor]| {
            for (which, (found, expected)) in op(inputs).unwrap().iter().zip(&expected).enumerate() {
                assert_eq!(found.dims(), expected.dims());
                for (at, (found, expected)) in flat(found).iter().zip(flat(expected)).enumerate() {
                    let error = (found - expected).abs();
                    assert!(error <= tolerance * (1.0 + expected.abs()), "{dtype:?} {which}[{at}]: {found}, expected {expected}");
                }
            }
        };
        emulated(|| check(&narrow));
        on_a_gpu(|gpu| check(&narrow.iter().map(|tensor| tensor.to_device(gpu).unwrap()).collect::<Vec<_>>()));
    }
}

const ALL: [(DType, f32); 3] = [(DType::F32, 1e-5), (DType::BF16, 8e-3), (DType::F16, 1e-3)];
const NARROW: [(DType, f32); 2] = [(DType::BF16, 1.5e-2), (DType::F16, 2e-3)];

#[test]
fn norms() {
    for (kind, offset) in [(NormKind::Rms, 0.0), (NormKind::Rms, 1.0), (NormKind::Layer, 0.0)] {
        for (rows, width) in [(3, 20), (70, 200)] {
            for narrow_weight in [false, true] {
                let inputs = [noise(1, &[rows, width]), noise(2, &[rows, width]), noise(3, &[width]), noise(4, &[width])];
                agree(&ALL, &inputs, |v| {
                    let parameter = |tensor: &Tensor| tensor.to_dtype(if narrow_weight { v[0].dtype() } else { DType::F32 });
                    let bias = (kind == NormKind::Layer).then(|| parameter(&v[3])).transpose()?;
                    let norm = Norm { weight: parameter(&v[2])?, bias, kind, offset, eps: 1e-5 };
                    let dx = device::norm_backward(&v[0], &norm, &v[1])?;
                    Ok(vec![device::norm(&v[0], &norm)?, dx])
                });
                // Sums over many rows: f32 whatever the dtype, so closer than single elements of it.
                agree(&[(DType::F32, 2e-5), (DType::BF16, 2e-5), (DType::F16, 2e-5)], &inputs, |v| {
                    let bias = (kind == NormKind::Layer).then(|| v[3].clone());
                    let norm = Norm { weight: v[2].clone(), bias, kind, offset, eps: 1e-5 };
                    let (dw, db) = device::norm_backward_weight(&v[0], &norm, &v[1])?;
                    Ok([Some(dw), db, Some(device::column_sums(&v[1])?)].into_iter().flatten().collect())
                });
            }
        }
    }
}

#[test]
fn single_elements() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let inputs = [(noise(1, &[5, 36]) * 3.0).unwrap(), noise(2, &[5, 36]), noise(3, &[5, 18])];
        agree(&ALL, &inputs, |v| {
            Ok(vec![
                device::activate(&v[0], activation, false)?,
                device::activate(&v[0], activation, true)?,
                device::activate_backward(&v[0], &v[1], activation, false)?,
                device::activate_backward(&v[0], &v[2], activation, true)?,
            ])
        });
    }
    agree(&ALL, &[noise(1, &[9, 77])], |v| Ok(vec![device::dropout(&v[0], 0.3, 0x0123_4567_89ab_cdef)?]));
    let table = RopeTable::new(&[1.0, 0.3, 0.1], 8);
    for direction in [1.0, -1.0] {
        agree(&ALL, &[noise(1, &[5, 20])], |v| Ok(vec![device::rope(v[0].copy()?, &table, &[0, 1, 2, 0, 7], 12, direction)?]));
    }
    emulated(|| assert!(device::rope(noise(1, &[1, 6]), &table, &[8], 6, 1.0).is_err(), "a position beyond the table"));
}

#[test]
fn losses() {
    for vocabulary in [19, 300] {
        let labels = [3, 18, 0, 3];
        agree(&ALL, &[noise(1, &[4, vocabulary])], |v| {
            let (loss, gradient) = device::cross_entropy(v[0].copy()?, &labels, 7.0)?;
            Ok(vec![gradient, Tensor::new(&[loss as f32], &Device::Cpu)?])
        });
    }
    emulated(|| assert!(device::cross_entropy(noise(1, &[1, 4]), &[4], 1.0).is_err(), "a label beyond the logits"));
}

#[test]
fn the_optimiser() {
    agree(&ALL[..1], &[noise(1, &[30, 50]), noise(2, &[30, 50])], |v| {
        let variable = Var::from_tensor(&v[0])?;
        let (m, moment) = (v[0].zeros_like()?, v[0].zeros_like()?);
        for step in 1..=3 {
            let settings =
                AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01, step, gradient_scale: 0.5 };
            device::adamw(&variable, &m, &moment, &v[1], &settings)?;
        }
        let norm = Tensor::new(&[device::squared_norm(&v[1])? as f32], &Device::Cpu)?;
        Ok(vec![variable.as_tensor().copy()?, m, moment, norm])
    });
}

/// The softmax between matrix products, which f32 always takes.
#[test]
fn attention_by_products() {
    for mask in [Mask::Causal, Mask::Window(3), Mask::Full] {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 4, scale: 0.6, mask };
        agree(&ALL[..1], &[noise(1, &[40, heads.width()]), noise(2, &[40, 16])], |v| {
            let dx = device::attention_backward(&v[0], &v[1], &[33, 7], &heads)?;
            Ok(vec![device::attention(&v[0], &[33, 7], &heads)?, dx])
        });
    }
    agree(&ALL, &[noise(1, &[2, 9, 9]), noise(2, &[2, 9, 9])], |v| {
        let p = device::masked_softmax((&v[0] * 2.0)?, Mask::Window(4), 1.5)?;
        Ok(vec![device::softmax_backward(&p, v[1].copy()?, 0.7)?, p])
    });
}

/// Sequences that end within a tile, at its end and behind it; heads that fill a tile's width and that do not.
#[test]
fn flash_attention() {
    let cases: [(&[usize], usize, usize, usize, Mask); 6] = [
        (&[70, 1, 64, 130], 4, 2, 64, Mask::Causal),
        (&[130, 9], 2, 1, 64, Mask::Window(40)),
        (&[70, 65], 4, 1, 24, Mask::Full),
        (&[150], 2, 1, 128, Mask::Causal),
        (&[100], 2, 2, 80, Mask::Window(7)),
        (&[40, 70], 2, 1, 256, Mask::Causal),
    ];
    for (lengths, heads, kv_heads, head_dim, mask) in cases {
        let rows = lengths.iter().sum();
        let heads = Heads { heads, kv_heads, head_dim, scale: 2.0 / (head_dim as f32).sqrt(), mask };
        agree(&NARROW, &[noise(1, &[rows, heads.width()]), noise(2, &[rows, heads.query_width()])], |v| {
            let dx = device::attention_backward(&v[0], &v[1], lengths, &heads)?;
            Ok(vec![device::attention(&v[0], lengths, &heads)?, dx])
        });
    }
}
