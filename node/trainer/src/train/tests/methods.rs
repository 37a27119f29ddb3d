//! The methods beside plain LoRA: what is trained, what stays, and what is handed out.

use std::path::PathBuf;

use mingle_protocol::number::Spread;

use super::*;
use crate::peft::{Difference, Split, StoredUpdate, Update, export};

/// Draws that hang on the name alone, so that methods which draw with another spread begin alike.
fn by_name(name: &str, count: usize, _: Spread) -> Vec<f32> {
    seeded_draw(5)(name, count, Spread::Inputs(16))
}

fn train(base: &BaseModel, settings: &TrainSettings, checkpoint: Option<&Path>, stop_at: usize) -> Outcome<TrainedAdapter> {
    let examples = counting(44);
    let data = TrainData { train: &examples[..36], held_out: &examples[36..] };
    let mut progress = |p: &Progress| if p.step == stop_at { Control::Stop } else { Control::Continue };
    train_adapter(base, data, settings, Start::Drawn(&by_name), checkpoint, &mut progress).unwrap()
}

fn after(base: &BaseModel, update: Update) -> f64 {
    held_out_loss(&update.apply(base).unwrap(), &counting(44)[36..]).unwrap().loss
}

fn of_method(method: Method) -> TrainSettings {
    TrainSettings { method, ..quick() }
}

/// The part of B that belongs to one subspace.
fn block(tensor: &crate::peft::AdapterTensor, block: usize, rank: usize) -> Vec<f32> {
    let columns = tensor.dims[1];
    tensor.values.chunks(columns).flat_map(|row| row[block * rank..(block + 1) * rank].to_vec()).collect()
}

#[test]
fn a_frozen_a_stays_as_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let trained = finished(train(&base, &of_method(Method::FrozenA), None, usize::MAX));
    assert!(trained.losses.after < trained.losses.before - 0.02, "{:?}", trained.losses);
    for module in trained.adapter.modules() {
        let tensor = |which| trained.adapter.tensor(&crate::peft::Adapter::tensor_name(&module, which)).unwrap();
        assert_eq!(tensor('A').values, by_name(&tensor('A').name, tensor('A').values.len(), Spread::Inputs(1)));
        assert!(tensor('B').values.iter().any(|value| *value != 0.0), "{module} was not trained");
    }
    assert_eq!(after(&base, Update::Adapter(trained.adapter)), trained.losses.after);
}

#[test]
fn subspaces_are_trained_in_turn_and_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    // Ten steps: five turns, so that each of three subspaces has one and two have another.
    let settings = TrainSettings { alpha: 2.0, ..of_method(Method::Subspace { seeds: 3, interval: 2 }) };
    let trained = finished(train(&base, &settings, None, usize::MAX));
    assert!(trained.losses.after < trained.losses.before - 0.02, "{:?}", trained.losses);
    assert_eq!((trained.adapter.config.rank, trained.adapter.config.scale_of("any")), (6, 1.0));
    assert!((after(&base, Update::Adapter(trained.adapter.clone())) - trained.losses.after).abs() < 1e-5);
    // Three steps: one turn and a half, the third subspace has had none.
    let short = finished(train(&base, &TrainSettings { steps_max: Some(3), ..settings.clone() }, None, usize::MAX));
    let moved = |trained: &TrainedAdapter| -> usize {
        let any = |index: usize| {
            trained.adapter.tensors.iter().any(|t| t.name.contains("lora_B") && block(t, index, 2).iter().any(|x| *x != 0.0))
        };
        (0..3).filter(|index| any(*index)).count()
    };
    assert_eq!((moved(&trained), moved(&short)), (3, 2));
    // Stopped within a turn and resumed, it ends with the same bits.
    let checkpoint = dir.path().join("state");
    for stop in [1, 5] {
        assert_eq!(train(&base, &settings, Some(&checkpoint), stop), Outcome::Stopped { step: stop, steps: 10 });
    }
    let resumed = finished(train(&base, &settings, Some(&checkpoint), usize::MAX));
    assert_eq!((resumed.adapter, resumed.step_losses), (trained.adapter, trained.step_losses));
}

/// One subspace is a frozen A: the two routines check each other.
#[test]
fn one_subspace_is_a_frozen_a() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let frozen = finished(train(&base, &of_method(Method::FrozenA), None, usize::MAX));
    let subspace = finished(train(&base, &of_method(Method::Subspace { seeds: 1, interval: 3 }), None, usize::MAX));
    assert_eq!(subspace.adapter.tensors, frozen.adapter.tensors);
    // Two are not: each begins its turns with new moments.
    let two = finished(train(&base, &of_method(Method::Subspace { seeds: 2, interval: 3 }), None, usize::MAX));
    assert_ne!(two.step_losses, frozen.step_losses);
}

#[test]
fn ranks_and_scales_follow_the_patterns() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let low_rank = LowRankSettings {
        rslora: true,
        rank_pattern: vec![(r"layers\.1\..*q_proj".into(), 3)],
        alpha_pattern: vec![("v_proj".into(), 8.0)],
        ..LowRankSettings::default()
    };
    let targets = vec!["re:.*self_attn.[qv]_proj".to_string()];
    let trained = finished(train(&base, &TrainSettings { low_rank, targets, ..quick() }, None, usize::MAX));
    let adapter = &trained.adapter;
    let rank = |module: &str| adapter.tensor(&crate::peft::Adapter::tensor_name(module, 'A')).unwrap().dims[0];
    assert_eq!((rank("model.layers.0.self_attn.q_proj"), rank("model.layers.1.self_attn.q_proj")), (2, 3));
    assert!((adapter.config.scale_of("model.layers.1.self_attn.q_proj") - 4.0 / 3f64.sqrt()).abs() < 1e-12);
    assert!((adapter.config.scale_of("model.layers.1.self_attn.v_proj") - 8.0 / 2f64.sqrt()).abs() < 1e-12);
    crate::peft::write(&dir.path().join("adapter"), adapter).unwrap();
    assert_eq!(after(&base, Update::read(&dir.path().join("adapter")).unwrap()), trained.losses.after);
    let refused = |low_rank: LowRankSettings| {
        let settings = TrainSettings { low_rank, method: Method::Subspace { seeds: 2, interval: 1 }, ..quick() };
        settings.check().unwrap_err().to_string()
    };
    assert!(refused(LowRankSettings { rslora: true, ..Default::default() }).starts_with("the subspaces' scale is set by"));
    assert!(refused(LowRankSettings { rank_pattern: vec![("q".into(), 0)], ..Default::default() }).contains("0 for \"q\""));
}

#[test]
fn a_full_training_leaves_the_difference() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let examples = counting(44);
    let data = TrainData { train: &examples[..36], held_out: &examples[36..] };
    let train = |start: Option<&Difference>| {
        finished(train_difference(&base, data, &of_method(Method::Full), start, None, &mut |_| Control::Continue).unwrap())
    };
    let first = train(None);
    assert!(first.losses.after < first.losses.before - 0.05, "{:?}", first.losses);
    assert_eq!(held_out_loss(&base.decoder(), &examples[36..]).unwrap().loss, first.losses.before, "the base has not changed");
    let update = Update::Difference(first.adapter.clone());
    assert!((after(&base, update.clone()) - first.losses.after).abs() < 1e-6);
    update.write(&dir.path().join("update")).unwrap();
    assert_eq!(Update::read(&dir.path().join("update")).unwrap(), update);
    // The next training goes on from there.
    let second = train(Some(&first.adapter));
    assert!((second.losses.before - first.losses.after).abs() < 1e-6 && second.losses.after < second.losses.before);
    // Exported, it is a base of its own; stored in bf16 as this one is.
    let out = dir.path().join("exported");
    std::fs::create_dir(&out).unwrap();
    export(dir.path(), &StoredUpdate::open(&dir.path().join("update")).unwrap(), &out, Split::AsBase).unwrap();
    let exported = BaseModel::load(&out, &Device::Cpu).unwrap();
    let loss = held_out_loss(&exported.decoder(), &examples[36..]).unwrap().loss;
    assert!((loss - first.losses.after).abs() < 2e-2 * first.losses.after, "{loss} and {}", first.losses.after);
}

#[test]
fn an_exported_adapter_is_the_base_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = tiny_base(dir.path(), tiny_config());
    let trained = finished(train(&base, &quick(), None, usize::MAX));
    let out = dir.path().join("exported");
    std::fs::create_dir(&out).unwrap();
    crate::peft::write(&dir.path().join("adapter"), &trained.adapter).unwrap();
    export(dir.path(), &StoredUpdate::open(&dir.path().join("adapter")).unwrap(), &out, Split::AsBase).unwrap();
    let loss = held_out_loss(&BaseModel::load(&out, &Device::Cpu).unwrap().decoder(), &counting(44)[36..]).unwrap().loss;
    assert!((loss - trained.losses.after).abs() < 2e-2 * loss, "{loss} and {}", trained.losses.after);
}

/// A classifier's head trains along with every low-rank method, is handed out whole, and is gone on from.
#[test]
fn heads_are_trained_whole() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/reference/bert/base"));
    if !folder.exists() {
        return println!("skipped: no reference models beside the repository");
    }
    let base = BaseModel::load(&folder, &Device::Cpu).unwrap();
    let example = |index: u32| TokenizedExample {
        tokens: (0..6).map(|place| 5 + (index * 7 + place * (1 + index % 3)) % 80).collect(),
        label: Some(index % 3),
        ..TokenizedExample::default()
    };
    let examples: Vec<TokenizedExample> = (0..24).map(example).collect();
    let data = TrainData { train: &examples, held_out: &[] };
    let low_rank = LowRankSettings { saved: vec!["classifier".into()], ..Default::default() };
    for method in [Method::Lora, Method::FrozenA, Method::Subspace { seeds: 2, interval: 2 }] {
        let settings = TrainSettings { method, low_rank: low_rank.clone(), targets: vec!["query".into()], epochs: 6, ..quick() };
        let run = |start: Start| finished(train_adapter(&base, data, &settings, start, None, &mut |_| Control::Continue).unwrap());
        let trained = run(Start::Drawn(&by_name));
        assert!(trained.losses.after < trained.losses.before, "{method:?}: {:?}", trained.losses);
        let saved: Vec<(&str, &[usize])> = trained.adapter.saved().map(|(name, tensor)| (name, tensor.dims.as_slice())).collect();
        assert_eq!(saved, [("classifier.bias", &[3][..]), ("classifier.weight", &[3, 32][..])]);
        for (name, tensor) in trained.adapter.saved() {
            assert_ne!(tensor.values, base.parameter(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), "{method:?}: {name}");
        }
        let again = run(Start::Adapter(&trained.adapter));
        assert!((again.losses.before - trained.losses.after).abs() < 1e-5, "{method:?}");
    }
    let unknown = LowRankSettings { saved: vec!["classifiers".into()], ..Default::default() };
    let settings = TrainSettings { low_rank: unknown, targets: vec!["query".into()], ..quick() };
    let refused = train_adapter(&base, data, &settings, Start::Drawn(&by_name), None, &mut |_| Control::Continue).unwrap_err();
    assert!(refused.to_string().contains("classifiers, which names no module"), "{refused}");
}
