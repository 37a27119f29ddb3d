//! Trainings that promise something for each of their examples.

use super::*;
use crate::train::private::Private;

fn settings(noise: Noise) -> TrainSettings {
    TrainSettings { privacy: Some(Privacy { clip: 0.5, noise, delta: 1e-5 }), ..quick() }
}

/// The gradient of a private step of these examples, of `of` in all, on a model of which all is trained.
fn step(settings: &TrainSettings, examples: &[&TokenizedExample], of: usize) -> Vec<f64> {
    let (model, variables) = random_decoder(tiny_config(), 3, &Device::Cpu).unwrap();
    let mut private = Private::new(settings, of, 4).unwrap().expect("a private training");
    let pass = Pass { recompute: false, dropout_seed: None };
    let batch = private.gradients(&pool(Some(2)).unwrap(), &model, &variables, examples, of, &pass).unwrap();
    let numbers = |gradient: candle_core::Tensor| gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    batch.gradients.into_iter().flat_map(numbers).map(f64::from).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn no_example_moves_a_private_step_further_than_its_bound() {
    let mut examples = counting(12);
    let settings = TrainSettings { batch_size: 12, ..settings(Noise::Multiplier(1e-9)) };
    // One that is nothing like the others.
    examples[7].tokens[3..].fill(31);
    let all: Vec<&TokenizedExample> = examples.iter().collect();
    let with = step(&settings, &all, 12);
    for left_out in [0, 7, 11] {
        let rest: Vec<&TokenizedExample> = all.iter().enumerate().filter(|(index, _)| *index != left_out).map(|(_, one)| *one).collect();
        let without = step(&settings, &rest, 12);
        let moved = 12.0 * norm(with.iter().zip(&without).map(|(with, without)| with - without));
        assert!(moved <= 0.5 + 1e-5 && moved > 0.1, "example {left_out} moved the sum by {moved}");
    }
}

#[test]
fn noise_is_as_wide_as_it_says_and_never_the_same() {
    let settings = settings(Noise::Multiplier(3.0));
    let [one, other] = [(); 2].map(|()| step(&settings, &[], 40));
    assert_ne!(one, other);
    let deviation = norm(one.iter().copied()) / (one.len() as f64).sqrt();
    let expected = 3.0 * 0.5 / 8.0;
    assert!((deviation / expected - 1.0).abs() < 0.1, "{deviation} for {expected}, over {}", one.len());
}

#[test]
fn a_private_training_learns_and_says_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let private = |noise| finished(lora(&base, &TrainSettings { epochs: 12, ..settings(noise) }, None, usize::MAX));
    let trained = private(Noise::Epsilon(50.0));
    let promise = trained.promise.expect("a promise");
    assert!(promise.epsilon <= 50.0 && promise.epsilon > 49.0 && promise.delta == 1e-5, "{promise:?}");
    // With hardly any noise, for what noise does to so small a model is chance.
    let learned = private(Noise::Multiplier(1e-3)).losses;
    assert!(learned.after < learned.before - 0.05, "{learned:?}");
    assert_ne!(private(Noise::Epsilon(50.0)).adapter, trained.adapter, "its chance is its own");
    assert_eq!(finished(lora(&base, &quick(), None, usize::MAX)).promise, None);
}

#[test]
fn what_would_break_the_promise_is_refused() {
    let refuse = |settings: TrainSettings| settings.check().unwrap_err().to_string();
    let fine = || settings(Noise::Epsilon(8.0));
    fine().check().unwrap();
    assert!(refuse(TrainSettings { pack: true, ..fine() }).contains("blocks mix what is to be protected"));
    let chosen = TrainSettings { evaluate_every_steps: 2, keep_best: true, ..fine() };
    assert!(refuse(chosen).contains("held-out examples are not protected"));
    assert!(refuse(TrainSettings { batch_tokens: Some(9), ..fine() }).contains("drawn by chance"));
    let delta = Privacy { delta: 1.0, ..fine().privacy.unwrap() };
    assert!(refuse(TrainSettings { privacy: Some(delta), ..fine() }).starts_with("privacy_delta is 1"));
}
