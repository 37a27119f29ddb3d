//! Exported bases against what their parts say, for every family whose adapter PEFT wrote.

use std::path::PathBuf;

use super::*;
use crate::models::BaseModel;
use crate::models::weights::INDEX;
use crate::peft::{Adapter, Difference, Update};

/// Reference cases with an adapter, and the largest step between neighbours of the base's type, relative to a value.
const CASES: [(&str, f64); 9] = [
    ("llama", 0.0),
    ("llama-bf16", 1.0 / 128.0),
    ("llama-f16", 1.0 / 1024.0),
    ("llama-tied", 0.0),
    ("llama-patterns", 0.0),
    ("llama-saved", 0.0),
    ("gpt2", 0.0),
    ("qwen2", 0.0),
    ("roberta", 0.0),
];

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference").join(name)
}

/// A case's base exported with what `trained` holds.
fn exported(name: &str, trained: &Path, split: Split) -> (tempfile::TempDir, BaseModel) {
    let out = tempfile::tempdir().unwrap();
    export(&case(name).join("base"), &StoredUpdate::open(trained).unwrap(), out.path(), split).unwrap();
    let base = BaseModel::load(out.path(), &Device::Cpu).unwrap();
    (out, base)
}

fn weights(base: &BaseModel) -> BTreeMap<String, Vec<f32>> {
    base.decoder().weights().into_iter().map(|(name, tensor)| (name, flat(&tensor).unwrap())).collect()
}

/// `W + scale B A`, each element summed up in f64.
fn expected(name: &str, adapter: &Adapter) -> BTreeMap<String, Vec<f32>> {
    let base = BaseModel::load(&case(name).join("base"), &Device::Cpu).unwrap();
    let mut all = weights(&base);
    for module in adapter.modules() {
        let update = crate::peft::plain::tests::update(adapter, &module);
        let weight = all.get_mut(&format!("{module}.weight")).unwrap();
        assert!(update.iter().any(|x| x.abs() > 1e-4), "{module} was trained");
        weight.iter_mut().zip(update).for_each(|(weight, update)| *weight = (f64::from(*weight) + update) as f32);
    }
    for (name, tensor) in adapter.saved() {
        all.insert(name.into(), tensor.values.clone());
    }
    all
}

#[test]
fn every_weight_is_the_bases_with_the_update() {
    for (name, step) in CASES {
        let folder = case(name).join("adapter_end");
        let adapter = directory::read(&folder).unwrap();
        let (_out, found) = exported(name, &folder, Split::AsBase);
        let (found, expected) = (weights(&found), expected(name, &adapter));
        assert!(found.keys().eq(expected.keys()), "{name}");
        for (tensor, values) in &found {
            let close =
                |(found, expected): (&f32, &f32)| f64::from(found - expected).abs() <= 1e-6 + 0.5 * step * f64::from(expected.abs());
            assert!(values.iter().zip(&expected[tensor]).all(close), "{name}: {tensor}");
        }
    }
}

/// Nothing is added: every file is the base's, tensor for tensor and type for type.
#[test]
fn an_untrained_adapter_leaves_the_base_as_it_is() {
    for (name, _) in CASES {
        let mut adapter = directory::read(&case(name).join("adapter_end")).unwrap();
        adapter.tensors.retain(|tensor| tensor.name.contains("lora_"));
        adapter.config.saved.clear();
        adapter.tensors.iter_mut().filter(|tensor| tensor.name.contains("lora_B")).for_each(|b| b.values.fill(0.0));
        let trained = tempfile::tempdir().unwrap();
        directory::write(trained.path(), &adapter).unwrap();
        let (out, _) = exported(name, trained.path(), Split::AsBase);
        let digest = |dir: &Path| Weights::open(dir).unwrap().digest().unwrap();
        assert_eq!(digest(out.path()), digest(&case(name).join("base")), "{name}");
        let config = |dir: &Path| std::fs::read(dir.join("config.json")).unwrap();
        assert_eq!(config(out.path()), config(&case(name).join("base")));
    }
}

#[test]
fn shards_hold_the_same_tensors_and_are_kept_as_the_base_has_them() {
    let folder = case("llama-bf16").join("adapter_end");
    let (whole, _) = exported("llama-bf16", &folder, Split::AsBase);
    let digest = |dir: &Path| Weights::open(dir).unwrap().digest().unwrap();
    let files = |dir: &Path| {
        let names = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".safetensors")).collect::<std::collections::BTreeSet<_>>()
    };
    assert!(files(whole.path()).contains(SINGLE) && !whole.path().join(INDEX).exists());
    let (parts, _) = exported("llama-bf16", &folder, Split::Bytes(4096));
    let names = files(parts.path());
    assert!(names.len() > 2 && names.iter().next().unwrap().starts_with("model-00001-of-0"), "{names:?}");
    assert_eq!(digest(parts.path()), digest(whole.path()));
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(parts.path().join(INDEX)).unwrap()).unwrap();
    let total: u64 = Weights::open(parts.path()).unwrap().places().map(|(_, place)| place.bytes).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    for name in &names {
        // As the library reads them.
        let bytes = std::fs::read(parts.path().join(name)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let size: usize = file.iter().map(|(_, tensor)| tensor.data().len()).sum();
        assert!(size <= 4096 || file.len() == 1, "{name} holds {size} bytes");
    }
    // A base that is split is written so again.
    let again = tempfile::tempdir().unwrap();
    export(parts.path(), &StoredUpdate::open(&folder).unwrap(), again.path(), Split::AsBase).unwrap();
    assert_eq!(files(again.path()), names);
    assert_ne!(digest(again.path()), digest(parts.path()), "the update is there twice");
}

#[test]
fn differences_of_every_weight_are_added() {
    for name in ["gpt2", "llama-f16", "roberta"] {
        let base = BaseModel::load(&case(name).join("base"), &Device::Cpu).unwrap();
        let after: Vec<_> = base.decoder().weights().into_iter().map(|(name, tensor)| (name, (tensor * 1.5).unwrap())).collect();
        let difference = Difference::between(&base, &after).unwrap();
        let trained = tempfile::tempdir().unwrap();
        Update::Difference(difference).write(trained.path()).unwrap();
        let (_out, found) = exported(name, trained.path(), Split::AsBase);
        let found = weights(&found);
        for (tensor, expected) in after {
            let close = |(found, expected): (&f32, &f32)| (found - expected).abs() <= expected.abs() / 2048.0;
            assert!(found[&tensor].iter().zip(&flat(&expected).unwrap()).all(close), "{name}: {tensor}");
        }
    }
}

#[test]
fn what_does_not_fit_the_base_is_refused() {
    let refused = |name: &str, spoil: &dyn Fn(&mut Adapter)| {
        let mut adapter = directory::read(&case(name).join("adapter_end")).unwrap();
        spoil(&mut adapter);
        let (trained, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        directory::write(trained.path(), &adapter).unwrap();
        let trained = StoredUpdate::open(trained.path()).unwrap();
        export(&case(name).join("base"), &trained, out.path(), Split::AsBase).unwrap_err().to_string()
    };
    let said = refused("llama", &|adapter| {
        adapter.tensors.iter_mut().for_each(|tensor| tensor.name = tensor.name.replace("layers.0", "layers.7"));
    });
    assert!(said.starts_with("the adapter holds model.layers.7.") && said.ends_with("which names no module of this base"), "{said}");
    let said = refused("llama", &|adapter| {
        let b = adapter.tensors.iter_mut().find(|tensor| tensor.name.contains("lora_B")).unwrap();
        b.dims[0] *= 2;
        b.values.extend_from_within(..);
    });
    assert!(said.contains("but this base asks for"), "{said}");
    let said = refused("llama-f16", &|adapter| {
        adapter.tensors.iter_mut().filter(|tensor| tensor.name.contains("lora_B")).for_each(|b| b.values.fill(1e6));
    });
    assert!(said.contains("are greater than F16, the base's type, can hold"), "{said}");
    let said = refused("llama-tied", &|adapter| {
        adapter.config.saved = vec!["lm_head".into()];
        let head = AdapterTensor { name: "base_model.model.lm_head.weight".into(), dims: vec![1, 1], values: vec![0.0] };
        adapter.tensors.push(head);
    });
    assert_eq!(said, "the adapter holds lm_head.weight, which names no module of this base");
}
