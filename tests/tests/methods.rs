//! One round of four real members by each method whose A nobody sends, and by the full one: what travels, and what the
//! merge is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser;
use mingle::merged::Proof;
use mingle::peft::{AdapterTensor, Update};
use mingle::sent::sent_file;
use mingle_protocol::adapter::{Dtype, canonical_header};
use mingle_protocol::round::Round;
use mingle_testnet::options::Options;
use mingle_testnet::peer::Program;
use mingle_tests::run;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const MEMBERS: usize = 4;

/// A finished round of four members, their homes still there.
struct Finished {
    folder: tempfile::TempDir,
    round: Round,
    report: Value,
}

impl Finished {
    /// Runs it on few examples, in turns so short that every subspace has several.
    fn of(method: &str) -> Self {
        let options = format!(
            "mingle-testnet --members {MEMBERS} --readers 0 --examples 16 --epochs 1 --rounds 0 --no-centralised --eval-examples 8 \
             --rank 4 --batch-size 2 --interval 1 --subspaces 3 --max-length 64 --method {method}"
        );
        let options = Options::parse_from(options.split_whitespace());
        let program = Program { executable: PROGRAM.into(), prefix: Vec::new() };
        let folder = tempfile::tempdir().expect("a folder");
        let report = mingle_testnet::run::run(&options, &program, folder.path()).expect("a run");
        assert!(report.hash_equal);
        let round = std::fs::read(folder.path().join("one-round/one-round.json")).expect("a round file");
        let round = Round::from_json(&round).expect("a round");
        Self { folder, round, report: serde_json::to_value(report).expect("JSON") }
    }

    fn home(&self, member: usize) -> PathBuf {
        let rounds = self.folder.path().join(format!("one-round/member-{member}/rounds"));
        std::fs::read_dir(rounds).expect("rounds").flatten().next().expect("a round").path()
    }

    fn merged(&self) -> PathBuf {
        self.home(1).join("merged/current")
    }

    /// Each member's own adapter with its weight in the merge.
    fn members(&self) -> Vec<(f64, PathBuf)> {
        let receipt = Proof::read(&self.merged()).expect("a receipt").receipt;
        let own = |member| {
            let folder = self.home(member).join("adapter");
            let hash = mingle::merger::hash_of(&sent_file(&folder, self.round.kind())).expect("a file");
            let weight = receipt.admitted.iter().find(|entry| entry.adapter == hash).expect("it is admitted").weight;
            (weight as f64, folder)
        };
        (1..=MEMBERS).map(own).collect()
    }

    /// Checks what every peer stored of every member: exactly these tensors, and not a byte beside them.
    fn only_these_travel(&self, fits: impl Fn(&str) -> bool) {
        let receipt = Proof::read(&self.merged()).expect("a receipt").receipt;
        assert_eq!(receipt.admitted.len(), MEMBERS);
        let header = canonical_header(self.round.tensors(), Dtype::F32).len() as u64;
        for entry in &receipt.admitted {
            for member in 1..=MEMBERS {
                let blob = find(&self.home(member).join("store"), &entry.adapter.to_string());
                let bytes = std::fs::read(blob).expect("a stored adapter");
                let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
                let tensors: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
                let names = tensors.keys().filter(|name| *name != "__metadata__");
                assert!(names.clone().count() > 0 && names.clone().all(|name| fits(name)), "{names:?}");
                assert_eq!(bytes.len() as u64, header + 4 * self.round.tensors().elements());
                assert_eq!((bytes.len() as u64, mingle_protocol::hash::ContentHash::of(&bytes)), (entry.size, entry.adapter));
            }
        }
        let said: Vec<u64> = serde_json::from_value(self.report["setup"]["sent_bytes"].clone()).expect("sizes");
        assert_eq!(said, receipt.admitted.iter().map(|entry| entry.size).collect::<Vec<_>>());
        println!("{}: {} bytes a member", self.round.kind().name(), said[0]);
    }

    /// The merge can be recomputed from what travelled, offline.
    fn verifies(&self) {
        let merged = self.merged().to_string_lossy().into_owned();
        let said = run(PROGRAM, &self.folder.path().join("one-round/member-1"), ["verify", &merged, "--json"]);
        let said: Value = serde_json::from_str(&said.right()).expect("JSON");
        assert_eq!((&said["verified"], &said["recomputed"]), (&true.into(), &"same".into()), "{said}");
    }
}

/// The file below `folder` whose name begins with the hash.
fn find(folder: &Path, hash: &str) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "blob") && entry.file_name().to_string_lossy().starts_with(hash) {
                return path;
            }
        }
    }
    panic!("no blob {hash}");
}

fn read(folder: &Path) -> Update {
    Update::read(folder).expect("an adapter")
}

/// What an adapter adds to each module's weight, `scale B A`, computed in f64.
fn updates(update: &Update) -> BTreeMap<String, Vec<f64>> {
    let Update::Adapter(adapter) = update else { panic!("no low-rank adapter") };
    let one = |module: String| {
        let tensor = |which| adapter.tensor(&mingle::peft::Adapter::tensor_name(&module, which)).expect("both halves");
        let (a, b): (&AdapterTensor, &AdapterTensor) = (tensor('A'), tensor('B'));
        let ([rank, inputs], outputs) = ([a.dims[0], a.dims[1]], b.dims[0]);
        let scale = adapter.config.scale_of(&module);
        let element = |index: usize| -> f64 {
            let (row, column) = (index / inputs, index % inputs);
            let term = |k: usize| f64::from(b.values[row * rank + k]) * f64::from(a.values[k * inputs + column]);
            scale * (0..rank).map(term).sum::<f64>()
        };
        (module.clone(), (0..outputs * inputs).map(element).collect())
    };
    adapter.modules().into_iter().map(one).collect()
}

/// The largest difference between the merge and the weighted mean of the members, and the largest element of the mean.
fn furthest(merged: &BTreeMap<String, Vec<f64>>, members: &[(f64, BTreeMap<String, Vec<f64>>)]) -> (f64, f64) {
    let total: f64 = members.iter().map(|(weight, _)| weight).sum();
    let (mut furthest, mut largest) = (0f64, 0f64);
    for (name, merged) in merged {
        for (index, element) in merged.iter().enumerate() {
            let mean = members.iter().map(|(weight, update)| weight * update[name][index]).sum::<f64>() / total;
            furthest = furthest.max((element - mean).abs());
            largest = largest.max(mean.abs());
        }
    }
    (furthest, largest)
}

fn merges_to_the_mean_of_the_updates(method: &str) {
    let finished = Finished::of(method);
    finished.only_these_travel(|name| name.ends_with(".lora_B.weight"));
    let members: Vec<_> = finished.members().iter().map(|(weight, folder)| (*weight, updates(&read(folder)))).collect();
    let (furthest, largest) = furthest(&updates(&read(&finished.merged())), &members);
    println!("{method}: the merge is within {furthest:e} of the mean of the updates, whose largest element is {largest:e}");
    assert!(furthest < 1e-6 && largest > 1e-4, "{method}: {furthest:e} of {largest:e}");
    // Members learnt different things, or the mean would show nothing.
    assert!(members.windows(2).all(|pair| pair[0].1 != pair[1].1));
    finished.verifies();
}

#[test]
fn frozen_a_merges_to_the_mean_of_the_updates() {
    merges_to_the_mean_of_the_updates("frozen-a");
}

#[test]
fn subspaces_merge_to_the_mean_of_the_updates() {
    merges_to_the_mean_of_the_updates("subspace");
}

/// Not so plain LoRA: the mean of two factors is not the mean of their products.
#[test]
fn plain_lora_does_not() {
    let finished = Finished::of("lora");
    finished.only_these_travel(|name| name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight"));
    let members: Vec<_> = finished.members().iter().map(|(weight, folder)| (*weight, updates(&read(folder)))).collect();
    let (furthest, largest) = furthest(&updates(&read(&finished.merged())), &members);
    println!("lora: the merge is within {furthest:e} of the mean of the updates, whose largest element is {largest:e}");
    assert!(furthest > 1e-6, "{furthest:e}");
}

#[test]
fn differences_of_all_weights_merge_to_their_mean() {
    let finished = Finished::of("full");
    finished.only_these_travel(|name| !name.contains("lora"));
    let tensors = |folder: &Path| -> BTreeMap<String, Vec<f64>> {
        let update = read(folder);
        update.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.values.iter().map(|x| f64::from(*x)).collect())).collect()
    };
    let members: Vec<_> = finished.members().iter().map(|(weight, folder)| (*weight, tensors(folder))).collect();
    let (furthest, largest) = furthest(&tensors(&finished.merged()), &members);
    println!("full: the merge is within {furthest:e} of the mean of the differences, whose largest element is {largest:e}");
    assert!(furthest < 1e-6 && largest > 1e-4, "{furthest:e} of {largest:e}");
    finished.verifies();
    let scores = &finished.report["scores"];
    assert!(scores["merged"][3].as_f64() < scores["base"].as_f64(), "the merge has learnt: {scores}");
}

/// An adapter made elsewhere on another A would mean something else once its B is merged.
#[test]
fn another_a_than_the_rounds_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    mingle_tests::base::write_base(&folder.path().join("base"), 1);
    let (base, file) = (path("base"), path("round.json"));
    let call = |arguments: &[&str]| run(PROGRAM, &folder.path().join("home"), arguments);
    let made = call(&["round", "new", "--base", &base, "--method", "frozen-a", "--rank", "2", "--targets", "q_proj", "--out", &file]);
    assert!(made.right().contains("frozen-a, rank 2, alpha 4, 2 modules, 128 elements sent"));
    let round = Round::from_json(&std::fs::read(&file).expect("a round file")).expect("a round");
    let zeros = |tensors: &mingle_protocol::adapter::TensorList| {
        [canonical_header(tensors, Dtype::F32), vec![0; 4 * tensors.elements() as usize]].concat()
    };
    mingle_tests::adapters::write_peft(&folder.path().join("other"), &round, &zeros(round.merged().tensors()));
    let publish = ["publish", &path("other"), "--round", &file, "--examples", "10", "--listen", "/ip4/127.0.0.1/tcp/0"];
    let first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let refused = format!("{first} is not what the round's seed gives, and it must stay as drawn in a frozen-a round");
    let said = call(&publish);
    assert!(said.code == 1 && said.err.contains(&refused), "{said:?}");
}
