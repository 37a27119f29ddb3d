#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::float_arithmetic, clippy::panic)]

use super::header::HEADER_BYTES_MAX;
use super::shape::{ALPHA_MAX, DIMENSION_MAX, MODULES_MAX, NAME_BYTES_MAX, RANK_MAX, SAVED_MAX};
use super::*;

fn module(name: &str, inputs: u64, outputs: u64) -> Module {
    Module { name: name.to_owned(), inputs, outputs }
}

/// Two modules, four tensors, 42 elements; `b.10` sorts before `b.2`.
pub(crate) fn small_shape() -> LoraShape {
    LoraShape::new(2, 4, [7; 32], vec![module("b.2", 3, 5), module("b.10", 4, 9)])
}

pub(crate) fn small_tensors() -> TensorList {
    small_shape().tensors().unwrap()
}

/// A canonical file, its data given by element.
pub(crate) fn file_of(tensors: &TensorList, dtype: Dtype, mut element: impl FnMut(usize) -> Vec<u8>) -> Vec<u8> {
    let mut file = canonical_header(tensors, dtype);
    for index in 0..tensors.elements() as usize {
        file.extend(element(index));
    }
    file
}

fn good_file() -> Vec<u8> {
    file_of(&small_tensors(), Dtype::F32, |index| (index as f32 / 8.0 - 2.0).to_le_bytes().to_vec())
}

fn with_header(json: &str, data: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

/// The good file with a text in its header replaced by another, and the length field set right.
fn edited(from: &str, to: &str) -> Vec<u8> {
    let file = good_file();
    let end = header_length(&file, file.len() as u64).unwrap();
    let json = std::str::from_utf8(&file[8..end]).unwrap();
    assert!(json.contains(from), "{from} is not in {json}");
    let json = json.replacen(from, to, 1);
    let mut edited = with_header(&json, 0);
    edited.extend(&file[end..]);
    edited
}

const B10_A: &str = "base_model.model.b.10.lora_A.weight";
const B10_B: &str = "base_model.model.b.10.lora_B.weight";

#[test]
fn the_tensors_of_a_shape_are_sorted_by_name() {
    let tensors = small_tensors();
    let listed: Vec<_> = tensors.iter().map(|tensor| (tensor.name.as_str(), &tensor.dims[..])).collect();
    let expected: [(&str, &[u64]); 4] = [
        (B10_A, &[2, 4]),
        (B10_B, &[9, 2]),
        ("base_model.model.b.2.lora_A.weight", &[2, 3]),
        ("base_model.model.b.2.lora_B.weight", &[5, 2]),
    ];
    assert_eq!(listed, expected);
    assert_eq!(tensors.elements(), 42);
    assert_eq!(tensors.position(B10_B), Some(1));
}

#[test]
fn a_good_file_is_accepted_in_every_dtype_and_order() {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let file = file_of(&small_tensors(), dtype, |_| vec![0; dtype.bytes()]);
        let layout = check(&file, &small_tensors()).unwrap();
        assert!(layout.placed().iter().map(|placed| placed.tensor).eq(0..4));
        assert_eq!((layout.file_size(), layout.data_of(&file).len()), (file.len() as u64, 42 * dtype.bytes()));
        assert!(file.len() as u64 <= small_tensors().file_bytes_max());
    }
    // Mixed dtypes, the data in another order than the names, no metadata, no padding.
    let json = r#"{"base_model.model.b.10.lora_B.weight":{"shape":[9,2],"data_offsets":[64,100],"dtype":"BF16"},
        "base_model.model.b.2.lora_A.weight":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},
        "base_model.model.b.10.lora_A.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[32,64]},
        "base_model.model.b.2.lora_B.weight":{"dtype":"F16","shape":[5,2],"data_offsets":[12,32]}}"#;
    let layout = check(&with_header(json, 100), &small_tensors()).unwrap();
    let placed: Vec<_> = layout.placed().iter().map(|placed| (placed.tensor, placed.dtype, placed.elements)).collect();
    assert_eq!(placed, [(2, Dtype::F16, 6), (3, Dtype::F16, 10), (0, Dtype::F32, 8), (1, Dtype::Bf16, 18)]);
}

/// Each kind of damage, the error it must give, and the sentence it must read as.
#[test]
fn every_hostile_file_is_refused_with_its_facts() {
    let syntax = |file: Vec<u8>, part: &str| match check(&file, &small_tensors()) {
        Err(AdapterError::HeaderSyntax { reason }) => assert!(reason.contains(part), "{reason}"),
        other => panic!("{part}: {other:?}"),
    };
    let good = good_file();
    let size = good.len() as u64;
    let data = 42 * 4;
    let a = B10_A.to_owned();
    let refused = |file: &[u8], error: AdapterError, sentence: &str| {
        assert_eq!(check(file, &small_tensors()), Err(error.clone()));
        assert_eq!(error.to_string(), sentence);
    };

    refused(
        &good[..7],
        AdapterError::NoHeader { found: 7 },
        "the file is 7 bytes long, too short for the header length of a safetensors file",
    );
    for found in [HEADER_BYTES_MAX + 1, u64::MAX] {
        let mut file = good.clone();
        file[..8].copy_from_slice(&found.to_le_bytes());
        refused(
            &file,
            AdapterError::HeaderTooLong { found },
            &format!("the header is {found} bytes long, but at most 1048576 are allowed"),
        );
    }
    let header_end = size - data;
    refused(
        &good[..100],
        AdapterError::HeaderTruncated { expected: header_end, found: 100 },
        &format!("the header needs {header_end} bytes, but only 100 are there"),
    );
    assert_eq!(
        Layout::parse(&good[..100], size, &small_tensors()),
        Err(AdapterError::HeaderTruncated { expected: header_end, found: 100 })
    );

    syntax(with_header("", 0), "opening brace");
    syntax(with_header(" {}", 0), "opening brace");
    syntax(with_header("[]", 0), "opening brace");
    syntax(with_header("{\"a\":", 0), "EOF");
    syntax(with_header("{}x", 0), "trailing");
    syntax(with_header("{\"\u{7f}\":\0}", 0), "expected value");
    syntax(with_header(&format!("{{\"a\":{}", "[".repeat(1 << 19)), 0), "expected a map");
    syntax(edited("{\"dtype\":\"F32\",\"shape\":[2,4],\"data_offsets\":[0,32]}", "[\"F32\",[2,4],[0,32]]"), "expected a map");
    syntax(with_header(&format!("{{\"a\":{}", "{\"a\":".repeat(1 << 17)), 0), "unknown field");
    syntax(with_header(&format!("{{\"__metadata__\":{{\"a\":{}", "[".repeat(1 << 19)), 0), "expected a string");
    syntax(edited("\"pt\"", "1"), "expected a string");
    syntax(edited("\"format\":\"pt\"", "\"format\":\"pt\",\"format\":\"pt\""), "two metadata entries");
    syntax(edited("{\"__metadata__\"", "{\"__metadata__\":{},\"__metadata__\""), "two entries");
    syntax(edited("\"dtype\"", "\"extra\":0,\"dtype\""), "unknown field");
    syntax(edited("\"dtype\":\"F32\"", "\"dtype\":\"F32\",\"dtype\":\"F32\""), "duplicate field");
    syntax(edited("\"dtype\":\"F32\",", ""), "missing field");
    syntax(edited("[2,4]", "[2.0,4]"), "invalid type");
    syntax(edited("[2,4]", "[-2,4]"), "invalid value");
    syntax(edited("[0,32]", "[0,18446744073709551616]"), "invalid type");
    syntax(edited("[0,32]", "[0,32,64]"), "trailing");
    let mut not_text = good.clone();
    not_text[12] = 0xff;
    syntax(not_text, "unicode");

    refused(
        &edited(B10_B, B10_A),
        AdapterError::Duplicate { name: a.clone() },
        "the header names \"base_model.model.b.10.lora_A.weight\" twice",
    );
    refused(
        &edited(B10_A, "base_model.model.b.11.lora_A.weight"),
        AdapterError::UnknownTensor { name: "base_model.model.b.11.lora_A.weight".into() },
        "the tensor \"base_model.model.b.11.lora_A.weight\" is not part of the round's adapter shape",
    );
    // What a stranger writes is shown escaped and cut.
    let shown = check(&edited(B10_A, &format!("\\u001b[2J{}", "x".repeat(9999))), &small_tensors()).unwrap_err().to_string();
    assert!(shown.contains("\\u{1b}[2Jx") && shown.len() < 300, "{shown}");
    let extra = format!("\"extra\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[{data},{}]}},\"{B10_A}\"", data + 4);
    let mut file = edited(&format!("\"{B10_A}\""), &extra);
    file.extend([0; 4]);
    assert_eq!(check(&file, &small_tensors()), Err(AdapterError::UnknownTensor { name: "extra".into() }));
    let entry = format!("\"{B10_A}\":{{\"dtype\":\"F32\",\"shape\":[2,4],\"data_offsets\":[0,32]}},");
    refused(
        &edited(&entry, ""),
        AdapterError::MissingTensor { tensor: a.clone() },
        "the tensor base_model.model.b.10.lora_A.weight is missing",
    );
    let last = "base_model.model.b.2.lora_B.weight";
    let entry = format!(",\"{last}\":{{\"dtype\":\"F32\",\"shape\":[5,2],\"data_offsets\":[128,168]}}");
    assert_eq!(check(&edited(&entry, ""), &small_tensors()), Err(AdapterError::MissingTensor { tensor: last.into() }));
    assert_eq!(check(&with_header("{}", 0), &small_tensors()), Err(AdapterError::MissingTensor { tensor: a.clone() }));
    refused(
        &edited("\"F32\"", "\"F64\""),
        AdapterError::Dtype { tensor: a.clone(), found: "F64".into() },
        "the tensor base_model.model.b.10.lora_A.weight has dtype \"F64\", but F32, BF16 or F16 is needed",
    );
    refused(
        &edited("[2,4]", "[4,2]"),
        AdapterError::Shaped { tensor: a.clone(), expected: vec![2, 4], found: vec![4, 2] },
        "the tensor base_model.model.b.10.lora_A.weight has shape [4, 2], but the round's adapter shape needs [2, 4]",
    );
    for (text, found) in [("[8]", vec![8]), ("[]", vec![]), ("[2,4,1]", vec![2, 4, 1]), ("[0,0,0,0,0,0,0,0,0,0]", vec![0; 8])] {
        assert_eq!(
            check(&edited("[2,4]", text), &small_tensors()),
            Err(AdapterError::Shaped { tensor: a.clone(), expected: vec![2, 4], found })
        );
    }
    refused(
        &edited("[0,32]", "[0,36]"),
        AdapterError::Extent { tensor: a.clone(), dtype: Dtype::F32, expected: 32, found: 36 },
        "the tensor base_model.model.b.10.lora_A.weight covers 36 bytes, but its shape in F32 needs 32",
    );
    let whole = i128::from(u64::MAX);
    for (text, found) in [("[32,0]", -32), ("[0,18446744073709551615]", whole), ("[18446744073709551615,0]", -whole)] {
        let error = AdapterError::Extent { tensor: a.clone(), dtype: Dtype::F32, expected: 32, found };
        assert_eq!(check(&edited("[0,32]", text), &small_tensors()), Err(error));
    }
    // Overlap, hole before the first, hole between.
    refused(
        &edited("[32,104]", "[28,100]"),
        AdapterError::Placement { tensor: B10_B.into(), expected: 32, found: 28 },
        "the tensor base_model.model.b.10.lora_B.weight begins at byte 28 of the data, but the one before it ends at 32",
    );
    assert_eq!(
        check(&edited("[32,104]", "[0,72]"), &small_tensors()),
        Err(AdapterError::Placement { tensor: B10_B.into(), expected: 32, found: 0 })
    );
    assert_eq!(
        check(&edited("[0,32]", "[1,33]"), &small_tensors()),
        Err(AdapterError::Placement { tensor: a.clone(), expected: 0, found: 1 })
    );
    assert_eq!(
        check(&edited("[128,168]", "[18446744073709551575,18446744073709551615]"), &small_tensors()),
        Err(AdapterError::Placement { tensor: last.into(), expected: 128, found: 18_446_744_073_709_551_575 })
    );
    let mut long = good.clone();
    long.push(0);
    refused(
        &long,
        AdapterError::Size { expected: size, found: size + 1 },
        &format!("the file is {} bytes long, but its header describes {size}", size + 1),
    );
    let short = &good[..good.len() - 1];
    assert_eq!(check(short, &small_tensors()), Err(AdapterError::Size { expected: size, found: size - 1 }));
}

#[test]
fn every_unfit_value_is_refused_with_its_place() {
    // The first 26 elements of the file belong to b.10, so its element 29 is element 3 of this tensor.
    let tensor = "base_model.model.b.2.lora_A.weight".to_owned();
    let unfit = |dtype: Dtype, bytes: Vec<u8>| {
        let zero = vec![0; dtype.bytes()];
        let file = file_of(&small_tensors(), dtype, |index| if index == 29 { bytes.clone() } else { zero.clone() });
        // The same answer in one piece and byte by byte.
        let layout = Layout::parse(&file, file.len() as u64, &small_tensors()).unwrap();
        let mut scan = layout.scan();
        let by_byte = layout.data_of(&file).iter().try_for_each(|byte| scan.push(&[*byte]));
        assert_eq!(by_byte, check(&file, &small_tensors()).map(|_| ()));
        // No further data makes up for it.
        let mut at_once = layout.scan();
        at_once.push(layout.data_of(&file)).unwrap_err();
        for scan in [&mut scan, &mut at_once] {
            assert!(scan.finish().is_err());
            assert!((0..file.len()).all(|_| scan.push(&[0]).is_err() && scan.finish().is_err()));
        }
        by_byte.unwrap_err()
    };
    let single = |x: f32| unfit(Dtype::F32, x.to_le_bytes().to_vec());
    let index = 3;
    let nan = AdapterError::Nan { tensor: tensor.clone(), index };
    assert_eq!(single(f32::NAN), nan);
    assert_eq!(nan.to_string(), "element 3 of the tensor base_model.model.b.2.lora_A.weight is NaN");
    assert_eq!(unfit(Dtype::Bf16, vec![0xc0, 0x7f]), nan);
    assert_eq!(unfit(Dtype::F16, vec![0x01, 0xfc]), nan);
    let infinite = AdapterError::Infinite { tensor: tensor.clone(), index };
    assert_eq!(single(f32::NEG_INFINITY), infinite);
    assert_eq!(infinite.to_string(), "element 3 of the tensor base_model.model.b.2.lora_A.weight is infinite");
    assert_eq!(unfit(Dtype::Bf16, vec![0x80, 0x7f]), infinite);
    assert_eq!(unfit(Dtype::F16, vec![0x00, 0x7c]), infinite);
    let large = |found| AdapterError::TooLarge { tensor: tensor.clone(), index, found };
    assert_eq!(single(-16.5), large(-16.5));
    assert_eq!(
        large(-16.5).to_string(),
        "element 3 of the tensor base_model.model.b.2.lora_A.weight is -16.5, but at most 16 either way is allowed"
    );
    assert_eq!(single(16.0f32.next_up()), large(16.0f32.next_up()));
    assert_eq!(unfit(Dtype::Bf16, vec![0x81, 0x41]), large(16.125));
    assert_eq!(unfit(Dtype::F16, vec![0x01, 0x4c]), large(16.015_625));
    let edge = file_of(&small_tensors(), Dtype::F32, |index| if index % 2 == 0 { 16.0f32 } else { -16.0 }.to_le_bytes().to_vec());
    check(&edge, &small_tensors()).unwrap();
}

#[test]
fn a_scan_of_too_little_or_too_much_data_fails() {
    let file = good_file();
    let layout = Layout::parse(&file, file.len() as u64, &small_tensors()).unwrap();
    let data = layout.data_of(&file);
    let size = file.len() as u64;
    let mut scan = layout.scan();
    scan.push(&data[..data.len() - 1]).unwrap();
    assert_eq!(scan.finish(), Err(AdapterError::Size { expected: size, found: size - 1 }));
    scan.push(&data[data.len() - 1..]).unwrap();
    scan.finish().unwrap();
    assert_eq!(scan.push(&[0, 0]), Err(AdapterError::Size { expected: size, found: size + 2 }));
}

#[test]
fn every_shape_outside_its_limits_is_refused() {
    let refused = |error: ShapeError, change: fn(&mut LoraShape)| {
        let mut shape = small_shape();
        change(&mut shape);
        assert_eq!(shape.tensors(), Err(error.clone()));
        assert_eq!(shape.check(), Err(error));
    };
    small_shape().check().unwrap();
    refused(ShapeError::Rank { found: 0 }, |shape| shape.rank = 0);
    refused(ShapeError::Rank { found: RANK_MAX + 1 }, |shape| shape.rank = RANK_MAX + 1);
    refused(ShapeError::Alpha { found: 0 }, |shape| shape.alpha = 0);
    refused(ShapeError::Alpha { found: ALPHA_MAX + 1 }, |shape| shape.alpha = ALPHA_MAX + 1);
    refused(ShapeError::Modules { found: 0 }, |shape| shape.modules.clear());
    refused(ShapeError::Modules { found: MODULES_MAX + 1 }, |shape| shape.modules = vec![module("a", 1, 1); MODULES_MAX + 1]);
    refused(ShapeError::Name { name: String::new() }, |shape| shape.modules[1].name.clear());
    refused(ShapeError::Name { name: "a\"b".into() }, |shape| shape.modules[0].name = "a\"b".into());
    refused(ShapeError::Name { name: "x".repeat(NAME_BYTES_MAX) }, |shape| shape.modules[0].name = "x".repeat(NAME_BYTES_MAX + 1));
    refused(ShapeError::Duplicate { name: "b.2".into() }, |shape| shape.modules.push(module("b.2", 1, 1)));
    refused(ShapeError::Dimension { name: "b.2".into(), found: 0 }, |shape| shape.modules[0].inputs = 0);
    refused(ShapeError::Dimension { name: "b.10".into(), found: u64::MAX }, |shape| shape.modules[1].outputs = u64::MAX);
    refused(ShapeError::Elements { found: (1 << 31) + 42 * 512 }, |shape| {
        shape.rank = RANK_MAX;
        shape.modules.push(module("c", DIMENSION_MAX, DIMENSION_MAX));
    });
}

#[test]
fn every_header_we_write_is_one_we_read() {
    let name = |index: usize| format!("{index:0width$}", width = NAME_BYTES_MAX);
    let modules = (0..MODULES_MAX).map(|index| module(&name(index), 512, 512)).collect();
    let mut largest = LoraShape::new(RANK_MAX, 1, [0; 32], modules);
    assert_eq!(largest.tensors().unwrap().elements(), 1 << 31);
    largest.modules[0].inputs = 64;
    largest.saved = (MODULES_MAX..MODULES_MAX + SAVED_MAX).map(|index| Tensor::new(name(index), [1, 1, 1, 1])).collect();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        let tensors = largest.tensors().unwrap();
        let header = canonical_header(&tensors, dtype);
        assert!(header.len() as u64 <= HEADER_BYTES_MAX && header.len().is_multiple_of(8), "{}", header.len());
        let size = header.len() as u64 + tensors.elements() * dtype.bytes() as u64;
        assert_eq!(Layout::parse(&header, size, &tensors).unwrap().placed().len(), 2 * MODULES_MAX + SAVED_MAX);
    }
}

#[test]
fn a_shape_survives_json_and_cbor() {
    let json = serde_json::to_string(&small_shape()).unwrap();
    assert!(json.contains(&format!("\"seed\":\"{}\"", "07".repeat(32))), "{json}");
    assert_eq!(serde_json::from_str::<LoraShape>(&json).unwrap(), small_shape());
    let cbor = serde_cbor::to_vec(&small_shape()).unwrap();
    assert_eq!(serde_cbor::from_slice::<LoraShape>(&cbor).unwrap(), small_shape());
}

/// Files that PEFT 0.21 wrote: accepted, and byte for byte what our writer makes of the same tensors.
#[test]
fn files_written_by_peft_are_canonical() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference/llama/adapter_end/");
    let Ok(file) = std::fs::read(format!("{folder}adapter_model.safetensors")) else {
        println!("skipped: no reference adapters beside the repository");
        return;
    };
    let layer = |index: u64| {
        let named = |part: &str, inputs, outputs| module(&format!("model.layers.{index}.{part}_proj"), inputs, outputs);
        let attention =
            [named("self_attn.q", 32, 32), named("self_attn.k", 32, 16), named("self_attn.v", 32, 16), named("self_attn.o", 32, 32)];
        attention.into_iter().chain([named("mlp.gate", 32, 80), named("mlp.up", 32, 80), named("mlp.down", 80, 32)])
    };
    let shape = LoraShape::new(4, 8, [0; 32], (0..2).flat_map(layer).collect());
    let layout = check(&file, &shape.tensors().unwrap()).unwrap();
    assert!(canonical_header(layout.tensors(), Dtype::F32) == file[..layout.data_start() as usize]);
}
