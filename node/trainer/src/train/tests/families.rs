//! The gradients of every family, against differences of the loss.

use super::*;

/// Every parameter of every family, against differences of the loss along the gradient itself: what is left out of the
/// backward, or counted twice, changes the slope. With and without computing the blocks again.
#[test]
fn every_parameter_of_every_family_has_the_slope_that_differences_say() {
    for (name, config) in families() {
        let (decoder, variables) = random_decoder(config, 3, &Device::Cpu).unwrap();
        // Away from symmetric starts: biases of 0 and norms of 1 would hide mistakes.
        for (index, (_, variable)) in variables.iter().enumerate() {
            let mut draw = Draw::new(index as u64, "shake", 0);
            let shaken: Vec<f32> = values(variable).iter().map(|v| v + 0.1 * draw.normal() as f32).collect();
            variable.set(&candle_core::Tensor::from_vec(shaken, variable.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        let examples: Vec<TokenizedExample> = match decoder.config().head {
            Head::Tokens => counting(4),
            Head::Classes(_) => {
                let one = |(index, example): (usize, TokenizedExample)| TokenizedExample {
                    types: (0..example.tokens.len()).map(|at| u32::from(at > 3)).collect(),
                    label: Some(index as u32 % 3),
                    ..example
                };
                counting(4).into_iter().enumerate().map(one).collect()
            }
        };
        let batch = crate::data::batch(&examples.iter().collect::<Vec<_>>());
        let (_, gradients) = decoder.loss_and_gradients(&batch, 7.0, &variables, &Pass::default()).unwrap();
        let again = Pass { recompute: true, ..Pass::default() };
        let (_, recomputed) = decoder.loss_and_gradients(&batch, 7.0, &variables, &again).unwrap();
        for (((parameter, variable), gradient), recomputed) in variables.iter().zip(&gradients).zip(&recomputed) {
            let gradient = values(gradient.as_ref().unwrap_or_else(|| panic!("{name}: {parameter} has no gradient")));
            assert_eq!(gradient, values(recomputed.as_ref().unwrap()), "{name}: {parameter} computed again");
            let (start, length) = (values(variable), gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt());
            let at = |step: f64| {
                let moved = start.iter().zip(&gradient).map(|(v, g)| v + (step * f64::from(*g) / length) as f32).collect();
                variable.set(&candle_core::Tensor::from_vec(moved, variable.shape(), &Device::Cpu).unwrap()).unwrap();
                decoder.loss(&batch, 7.0).unwrap()
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            at(0.0);
            assert!((slope - length).abs() < 1e-2 * length + 2e-5, "{name}: along {parameter} the slope is {slope}, the gradient {length}");
        }
    }
}

fn values(tensor: &candle_core::Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A small model of every kind of block there is.
fn families() -> Vec<(&'static str, ModelConfig)> {
    let llama = tiny_config();
    let gpt2 = ModelConfig {
        family: Family::Gpt2,
        kv_heads: 4,
        positions: Positions::Learned { first: 0 },
        norm: NormKind::Layer,
        activation: Activation::GeluTanh,
        gated: false,
        biases: [true; 3],
        ..llama.clone()
    };
    let bert = ModelConfig {
        family: Family::Bert,
        post_norm: true,
        mask: Mask::Full,
        activation: Activation::Gelu,
        token_types: 2,
        head: Head::Classes(3),
        tied: false,
        ..gpt2.clone()
    };
    let roberta = ModelConfig { family: Family::Roberta, positions: Positions::Learned { first: 2 }, ..bert.clone() };
    vec![
        ("llama", ModelConfig { tied: false, ..llama.clone() }),
        ("llama-tied", llama.clone()),
        ("mistral", ModelConfig { family: Family::Mistral, mask: Mask::Window(3), ..llama.clone() }),
        ("qwen2", ModelConfig { family: Family::Qwen2, biases: [true, false, false], ..llama.clone() }),
        ("gemma", ModelConfig { family: Family::Gemma, norm_offset: 1.0, embedding_scale: 4.0, activation: Activation::GeluTanh, ..llama }),
        ("gpt2", gpt2),
        ("bert", bert),
        ("roberta", roberta),
    ]
}
