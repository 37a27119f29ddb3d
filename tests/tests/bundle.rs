//! A site without a network takes part by files alone: it imports what the others made, adds its own adapter, and what it
//! sends back makes all hold the same merge. Real processes.

use std::path::{Path, PathBuf};

use mingle_protocol::hash::ContentHash;
use mingle_protocol::merge::Accumulator;
use mingle_protocol::round::Round;
use mingle_tests::peer::{Transport, address, bytes_of};
use mingle_tests::{Peer, Said, adapters, agree, base, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// A round of published adapters, and a folder for all sites.
struct Scene {
    folder: TempDir,
    round: Round,
}

impl Scene {
    fn new(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let round = adapters::round(name, 4, 320, []);
        std::fs::write(folder.path().join("round.json"), round.to_json()).expect("a round file");
        Self { folder, round }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn peft(&self, number: u64) -> PathBuf {
        let folder = self.path(&format!("adapter-{number}"));
        adapters::write_peft(&folder, &self.round, &adapters::adapter_file(&self.round, number));
        folder
    }

    /// A member with a network that publishes adapter `number`.
    fn member(&self, number: u64, listen: &str, dials: &[&str]) -> Peer {
        let mut peer = Peer::new(PROGRAM, self.folder.path(), &format!("member-{number}"), self.round.id(), ["publish"]);
        peer.argue([self.peft(number).into_os_string(), "--round".into(), self.path("round.json").into()]);
        peer.argue(["--examples", &(100 * number).to_string(), "--listen", listen]);
        dials.iter().for_each(|address| peer.argue(["--peer", address]));
        peer.start();
        peer
    }

    /// Runs a command line in a home, split at spaces; `DIR` stands for the folder.
    fn run(&self, home: &Path, line: &str) -> Said {
        let folder = self.folder.path().to_string_lossy().into_owned();
        run(PROGRAM, home, line.split(' ').map(|word| word.replace("DIR", &folder)))
    }

    fn json(&self, home: &Path, line: &str) -> Value {
        let said = self.run(home, line).right();
        serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// The merged hash of these members' adapters, folded here.
    fn expected(&self, numbers: &[u64]) -> ContentHash {
        let mut average = Accumulator::new(self.round.tensors());
        for number in numbers {
            average.add(&adapters::adapter_file(&self.round, *number), 100 * number).expect("a whole adapter");
        }
        ContentHash::of(&average.finalise().expect("a merge"))
    }
}

fn hash_in(folder: &Path) -> ContentHash {
    ContentHash::of(&bytes_of(&folder.join("adapter_model.safetensors")))
}

fn counts(taken: &Value) -> [u64; 3] {
    [&taken["new"], &taken["known"], &taken["refused"]["count"]].map(|count| count.as_u64().expect("a count"))
}

#[test]
fn a_site_without_a_network_takes_part_by_files_alone() {
    let scene = Scene::new("stick");
    let (first, second) = (address(Transport::Tcp), address(Transport::Quic));
    let mut peers = vec![scene.member(1, &first, &[]), scene.member(2, &second, &[&first])];
    assert_eq!(agree(&mut peers, 2).merged_hash, scene.expected(&[1, 2]));
    let online = peers[0].home().folder().to_owned();
    let alone = scene.path("alone");

    // A peer that runs keeps its home to itself.
    let said = scene.run(&online, "bundle export --round DIR/round.json --out DIR/out.bundle");
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("is held by another process") && said.err.contains("hint: another mingle process uses this home"),
        "{said:?}"
    );
    peers[0].kill();
    let exported = scene.json(&online, "bundle export --round DIR/round.json --out DIR/out.bundle --json");
    assert_eq!((&exported["records"], &exported["adapters"], &exported["missing"]), (&2.into(), &2.into(), &serde_json::json!([])));

    // One file is all that the other site gets: the round file is in it.
    let imported = scene.json(&alone, "bundle import DIR/out.bundle --out DIR/alone-merged --json");
    assert_eq!((counts(&imported["records"]), counts(&imported["adapters"])), ([2, 0, 0], [2, 0, 0]));
    assert_eq!((&imported["recomputed"], &imported["missing"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(hash_in(&scene.path("alone-merged")), scene.expected(&[1, 2]));
    scene.run(&alone, "verify DIR/alone-merged").right();

    // It adds its own adapter, with no connection.
    scene.peft(3);
    let said = scene.run(&alone, "publish DIR/adapter-3 --round DIR/round.json --examples 300 --offline --json").right();
    assert!(said.contains("\"announced\"") && !said.contains("\"listening\""), "{said}");
    scene.run(&alone, "fetch --round DIR/round.json --offline --adapters 3 --out DIR/alone-three").right();
    assert_eq!(hash_in(&scene.path("alone-three")), scene.expected(&[1, 2, 3]));
    let exported = scene.json(&alone, "bundle export --round DIR/round.json --adapters own --out DIR/back.bundle --json");
    assert_eq!((&exported["records"], &exported["adapters"]), (&3.into(), &1.into()));

    // Back at the first site.
    let imported = scene.json(&online, "bundle import DIR/back.bundle --round DIR/round.json --json");
    assert_eq!((counts(&imported["records"]), counts(&imported["adapters"])), ([1, 2, 0], [1, 0, 0]));
    assert_eq!(imported["merged"]["merged_hash"].as_str(), Some(scene.expected(&[1, 2, 3]).to_string().as_str()));
    let again = scene.json(&online, "bundle import DIR/back.bundle --round DIR/round.json --json");
    assert_eq!((counts(&again["records"]), counts(&again["adapters"])), ([0, 3, 0], [0, 1, 0]));
    assert_eq!(again["merged"], imported["merged"]);

    // Started again, it tells the others.
    peers[0].start();
    assert_eq!(agree(&mut peers, 3).merged_hash, scene.expected(&[1, 2, 3]));
}

#[test]
fn a_site_without_a_network_trains_and_withdraws_by_files_alone() {
    let scene = Scene::new("unused");
    base::write_base(&scene.path("base"), 1);
    base::write_data(&scene.path("a.jsonl"), 24, 1);
    base::write_data(&scene.path("b.jsonl"), 24, 2);
    let (a, b) = (scene.path("a"), scene.path("b"));
    scene.run(&a, "round new --base DIR/base --rank 2 --out DIR/trained.json").right();
    let run = "run --round DIR/trained.json --base DIR/base --epochs 1 --offline --json";
    for (home, data) in [(&a, "DIR/a.jsonl"), (&b, "DIR/b.jsonl")] {
        let said = scene.run(home, &format!("{run} --data {data}")).right();
        assert!(said.contains("\"announced\"") && said.contains("\"merged\"") && !said.contains("\"listening\""), "{said}");
    }
    // Each knows only its own until the files have gone both ways.
    for (from, to, name) in [(&a, &b, "ab"), (&b, &a, "ba")] {
        scene.run(from, &format!("bundle export --round DIR/trained.json --out DIR/{name}")).right();
        let imported = scene.json(to, &format!("bundle import DIR/{name} --json"));
        assert_eq!(imported["merged"]["adapters"], 2);
    }
    let merged = |home: &Path, name: &str| {
        scene.run(home, &format!("fetch --round DIR/trained.json --offline --adapters 1 --out DIR/{name}")).right();
        hash_in(&scene.path(name))
    };
    assert_eq!(merged(&a, "at-a"), merged(&b, "at-b"));
    // A withdrawal travels in the same way.
    scene.run(&b, "withdraw --round DIR/trained.json --offline").right();
    scene.run(&b, "bundle export --round DIR/trained.json --adapters none --out DIR/gone").right();
    let imported = scene.json(&a, "bundle import DIR/gone --json");
    assert_eq!((counts(&imported["records"]), &imported["merged"]["adapters"]), ([1, 1, 0], &1.into()));
    assert_eq!(merged(&a, "at-a-alone"), merged(&b, "at-b-alone"));
}

#[test]
fn who_wants_no_more_than_the_merged_adapter_gets_it_with_its_receipt() {
    let scene = Scene::new("small");
    let home = scene.path("member");
    scene.peft(1);
    scene.run(&home, "publish DIR/adapter-1 --round DIR/round.json --examples 100 --offline").right();
    scene.run(&home, "bundle export --round DIR/round.json --adapters none --merged --out DIR/small").right();
    let imported = scene.json(&scene.path("reader"), "bundle import DIR/small --out DIR/merged --json");
    assert_eq!((&imported["recomputed"], counts(&imported["adapters"])), (&false.into(), [0, 0, 0]));
    assert_eq!(imported["missing"].as_array().map(Vec::len), Some(1));
    assert_eq!(hash_in(&scene.path("merged")), scene.expected(&[1]));
    scene.run(&home, "verify DIR/merged").right();
    assert_eq!(mingle::peft::read(&scene.path("merged")).expect("a PEFT directory").config.rank, 4);

    // The bundle's last byte is the merged adapter's.
    let mut bytes = bytes_of(&scene.path("small"));
    *bytes.last_mut().expect("a bundle") ^= 1;
    std::fs::write(scene.path("bent"), bytes).expect("a file");
    let said = scene.run(&scene.path("other"), "bundle import DIR/bent --out DIR/other-merged");
    assert!(said.code == 1 && said.err.contains("the merged adapter has hash"), "{said:?}");
    assert!(!scene.path("other-merged").exists() && !scene.path("other-merged.unfinished").exists());
}

#[test]
fn what_is_wrong_with_a_bundle_is_said_in_words() {
    let scene = Scene::new("words");
    let home = scene.path("member");
    scene.peft(1);
    scene.run(&home, "publish DIR/adapter-1 --round DIR/round.json --examples 100 --offline").right();
    scene.run(&home, "bundle export --round DIR/round.json --out DIR/good").right();
    let folder = scene.folder.path().to_string_lossy().into_owned();
    let wrong = |line: &str, code: i32, lines: &[&str]| {
        let said = scene.run(&scene.path("reader"), line);
        let err = said.err.replace(&folder, "DIR");
        Said { err, ..said }.wrong(code, lines);
    };
    wrong("bundle import DIR/round.json", 1, &["error: DIR/round.json is no bundle: it does not begin as a bundle does"]);
    let other = adapters::round("other", 4, 320, []);
    std::fs::write(scene.path("other.json"), other.to_json()).expect("a round file");
    let (found, expected) = (scene.round.id(), other.id());
    let hint = "hint: ask for the file again, and compare the rounds with `mingle bundle show` and `mingle round show`";
    let unusable = "error: DIR/good is not a bundle to be used here, and nothing was taken from it";
    wrong(
        "bundle import DIR/good --round DIR/other.json",
        1,
        &[&format!("{unusable}: it is of round {found}, not of round {expected}"), hint],
    );
    assert!(!scene.path("reader/rounds").exists());
    wrong(
        "bundle export --round DIR/round.json --out DIR/good",
        1,
        &["error: DIR/good exists already; choose another file to write", "hint: remove it or name another --out"],
    );
    wrong("bundle export --round DIR/round.json --out DIR/new", 1, &["error: DIR/reader knows nothing of round \"words\""]);

    // Damage on the way: what verified is kept, the exit code says that something was false.
    let bytes = bytes_of(&scene.path("good"));
    let mut bent = bytes.clone();
    let last = bent.len() - 1;
    bent[last] ^= 1;
    std::fs::write(scene.path("bent"), bent).expect("a file");
    let adapter = ContentHash::of(&adapters::adapter_file(&scene.round, 1));
    let said = scene.run(&scene.path("reader"), "bundle import DIR/bent");
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.starts_with(&format!("refused adapter: adapter {adapter}: bytes near offset ")), "{said:?}");
    std::fs::write(scene.path("short"), &bytes[..last]).expect("a file");
    let said = scene.run(&scene.path("reader"), "bundle import DIR/short");
    assert!(said.code == 4 && said.err.contains("the bundle ends 1 bytes early"), "{said:?}");
    let imported = scene.json(&scene.path("reader"), "bundle import DIR/good --json");
    assert_eq!((counts(&imported["records"]), counts(&imported["adapters"])), ([0, 1, 0], [1, 0, 0]));
}

#[test]
fn an_import_that_is_killed_again_and_again_ends_as_if_it_never_had_been() {
    let seed = mingle_tests::dice::seed();
    println!("seed {seed}");
    let mut dice = mingle_tests::Dice::new(seed, "kills of an import");
    let folder = TempDir::new().expect("a temporary folder");
    let round = adapters::round("killed", 48, 1_024, []);
    std::fs::write(folder.path().join("round.json"), round.to_json()).expect("a round file");
    let scene = Scene { folder, round };
    let member = scene.path("member");
    for number in 1..=4 {
        scene.peft(number);
        let home = scene.path(&format!("member-{number}"));
        scene.run(&home, &format!("publish DIR/adapter-{number} --round DIR/round.json --examples {number}00 --offline")).right();
        scene.run(&home, &format!("bundle export --round DIR/round.json --out DIR/from-{number}")).right();
        scene.run(&member, &format!("bundle import DIR/from-{number}")).right();
    }
    scene.run(&member, "bundle export --round DIR/round.json --out DIR/all").right();
    let reader = scene.path("reader");
    for _ in 0..12 {
        let mut importing = std::process::Command::new(PROGRAM)
            .args(["bundle", "import", "--quiet", "--home"])
            .args([&reader, &scene.path("all")])
            .stdin(std::process::Stdio::null())
            .spawn()
            .expect("the program can be started");
        std::thread::sleep(dice.milliseconds(120));
        importing.kill().expect("the process can be killed");
        importing.wait().expect("the process can be waited for");
    }
    let imported = scene.json(&reader, "bundle import DIR/all --out DIR/merged --json");
    let [new, known, refused] = counts(&imported["adapters"]);
    assert_eq!((new + known, refused, &imported["recomputed"]), (4, 0, &true.into()));
    assert_eq!(hash_in(&scene.path("merged")), scene.expected(&[1, 2, 3, 4]));
}
