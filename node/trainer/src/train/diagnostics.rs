//! The quantities of the one-round theorem, measured on a training.
//!
//! "Revisiting Federated Fine-Tuning: A Single Communication Round is Enough for Foundation Models" (arXiv 2412.04650) bounds
//! how far the model merged once lies from the model merged after every round, both trained for the same number of local
//! steps, by the smoothness of the loss, the size of the updates, the number of steps and the norm of the start:
//!
//! ```text
//! ‖ε‖ ≤ Γ ‖w(0,0)‖,   Γ = L τ T k m
//! ```
//!
//! L is the smoothness (‖∇F(w) − ∇F(v)‖ ≤ L ‖w − v‖), τ the size of the updates (‖w − w(0,0)‖ ≤ τ ‖w(0,0)‖, τ < 1), T k the
//! local steps of a member over all rounds, m the members. Here L and τ are what a training showed, between its start and
//! its end: the least values with which both hold for these two points. A training knows nothing of the other members, so
//! its Γ is that of m = 1: a round multiplies it by its members. The learning rate is not in the bound, so it is one of
//! order, not of distance.
//!
//! All norms are Frobenius norms over full weights, also where LoRA was trained: the distance is ‖Σ s B A‖, computed from
//! the factors without forming the product, and gradients are those of the adapted weights themselves.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::gradients::{BatchGradients, batch_gradients};
use crate::data::TokenizedExample;
use crate::files;
use crate::models::{Attached, BaseModel, Lora, ModelError, Pass};

/// File of a training's folder that holds its [`Diagnostics`].
pub const FILE: &str = "diagnostics.json";

/// Elements of weights whose gradients are computed together: a bound on memory, four times four bytes each.
const GROUP_ELEMENTS: usize = 1 << 26;

/// What the theorem speaks of, for one training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// L: change of the gradient over change of the weights. 0 where the weights did not change.
    pub smoothness: f64,
    /// Change of the weights over their norm at the start.
    pub tau: f64,
    /// ‖w(0,0)‖ of all weights of the model.
    pub start_norm: f64,
    /// ‖w − w(0,0)‖.
    pub distance: f64,
    /// T k: local steps.
    pub steps: usize,
    /// L τ T k.
    pub gamma: f64,
    /// The bound: Γ ‖w(0,0)‖.
    pub epsilon: f64,
    /// Norm of the gradient at the start and at the end, and the loss there, of the measured examples.
    pub gradient_norms: [f64; 2],
    pub losses: [f64; 2],
    /// How many examples L was measured on.
    pub examples: usize,
}

/// A training's two ends, and what L is measured on.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    pub base: &'a BaseModel,
    /// What lay on the base before the first step: nothing, an earlier adapter, replaced weights.
    pub start: &'a Attached,
    pub end: &'a Attached,
    /// Examples that do not change during the training, a few: their gradient is computed twice for each group of weights.
    pub examples: &'a [&'a TokenizedExample],
    /// Optimiser steps between the two.
    pub steps: usize,
}

impl Ends<'_> {
    /// Measures everything. An accelerator takes `at_once` examples at a time.
    ///
    /// # Errors
    /// What the model refuses.
    pub fn diagnose(&self, pool: &rayon::ThreadPool, at_once: usize) -> Result<Diagnostics, TrainError> {
        self.diagnose_in_groups(pool, at_once, GROUP_ELEMENTS)
    }

    fn diagnose_in_groups(&self, pool: &rayon::ThreadPool, at_once: usize, elements: usize) -> Result<Diagnostics, TrainError> {
        let (start_norm, distance) = (self.start_norm()?, self.distance()?);
        let (mut change, mut norms, mut losses) = (0.0, [0.0; 2], [0.0; 2]);
        for names in self.groups(elements)? {
            let before = self.gradients(self.start, &names, pool, at_once)?;
            let after = self.gradients(self.end, &names, pool, at_once)?;
            losses = [before.loss, after.loss];
            for (before, after) in before.gradients.iter().zip(&after.gradients) {
                norms[0] += squares(before)?;
                norms[1] += squares(after)?;
                change += squares(&(after - before)?)?;
            }
        }
        let smoothness = if distance > 0.0 { change.sqrt() / distance } else { 0.0 };
        let tau = distance / start_norm;
        let gamma = smoothness * tau * self.steps as f64;
        Ok(Diagnostics {
            smoothness,
            tau,
            start_norm,
            distance,
            steps: self.steps,
            gamma,
            epsilon: gamma * start_norm,
            gradient_norms: norms.map(f64::sqrt),
            losses,
            examples: self.examples.len(),
        })
    }

    /// Tensor names of the weights that the training moved, in parts of about so many elements.
    fn groups(&self, elements: usize) -> Result<Vec<Vec<String>>, TrainError> {
        let (mut groups, mut waiting, mut size) = (Vec::new(), Vec::new(), 0);
        let adapted = self.modules().into_iter().map(|module| format!("{module}.weight"));
        let replaced = self.start.replaced.keys().chain(self.end.replaced.keys()).cloned();
        for name in adapted.chain(replaced).collect::<BTreeSet<_>>() {
            size += self.value(self.start, &name)?.elem_count();
            waiting.push(name);
            if size >= elements {
                groups.push(std::mem::take(&mut waiting));
                size = 0;
            }
        }
        groups.extend((!waiting.is_empty()).then_some(waiting));
        Ok(groups)
    }

    fn modules(&self) -> BTreeSet<&String> {
        self.start.lora.keys().chain(self.end.lora.keys()).collect()
    }

    /// The weight of that name, low-rank parts not among it.
    fn value(&self, at: &Attached, name: &str) -> Result<Tensor, ModelError> {
        let own = at.replaced.get(name).cloned().or_else(|| self.base.parameter(name));
        own.ok_or_else(|| ModelError::AdapterModule { name: name.into() })
    }

    /// The gradient of the weights of these names, at one end.
    fn gradients(&self, at: &Attached, names: &[String], pool: &rayon::ThreadPool, at_once: usize) -> Result<BatchGradients, TrainError> {
        let mut parts = at.clone();
        let mut variables = Vec::with_capacity(names.len());
        for name in names {
            let variable = Var::from_tensor(&self.value(at, name)?.copy()?)?;
            parts.replaced.insert(name.clone(), variable.as_tensor().clone());
            variables.push((name.clone(), variable));
        }
        let decoder = self.base.attach(&parts)?;
        batch_gradients(pool, &decoder, &variables, self.examples, at_once, &Pass { recompute: true, dropout_seed: None })
    }

    /// ‖w(0,0)‖: ‖W + Σ s B A‖² is ‖W‖² + 2 ⟨W Aᵀ, s B⟩ + ‖Σ s B A‖².
    fn start_norm(&self) -> Result<f64, TrainError> {
        let mut sum = 0.0;
        for (name, own) in self.base.decoder().weights() {
            sum += squares(self.start.replaced.get(&name).unwrap_or(&own))?;
        }
        for (module, parts) in &self.start.lora {
            let (a, b) = product(parts, &[])?;
            let weight = self.value(self.start, &format!("{module}.weight"))?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            let turned = weight.matmul(&a.to_dtype(DType::F32)?.t()?)?.to_dtype(DType::F64)?;
            sum += 2.0 * (turned * &b)?.sum_all()?.to_scalar::<f64>()? + product_squares(&a, &b)?;
        }
        Ok(sum.max(0.0).sqrt())
    }

    /// ‖w − w(0,0)‖.
    fn distance(&self) -> Result<f64, TrainError> {
        let mut sum = 0.0;
        for module in self.modules() {
            let parts = |at: &'_ Attached| at.lora.get(module).cloned().unwrap_or_default();
            let (a, b) = product(&parts(self.end), &parts(self.start))?;
            sum += product_squares(&a, &b)?;
        }
        for name in self.start.replaced.keys().chain(self.end.replaced.keys()).collect::<BTreeSet<_>>() {
            let [before, after] = [self.value(self.start, name)?, self.value(self.end, name)?];
            sum += squares(&(after.to_dtype(DType::F32)? - before.to_dtype(DType::F32)?)?)?;
        }
        Ok(sum.max(0.0).sqrt())
    }
}

/// Factors of Σ s B A over `added`, less that over `taken`: A's rows above each other, s B's columns beside each other. In
/// f64 on the CPU: the difference of two products may be far smaller than both.
fn product(added: &[Lora], taken: &[Lora]) -> Result<(Tensor, Tensor), candle_core::Error> {
    let signed = added.iter().map(|part| (part, 1.0)).chain(taken.iter().map(|part| (part, -1.0)));
    let wide = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (part, sign) in signed {
        a.push(wide(&part.a)?);
        b.push((wide(&part.b)? * (sign * f64::from(part.scale)))?);
    }
    Ok((Tensor::cat(&a, 0)?, Tensor::cat(&b, 1)?))
}

/// ‖B A‖²: the sum over the products of the entries of Bᵀ B and A Aᵀ, both of the rank's size.
fn product_squares(a: &Tensor, b: &Tensor) -> Result<f64, candle_core::Error> {
    (b.t()?.matmul(b)? * a.matmul(&a.t()?)?)?.sum_all()?.to_scalar()
}

/// ‖t‖², summed in f64.
fn squares(tensor: &Tensor) -> Result<f64, candle_core::Error> {
    let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum())
}

impl Diagnostics {
    /// Writes [`FILE`] into a training's folder.
    ///
    /// # Errors
    /// A failed write.
    pub fn write(&self, dir: &Path) -> Result<(), TrainError> {
        let path = dir.join(FILE);
        let explain = |reason: String| TrainError::Checkpoint { path: path.clone(), reason };
        let text = serde_json::to_string_pretty(self).map_err(|error| explain(error.to_string()))?;
        files::replace(&path, (text + "\n").as_bytes(), files::PUBLIC).map_err(|error| explain(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradients::pool;
    use super::*;

    fn reference() -> (BaseModel, Vec<TokenizedExample>) {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/llama");
        let base = BaseModel::load(&case.join("base"), &Device::Cpu).unwrap();
        let tensors = candle_core::safetensors::load(case.join("tensors.safetensors"), &Device::Cpu).unwrap();
        let rows = tensors["input_ids"].to_vec2::<i64>().unwrap();
        let example = |row: Vec<i64>| TokenizedExample::all_learned(row.into_iter().map(|id| id as u32).collect());
        (base, rows.into_iter().map(example).collect())
    }

    fn lora(base: &BaseModel, seed: u64) -> Attached {
        let mut parts = Attached::default();
        let normal = |dims: (usize, usize), salt: u64| {
            let mut draw = crate::data::batches::Draw::new(seed, "part", salt);
            let values: Vec<f32> = (0..dims.0 * dims.1).map(|_| draw.unit() as f32 - 0.5).collect();
            Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
        };
        for (salt, module) in base.modules(&["q_proj".into(), "down_proj".into()]).unwrap().into_iter().enumerate() {
            let (a, b) = (normal((3, module.inputs as usize), salt as u64), normal((module.outputs as usize, 3), salt as u64 + 50));
            parts.lora.insert(module.name, vec![Lora { a, b, scale: 0.25, dropout: 0.0 }]);
        }
        parts
    }

    /// The same place with the products added to the weights.
    fn merged(base: &BaseModel, parts: &Attached) -> Attached {
        let mut merged = Attached::default();
        for (module, parts) in &parts.lora {
            let name = format!("{module}.weight");
            let product = (parts[0].b.matmul(&parts[0].a).unwrap() * f64::from(parts[0].scale)).unwrap();
            merged.replaced.insert(name.clone(), (base.parameter(&name).unwrap() + product).unwrap());
        }
        merged
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-4 * expected.abs(), "{found} is not {expected}");
    }

    #[test]
    fn low_rank_parts_are_measured_as_the_weights_they_make() {
        let (base, examples) = reference();
        let examples: Vec<&TokenizedExample> = examples.iter().collect();
        let (start, end) = (lora(&base, 1), lora(&base, 2));
        let threads = pool(Some(1)).unwrap();
        let found = Ends { base: &base, start: &start, end: &end, examples: &examples, steps: 7 }.diagnose(&threads, 1).unwrap();
        let (start_full, end_full) = (merged(&base, &start), merged(&base, &end));
        let ends = Ends { base: &base, start: &start_full, end: &end_full, examples: &examples, steps: 7 };
        // Weight by weight, so that there is more than one group.
        let full = ends.diagnose_in_groups(&threads, 1, 1).unwrap();
        near(found.distance, full.distance);
        near(found.start_norm, full.start_norm);
        near(found.smoothness, full.smoothness);
        near(found.gradient_norms[1], full.gradient_norms[1]);
        near(found.losses[0], full.losses[0]);
        near(found.tau, found.distance / found.start_norm);
        near(found.epsilon, found.smoothness * found.tau * 7.0 * found.start_norm);
        // Against what plain sums over the merged weights say.
        let mut sum = 0.0;
        for (name, weight) in &end_full.replaced {
            sum += squares(&(weight - &start_full.replaced[name]).unwrap()).unwrap();
        }
        near(found.distance, sum.sqrt());
    }

    #[test]
    fn smoothness_is_the_curvature_along_a_short_step() {
        let (base, examples) = reference();
        let examples: Vec<&TokenizedExample> = examples.iter().collect();
        let threads = pool(Some(1)).unwrap();
        let (start, mut end) = (Attached::default(), lora(&base, 3));
        end.lora.values_mut().for_each(|parts| parts[0].scale = 1e-3);
        let short = Ends { base: &base, start: &start, end: &end, examples: &examples, steps: 1 }.diagnose(&threads, 1).unwrap();
        end.lora.values_mut().for_each(|parts| parts[0].scale = 2e-3);
        let twice = Ends { base: &base, start: &start, end: &end, examples: &examples, steps: 1 }.diagnose(&threads, 1).unwrap();
        assert!((short.distance * 2.0 - twice.distance).abs() < 1e-6 * twice.distance);
        // The gradient changes in proportion to a short step, so L does not depend on its length.
        assert!((short.smoothness - twice.smoothness).abs() < 0.05 * twice.smoothness, "{} and {}", short.smoothness, twice.smoothness);
        // And the loss changes by the mean slope: by no more than the gradient's length allows.
        assert!((short.losses[1] - short.losses[0]).abs() <= short.gradient_norms[0].max(short.gradient_norms[1]) * short.distance);
        let still = Ends { base: &base, start: &end, end: &end, examples: &examples, steps: 5 }.diagnose(&threads, 1).unwrap();
        assert_eq!((still.smoothness, still.distance, still.epsilon), (0.0, 0.0, 0.0));
    }

    #[test]
    fn what_is_written_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (base, examples) = reference();
        let (start, end) = (Attached::default(), lora(&base, 3));
        let found = Ends { base: &base, start: &start, end: &end, examples: &[&examples[0]], steps: 2 };
        let found = found.diagnose(&pool(Some(1)).unwrap(), 1).unwrap();
        found.write(dir.path()).unwrap();
        let read: Diagnostics = serde_json::from_slice(&std::fs::read(dir.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(read, found);
    }
}
