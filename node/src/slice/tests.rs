//! Directories of some layers: what is in them, and that no byte of them can be another.

use std::collections::BTreeSet;

use mingle_protocol::adapter::{Dtype, FullShape, Module, SubspaceShape, Tensor, canonical_header};
use mingle_protocol::identity::{Roster, SecretKey};
use mingle_protocol::ledger::Ledger;
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{Announcement, Record, SignedRecord};
use mingle_protocol::round::{BaseModel, Manifest, MergeRule, VERSION, WeightRule};
use tempfile::TempDir;

use super::*;
use crate::peft::Update;
use crate::store::Store;

fn round(kind: AdapterKind) -> Round {
    Round::new(Manifest {
        version: VERSION,
        name: "layers".into(),
        base: BaseModel { name: "drawn".into(), digest: ContentHash::of(b"drawn") },
        kind,
        rule: MergeRule::Mean,
        weight: WeightRule::Examples { cap: 100 },
        member_max: 8,
        roster: Roster::Members(BTreeSet::from([key().member()])),
        parent: None,
        founders: None,
        readers: None,
        clip_millionths: None,
        verdicts: None,
    })
    .unwrap()
}

fn key() -> SecretKey {
    SecretKey::from_bytes(&[1; 32])
}

/// Eleven layers of two modules with 24 KiB each, and a head that is trained whole.
fn lora() -> LoraShape {
    let module = |layer, name: &str| Module { name: format!("model.layers.{layer}.self_attn.{name}"), inputs: 1024, outputs: 512 };
    let modules = (0..11).flat_map(|layer| [module(layer, "q_proj"), module(layer, "v_proj")]).collect();
    LoraShape { saved: vec![Tensor::new("score.weight", [3, 1024])], ..LoraShape::new(4, 8, [3; 32], modules) }
}

struct Scene {
    folder: TempDir,
    round: Round,
    proof: Proof,
    whole: Vec<u8>,
    store: Store,
}

impl Scene {
    /// A merged file of numbers that differ everywhere, and a receipt of one member for it.
    fn new(kind: AdapterKind) -> Self {
        let (folder, round) = (TempDir::new().unwrap(), round(kind));
        let mut whole = canonical_header(round.merged().tensors(), Dtype::F32);
        let elements = round.merged().tensors().elements();
        (0..elements).for_each(|index| whole.extend((index as f32 / elements as f32).to_le_bytes()));
        let store = Store::open(folder.path().join("store")).unwrap();
        let (merged, size) = store.put_blob(&whole).unwrap();
        let (member, base) = (key().member(), round.manifest().base.digest);
        let said = Announcement {
            round: round.id(),
            member,
            sequence: 1,
            adapter: ContentHash::of(b"adapter"),
            size,
            weight: 7,
            base,
            examples: 7,
            losses: None,
            privacy: None,
        };
        let record = SignedRecord::sign(&Record::Announcement(said), &key(), &round).unwrap();
        let mut ledger = Ledger::new(&round);
        ledger.insert(record.clone());
        let receipt = Receipt::new(round.id(), ledger.admitted().collect(), merged);
        let proof = Proof::new(&round, receipt, &[record], &[]).unwrap();
        Self { folder, round, proof, whole, store }
    }

    fn slice(&self, layers: &str) -> Slice {
        self.round.merged().slice(&layers.parse().unwrap()).unwrap()
    }

    fn publish(&self, layers: &str) -> PathBuf {
        let blob = self.store.open_blob(self.proof.receipt.merged).unwrap();
        publish(&self.folder.path().join("layers"), &self.round, &self.slice(layers), &self.proof, &blob).unwrap()
    }
}

/// As `mingle verify` checks it.
fn examine(folder: &Path) -> Result<Slice> {
    let checked = Proof::read(folder)?.check()?;
    let slice = checked.slice.clone().context("not layers")?;
    check(folder, &checked, &slice)?;
    Ok(slice)
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(peft::CONFIG)).unwrap()).unwrap()
}

#[test]
fn layers_are_a_directory_for_peft_and_every_bent_byte_is_found() {
    let scene = Scene::new(AdapterKind::Lora(lora()));
    let folder = scene.publish("0-1,10");
    assert_eq!(examine(&folder).unwrap().layers().to_string(), "0-1,10");
    let weights = folder.join(peft::WEIGHTS);
    let honest = std::fs::read(&weights).unwrap();
    // Three of eleven layers, and next to nothing beside them.
    let tensors: u64 = scene.slice("0-1,10").tensors().elements() * 4;
    let beside = std::fs::metadata(folder.join(PROOF_FILE)).unwrap().len();
    assert!(honest.len() as u64 - tensors < 4_000 && beside < 80_000, "{} and {beside} for {tensors}", honest.len());
    let update = Update::read(&folder).unwrap();
    assert_eq!(update.tensors().len(), 12);
    let found = config(&folder);
    assert_eq!(
        (&found["target_modules"], &found["layers_to_transform"], &found["layers_pattern"], &found["modules_to_save"], &found["r"]),
        (&json!(["q_proj", "v_proj"]), &json!([0, 1, 10]), &json!(["layers"]), &Value::Null, &json!(4))
    );
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains("Layers 0-1,10 of a merged LoRA adapter") && card.contains("Only layers 0-1,10 are here"), "{card}");
    for name in [peft::WEIGHTS, PROOF_FILE] {
        let path = folder.join(name);
        let honest = std::fs::read(&path).unwrap();
        for flip in (0..honest.len()).step_by(honest.len() / 40).chain([0, 8, honest.len() - 1]) {
            let mut bent = honest.clone();
            bent[flip] ^= 1;
            std::fs::write(&path, &bent).unwrap();
            assert!(examine(&folder).is_err(), "byte {flip} of {name}");
        }
        for other in [&honest[..honest.len() - 1], &[&honest[..], &[0]].concat()] {
            std::fs::write(&path, other).unwrap();
            assert!(examine(&folder).is_err(), "{} bytes of {name}", other.len());
        }
        std::fs::write(&path, &honest).unwrap();
    }
    // Other layers than those that are here, and none.
    let write = |layers: Option<&str>| {
        let proof = Proof { layers: layers.map(|layers| layers.parse().unwrap()), ..scene.proof.clone() };
        std::fs::write(folder.join(merged::RECEIPT_FILE), serde_json::to_vec(&proof).unwrap()).unwrap();
    };
    for other in [Some("0-2"), Some("0-1"), Some("0-1,9"), Some("0-1,99"), None] {
        write(other);
        assert!(examine(&folder).is_err(), "{other:?}");
    }
    write(Some("0-1,10"));
    examine(&folder).unwrap();
    // Who needs a whole merge does not take it for one.
    let whole = Proof::read(&folder).unwrap().check().unwrap().whole();
    assert!(whole.err().unwrap().to_string().contains("it holds layers 0-1,10 of merge"));
}

#[test]
fn the_rest_is_what_is_in_no_layer() {
    let scene = Scene::new(AdapterKind::Lora(lora()));
    let found = config(&scene.publish("3,rest"));
    assert_eq!((&found["modules_to_save"], &found["layers_to_transform"]), (&json!(["score"]), &json!([3])));
    let folder = scene.publish("rest");
    examine(&folder).unwrap();
    assert_eq!(Update::read(&folder).unwrap().tensors().len(), 1);
    assert_eq!(config(&folder)["layers_to_transform"], Value::Null);
    assert_eq!(std::fs::read_dir(folder.parent().unwrap()).unwrap().count(), 2, "what was current before is gone");
}

#[test]
fn modules_that_are_named_in_full_stay_so() {
    let mut shape = lora();
    shape.modules.push(Module { name: "lm_head".into(), inputs: 8, outputs: 8 });
    let scene = Scene::new(AdapterKind::FrozenA(shape));
    let found = config(&scene.publish("2"));
    let names = json!(["model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.v_proj"]);
    assert_eq!((&found["target_modules"], &found["layers_to_transform"]), (&names, &json!([2])));
    let found = config(&scene.publish("2,rest"));
    assert_eq!(found["target_modules"].as_array().map(Vec::len), Some(3));
    assert_eq!(found["layers_to_transform"], Value::Null, "PEFT would leave lm_head out");
    assert_eq!(pattern_of("layers.3.q_proj"), None, "PEFT finds no layer at the beginning of a name");
    assert_eq!(pattern_of("model.layers.3.mlp.experts.3.w1"), Some("layers"));
}

#[test]
fn every_kind_has_layers() {
    let weight = |name: String| Tensor::new(name, [64, 64]);
    let weights = (0..4).map(|layer| weight(format!("model.layers.{layer}.mlp.weight"))).chain([weight("model.embed.weight".into())]);
    let kinds = [
        AdapterKind::FrozenA(LoraShape { saved: vec![], ..lora() }),
        AdapterKind::Subspace(SubspaceShape { seeds: 2, interval: 1, lora: LoraShape { saved: vec![], ..lora() } }),
        AdapterKind::Full(FullShape { weights: weights.collect() }),
    ];
    for kind in kinds {
        let name = kind.name();
        let scene = Scene::new(kind);
        let folder = scene.publish("1,3");
        let slice = examine(&folder).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let held = std::fs::read(merged_file(&folder, scene.round.kind())).unwrap();
        let data = &held[slice.own_header().len()..];
        let last = slice.places().last().unwrap();
        assert!(data.ends_with(&scene.whole[last.start as usize..last.end as usize]), "{name}");
        assert_eq!(Update::read(&folder).unwrap().tensors().len(), slice.tensors().len(), "{name}");
    }
}

#[test]
fn a_file_with_unfit_numbers_is_no_merge() {
    let scene = Scene::new(AdapterKind::Lora(lora()));
    let slice = scene.slice("1");
    let mut whole = scene.whole.clone();
    let at = slice.places()[1].start as usize;
    whole[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let (merged, _) = scene.store.put_blob(&whole).unwrap();
    let blob = scene.store.open_blob(merged).unwrap();
    let refused = publish(&scene.folder.path().join("layers"), &scene.round, &slice, &scene.proof, &blob).unwrap_err();
    assert!(matches!(refused, SliceError::NoMerge(_)), "{refused}");
    // Layers without them are as good as ever.
    let fit = publish(&scene.folder.path().join("layers"), &scene.round, &scene.slice("5"), &scene.proof, &blob);
    assert!(fit.is_ok());
}
