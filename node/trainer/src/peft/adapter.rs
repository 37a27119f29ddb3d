//! An adapter in memory, and what it adds to a base.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};

use super::{AdapterConfig, PeftError};
use crate::models::{Attached, BaseModel, Decoder, Lora, ModelError};

const PREFIX: &str = "base_model.model.";

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// As PEFT names it: `base_model.model.<module>.lora_A.weight`, or for a module that is saved whole
    /// `base_model.model.<module>.weight`.
    pub name: String,
    /// A: (rank, inputs). B: (outputs, rank).
    pub dims: Vec<usize>,
    pub values: Vec<f32>,
}

/// An adapter in memory: it adds `scale B A` to weights of the base, and takes the place of saved tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub config: AdapterConfig,
    /// Sorted by name.
    pub tensors: Vec<AdapterTensor>,
}

impl Adapter {
    /// PEFT's name of a module's tensor; `which` is `A` or `B`.
    pub fn tensor_name(module: &str, which: char) -> String {
        format!("{PREFIX}{module}.lora_{which}.weight")
    }

    /// PEFT's name of a tensor that is saved whole.
    pub fn saved_name(tensor: &str) -> String {
        format!("{PREFIX}{tensor}")
    }

    pub fn tensor(&self, name: &str) -> Option<&AdapterTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The modules with low-rank parts, sorted.
    pub fn modules(&self) -> Vec<String> {
        let module = |tensor: &AdapterTensor| split_name(&tensor.name).map(|(module, _)| module.to_string());
        self.tensors.iter().filter_map(module).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The tensors that are saved whole, by their names in the base.
    pub fn saved(&self) -> impl Iterator<Item = (&str, &AdapterTensor)> {
        let whole = |tensor: &AdapterTensor| split_name(&tensor.name).is_none();
        self.tensors.iter().filter(move |tensor| whole(tensor)).map(|tensor| (base_name(&tensor.name), tensor))
    }

    /// Those tensors as they are.
    pub(super) fn saved_tensors(&self) -> impl Iterator<Item = &AdapterTensor> {
        self.saved().map(|(_, tensor)| tensor)
    }

    /// A and B of a module.
    ///
    /// # Errors
    /// One of them without the other.
    pub fn halves(&self, module: &str) -> Result<(&AdapterTensor, &AdapterTensor), PeftError> {
        let half = |which| {
            let name = Self::tensor_name(module, which);
            self.tensor(&name).ok_or(PeftError::Half { name })
        };
        Ok((half('A')?, half('B')?))
    }

    /// The base with this adapter on it. Costs a copy of the adapter, not of the base.
    pub fn apply(&self, base: &BaseModel) -> Result<Decoder, ModelError> {
        base.attach(&self.parts(base.device())?)
    }

    /// Its tensors as a model takes them.
    pub fn parts(&self, device: &Device) -> Result<Attached, ModelError> {
        let mut parts = Attached::default();
        let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        for tensor in &self.tensors {
            if let Some((module, which)) = split_name(&tensor.name) {
                let values = Tensor::from_slice(&tensor.values, tensor.dims.as_slice(), device)?;
                halves.entry(module.to_string()).or_default()[usize::from(which == 'B')] = Some(values);
            }
        }
        for (module, [a, b]) in halves {
            let lacks = |which| ModelError::AdapterHalf { name: Self::tensor_name(&module, which) };
            let (a, b) = (a.ok_or_else(|| lacks('A'))?, b.ok_or_else(|| lacks('B'))?);
            let scale = self.config.scale_of(&module) as f32;
            parts.lora.insert(module, vec![Lora { a, b, scale, dropout: 0.0 }]);
        }
        for (name, tensor) in self.saved() {
            parts.replaced.insert(name.into(), Tensor::from_slice(&tensor.values, tensor.dims.as_slice(), device)?);
        }
        Ok(parts)
    }
}

/// A tensor's name in the base, where it has one.
pub(super) fn base_name(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// Module and `A` or `B` of a PEFT tensor name.
pub(super) fn split_name(name: &str) -> Option<(&str, char)> {
    let rest = name.strip_prefix(PREFIX)?;
    let half = |end, which| rest.strip_suffix(end).map(|module| (module, which));
    half(".lora_A.weight", 'A').or_else(|| half(".lora_B.weight", 'B'))
}

/// Entries of `target_modules` that mean these modules: the last parts of their names where these mean nothing else in
/// any model that has all layers alike, else whole names.
pub fn target_names(modules: &[String]) -> Vec<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    // Layers in which each last part is adapted, and how its names go on behind the layer.
    let mut places: BTreeMap<String, (BTreeSet<usize>, BTreeSet<String>)> = BTreeMap::new();
    for name in modules {
        let parts: Vec<&str> = name.split('.').collect();
        let layer = parts.iter().rposition(|part| part.parse::<usize>().is_ok());
        let (layers, ends) = places.entry(last(name)).or_default();
        layers.extend(layer.and_then(|index| parts[index].parse::<usize>().ok()));
        ends.insert(layer.map_or(name.clone(), |index| parts[index + 1..].join(".")));
    }
    let every: BTreeSet<usize> = places.values().flat_map(|(layers, _)| layers.iter().copied()).collect();
    let whole_range = every.iter().copied().eq(0..every.len());
    let unique = |name: &str| !AMBIGUOUS.contains(&name);
    let short = whole_range && places.iter().all(|(name, (layers, ends))| *layers == every && ends.len() == 1 && unique(name));
    if short { places.into_keys().collect() } else { modules.to_vec() }
}

/// Last parts that name several modules of a layer in models of transformers.
const AMBIGUOUS: [&str; 4] = ["dense", "c_proj", "out_proj", "fc"];

#[cfg(test)]
mod tests {
    use super::target_names;

    #[test]
    fn targets_are_short_only_where_they_mean_nothing_else() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let everywhere = names(&["m.layers.0.a.q_proj", "m.layers.0.a.v_proj", "m.layers.1.a.q_proj", "m.layers.1.a.v_proj"]);
        assert_eq!(target_names(&everywhere), names(&["q_proj", "v_proj"]));
        for partly in [
            &names(&["m.layers.1.a.q_proj"]),
            &names(&["m.layers.0.a.q_proj", "m.layers.1.a.q_proj", "m.layers.1.a.v_proj"]),
            &names(&["m.layer.0.output.dense", "m.layer.1.output.dense"]),
            &names(&["m.layers.0.a.q_proj", "m.layers.0.b.q_proj"]),
        ] {
            assert_eq!(&target_names(partly), partly);
        }
    }
}
