//! Training of low-rank matrices: A drawn, B zero (or both from an earlier adapter), the base frozen.
//!
//! One routine for every method that has A and B: they differ in whether A is trained, in how it is drawn, and in how many
//! blocks there are.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor, Var};
use mingle_protocol::number::Spread;

use super::method::{Method, check_start};
use super::privacy::Promise;
use super::progress::{Control, Losses, Outcome, Progress, Summary, TrainData};
use super::session::Session;
use super::stopping::Evaluation;
use super::subspace::Turns;
use super::{TrainError, TrainSettings};
use crate::data::batches::Draw;
use crate::models::{Attached, BaseModel, LinearModule, Lora, ModelError};
use crate::peft::{Adapter, AdapterConfig, AdapterTensor};

/// Draws a tensor's first values: its PEFT name, how many, and how wide.
pub type DrawTensor<'a> = dyn Fn(&str, usize, Spread) -> Vec<f32> + 'a;

/// Where low-rank matrices begin.
pub enum Start<'a> {
    /// A drawn, B zero: the model begins as its base.
    Drawn(&'a DrawTensor<'a>),
    /// From an adapter, for example the merged one of the round before. Its ranks, scales and modules must be those of the
    /// settings.
    Adapter(&'a Adapter),
}

/// A draw for trainings outside any round: uniform within what the spread says, from a seed.
pub fn seeded_draw(seed: u64) -> impl Fn(&str, usize, Spread) -> Vec<f32> {
    move |name, count, spread| {
        let mut draw = Draw::new(seed, name, 0);
        (0..count).map(|_| ((2.0 * draw.unit() - 1.0) * spread.bound()) as f32).collect()
    }
}

/// A finished training: of an adapter, or of what else members send.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained<T> {
    pub adapter: T,
    pub losses: Losses,
    /// Loss of each step.
    pub step_losses: Vec<f64>,
    /// The held-out losses measured after steps.
    pub evaluations: Vec<Evaluation>,
    /// The step whose adapter this is.
    pub chosen_step: usize,
    pub stopped_early: bool,
    /// Training examples, each seen once an epoch.
    pub examples: u64,
    /// Tokens fed over all steps, padding not counted.
    pub tokens: u64,
    pub seconds: f64,
    /// What a private training promises for each of its examples.
    pub promise: Option<Promise>,
}

pub type TrainedAdapter = Trained<Adapter>;

impl<T> Trained<T> {
    pub(super) fn new(adapter: T, summary: Summary, data: TrainData) -> Self {
        let examples = data.train.len() as u64;
        let Summary { losses, steps: step_losses, evaluations, chosen_step, stopped_early, tokens, seconds, promise } = summary;
        Self { adapter, losses, step_losses, evaluations, chosen_step, stopped_early, examples, tokens, seconds, promise }
    }

    /// The same training, its result seen as something else.
    pub fn map<U>(self, into: impl FnOnce(T) -> U) -> Trained<U> {
        let Self { adapter, losses, step_losses, evaluations, chosen_step, stopped_early, examples, tokens, seconds, promise } = self;
        Trained { adapter: into(adapter), losses, step_losses, evaluations, chosen_step, stopped_early, examples, tokens, seconds, promise }
    }
}

/// Trains an adapter on `base`, by any method but the full one. With `checkpoint` (a folder of this training alone) it
/// begins where an interrupted training stopped, and the adapter is the one that an uninterrupted training makes.
pub fn train_adapter(
    base: &BaseModel,
    data: TrainData,
    settings: &TrainSettings,
    start: Start,
    checkpoint: Option<&Path>,
    progress: &mut dyn FnMut(&Progress) -> Control,
) -> Result<Outcome<TrainedAdapter>, TrainError> {
    settings.check()?;
    let modules = base.modules(&settings.targets)?;
    let config = settings.adapter_config(&modules);
    if let Start::Adapter(adapter) = &start {
        check_start(adapter, &config, &modules)?;
    }
    let parts = modules.iter().map(|module| Part::new(base, settings, &config, module, &start)).collect::<Result<Vec<_>, _>>()?;
    let heads = saved_variables(base, &settings.low_rank.saved, &start)?;
    let mut attached = Attached::default();
    for part in &parts {
        attached.lora.insert(part.module.clone(), part.lora(config.scale_of(&part.module) as f32, settings.dropout as f32)?);
    }
    attached.replaced.extend(heads.iter().map(|(name, head)| (name.clone(), head.as_tensor().clone())));
    let decoder = base.attach(&attached)?;
    // Block by block, so that those of one subspace stand together.
    let blocks = settings.method.blocks();
    let mut variables: Vec<(String, Var)> =
        (0..blocks).flat_map(|block| parts.iter().flat_map(move |part| part.variables(block))).collect();
    let (of_block, of_all_blocks) = (variables.len() / blocks, variables.len());
    variables.extend(heads.iter().map(|(name, head)| (Adapter::saved_name(name), head.clone())));
    let turns = Turns::of(settings);
    let active = turns.map(|turns| move |step| turns.subspace(step) * of_block..(turns.subspace(step) + 1) * of_block);
    let mut session = Session::new(&decoder, &variables, data, settings, checkpoint);
    if let Some(active) = &active {
        session.active = Some(active);
        session.always = of_all_blocks..variables.len();
    }
    let summary = match session.run(progress)? {
        Outcome::Finished(summary) => summary,
        Outcome::Stopped { step, steps } => return Ok(Outcome::Stopped { step, steps }),
    };
    let mut tensors = Vec::with_capacity(2 * parts.len() + heads.len());
    for part in &parts {
        tensors.push(held(Adapter::tensor_name(&part.module, 'A'), &part.a)?);
        tensors.push(held(Adapter::tensor_name(&part.module, 'B'), &part.b()?)?);
    }
    for (name, head) in &heads {
        tensors.push(held(Adapter::saved_name(name), head)?);
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Outcome::Finished(Trained::new(Adapter { config, tensors }, summary, data)))
}

/// The tensors of the modules that are trained whole, by name, each a variable that begins as the base's or the adapter's.
fn saved_variables(base: &BaseModel, modules: &[String], start: &Start) -> Result<Vec<(String, Var)>, TrainError> {
    let mut variables = Vec::new();
    for (name, value) in tensors_of(base, modules)? {
        let begin = match start {
            // A copy: training must not change the base it starts from.
            Start::Drawn(_) => value.force_contiguous()?,
            Start::Adapter(adapter) => {
                let held = adapter.tensor(&Adapter::saved_name(&name)).ok_or_else(|| ModelError::AdapterHalf { name: name.clone() })?;
                if held.dims != value.dims() {
                    return Err(ModelError::AdapterShape { name, found: held.dims.clone(), expected: value.dims().to_vec() }.into());
                }
                Tensor::from_slice(&held.values, held.dims.as_slice(), base.device())?
            }
        };
        variables.push((name, Var::from_tensor(&begin.copy()?)?));
    }
    Ok(variables)
}

/// The base's tensors that belong to these modules, by name.
///
/// # Errors
/// A module that the base does not have.
pub fn tensors_of(base: &BaseModel, modules: &[String]) -> Result<Vec<(String, Tensor)>, ModelError> {
    let weights = base.decoder().weights();
    let mut found: BTreeMap<String, Tensor> = BTreeMap::new();
    for module in modules {
        let inside = |name: &str| name.strip_prefix(module.as_str()).is_some_and(|rest| rest.starts_with('.'));
        let before = found.len();
        found.extend(weights.iter().filter(|(name, _)| inside(name)).cloned());
        if found.len() == before {
            return Err(ModelError::AdapterModule { name: module.clone() });
        }
    }
    Ok(found.into_iter().collect())
}

fn held(name: String, tensor: &Tensor) -> Result<AdapterTensor, TrainError> {
    Ok(AdapterTensor { name, dims: tensor.dims().to_vec(), values: tensor.flatten_all()?.to_vec1()? })
}

/// The two matrices of one module.
struct Part {
    module: String,
    /// (rank in all, inputs); a variable where A is trained.
    a: Tensor,
    a_variable: Option<Var>,
    /// Each (outputs, rank), one for each block.
    b: Vec<Var>,
}

impl Part {
    fn new(
        base: &BaseModel,
        settings: &TrainSettings,
        config: &AdapterConfig,
        module: &LinearModule,
        start: &Start,
    ) -> Result<Self, TrainError> {
        let (inputs, outputs, rank) = (module.inputs as usize, module.outputs as usize, config.rank_of(&module.name));
        let blocks = settings.method.blocks();
        let spread = match settings.method {
            Method::Subspace { .. } => Spread::Projection { rank: settings.rank as u64 },
            _ => Spread::Inputs(module.inputs),
        };
        let first = |which, dims: [usize; 2]| -> Result<Tensor, TrainError> {
            let name = Adapter::tensor_name(&module.name, which);
            match (start, which) {
                (Start::Drawn(draw), 'A') => {
                    let (values, expected) = (draw(&name, dims[0] * dims[1], spread), dims[0] * dims[1]);
                    if values.len() != expected {
                        return Err(TrainError::Draw { name, found: values.len(), expected });
                    }
                    Ok(Tensor::from_vec(values, &dims, base.device())?)
                }
                (Start::Drawn(_), _) => Ok(Tensor::zeros(&dims, DType::F32, base.device())?),
                (Start::Adapter(adapter), _) => {
                    let held = adapter.tensor(&name).ok_or_else(|| ModelError::AdapterHalf { name: name.clone() })?;
                    if held.dims != dims {
                        return Err(ModelError::AdapterShape { name, found: held.dims.clone(), expected: dims.to_vec() }.into());
                    }
                    Ok(Tensor::from_slice(&held.values, &dims, base.device())?)
                }
            }
        };
        let (a, b) = (first('A', [rank, inputs])?, first('B', [outputs, rank])?);
        let a_variable = if settings.method == Method::Lora { Some(Var::from_tensor(&a)?) } else { None };
        let a = a_variable.as_ref().map_or(a, |variable| variable.as_tensor().clone());
        let width = rank / blocks;
        let b = (0..blocks).map(|block| Ok(Var::from_tensor(&b.narrow(1, block * width, width)?.contiguous()?)?));
        Ok(Self { module: module.name.clone(), a, a_variable, b: b.collect::<Result<_, TrainError>>()? })
    }

    /// What a block trains, by names that no two blocks share.
    fn variables(&self, block: usize) -> Vec<(String, Var)> {
        let name = |which| Adapter::tensor_name(&self.module, which);
        let b = if self.b.len() == 1 { name('B') } else { format!("{}.{block}", name('B')) };
        let a = self.a_variable.iter().map(|variable| (name('A'), variable.clone()));
        a.chain([(b, self.b[block].clone())]).collect()
    }

    /// As the model takes them: one pair for each block.
    fn lora(&self, scale: f32, dropout: f32) -> Result<Vec<Lora>, TrainError> {
        let rows = self.a.dim(0)? / self.b.len();
        let pair = |(block, b): (usize, &Var)| {
            // The whole A where it is one, for it may be a variable.
            let a = if self.b.len() == 1 { self.a.clone() } else { self.a.narrow(0, block * rows, rows)?.force_contiguous()? };
            Ok(Lora { a, b: b.as_tensor().clone(), scale, dropout })
        };
        self.b.iter().enumerate().map(pair).collect()
    }

    /// All blocks side by side: (outputs, rank in all).
    fn b(&self) -> Result<Tensor, TrainError> {
        match self.b.as_slice() {
            [one] => Ok(one.as_tensor().clone()),
            blocks => Ok(Tensor::cat(&blocks.iter().map(|variable| variable.as_tensor()).collect::<Vec<_>>(), 1)?),
        }
    }
}
