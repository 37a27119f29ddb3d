//! A whole testnet, small: real processes, one round and a chain, one report whose JSON has the promised form.

use clap::Parser;
use mingle_testnet::options::Options;
use mingle_testnet::peer::Program;
use serde_json::Value;

#[test]
fn a_testnet_ends_with_equal_hashes_and_a_whole_report() {
    let arguments = "mingle-testnet --members 3 --readers 2 --examples 24 --epochs 2 --rounds 2 --eval-examples 24 --seed 5";
    let options = Options::parse_from(arguments.split(' '));
    let program = Program { executable: env!("CARGO_BIN_EXE_mingle-peer").into(), prefix: Vec::new() };
    let folder = tempfile::tempdir().expect("a folder");
    let report = mingle_testnet::run::run(&options, &program, folder.path()).expect("a run");
    let file = folder.path().join("report.json");
    report.write_json(&file).expect("written");

    let json: Value = serde_json::from_slice(&std::fs::read(&file).expect("there")).expect("JSON");
    assert_eq!(json["hash_equal"], true, "{json:#}");
    assert_eq!(json["round"].as_str().map(str::len), Some(64));
    let peers = json["peers"].as_array().expect("peers");
    assert_eq!(
        peers.iter().map(|peer| peer["role"].as_str().unwrap_or_default()).collect::<Vec<_>>(),
        ["member", "member", "member", "reader", "reader"]
    );
    for peer in peers {
        assert_eq!(
            (&peer["admitted"], &peer["merged_hash"], &peer["set_root"]),
            (&3.into(), &peers[0]["merged_hash"], &peers[0]["set_root"])
        );
        assert!(peer["peer"].as_str().is_some_and(|name| name.starts_with("12D3")), "{peer}");
    }
    let scores = &json["scores"];
    let base = scores["base"].as_f64().expect("a loss");
    for score in [&scores["alone"][2], &scores["merged"][2], &scores["multi_round"], &scores["centralised"]] {
        assert!(score.as_f64().is_some_and(|loss| loss > 0.0 && loss < base), "training lowers the loss: {scores}");
    }
    // A merge of one adapter is that adapter, but for the grid.
    let (alone, merged) = (scores["alone"][0].as_f64().expect("a loss"), scores["merged"][0].as_f64().expect("a loss"));
    assert!((alone - merged).abs() < 1e-4, "{alone} alone, {merged} merged");
    for part in ["one_round", "multi_round", "centralised", "evaluation", "total"] {
        assert!(json["seconds"][part].as_f64().is_some_and(|seconds| seconds > 0.0), "{part}");
    }
    let table = report.table();
    assert!(table.contains("merged hash equal at all peers and readers: yes"), "{table}");
}
