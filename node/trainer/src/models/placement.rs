//! Where a model's tensors lie and how its activations are held.

use candle_core::{DType, Device};

use super::device::{DeviceError, OpenedDevice, Precision};

/// How a base is loaded.
#[derive(Debug, Clone)]
pub struct Placement {
    pub device: Device,
    /// Of frozen weights and activations. What is trained is f32.
    pub dtype: DType,
    /// Activations are plain vectors for the processor's own loops; elsewhere they are tensors.
    pub host: bool,
}

impl Placement {
    /// The device in f32; a processor computes by its own loops.
    pub fn on(device: &Device) -> Self {
        Self { device: device.clone(), dtype: DType::F32, host: device.is_cpu() }
    }
}

impl OpenedDevice {
    /// # Errors
    /// A precision that the device does not compute in.
    pub fn placement(&self, precision: Option<Precision>) -> Result<Placement, DeviceError> {
        Ok(Placement { dtype: self.compute_dtype(precision)?, ..Placement::on(&self.device) })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Tensor, Var};
    use serde_json::{Value, json};

    use super::*;
    use crate::models::kernels::cuda::{emulated, on_a_gpu};
    use crate::models::{Decoder, Lora, ModelConfig, Pass, TokenBatch};
    use crate::train::random_decoder;

    fn configs() -> Vec<Value> {
        let llama = json!({ "model_type": "llama", "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 32, "rms_norm_eps": 1e-5 });
        let with = |changes: Value| {
            let mut json = llama.clone();
            changes.as_object().unwrap().iter().for_each(|(key, value)| json[key] = value.clone());
            json
        };
        vec![
            llama.clone(),
            with(json!({ "model_type": "mistral", "sliding_window": 3 })),
            with(json!({ "model_type": "qwen2", "tie_word_embeddings": true })),
            with(json!({ "model_type": "gemma", "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh" })),
            json!({ "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 32,
                "layer_norm_epsilon": 1e-5 }),
            json!({ "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 32, "intermediate_size": 40,
                "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50, "max_position_embeddings": 32, "type_vocab_size": 2,
                "layer_norm_eps": 1e-5, "hidden_act": "gelu", "id2label": { "0": "no", "1": "yes" } }),
        ]
    }

    /// A model with LoRA on its first group, every tensor a variable.
    fn model(json: &Value, device: &Device) -> (Decoder, Vec<(String, Var)>) {
        let config = ModelConfig::from_json(std::path::Path::new("config.json"), json).unwrap();
        let module = config.all_modules().remove(0);
        let (mut decoder, mut variables) = random_decoder(config, 3, device).unwrap();
        let noise = |seed: u64, rows: u64, columns: u64| {
            let values = crate::models::kernels::testing::noise(seed, (rows * columns) as usize);
            let tensor = Tensor::from_vec(values, (rows as usize, columns as usize), device).unwrap();
            Var::from_tensor(&(tensor * 0.1).unwrap()).unwrap()
        };
        let (a, b) = (noise(1, 3, module.inputs), noise(2, module.outputs, 3));
        let lora = Lora { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 1.5, dropout: 0.2 };
        decoder.linear_mut(&module.name).unwrap().lora = vec![lora];
        variables.extend([("a".to_owned(), a), ("b".to_owned(), b)]);
        (decoder, variables)
    }

    fn batch(config: &ModelConfig) -> TokenBatch {
        let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + 3) % 50).collect();
        let classifier = matches!(config.head, crate::models::config::Head::Classes(_));
        let targets = if classifier { vec![1, 0, 1] } else { (0..12).map(|i| if i % 4 == 3 { -100 } else { (i * 5) % 50 }).collect() };
        TokenBatch { lengths: vec![5, 1, 6], tokens, types: Vec::new(), targets }
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Distance of each gradient from the one of the processor's loops, relative to its norm.
    fn distances(json: &Value, device: &Device, dtype: DType, pass: &Pass) -> (f64, f64) {
        let (decoder, variables) = model(json, &Device::Cpu);
        let batch = batch(decoder.config());
        let (loss, gradients) = decoder.loss_and_gradients(&batch, 9.0, &variables, pass).unwrap();
        let (other, variables) = model(json, device);
        let other = Decoder { host: false, dtype, ..other };
        let (found_loss, found) = other.loss_and_gradients(&batch, 9.0, &variables, pass).unwrap();
        let mut worst = 0f64;
        for ((gradient, found), (name, _)) in gradients.iter().zip(&found).zip(&variables) {
            assert_eq!(gradient.is_some(), found.is_some(), "{name}");
            let (Some(gradient), Some(found)) = (gradient, found) else { continue };
            assert_eq!(found.dtype(), DType::F32, "{name}");
            let (gradient, found) = (flat(gradient), flat(found));
            let norm = gradient.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let distance = gradient.iter().zip(&found).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
            // Keys' biases change nothing: softmax does not see them, and their gradient is rounding.
            worst = worst.max(if norm < 1e-5 { 0.0 } else { distance / norm });
        }
        ((found_loss - loss).abs() / loss, worst)
    }

    fn check(json: &Value, device: &Device, pass: &Pass) {
        let (loss, gradient) = distances(json, device, DType::F32, pass);
        assert!(loss < 1e-5 && gradient < 1e-4, "{}: {loss} {gradient}", json["model_type"]);
        let (loss, gradient) = distances(json, device, DType::BF16, pass);
        assert!(loss < 0.02 && gradient < 0.15, "bf16 {}: {loss} {gradient}", json["model_type"]);
    }

    /// Every family over tensors, as on any device, computes what it computes over the processor's loops.
    #[test]
    fn tensors_and_loops_agree_on_loss_and_every_gradient() {
        for json in configs() {
            check(&json, &Device::Cpu, &Pass::default());
            check(&json, &Device::Cpu, &Pass { recompute: true, dropout_seed: Some(5) });
        }
    }

    /// The same by the CUDA kernels, on the emulator and on a GPU.
    #[test]
    fn kernels_and_loops_agree_on_loss_and_every_gradient() {
        for json in configs() {
            let pass = Pass { recompute: false, dropout_seed: Some(5) };
            emulated(|| check(&json, &Device::Cpu, &pass));
            on_a_gpu(|gpu| check(&json, gpu, &pass));
        }
    }
}
