//! `mingle verify` says what a merged directory proves, and finds every lie it could tell.

use std::path::{Path, PathBuf};

use mingle::merged::{self, Proof, RECEIPT_FILE};
use mingle::merger::{Source, merge_files};
use mingle_protocol::attestation::{Attestation, SignedAttestation};
use mingle_protocol::hash::{ContentHash, encode_hex};
use mingle_protocol::identity::SecretKey;
use mingle_protocol::ledger::Ledger;
use mingle_protocol::merge::{MergeRule, Plan};
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{Announcement, Record, SignedRecord};
use mingle_protocol::round::{Manifest, Parent, Round, RoundFile, WeightRule};
use mingle_tests::{Said, adapters, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const MEMBERS: u8 = 3;

/// A merged directory of three members, and their adapters under their hashes.
struct Merged {
    folder: TempDir,
    round: Round,
    files: Vec<Vec<u8>>,
}

impl Merged {
    fn new() -> Self {
        Self::by(MEMBERS, MergeRule::Mean, None)
    }

    fn by(members: u8, rule: MergeRule, clip_millionths: Option<u64>) -> Self {
        let keys: Vec<SecretKey> = (1..=members).map(|number| SecretKey::from_bytes(&[number; 32])).collect();
        let basis = adapters::round("verified", 2, 6, keys.iter().map(SecretKey::member)).manifest().clone();
        let weight = if rule.is_robust() { WeightRule::Equal } else { basis.weight };
        let round = Round::new(Manifest { rule, clip_millionths, weight, ..basis }).expect("a round within its bounds");
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("adapters")).expect("a folder");
        let (mut ledger, plan) = (Ledger::new(&round), Plan::of(&round));
        let (mut files, mut sources) = (Vec::new(), Vec::new());
        for (number, key) in (1..).zip(&keys) {
            let file = adapters::adapter_file(&round, number);
            let (adapter, size) = (ContentHash::of(&file), file.len() as u64);
            let (member, base, examples) = (key.member(), round.manifest().base.digest, 10 * number);
            let weight = weight.weight(examples);
            let said =
                Announcement { round: round.id(), member, sequence: 1, adapter, size, weight, base, examples, losses: None, privacy: None };
            ledger.insert(SignedRecord::sign(&Record::Announcement(said), key, &round).expect("a record within the rules"));
            let path = folder.path().join("adapters").join(format!("{adapter}.safetensors"));
            std::fs::write(&path, &file).expect("a file");
            sources.push(Source::read(&plan, member, weight, &path).expect("a whole adapter"));
            files.push(file);
        }
        let records: Vec<SignedRecord> = ledger.records().cloned().collect();
        let made = |sink: merged::Sink<'_>| merge_files(&plan, &sources, sink);
        merged::write(&folder.path().join("merged"), &round, ledger.admitted().collect(), &records, made).expect("a merge");
        Self { folder, round, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn verify(&self, arguments: &[&str]) -> Said {
        let directory = self.path("merged").to_string_lossy().into_owned();
        let said = run(PROGRAM, &self.path("home"), ["verify", &directory].iter().chain(arguments));
        let folder = self.folder.path().to_string_lossy().into_owned();
        Said { out: said.out.replace(&folder, "DIR"), err: said.err.replace(&folder, "DIR"), ..said }
    }

    fn with_adapters(&self) -> Said {
        self.verify(&["--json", "--adapters", &self.path("adapters").to_string_lossy()])
    }

    fn weights(&self) -> PathBuf {
        self.path("merged/adapter_model.safetensors")
    }

    /// Changes the proof and writes it back.
    fn change(&self, change: impl FnOnce(&mut Proof)) {
        let mut proof = Proof::read(&self.path("merged")).expect("a proof");
        change(&mut proof);
        write(&self.path("merged").join(RECEIPT_FILE), serde_json::to_string(&proof).expect("JSON").as_bytes());
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
}

/// One change to a receipt that was right.
type Lie = fn(&mut Proof);

/// What it says in JSON, and its exit code.
fn found(said: &Said) -> (i32, Value) {
    (said.code, serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}")))
}

#[test]
fn what_is_right_is_said_to_be_and_what_is_not_shown_too() {
    let merged = Merged::new();
    let (code, json) = found(&merged.with_adapters());
    assert_eq!((code, &json["verified"], &json["recomputed"]), (0, &true.into(), &"same".into()), "{json}");
    assert_eq!((&json["adapters"], &json["weight"]), (&3.into(), &60.into()));
    assert_eq!(json["merged_hash"], ContentHash::of(&std::fs::read(merged.weights()).expect("a file")).to_string());
    let (code, json) = found(&merged.verify(&["--json"]));
    assert_eq!((code, &json["verified"], &json["recomputed"]), (0, &true.into(), &"not_at_hand".into()), "{json}");
    let said = merged.verify(&[]);
    assert!(said.out.contains("Not shown: that these bytes are the merge of that set, because 3 adapters are not at hand"), "{said:?}");
    // Adapters under names of their own are found by their hash.
    for (number, file) in merged.files.iter().enumerate() {
        std::fs::create_dir_all(merged.path("named")).expect("a folder");
        write(&merged.path(&format!("named/member-{number}.safetensors")), file);
    }
    let said = merged.verify(&["--adapters", &merged.path("named").to_string_lossy()]);
    assert!(said.code == 0 && said.out.contains("Merging the members' adapters again gives the same bytes."), "{said:?}");
}

/// A merge by any rule is made again from the adapters; and so is what the receipt says of single members.
#[test]
fn every_rule_is_verified_by_merging_again() {
    let rules =
        [MergeRule::Stack, MergeRule::TrimmedMean { trim: 1 }, MergeRule::Median, MergeRule::MultiKrum { faulty: 1 }, MergeRule::Mean];
    for rule in rules {
        let merged = Merged::by(5, rule, Some(500_000));
        let (code, json) = found(&merged.with_adapters());
        assert_eq!((code, &json["recomputed"]), (0, &"same".into()), "{rule:?}: {json}");
        let account = Proof::read(&merged.path("merged")).expect("a proof").account;
        assert_eq!((account.clipped.len(), account.left_out.len()), (5, usize::from(matches!(rule, MergeRule::MultiKrum { .. }))));
        merged.change(|proof| _ = proof.account.clipped.pop_first());
        let (code, json) = found(&merged.with_adapters());
        let why = "the receipt says otherwise whose update was clipped or left out than merging again does";
        assert_eq!((code, &json["why"]), (4, &why.into()), "{json}");
        let card = std::fs::read_to_string(merged.path("merged/README.md")).expect("a card");
        assert!(card.contains(", updates clipped to norm 0.5; with 5 adapters it stands") && card.contains("Clipped: `"), "{card}");
    }
}

#[test]
fn every_changed_byte_of_the_merged_file_is_found() {
    let merged = Merged::new();
    let whole = std::fs::read(merged.weights()).expect("a file");
    for place in [0, 8, whole.len() / 2, whole.len() - 1] {
        let mut bent = whole.clone();
        bent[place] ^= 1;
        write(&merged.weights(), &bent);
        let said = merged.verify(&[]);
        let (is, was) = (ContentHash::of(&bent), ContentHash::of(&whole));
        said.wrong(4, &[&format!("error: DIR/merged/adapter_model.safetensors has hash {is}, but the receipt says {was}")]);
    }
    write(&merged.weights(), &whole[..whole.len() - 1]);
    assert_eq!(found(&merged.verify(&["--json"])).0, 4);
}

#[test]
fn a_receipt_that_lies_about_the_set_is_found() {
    let merged = Merged::new();
    let lies: [(&str, Lie); 5] = [
        ("error: receipt's set root", |proof| proof.receipt.admitted[0].weight += 1),
        ("error: receipt does not list its members once each, in the order of their keys", |proof| proof.receipt.admitted.swap(0, 1)),
        ("error: receipt lists 3 adapters, but 2 signed records are with it", |proof| drop(proof.records.pop())),
        ("error: receipt is for round", |proof| proof.round.name.push('!')),
        ("error: the record of member", |proof| proof.records[1].replace_range(0..2, "00")),
    ];
    let right = std::fs::read(merged.path("merged").join(RECEIPT_FILE)).expect("a receipt");
    for (sentence, lie) in lies {
        merged.change(lie);
        let said = merged.with_adapters();
        assert!(said.code == 4 && said.err.starts_with(sentence), "{sentence}: {said:?}");
        assert_eq!(found(&said).1["verified"], false);
        write(&merged.path("merged").join(RECEIPT_FILE), &right);
    }
    // A weight raised with the set root to match is not what the member signed.
    merged.change(|proof| {
        let mut admitted = proof.receipt.admitted.clone();
        admitted[0].weight += 1;
        proof.receipt = Receipt::new(proof.receipt.round, admitted, proof.receipt.merged);
    });
    let said = merged.with_adapters();
    assert!(said.code == 4 && said.err.contains("did not announce what the receipt lists for it"), "{said:?}");
}

#[test]
fn bytes_that_are_not_the_mean_are_found_where_the_adapters_are_at_hand() {
    let merged = Merged::new();
    let mut forged = std::fs::read(merged.weights()).expect("a file");
    let last = forged.len() - 2;
    forged[last] ^= 1;
    write(&merged.weights(), &forged);
    merged.change(|proof| proof.receipt.merged = ContentHash::of(&forged));
    let (code, json) = found(&merged.verify(&["--json"]));
    assert_eq!((code, &json["recomputed"]), (0, &"not_at_hand".into()), "without the adapters nobody can tell");
    let (code, json) = found(&merged.with_adapters());
    assert_eq!((code, &json["verified"], &json["recomputed"]), (4, &false.into(), &"different".into()));
    let said = merged.verify(&["--adapters", &merged.path("adapters").to_string_lossy()]);
    assert!(said.out.contains("FALSE: merging the members' adapters again gives"), "{said:?}");
}

#[test]
fn an_adapter_file_under_a_false_name_is_found() {
    let merged = Merged::new();
    let name = |number: usize| merged.path("adapters").join(format!("{}.safetensors", ContentHash::of(&merged.files[number])));
    std::fs::copy(name(0), name(1)).expect("copied");
    let said = merged.with_adapters();
    assert!(said.code == 4 && said.err.contains(", not that of its name"), "{said:?}");
    assert!(merged.round.manifest().roster.admits(&SecretKey::from_bytes(&[1; 32]).member()));
}

#[test]
fn a_folder_without_a_receipt_is_no_merge() {
    let merged = Merged::new();
    std::fs::remove_file(merged.path("merged").join(RECEIPT_FILE)).expect("removed");
    merged.verify(&[]).wrong(
        1,
        &[
            "error: cannot read DIR/merged/receipt.json: No such file or directory (os error 2)",
            "hint: a merged directory has one: rounds/ROUND/merged/current in a home, or what `mingle fetch --out` wrote",
        ],
    );
    write(&merged.path("merged").join(RECEIPT_FILE), b"{}");
    let said = merged.verify(&[]);
    assert!(said.code == 1 && said.err.starts_with("error: DIR/merged/receipt.json is not a receipt: missing field"), "{said:?}");
}

#[test]
fn the_next_round_is_made_from_a_merged_directory_that_proves_itself() {
    let merged = Merged::new();
    let (out, again) = (merged.path("next.json"), merged.path("third.json"));
    let next = |directory: &Path, out: &Path| {
        let texts = [directory, out].map(|path| path.to_string_lossy().into_owned());
        run(PROGRAM, &merged.path("home"), ["round", "next", &texts[0], "--peer", "/ip4/10.0.0.7/tcp/4001", "--out", &texts[1]])
    };
    next(&merged.path("merged"), &out).right();
    let file = RoundFile::from_json(&std::fs::read(&out).expect("a file")).expect("a round file");
    let (before, after) = (merged.round.manifest(), file.round.manifest());
    let hash = ContentHash::of(&std::fs::read(merged.weights()).expect("a file"));
    assert_eq!(after.parent, Some(Parent { round: merged.round.id(), merged: hash }));
    let same = Manifest { parent: None, name: before.name.clone(), ..after.clone() };
    assert_eq!((&same, after.name.as_str(), file.peers.as_slice()), (before, "verified 2", &["/ip4/10.0.0.7/tcp/4001".to_owned()][..]));
    assert!(next(&merged.path("merged"), &out).err.contains("exists already"));

    let mut bent = std::fs::read(merged.weights()).expect("a file");
    *bent.last_mut().expect("a byte") ^= 1;
    write(&merged.weights(), &bent);
    let said = next(&merged.path("merged"), &again);
    assert!(said.code == 1 && said.err.contains(", but the receipt says ") && !again.exists(), "{said:?}");
}

#[test]
fn a_dropped_member_and_a_word_from_another_round_are_named() {
    let merged = Merged::new();
    let keys: Vec<SecretKey> = (1..=MEMBERS).map(|number| SecretKey::from_bytes(&[number; 32])).collect();
    let word = |key: &SecretKey, round: &Round, receipt: &Receipt| {
        let size = std::fs::metadata(merged.weights()).expect("a file").len();
        let Receipt { set_root, merged, .. } = *receipt;
        let said = Attestation { round: round.id(), member: key.member(), set_root, merged, size, excluded: Vec::new() };
        encode_hex(&SignedAttestation::sign(&said, key, round).expect("a word within the rules").raw().0)
    };
    let right = std::fs::read(merged.path("merged").join(RECEIPT_FILE)).expect("a receipt");
    let receipt = Proof::read(&merged.path("merged")).expect("a proof").receipt;
    merged.change(|proof| proof.attestations = vec![word(&keys[0], &merged.round, &receipt), word(&keys[1], &merged.round, &receipt)]);
    assert_eq!(found(&merged.with_adapters()).1["vouching"].as_array().map(Vec::len), Some(2));

    // Whoever drops a member has to change the set root, which nobody vouches for; and the bytes are those of another set.
    let dropped = |proof: &mut Proof| {
        proof.records.pop();
        let admitted = proof.receipt.admitted[..2].to_vec();
        proof.receipt = Receipt::new(proof.receipt.round, admitted, proof.receipt.merged);
    };
    merged.change(dropped);
    let said = merged.with_adapters();
    assert!(said.code == 4 && said.err.contains("vouches for another merge than the receipt's"), "{said:?}");
    merged.change(|proof| proof.attestations.clear());
    let said = merged.verify(&["--adapters", &merged.path("adapters").to_string_lossy()]);
    assert!(said.code == 4 && said.out.contains("FALSE: merging the members' adapters again gives"), "{said:?}");

    let elsewhere = adapters::round("elsewhere", 2, 6, keys.iter().map(SecretKey::member));
    write(&merged.path("merged").join(RECEIPT_FILE), &right);
    merged.change(|proof| proof.attestations = vec![word(&keys[0], &elsewhere, &receipt)]);
    let said = merged.verify(&[]);
    let sentence = format!("attestation is for round {}, this is round {}", elsewhere.id(), merged.round.id());
    assert!(said.code == 4 && said.err.contains(&sentence), "{said:?}");
}
