//! Writes what a base with an adapter computes, for comparisons with other programs (`tests/by_hand/peft_loads.py`).
//!
//! `cargo run --release -p mingle-trainer --example logits -- BASE ADAPTER INPUT.safetensors OUTPUT.safetensors [SAVED]`
//!
//! ADAPTER may be `-`: the base alone. SAVED is a folder to which the adapter is written again. INPUT holds `input_ids` (batch, length) and, where there are some, `attention_mask` and
//! `token_type_ids` of that shape. OUTPUT gets `logits`: (batch, length, vocabulary), zeros where the mask is; of a classifier
//! (batch, classes).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use mingle_trainer::models::{BaseModel, TokenBatch};
use mingle_trainer::peft;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, adapter, input, output, saved @ ..] = arguments.as_slice() else {
        anyhow::bail!("needs BASE, ADAPTER or -, INPUT and OUTPUT");
    };
    let base = BaseModel::load(Path::new(base), &Device::Cpu)?;
    let decoder = match adapter.as_str() {
        "-" => base.decoder(),
        folder => {
            let adapter = peft::read(Path::new(folder))?;
            if let Some(folder) = saved.first() {
                peft::write(Path::new(folder), &adapter)?;
            }
            adapter.apply(&base)?
        }
    };
    let input = candle_core::safetensors::load(input, &Device::Cpu)?;
    let (sequences, length) = input["input_ids"].dims2()?;
    let values = |name: &str| input.get(name).map(|tensor| tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()).transpose();
    let ids = values("input_ids")?.unwrap_or_default();
    let mask = values("attention_mask")?.unwrap_or_else(|| vec![1; ids.len()]);
    let types = values("token_type_ids")?;
    let fed: Vec<usize> = (0..ids.len()).filter(|at| mask[*at] != 0).collect();
    let batch = TokenBatch {
        lengths: (0..sequences).map(|row| mask[row * length..(row + 1) * length].iter().filter(|seen| **seen != 0).count()).collect(),
        tokens: fed.iter().map(|at| ids[*at] as u32).collect(),
        types: types.map(|types| fed.iter().map(|at| types[*at] as u32).collect()).unwrap_or_default(),
        targets: Vec::new(),
    };
    let found = decoder.logits(&batch)?;
    let (rows, width) = found.dims2()?;
    let logits = if rows == sequences {
        found
    } else {
        let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
        let mut all = vec![0f32; ids.len() * width];
        for (row, at) in fed.iter().enumerate() {
            all[at * width..(at + 1) * width].copy_from_slice(&found[row * width..(row + 1) * width]);
        }
        Tensor::from_vec(all, (sequences, length, width), &Device::Cpu)?
    };
    candle_core::safetensors::save(&HashMap::from([("logits".to_string(), logits)]), output)?;
    Ok(())
}
