//! The mistakes that people make most, and every word they are told: compared with `tests/snapshots/errors.txt`, which
//! `MINGLE_WRITE_SNAPSHOTS=1 cargo test -p mingle-tests --test errors` writes anew.

use std::path::Path;

use mingle_protocol::hash::encode_hex;
use mingle_protocol::round::Round;
use mingle_tests::adapters::{adapter_file, file_of, key, round, write_peft};
use mingle_tests::peer::bytes_of;
use mingle_tests::{Desk, base};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// Command lines that fail, each with what it fails for.
const LINES: [&str; 48] = [
    // Keys and rounds.
    "key new",
    "key show --home DIR/empty",
    "round new --base DIR/nowhere --out DIR/new.json",
    "round new --base DIR/base --rank 0 --out DIR/new.json",
    "round new --base DIR/base --targets q_prog --out DIR/new.json",
    "round new --base DIR/base --out DIR/round.json",
    "round new --base DIR/base --rule multi-krum --out DIR/new.json",
    "round new --base DIR/base --rule mean --trim 2 --out DIR/new.json",
    "round new --base DIR/base --member abc --out DIR/new.json",
    "round new --base DIR/base --verdicts 2 --out DIR/new.json",
    "round show DIR/nowhere.json",
    "round show DIR/data.jsonl",
    "round show mingle:abc",
    "round next DIR/adapter --out DIR/next.json",
    // Data and training.
    "run --base DIR/base --data DIR/data.jsonl",
    "run --round DIR/round.json --base DIR/other --data DIR/data.jsonl",
    "run --round DIR/shape.json --data DIR/data.jsonl",
    "run --round DIR/round.json --base DIR/base",
    "run --round DIR/round.json --base DIR/base --data DIR/missing.jsonl",
    "run --round DIR/round.json --base DIR/base --data DIR/broken.jsonl",
    "run --round DIR/closed.json --base DIR/base --data DIR/data.jsonl --listen /ip4/127.0.0.1/tcp/0",
    "run --round DIR/round.json --listen 127.0.0.1:4001",
    "run --round DIR/round.json --peer example.org",
    "train --base DIR/base --data DIR/data.csv --out DIR/new",
    "train --base DIR/base --data DIR/data.csv --map instruction=frage --map output=antwort --out DIR/new",
    "train --base DIR/base --data DIR/data.csv --map prompt=question --out DIR/new",
    "train --base DIR/base --data DIR/data.parquet --out DIR/new",
    "train --base DIR/base --data DIR/classes.tsv --out DIR/new",
    "train --base DIR/base --data DIR/data.jsonl --learning-rate -1 --out DIR/new",
    "train --base DIR/base --data DIR/data.jsonl --max-length 2 --out DIR/new",
    "train --base DIR/base --data DIR/data.jsonl --device cuda --out DIR/new",
    "train --base DIR/base --data DIR/data.jsonl --epoch 1 --out DIR/new",
    "train --base DIR/base --data DIR/data.jsonl --out DIR/adapter",
    // Adapters.
    "publish DIR/adapter --round DIR/narrow.json --examples 10",
    "publish DIR/pickled --round DIR/shape.json --examples 10",
    "publish DIR/dora --round DIR/shape.json --examples 10",
    "publish DIR/nan --round DIR/shape.json --examples 10",
    "merge DIR/adapter=1 DIR/nan=1 --out DIR/new",
    "merge DIR/adapter=0 --out DIR/new",
    "merge DIR/adapter=1 DIR/adapter=2 --rule median --out DIR/new",
    "verify DIR/adapter",
    "export --adapter DIR/adapter --rank 0 --out DIR/new",
    // The peer and its settings.
    "fetch --round DIR/round.json --out DIR/new --adapters 1 --timeout 0.3 --quiet --listen /ip4/127.0.0.1/tcp/0",
    "status --home DIR/empty",
    "withdraw --round DIR/round.json --peer /ip4/127.0.0.1/tcp/9 --timeout 1 --quiet",
    "config show --config DIR/config.toml",
    "config show runn",
    "statuss",
];

fn desk() -> Desk {
    let desk = Desk::new(PROGRAM);
    std::fs::create_dir_all(desk.path("home")).expect("a home");
    std::fs::write(desk.path("home/key"), encode_hex(&key(9).to_bytes())).expect("a key");
    base::write_base(&desk.path("base"), 1);
    base::write_base(&desk.path("other"), 2);
    base::write_data(&desk.path("data.jsonl"), 8, 1);
    desk.write("broken.jsonl", "{\"text\": \"one\"}\n{\"text\": \n");
    desk.write("data.csv", "frage,answer\ncount from one to two,one two\n");
    desk.write("data.parquet", "no parquet");
    desk.write("classes.tsv", "count\t1\n");
    desk.write("config.toml", "thread = 4\n");
    desk.run("round new --base DIR/base --name test --rank 2 --out DIR/round.json").right();
    desk.run(&format!("round new --base DIR/base --name closed --member {} --no-founders --out DIR/closed.json", key(1).member())).right();
    let shape = round("shape", 1, 4, []);
    desk.write("shape.json", &shape.to_json());
    desk.write("narrow.json", &round("narrow", 1, 3, []).to_json());
    write_peft(&desk.path("adapter"), &shape, &adapter_file(&shape, 1));
    write_peft(&desk.path("nan"), &shape, &file_of(&shape, |index| if index == 3 { f32::NAN } else { 0.5 }));
    refused_directories(&desk, &shape);
    desk
}

fn refused_directories(desk: &Desk, shape: &Round) {
    for name in ["pickled", "dora"] {
        write_peft(&desk.path(name), shape, &adapter_file(shape, 1));
    }
    let pickled = desk.path("pickled");
    std::fs::rename(pickled.join("adapter_model.safetensors"), pickled.join("adapter_model.bin")).expect("renamed");
    let config = desk.path("dora/adapter_config.json");
    let mut said: Value = serde_json::from_slice(&bytes_of(&config)).expect("JSON");
    said["use_dora"] = true.into();
    std::fs::write(&config, said.to_string()).expect("a configuration");
}

#[test]
fn every_mistake_is_told_in_words_that_were_read() {
    let desk = desk();
    let mut text = String::new();
    for line in LINES {
        let said = desk.run(line);
        assert!(said.code > 0, "{line} does not fail: {said:?}");
        assert!(said.code == 3 || said.err.lines().any(|told| told.starts_with("error: ")), "{line}: {said:?}");
        for mark in ["Some(", "None", "Error {", "Err(", "panicked", "{ path", "\\\\"] {
            assert!(!said.err.contains(mark), "{line}: {mark:?} is no language of people: {}", said.err);
        }
        text += &format!("$ mingle {line}\n{}[exit code {}]\n\n", said.err, said.code);
    }
    assert!(!desk.path("new").exists() && !desk.path("new.json").exists(), "a mistake left something behind");
    let snapshot = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots/errors.txt");
    if std::env::var_os("MINGLE_WRITE_SNAPSHOTS").is_some() {
        std::fs::write(&snapshot, &text).expect("a snapshot");
    }
    let expected = std::fs::read_to_string(&snapshot).expect("a snapshot");
    for (found, expected) in text.split("\n\n").zip(expected.split("\n\n")) {
        assert_eq!(found, expected);
    }
    assert_eq!(text.len(), expected.len());
}
