//! LoRA training: A drawn, B zero (or both from an earlier adapter), the base frozen.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor, Var};

use super::session::{Control, Losses, Outcome, Progress, Session, TrainData};
use super::{TrainError, TrainSettings};
use crate::data::batches::Draw;
use crate::models::BaseModel;
use crate::peft::{Adapter, AdapterTensor};

/// Draws a tensor's first values: its PEFT name, how many, and the module's inputs (which scale the draw).
pub type DrawTensor<'a> = dyn Fn(&str, usize, u64) -> Vec<f32> + 'a;

/// Where LoRA begins.
pub enum Start<'a> {
    /// A drawn, B zero: the model begins as its base.
    Drawn(&'a DrawTensor<'a>),
    /// From an adapter, for example the merged one of the round before. Its rank, alpha and modules must be those of the
    /// settings.
    Adapter(&'a Adapter),
}

/// A draw for trainings outside any round: uniform within 1 / sqrt(inputs), as PEFT begins, from a seed.
pub fn seeded_draw(seed: u64) -> impl Fn(&str, usize, u64) -> Vec<f32> {
    move |name, count, inputs| {
        let mut draw = Draw::new(seed, name, 0);
        let bound = 1.0 / (inputs as f64).sqrt();
        (0..count).map(|_| ((2.0 * draw.unit() - 1.0) * bound) as f32).collect()
    }
}

/// A finished LoRA training.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedAdapter {
    pub adapter: Adapter,
    pub losses: Losses,
    /// Loss of each step's batch.
    pub step_losses: Vec<f32>,
    /// Training examples, each seen once an epoch.
    pub examples: u64,
    /// Tokens fed over all steps, padding not counted.
    pub tokens: u64,
    pub seconds: f64,
}

/// Trains LoRA on `base`. With `checkpoint` (a folder of this training alone) it begins where an interrupted training
/// stopped, and the adapter is the one that an uninterrupted training makes.
pub fn train_lora(
    base: &BaseModel,
    data: TrainData,
    settings: &TrainSettings,
    start: Start,
    checkpoint: Option<&Path>,
    progress: &mut dyn FnMut(&Progress) -> Control,
) -> Result<Outcome<TrainedAdapter>, TrainError> {
    settings.check()?;
    let variables = starting_variables(base, settings, start)?;
    let by_name: BTreeMap<&str, &Var> = variables.iter().map(|(name, variable)| (name.as_str(), variable)).collect();
    let scale = settings.alpha / settings.rank as f64;
    let mut lora = BTreeMap::new();
    for module in base.modules(&settings.targets)? {
        let half = |which| by_name.get(Adapter::tensor_name(&module.name, which).as_str()).map(|v| v.as_tensor().clone());
        if let (Some(a), Some(b)) = (half('A'), half('B')) {
            lora.insert(module.name, (a, b, scale));
        }
    }
    let decoder = base.with_lora(&lora)?;
    let session = Session { decoder: &decoder, variables: &variables, data, settings, checkpoint };
    let summary = match session.run(progress)? {
        Outcome::Finished(summary) => summary,
        Outcome::Stopped { step, steps } => return Ok(Outcome::Stopped { step, steps }),
    };
    let mut tensors = Vec::with_capacity(variables.len());
    for (name, variable) in &variables {
        let (rows, columns) = variable.dims2()?;
        let values = variable.flatten_all()?.to_vec1::<f32>()?;
        tensors.push(AdapterTensor { name: name.clone(), dims: [rows, columns], values });
    }
    Ok(Outcome::Finished(TrainedAdapter {
        adapter: Adapter { rank: settings.rank, alpha: settings.alpha, tensors },
        losses: summary.losses,
        step_losses: summary.steps,
        examples: data.train.len() as u64,
        tokens: summary.tokens,
        seconds: summary.seconds,
    }))
}

/// The adapter's tensors as variables, sorted by PEFT name.
fn starting_variables(base: &BaseModel, settings: &TrainSettings, start: Start) -> Result<Vec<(String, Var)>, TrainError> {
    if let Start::Adapter(adapter) = start {
        for (setting, found, expected) in [
            ("the starting adapter's rank", adapter.rank as f64, settings.rank as f64),
            ("the starting adapter's alpha", adapter.alpha, settings.alpha),
        ] {
            if found != expected {
                let found = format!("{found} where the settings say {expected}");
                return Err(TrainError::Setting { setting, found, expected: "the same" });
            }
        }
    }
    let mut variables = Vec::new();
    for module in base.modules(&settings.targets)? {
        let (inputs, outputs) = (module.inputs as usize, module.outputs as usize);
        for (which, dims) in [('A', [settings.rank, inputs]), ('B', [outputs, settings.rank])] {
            let name = Adapter::tensor_name(&module.name, which);
            let tensor = match (&start, which) {
                (Start::Drawn(draw), 'A') => {
                    let (values, expected) = (draw(&name, dims[0] * dims[1], module.inputs), dims[0] * dims[1]);
                    if values.len() != expected {
                        return Err(TrainError::Draw { name, found: values.len(), expected });
                    }
                    Tensor::from_vec(values, &dims, base.device())?
                }
                (Start::Drawn(_), _) => Tensor::zeros(&dims, DType::F32, base.device())?,
                (Start::Adapter(adapter), _) => {
                    let held = adapter.tensors.iter().find(|tensor| tensor.name == name);
                    let held = held.ok_or_else(|| crate::models::ModelError::AdapterHalf { name: name.clone() })?;
                    if held.dims != dims {
                        let (found, expected) = (held.dims.to_vec(), dims.to_vec());
                        return Err(crate::models::ModelError::AdapterShape { name, found, expected }.into());
                    }
                    Tensor::from_slice(&held.values, &dims, base.device())?
                }
            };
            variables.push((name, Var::from_tensor(&tensor)?));
        }
    }
    if let Start::Adapter(adapter) = start {
        let known = |tensor: &&AdapterTensor| !variables.iter().any(|(name, _)| *name == tensor.name);
        if let Some(extra) = adapter.tensors.iter().find(known) {
            return Err(crate::models::ModelError::AdapterModule { name: extra.name.clone() }.into());
        }
    }
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(variables)
}
