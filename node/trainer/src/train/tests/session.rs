//! The loop: evaluations, the best of them, patience, accumulation, blocks of variables; and all of it resumed.

use std::ops::Range;

use candle_core::Var;

use super::super::session::Session;
use super::*;

/// Overfits at once: twelve examples learnt at a high rate, measured on others.
fn hasty() -> TrainSettings {
    TrainSettings {
        epochs: 30,
        batch_size: 4,
        accumulate: 2,
        learning_rate: 8e-2,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        evaluate_every_steps: 2,
        patience: Some(4),
        keep_best: true,
        ..quick()
    }
}

/// Trains LoRA of `settings`, stopped after each of `stops`.
fn stopped_at(base: &BaseModel, settings: &TrainSettings, dir: &Path, stops: &[usize]) -> (TrainedAdapter, Vec<Progress>) {
    let examples = counting(24);
    let data = TrainData { train: &examples[..12], held_out: &examples[12..] };
    let draw = seeded_draw(5);
    let mut told = Vec::new();
    for stop in stops.iter().copied().chain([usize::MAX]) {
        let mut progress = |progress: &Progress| {
            told.push(progress.clone());
            if progress.step == stop { Control::Stop } else { Control::Continue }
        };
        match train_adapter(base, data, settings, Start::Drawn(&draw), Some(dir), &mut progress).unwrap() {
            Outcome::Finished(trained) => return (trained, told),
            Outcome::Stopped { step, .. } => assert_eq!(step, stop),
        }
    }
    panic!("never finished");
}

#[test]
fn evaluations_patience_and_the_best_resume_as_if_unbroken() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let (whole, told) = stopped_at(&base, &hasty(), &dir.path().join("whole"), &[]);
    let steps = whole.step_losses.len();
    assert!(whole.stopped_early && steps < 60, "{steps} steps");
    let losses: Vec<f64> = whole.evaluations.iter().map(|evaluation| evaluation.loss).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!((whole.losses.after, whole.evaluations.len()), (lowest, steps / 2));
    assert!(losses[losses.len() - 4..].iter().all(|loss| *loss > lowest), "{losses:?}");
    assert_eq!(whole.chosen_step, steps - 8);
    let measured: Vec<f64> = told.iter().filter_map(|progress| progress.held_out_loss).collect();
    assert_eq!(measured, losses);
    assert!(told.iter().all(|progress| progress.gradient_norm > 0.0 && progress.loss_before == whole.losses.before));
    // Before the best, between it and the end, and at the last step but one.
    for stops in [vec![1, 2, 3], vec![whole.chosen_step, whole.chosen_step + 3], vec![steps - 1]] {
        let (resumed, again) = stopped_at(&base, &hasty(), &dir.path().join(format!("{stops:?}")), &stops);
        assert_eq!((&resumed.adapter, resumed.losses), (&whole.adapter, whole.losses), "{stops:?}");
        assert_eq!((&resumed.step_losses, &resumed.evaluations), (&whole.step_losses, &whole.evaluations));
        assert_eq!((resumed.tokens, resumed.chosen_step, resumed.stopped_early), (whole.tokens, whole.chosen_step, true));
        assert_eq!(again.len(), steps, "no step is done twice");
    }
}

#[test]
fn the_best_is_what_a_training_up_to_it_makes() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let (best, _) = stopped_at(&base, &hasty(), &dir.path().join("a"), &[]);
    let until = TrainSettings { steps_max: Some(best.chosen_step), patience: None, keep_best: false, ..hasty() };
    let (short, _) = stopped_at(&base, &until, &dir.path().join("b"), &[]);
    assert_eq!(short.adapter, best.adapter);
    assert_eq!(short.losses, best.losses);
    let (last, _) = stopped_at(&base, &TrainSettings { keep_best: false, ..hasty() }, &dir.path().join("c"), &[]);
    assert_ne!(last.adapter, best.adapter, "without keeping the best, the last is handed out");
    assert!(last.losses.after > best.losses.after && last.stopped_early);
}

#[test]
fn what_is_best_cannot_be_said_without_held_out_examples() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let examples = counting(8);
    let data = TrainData { train: &examples, held_out: &[] };
    let draw = seeded_draw(5);
    let error = train_adapter(&base, data, &hasty(), Start::Drawn(&draw), None, &mut |_| Control::Continue).unwrap_err();
    assert!(error.to_string().starts_with("there are no held-out examples"), "{error}");
}

/// Two batches of four are one of eight: the mean is over all labels, not over batches.
#[test]
fn accumulated_batches_are_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let examples = counting(8);
    let data = TrainData { train: &examples, held_out: &[] };
    let trained = |batch_size, accumulate| {
        let settings = TrainSettings { epochs: 3, batch_size, accumulate, ..quick() };
        let draw = seeded_draw(5);
        finished(train_adapter(&base, data, &settings, Start::Drawn(&draw), None, &mut |_| Control::Continue).unwrap())
    };
    let (whole, parts) = (trained(8, 1), trained(4, 2));
    assert_eq!(parts.step_losses.len(), 3);
    for (a, b) in whole.step_losses.iter().zip(&parts.step_losses) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    assert_eq!(trained(4, 1).step_losses.len(), 6);
}

fn values(variables: &[(String, Var)]) -> Vec<Vec<f32>> {
    variables.iter().map(|(_, variable)| variable.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

/// Trains all weights in two blocks that take turns of three steps; stopped after each of `stops`. Returns the values
/// after each step and at the end.
fn in_blocks(dir: &Path, stops: &[usize]) -> (Vec<Vec<Vec<f32>>>, Vec<f64>, Vec<usize>) {
    let examples = counting(24);
    let data = TrainData { train: &examples, held_out: &[] };
    let settings = TrainSettings { epochs: 4, schedule: Schedule::Constant, warmup_ratio: 0.0, ..quick() };
    let (mut after, mut shown) = (Vec::new(), Vec::new());
    for stop in stops.iter().copied().chain([usize::MAX]) {
        let (decoder, variables) = random_decoder(tiny_config(), 3, &Device::Cpu).unwrap();
        let (middle, all) = (variables.len() / 2, variables.len());
        let active = |step: usize| -> Range<usize> { if (step / 3).is_multiple_of(2) { 0..middle } else { middle..all } };
        let start = values(&variables);
        let mut watch = |moment: &Moment| {
            shown.push(moment.step);
            let found = (moment.gradients)(&moment.train[..4].iter().collect::<Vec<_>>())?;
            assert_eq!((found.gradients.len(), moment.step > 0), (all, values(moment.variables) != start));
            Ok(())
        };
        let mut session = Session::new(&decoder, &variables, data, &settings, Some(dir));
        session.active = Some(&active);
        session.watch = Some(&mut watch);
        let mut progress = |progress: &Progress| {
            after.push(values(&variables));
            if progress.step == stop { Control::Stop } else { Control::Continue }
        };
        if let Outcome::Finished(summary) = session.run(&mut progress).unwrap() {
            return (after, summary.steps, shown);
        }
    }
    panic!("never finished");
}

#[test]
fn blocks_of_variables_take_turns_and_begin_with_new_moments() {
    let dir = tempfile::tempdir().unwrap();
    let (after, losses, shown) = in_blocks(&dir.path().join("whole"), &[]);
    assert_eq!((after.len(), shown), (12, vec![0, 12]));
    let middle = after[0].len() / 2;
    for step in 1..12 {
        let (active, resting) = if (step / 3) % 2 == 0 { (0..middle, middle..after[0].len()) } else { (middle..after[0].len(), 0..middle) };
        assert_ne!(after[step][active.clone()], after[step - 1][active], "step {step}");
        assert_eq!(after[step][resting.clone()], after[step - 1][resting], "step {step}");
    }
    // The first step of AdamW with new moments moves every value with a gradient by the learning rate, whatever its size.
    let moved = |step: usize, index: usize| {
        let pairs = after[step][index].iter().zip(&after[step - 1][index]);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    for step in [3, 6, 9] {
        let index = if (step / 3) % 2 == 0 { 0 } else { middle };
        assert!((moved(step, index) - 1e-2).abs() < 1e-3, "step {step}: {}", moved(step, index));
    }
    for stops in [vec![3], vec![2, 5, 10]] {
        let (resumed, again, shown) = in_blocks(&dir.path().join(format!("{stops:?}")), &stops);
        assert_eq!((resumed.last(), again), (after.last(), losses.clone()), "{stops:?}");
        assert_eq!(shown.iter().filter(|step| **step == 0).count(), stops.len() + 1, "a resumed training shows its beginning again");
    }
}

#[test]
fn dropout_draws_anew_each_step_and_resumes_with_the_same_masks() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let settings = TrainSettings { dropout: 0.3, patience: None, keep_best: false, steps_max: Some(12), ..hasty() };
    let (whole, _) = stopped_at(&base, &settings, &dir.path().join("whole"), &[]);
    let (resumed, _) = stopped_at(&base, &settings, &dir.path().join("resumed"), &[5]);
    assert_eq!((&resumed.adapter, &resumed.step_losses), (&whole.adapter, &whole.step_losses));
    let other = |change: TrainSettings| stopped_at(&base, &change, &dir.path().join(format!("{}-{}", change.seed, change.dropout)), &[]).0;
    assert_ne!(other(TrainSettings { dropout: 0.0, ..settings.clone() }).adapter, whole.adapter);
    // What an evaluation sees has no dropout: the reported loss is that of the adapter as it is used.
    let examples = counting(24);
    let score = held_out_loss(&whole.adapter.apply(&base).unwrap(), &examples[12..]).unwrap();
    assert_eq!(score.loss, whole.losses.after);
}

#[test]
fn recomputing_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let with = |recompute| {
        let settings = TrainSettings { recompute, dropout: 0.2, steps_max: Some(8), patience: None, keep_best: false, ..hasty() };
        stopped_at(&base, &settings, &dir.path().join(recompute.to_string()), &[]).0
    };
    let (kept, recomputed) = (with(false), with(true));
    assert_eq!((kept.adapter, kept.step_losses), (recomputed.adapter, recomputed.step_losses));
}
