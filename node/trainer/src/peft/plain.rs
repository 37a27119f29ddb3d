//! The same update in the form that every reader of PEFT directories knows: one rank, one scale.
//!
//! Scales are folded into B, and a module of lower rank is filled up with zeros: rows of A, columns of B. Both leave
//! `scale B A` as it is, but for the rounding of B where a scale is no power of two.

use super::{Adapter, AdapterConfig, AdapterTensor, PeftError, Targets};

impl Adapter {
    /// The greatest rank of its modules.
    pub fn rank_max(&self) -> usize {
        self.modules().iter().map(|module| self.config.rank_of(module)).max().unwrap_or(0)
    }

    /// Plain LoRA of one rank, its scale 1 (`lora_alpha` is the rank).
    ///
    /// # Errors
    /// A module of a greater rank.
    pub fn plain(&self, rank: usize) -> Result<Self, PeftError> {
        self.under(self.plain_config(rank))
    }

    /// The configuration of this adapter as plain LoRA.
    pub(super) fn plain_config(&self, rank: usize) -> AdapterConfig {
        let AdapterConfig { targets, saved, task, fan_in_fan_out, base, dropout, .. } = self.config.clone();
        AdapterConfig { targets, saved, task, fan_in_fan_out, base, dropout, ..AdapterConfig::plain(rank, rank as f64, Vec::new()) }
    }

    /// The same update under another configuration's ranks and scales.
    ///
    /// # Errors
    /// A module whose rank is greater than the configuration's.
    pub fn under(&self, config: AdapterConfig) -> Result<Self, PeftError> {
        let mut tensors: Vec<AdapterTensor> = self.saved_tensors().cloned().collect();
        for module in self.modules() {
            let (a, b) = self.halves(&module)?;
            let (found, rank) = (self.config.rank_of(&module), config.rank_of(&module));
            if found > rank {
                return Err(PeftError::Rank { module, found, room: rank });
            }
            let scale = self.config.scale_of(&module) / config.scale_of(&module);
            tensors.extend([rows(a, rank), columns(b, rank, scale)]);
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { config, tensors })
    }

    /// Modules named one by one, where their names' ends would mean others too.
    pub(super) fn name_targets(&mut self) {
        self.config.targets = Targets::List(self.modules());
    }
}

/// A with rows of zeros below.
fn rows(a: &AdapterTensor, rank: usize) -> AdapterTensor {
    let inputs = a.dims[1];
    let mut values = a.values.clone();
    values.resize(rank * inputs, 0.0);
    AdapterTensor { name: a.name.clone(), dims: vec![rank, inputs], values }
}

/// B times `scale`, with columns of zeros to the right.
fn columns(b: &AdapterTensor, rank: usize, scale: f64) -> AdapterTensor {
    let (outputs, found) = (b.dims[0], b.dims[1]);
    let mut values = vec![0.0; outputs * rank];
    for (to, from) in values.chunks_exact_mut(rank).zip(b.values.chunks_exact(found)) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = (f64::from(*from) * scale) as f32;
        }
    }
    AdapterTensor { name: b.name.clone(), dims: vec![outputs, rank], values }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Numbers from -1 to 1 that no low rank holds.
    pub(in crate::peft) fn scattered(place: usize) -> f32 {
        (((place as u64 + 1).pow(3).wrapping_mul(2_654_435_761) >> 11) % 1001) as f32 / 500.0 - 1.0
    }

    /// Two modules of different ranks and scales, and a head.
    pub(in crate::peft) fn mixed() -> Adapter {
        let tensor = |name: String, dims: &[usize], from: usize| AdapterTensor {
            name,
            dims: dims.to_vec(),
            values: (0..dims.iter().product()).map(|i| scattered(i + 100 * from)).collect(),
        };
        let half = |module: &str, which, dims: &[usize], from| tensor(Adapter::tensor_name(module, which), dims, from);
        let mut config = AdapterConfig::plain(2, 3.0, vec!["q_proj".into(), "v_proj".into()]);
        config.rslora = true;
        config.rank_pattern = vec![("v_proj".into(), 4)];
        config.alpha_pattern = vec![("v_proj".into(), 5.0)];
        config.saved = vec!["score".into()];
        config.base = Some("base".into());
        let mut tensors = vec![
            half("model.layers.0.self_attn.q_proj", 'A', &[2, 6], 1),
            half("model.layers.0.self_attn.q_proj", 'B', &[5, 2], 2),
            half("model.layers.0.self_attn.v_proj", 'A', &[4, 6], 3),
            half("model.layers.0.self_attn.v_proj", 'B', &[7, 4], 4),
            tensor("base_model.model.score.weight".into(), &[3, 6], 5),
        ];
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Adapter { config, tensors }
    }

    /// `scale B A` of a module, in f64.
    pub(in crate::peft) fn update(adapter: &Adapter, module: &str) -> Vec<f64> {
        let (a, b) = adapter.halves(module).unwrap();
        let (rank, inputs, scale) = (a.dims[0], a.dims[1], adapter.config.scale_of(module));
        let element = |index: usize| {
            let (row, column) = (index / inputs, index % inputs);
            let term = |k: usize| f64::from(b.values[row * rank + k]) * f64::from(a.values[k * inputs + column]);
            scale * (0..rank).map(term).sum::<f64>()
        };
        (0..b.dims[0] * inputs).map(element).collect()
    }

    pub(in crate::peft) fn furthest(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn ranks_and_scales_become_one_and_the_update_stays() {
        let mixed = mixed();
        let plain = mixed.plain(mixed.rank_max()).unwrap();
        let AdapterConfig { rank, alpha, rslora, .. } = plain.config;
        assert_eq!((rank, alpha, rslora, plain.config.rank_pattern.len(), plain.config.alpha_pattern.len()), (4, 4.0, false, 0, 0));
        assert_eq!((&plain.config.saved, &plain.config.base), (&mixed.config.saved, &mixed.config.base));
        assert_eq!(plain.tensor("base_model.model.score.weight"), mixed.tensor("base_model.model.score.weight"));
        for module in mixed.modules() {
            let (a, b) = plain.halves(&module).unwrap();
            assert_eq!((a.dims[0], b.dims[1], plain.config.scale_of(&module)), (4, 4, 1.0));
            let (before, after) = (update(&mixed, &module), update(&plain, &module));
            assert!(furthest(&before, &after) < 1e-6 && before.iter().any(|x| x.abs() > 1.0), "{module}");
        }
        let (a, b) = plain.halves("model.layers.0.self_attn.q_proj").unwrap();
        assert!(a.values[2 * 6..].iter().all(|x| *x == 0.0) && b.values.chunks_exact(4).all(|row| row[2..] == [0.0, 0.0]));
        let refused = mixed.plain(3).unwrap_err().to_string();
        assert_eq!(refused, "model.layers.0.self_attn.v_proj has rank 4, and there is room for 3");
    }

    #[test]
    fn one_scale_is_folded_into_another() {
        let mixed = mixed();
        let mut config = mixed.config.clone();
        (config.rslora, config.alpha, config.alpha_pattern) = (false, 16.0, Vec::new());
        let folded = mixed.under(config.clone()).unwrap();
        for module in mixed.modules() {
            assert_eq!(folded.halves(&module).unwrap().0, mixed.halves(&module).unwrap().0, "A stays");
            assert!(furthest(&update(&mixed, &module), &update(&folded, &module)) < 1e-6);
        }
        // Nothing to fold, nothing changes: not a bit.
        assert_eq!(mixed.under(mixed.config.clone()).unwrap(), mixed);
    }
}
