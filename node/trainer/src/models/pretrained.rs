//! A base: configuration and frozen weights of a Hugging Face directory, from which models with adapters are made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::{DType, Device, Tensor, Var};
use mingle_protocol::hash::ContentHash;

use super::device::{OpenedDevice, Precision};
use super::ops::Lora;
use super::placement::Placement;
use super::transformer::Decoder;
use super::weights::{Weights, to_bf16_safetensors};
use super::{ModelConfig, ModelError, families, targets};
use crate::files;

/// A linear module that can carry LoRA.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinearModule {
    /// As in the base's tensor names, without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub inputs: u64,
    pub outputs: u64,
}

/// Digest of the directory's weights: equal for the same tensors, whatever files they are split over.
///
/// # Errors
/// Weights that cannot be read.
pub fn base_digest(dir: &Path) -> Result<ContentHash, ModelError> {
    Weights::open(dir)?.digest()
}

/// What is laid over a base. The tensors may be variables.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    /// Low-rank parts by module name, all added.
    pub lora: BTreeMap<String, Vec<Lora>>,
    /// Tensors that take the place of the base's, by tensor name.
    pub replaced: BTreeMap<String, Tensor>,
}

/// A loaded base. Loaded once, it serves any number of adapters.
#[derive(Clone)]
pub struct BaseModel {
    dir: PathBuf,
    decoder: Arc<Decoder>,
}

/// Bases that this process holds: training, judging and answering at once take their memory once.
static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

struct Held {
    dir: PathBuf,
    precision: Option<Precision>,
    decoder: Weak<Decoder>,
}

impl BaseModel {
    /// Reads `config.json` and the weights of `dir`, widened to f32.
    ///
    /// # Errors
    /// A model of another family or form, and weights that are missing or have another shape, by name.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        Self::load_at(dir, &Placement::on(device))
    }

    /// Reads a base for computing on `device` in `precision`, by default the device's own. On the CPU what another part of
    /// this process still holds is shared; an opened GPU is a device of its own, whose tensors do not mix with another's.
    ///
    /// # Errors
    /// As [`BaseModel::load`], and a precision that the device does not compute in.
    pub fn load_on(dir: &Path, device: &OpenedDevice, precision: Option<Precision>) -> Result<Self, ModelError> {
        let placement = device.placement(precision)?;
        if !device.device.is_cpu() {
            return Self::load_at(dir, &placement);
        }
        let place = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        // Held while the base is read: whoever else wants it waits for it instead of reading it, too.
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|base| base.decoder.strong_count() > 0);
        let known = held.iter().find(|base| base.dir == place && base.precision == precision).and_then(|base| base.decoder.upgrade());
        if let Some(decoder) = known {
            return Ok(Self { dir: dir.into(), decoder });
        }
        let mut base = Self::load_at(dir, &placement)?;
        if precision == Some(Precision::Bf16) {
            base = base.multiply_in_bf16();
        }
        held.push(Held { dir: place, precision, decoder: Arc::downgrade(&base.decoder) });
        Ok(base)
    }

    /// The same on any device, in the placement's dtype.
    ///
    /// # Errors
    /// As [`BaseModel::load`].
    pub fn load_at(dir: &Path, placement: &Placement) -> Result<Self, ModelError> {
        let Placement { device, dtype, host } = placement;
        let config = ModelConfig::read(dir)?;
        let weights = Weights::open(dir)?;
        let mut read = |name: &str, dims: &[usize]| Ok(weights.find(name, dims, device)?.to_dtype(*dtype)?);
        let decoder = Decoder { host: *host, dtype: *dtype, ..Decoder::build(config, device, &mut read)? };
        Ok(Self { dir: dir.into(), decoder: Arc::new(decoder) })
    }

    /// On the CPU: keeps a copy of the frozen matrices in bf16 and multiplies them with activations rounded to bf16, summed in
    /// f32. Low-rank parts, gradients and everything else stay in f32. Only where [`super::has_bf16_products`] is it faster.
    pub fn multiply_in_bf16(mut self) -> Self {
        Arc::make_mut(&mut self.decoder).multiply_in_bf16();
        self
    }

    /// A base of drawn weights, for measuring speed and memory at a shape.
    ///
    /// # Errors
    /// A device without the memory for it.
    pub fn drawn(config: ModelConfig, placement: &Placement) -> Result<Self, ModelError> {
        let Placement { device, dtype, host } = placement;
        let mut draw = |_: &str, dims: &[usize]| {
            let tensor = if dims.len() == 1 { Tensor::ones(dims, *dtype, device) } else { Tensor::randn(0f32, 0.02, dims, device) };
            Ok(tensor?.to_dtype(*dtype)?)
        };
        let decoder = Decoder { host: *host, dtype: *dtype, ..Decoder::build(config, device, &mut draw)? };
        Ok(Self { dir: PathBuf::new(), decoder: Arc::new(decoder) })
    }

    /// The directory it was loaded from: `tokenizer.json` lies there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    pub fn device(&self) -> &Device {
        self.decoder.device()
    }

    /// The base as it is, without an adapter.
    pub fn decoder(&self) -> Decoder {
        Decoder::clone(&self.decoder)
    }

    /// The linear modules that `targets` choose, sorted by name.
    ///
    /// # Errors
    /// A target that names nothing.
    pub fn modules(&self, targets: &[String]) -> Result<Vec<LinearModule>, ModelError> {
        self.config().modules(targets)
    }

    /// The base with low-rank parts and replaced tensors.
    ///
    /// # Errors
    /// Modules and tensors this base does not have, and shapes that do not fit.
    pub fn attach(&self, parts: &Attached) -> Result<Decoder, ModelError> {
        let mut decoder = self.decoder();
        for (name, parts) in &parts.lora {
            let unknown = || ModelError::AdapterModule { name: name.clone() };
            let linear = decoder.linear_mut(name).ok_or_else(unknown)?;
            let (outputs, inputs) = (linear.outputs(), linear.inputs());
            for Lora { a, b, .. } in parts {
                let rank = a.dims().first().copied().unwrap_or(0);
                for (which, tensor, expected) in [("lora_A", a, [rank, inputs]), ("lora_B", b, [outputs, rank])] {
                    if tensor.dims() != expected {
                        let (name, found) = (format!("{name}.{which}"), tensor.dims().to_vec());
                        return Err(ModelError::AdapterShape { name, found, expected: expected.to_vec() });
                    }
                }
            }
            linear.lora.clone_from(parts);
        }
        for (name, tensor) in &parts.replaced {
            let unknown = || ModelError::AdapterModule { name: name.clone() };
            let place = decoder.parameter_mut(name).ok_or_else(unknown)?;
            if place.dims() != tensor.dims() {
                let (found, expected) = (tensor.dims().to_vec(), place.dims().to_vec());
                return Err(ModelError::AdapterShape { name: name.clone(), found, expected });
            }
            *place = tensor.clone();
        }
        decoder.tie();
        Ok(decoder)
    }

    /// A model made of this base, ready for many passes: weights that took the place of the base's are laid out for their
    /// products as well, which takes their memory once more.
    pub fn prepared(&self, mut decoder: Decoder) -> Decoder {
        let mut base = self.decoder();
        decoder.groups_mut().zip(base.groups_mut()).for_each(|(own, base)| own.pack_apart_from(base));
        decoder
    }

    /// The value of a parameter by tensor name.
    pub fn parameter(&self, name: &str) -> Option<Tensor> {
        self.decoder().parameter_mut(name).cloned()
    }

    /// A model whose every weight is a variable, starting from this base; with the variables by tensor name.
    ///
    /// # Errors
    /// A failed copy.
    pub fn trainable(&self) -> Result<(Decoder, Vec<(String, Var)>), ModelError> {
        let mut variables = Vec::new();
        let mut parts = Attached::default();
        for (name, tensor) in self.decoder.weights() {
            // A copy: training must not change the base it starts from.
            let variable = Var::from_tensor(&tensor.to_dtype(DType::F32)?.copy()?)?;
            parts.replaced.insert(name.clone(), variable.as_tensor().clone());
            variables.push((name, variable));
        }
        Ok((self.attach(&parts)?, variables))
    }
}

impl ModelConfig {
    /// The linear modules whose last name part (`q_proj`), or whole name, is among `targets`; sorted by name. Needs no
    /// weights.
    ///
    /// # Errors
    /// A target that names nothing.
    pub fn modules(&self, targets: &[String]) -> Result<Vec<LinearModule>, ModelError> {
        targets::select(&self.all_modules(), targets)
    }
}

impl Decoder {
    /// Writes `model.safetensors` (bf16) into `dir`, which must exist, and `config.json`, for a model of the Llama family.
    ///
    /// # Errors
    /// A failed write.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        self.save_weights(dir)?;
        let json = families::llama_json(&self.config);
        let text = serde_json::to_string_pretty(&json).map_err(|error| ModelError::file(dir, error))?;
        let path = dir.join("config.json");
        files::replace(&path, (text + "\n").as_bytes(), files::PUBLIC).map_err(|error| ModelError::file(&path, error))
    }

    /// Writes all weights as `model.safetensors` (bf16), as the family's own files store them.
    ///
    /// # Errors
    /// A failed write.
    pub fn save_weights(&self, dir: &Path) -> Result<(), ModelError> {
        let mut tensors = Vec::new();
        for (name, tensor) in self.weights() {
            let tensor = if self.config.stores_transposed(&name) { tensor.t()? } else { tensor };
            tensors.push((name, tensor.dims().to_vec(), tensor.contiguous()?.flatten_all()?.to_vec1::<f32>()?));
        }
        let path = dir.join("model.safetensors");
        files::replace(&path, &to_bf16_safetensors(&tensors)?, files::PUBLIC).map_err(|error| ModelError::file(&path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::device::DeviceChoice;
    use crate::train::random_decoder;

    #[test]
    fn a_base_that_is_held_is_not_read_again_and_one_that_is_let_go_is() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::data::tokens::tests::config(32);
        random_decoder(config, 3, &Device::Cpu).unwrap().0.save(folder.path()).unwrap();
        let cpu = DeviceChoice::Cpu.open().unwrap();
        let load = |precision| BaseModel::load_on(folder.path(), &cpu, precision).unwrap();
        let one = load(None);
        // Read anew, a tensor would have another name of its own.
        let id = |base: &BaseModel| base.parameter("model.embed_tokens.weight").unwrap().id();
        assert_eq!(id(&one), id(&load(None)));
        assert_ne!(id(&one), id(&load(Some(Precision::F32))), "asked for otherwise");
        let (before, kept) = (id(&one), one.decoder());
        drop(one);
        assert_ne!(before, id(&load(None)), "nobody held it as a base");
        drop(kept);
    }
}
