//! Classification: accuracy, F1 and Matthews correlation as scikit-learn computes them.

use serde::Serialize;

use super::{Report, batch_tokens, over_batches};
use crate::data::{TokenizedExample, batch};
use crate::models::config::Head;
use crate::models::{Decoder, ModelError};

/// Scores of predicted classes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassScores {
    pub examples: u64,
    pub accuracy: f64,
    /// F1 of class 1, where there are two classes (`f1_score(average="binary")`).
    pub f1: Option<f64>,
    /// Mean F1 of the classes that occur (`f1_score(average="macro")`).
    pub f1_macro: f64,
    /// Matthews correlation, also of several classes (`matthews_corrcoef`).
    pub matthews: f64,
}

impl ClassScores {
    /// Compares `found` with `wanted`, both below `classes`. What would divide by zero is 0, as scikit-learn says.
    pub fn of(wanted: &[usize], found: &[usize], classes: usize) -> Self {
        let count = |values: &[usize], class: usize| values.iter().filter(|value| **value == class).count() as f64;
        let hits = |class: usize| wanted.iter().zip(found).filter(|(a, b)| **a == class && **b == class).count() as f64;
        let ratio = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a / b };
        let f1 = |class: usize| ratio(2.0 * hits(class), count(wanted, class) + count(found, class));
        let seen: Vec<usize> = (0..classes).filter(|class| wanted.contains(class) || found.contains(class)).collect();
        let (examples, correct) = (wanted.len() as f64, (0..classes).map(hits).sum::<f64>());
        let (mut both, mut wanted_squares, mut found_squares) = (0.0, 0.0, 0.0);
        for class in 0..classes {
            let (w, f) = (count(wanted, class), count(found, class));
            both += w * f;
            wanted_squares += w * w;
            found_squares += f * f;
        }
        let spread = ((examples * examples - found_squares) * (examples * examples - wanted_squares)).sqrt();
        Self {
            examples: wanted.len() as u64,
            accuracy: ratio(correct, examples),
            f1: (classes == 2).then(|| f1(1)),
            f1_macro: ratio(seen.iter().map(|class| f1(*class)).sum(), seen.len() as f64),
            matthews: ratio(correct * examples - both, spread),
        }
    }
}

/// One text's outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassSample {
    pub label: usize,
    /// The class with the largest logit.
    pub found: usize,
    pub logits: Vec<f32>,
}

/// Scores of all texts, and each one's outcome in the order given.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassResults {
    #[serde(flatten)]
    pub scores: ClassScores,
    #[serde(skip)]
    pub samples: Vec<ClassSample>,
}

/// Classifies every example; those without a class are left out.
///
/// # Errors
/// A model without a classification head, or what the model refuses.
pub fn classify(decoder: &Decoder, examples: &[TokenizedExample], report: &Report) -> Result<ClassResults, ModelError> {
    let Head::Classes(classes) = decoder.config().head else { return Err(ModelError::NoClasses) };
    let examples: Vec<&TokenizedExample> =
        examples.iter().filter(|example| example.label.is_some() && !example.tokens.is_empty()).collect();
    let longest = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(1);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let one = |part: &&[&TokenizedExample]| -> Result<Vec<ClassSample>, ModelError> {
        let logits = decoder.logits(&batch(part))?.to_vec2::<f32>()?;
        report(done.fetch_add(part.len(), std::sync::atomic::Ordering::Relaxed) + part.len(), examples.len());
        let sample = |(example, logits): (&&TokenizedExample, Vec<f32>)| {
            let found = (0..classes).fold(0, |best, class| if logits[class] > logits[best] { class } else { best });
            ClassSample { label: example.label.unwrap_or_default() as usize, found, logits }
        };
        Ok(part.iter().zip(logits).map(sample).collect())
    };
    let parts: Vec<&[&TokenizedExample]> = examples.chunks((batch_tokens(decoder) / longest).max(1)).collect();
    let samples: Vec<ClassSample> = over_batches(decoder, &parts, one)?.concat();
    let (wanted, found): (Vec<usize>, Vec<usize>) = samples.iter().map(|sample| (sample.label, sample.found)).unzip();
    Ok(ClassResults { scores: ClassScores::of(&wanted, &found, classes), samples })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_scikit_learn() {
        let binary = ClassScores::of(&[1, 0, 1, 1, 0, 0, 1, 0, 1, 1], &[1, 0, 0, 1, 1, 0, 1, 0, 1, 1], 2);
        let several = ClassScores::of(&[0, 1, 2, 2, 1, 0, 2, 1, 0, 2, 3], &[0, 2, 2, 1, 1, 0, 2, 0, 0, 2, 2], 5);
        let constant = ClassScores::of(&[1, 0, 1], &[1, 1, 1], 2);
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        // accuracy_score, f1_score(average="macro"), matthews_corrcoef of scikit-learn 1.9.1.
        let theirs = [
            [0.8, 0.7916666666666667, 0.5833333333333334],
            [0.6363636363636364, 0.4809523809523809, 0.4824014285954111],
            [0.6666666666666666, 0.4, 0.0],
        ];
        for (ours, [accuracy, f1_macro, matthews]) in [binary, several, constant].into_iter().zip(theirs) {
            near(ours.accuracy, accuracy);
            near(ours.f1_macro, f1_macro);
            near(ours.matthews, matthews);
        }
        near(binary.f1.unwrap(), 0.8333333333333334);
        near(constant.f1.unwrap(), 0.8);
        assert_eq!(several.f1, None);
        assert_eq!(ClassScores::of(&[], &[], 2).accuracy, 0.0);
    }

    #[test]
    fn classes_are_those_of_the_largest_logits() {
        let case = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference/full-bert");
        let device = candle_core::Device::Cpu;
        let decoder = crate::models::BaseModel::load(&case.join("base"), &device).unwrap().decoder();
        let tensors = candle_core::safetensors::load(case.join("tensors.safetensors"), &device).unwrap();
        let rows = |name: &str| tensors[name].to_vec2::<i64>().unwrap();
        let (ids, types, mask) = (rows("input_ids"), rows("token_type_ids"), rows("attention_mask"));
        let labels = tensors["labels"].to_vec1::<i64>().unwrap();
        let example = |row: usize| {
            let kept =
                |values: &[i64]| values.iter().zip(&mask[row]).filter(|(_, seen)| **seen == 1).map(|(value, _)| *value as u32).collect();
            TokenizedExample { types: kept(&types[row]), label: Some(labels[row] as u32), ..TokenizedExample::all_learned(kept(&ids[row])) }
        };
        // Many, so that there is more than one batch.
        let examples: Vec<TokenizedExample> = (0..60 * ids.len()).map(|at| example(at % ids.len())).collect();
        let found = classify(&decoder, &examples, &|_, _| {}).unwrap();
        let expected = tensors["logits"].to_vec2::<f32>().unwrap();
        let mut right = 0;
        for (at, sample) in found.samples.iter().enumerate() {
            let expected = &expected[at % ids.len()];
            assert!(sample.logits.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{:?} is not {expected:?}", sample.logits);
            assert!(expected.iter().all(|logit| *logit <= expected[sample.found]));
            right += usize::from(sample.found as i64 == labels[at % ids.len()]);
        }
        assert_eq!((found.samples.len(), found.scores.accuracy), (examples.len(), right as f64 / examples.len() as f64));
    }
}
