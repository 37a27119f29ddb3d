//! What people meet when something is wrong: whole messages with their hints, exit codes, and no half-written results.

use std::path::Path;

use mingle_protocol::identity::SecretKey;
use mingle_protocol::round::Round;
use mingle_tests::peer::bytes_of;
use mingle_tests::{Desk, adapters, base};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

fn desk() -> Desk {
    Desk::new(PROGRAM)
}

fn write_adapter(desk: &Desk, name: &str, round: &Round, seed: u64) {
    adapters::write_peft(&desk.path(name), round, &adapters::adapter_file(round, seed));
}

/// A base, and a round over it.
fn with_round(options: &str) -> Desk {
    let desk = desk();
    base::write_base(&desk.path("base"), 1);
    desk.run(format!("round new --base DIR/base --rank 2 --out DIR/round.json {options}").trim_end()).right();
    desk
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn who_stops_reading_ends_the_program_quietly() {
    let desk = with_round("");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = std::process::Command::new(PROGRAM);
    command.args(["round", "show"]).arg(desk.path("round.json")).stdout(writer);
    let ended = command.stderr(std::process::Stdio::piped()).spawn().and_then(|running| running.wait_with_output()).expect("it ends");
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(141), ""));
}

#[test]
fn a_key_is_made_once_and_never_overwritten() {
    let desk = desk();
    desk.run("key show").wrong(
        1,
        &["error: cannot read the key DIR/home/key: No such file or directory (os error 2)", "hint: make one with `mingle key new`"],
    );
    let made = desk.run("key new --json").right();
    let key = bytes_of(&desk.path("home/key"));
    desk.run("key new").wrong(
        1,
        &[
            "error: DIR/home/key exists already; a key is never overwritten",
            "hint: use `mingle key show`, or another --home for another institution",
        ],
    );
    assert_eq!(bytes_of(&desk.path("home/key")), key);
    assert_eq!(json(&desk.run("key show --json").right()), json(&made));
    desk.write("home/key", "no key\n");
    desk.run("key show").wrong(1, &["error: DIR/home/key does not hold a secret key of 64 hex digits"]);
}

#[cfg(unix)]
#[test]
fn a_key_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let desk = desk();
    desk.run("key new").right();
    let mode = std::fs::metadata(desk.path("home/key")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_round_file_is_written_once_and_must_not_be_edited() {
    let desk = with_round("");
    let text = std::fs::read_to_string(desk.path("round.json")).expect("a round file");
    desk.run("round new --base DIR/base --out DIR/round.json")
        .wrong(1, &["error: DIR/round.json exists already; a round file is never overwritten", "hint: name another --out"]);
    assert_eq!(std::fs::read_to_string(desk.path("round.json")).expect("a round file"), text);
    let shown = json(&desk.run("round show DIR/round.json --json").right());
    let mut manifest = json(&text);
    assert_eq!(manifest["signatures"].as_object().map(serde_json::Map::len), Some(1), "its maker has signed it");
    manifest.as_object_mut().expect("an object").remove("signatures");
    assert_eq!(shown["manifest"], manifest);
    desk.write("broken.json", &text.replace("\"version\": 1", "\"version\": 2"));
    desk.run("round show DIR/broken.json")
        .wrong(1, &["error: DIR/broken.json is no round: round has version 2; this program knows version 1"]);
    desk.write("broken.json", &text.replace("\"name\"", "\"title\""));
    let said = desk.run("round show DIR/broken.json");
    assert!(said.err.starts_with("error: DIR/broken.json is no round: round file is not a manifest: unknown field `title`"), "{said:?}");
    assert!(said.err.ends_with("hint: a round file is made by `mingle round new` and must not be edited\n"), "{said:?}");
    desk.run("round show DIR/nowhere.json")
        .wrong(1, &["error: cannot read the round file DIR/nowhere.json: No such file or directory (os error 2)"]);
    desk.run("round new --base DIR/base --rank 0 --out DIR/other.json")
        .wrong(1, &["error: the adapter's shape is refused: the rank is 0, but it must be from 1 to 1024"]);
    assert!(!desk.path("other.json").exists());
}

#[test]
fn another_base_than_the_rounds_is_refused_before_anything_runs() {
    let desk = with_round("--name test");
    base::write_base(&desk.path("other"), 2);
    base::write_data(&desk.path("data.jsonl"), 8, 1);
    let digest = |folder: &str| mingle::models::base_digest(&desk.path(folder)).expect("a base");
    let (found, expected) = (digest("other"), digest("base"));
    for verb in ["run", "train --out DIR/adapter"] {
        desk.run(&format!("{verb} --round DIR/round.json --base DIR/other --data DIR/data.jsonl")).wrong(
            1,
            &[
                &format!("error: DIR/other holds a base with digest {found}, but round \"test\" needs {expected} (base)"),
                "hint: every member must use the same base weights; compare with `mingle round show`",
            ],
        );
    }
    assert!(!desk.path("home/rounds").exists() && !desk.path("adapter").exists());
}

#[test]
fn a_bad_line_of_data_is_named_by_file_and_line() {
    let desk = with_round("");
    let hint = "hint: each line is one JSON object with instruction/output, question/answer, messages, text, or text/label; other columns are named with --map, such as --map instruction=prompt";
    let good = "{\"question\": \"count from one to two\", \"answer\": \"one two\"}\n";
    let cases = [
        ("{\"question\": \"count\"", "not JSON: EOF while parsing an object at line 1 column 20"),
        ("{\"question\": \"count\"}", "\"answer\" is missing"),
        ("[1]", "expected a JSON object, found a list"),
        (
            "{\"prompt\": \"count\"}",
            "found the fields {prompt}, but an example has \"instruction\" and \"output\", \"question\" and \"answer\", \"messages\", \"text\", or \"text\" and \"label\"",
        ),
    ];
    for (line, why) in cases {
        desk.write("data.jsonl", &format!("{good}\n{good}{line}\n{good}"));
        let error = format!("error: DIR/data.jsonl:4: {why}");
        desk.run("run --round DIR/round.json --base DIR/base --data DIR/data.jsonl").wrong(1, &[&error, hint]);
        desk.run("train --base DIR/base --data DIR/data.jsonl --out DIR/out").wrong(1, &[&error, hint]);
    }
    desk.write("data.jsonl", "\n");
    desk.run("train --base DIR/base --data DIR/data.jsonl --out DIR/out").wrong(1, &["error: DIR/data.jsonl holds no example"]);
    assert!(!desk.path("out").exists());
}

#[test]
fn choices_are_scored_and_every_outcome_can_be_kept() {
    let desk = with_round("");
    let question = r#"{"question": "count from one", "choices": {"text": ["one two", "nine"], "label": ["1", "2"]}, "answerKey": "KEY"}"#;
    desk.write("arc.jsonl", &["1", "2"].map(|key| question.replace("KEY", key) + "\n").concat());
    let said = desk.run("eval --base DIR/base --task arc --data DIR/arc.jsonl --samples DIR/samples --json").right();
    let total = json(&said)["multiple_choice"]["total"].clone();
    // Whatever it chooses, it is right for one of the two keys.
    assert_eq!((&total["questions"], &total["acc"], &total["acc_norm"]), (&2.into(), &0.5.into(), &0.5.into()));
    let samples = std::fs::read_to_string(desk.path("samples")).expect("the samples");
    let samples: Vec<Value> = samples.lines().map(json).collect();
    assert_eq!((samples.len(), &samples[0]["log_likelihoods"], &samples[1]["answer"]), (2, &samples[1]["log_likelihoods"], &1.into()));
    desk.write("bad.jsonl", &question.replace("KEY", "C"));
    let refused = desk.run("eval --base DIR/base --task arc --data DIR/bad.jsonl");
    refused.wrong(1, &["error: DIR/bad.jsonl:1: \"answerKey\" is \"C\", but the labels are 1, 2"]);
    desk.write("data.tsv", "count\t1\n");
    let refused = desk.run("eval --base DIR/base --data DIR/data.tsv");
    refused.wrong(1, &["error: the data has texts with a class, but this model is a language model, which continues texts"]);
}

#[test]
fn who_is_not_in_the_roster_is_told_so() {
    let founder = SecretKey::from_bytes(&[1; 32]).member();
    let desk = with_round(&format!("--name closed --member {founder} --no-founders"));
    let me = json(&desk.run("key new --json").right())["member"].as_str().expect("a key").to_owned();
    desk.run("run --round DIR/round.json --listen /ip4/127.0.0.1/tcp/0").wrong(
        1,
        &[
            &format!("error: member {me} is not in the roster of round \"closed\""),
            "hint: ask the round's founders to list the key that `mingle key show` prints",
        ],
    );
}

#[test]
fn a_fetch_that_runs_out_of_time_ends_with_3_and_writes_nothing() {
    let desk = with_round("");
    let said = desk.run("fetch --round DIR/round.json --out DIR/merged --adapters 2 --timeout 0.5 --listen /ip4/127.0.0.1/tcp/0 --quiet");
    said.wrong(3, &["hint: without --peer or --mdns this waits until somebody dials it", "stopped with 0 of 2 adapters"]);
    assert!(!desk.path("merged").exists());
    std::fs::create_dir(desk.path("merged")).expect("a folder");
    desk.run("fetch --round DIR/round.json --out DIR/merged")
        .wrong(1, &["error: DIR/merged exists already; choose another directory to write", "hint: remove it or name another --out"]);
    let said = desk.run("fetch --round DIR/round.json --out DIR/other --timeout soon");
    assert_eq!(said.code, 2);
    assert!(said.err.contains("\"soon\" is not a number of seconds"), "{said:?}");
}

#[test]
fn an_adapter_that_does_not_fit_the_round_cannot_be_announced() {
    let desk = desk();
    let round = adapters::round("fits", 1, 4, []);
    desk.write("round.json", &round.to_json());
    let publish = "publish DIR/adapter --round DIR/round.json --examples 10 --listen /ip4/127.0.0.1/tcp/0 --quiet";
    let refused = "error: DIR/adapter/adapter_model.safetensors cannot be announced in round \"fits\"";
    let named = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let mut file = adapters::file_of(&round, |index| if index == 3 { f32::NAN } else { 0.5 });
    adapters::write_peft(&desk.path("adapter"), &round, &file);
    desk.run(publish).wrong(1, &[&format!("{refused}: element 3 of the tensor {named} is NaN")]);
    file = adapters::file_of(&round, |index| if index == 4 { 17.0 } else { 0.5 });
    adapters::write_peft(&desk.path("adapter"), &round, &file);
    desk.run(publish).wrong(1, &[&format!("{refused}: element 4 of the tensor {named} is 17, but at most 16 either way is allowed")]);
    adapters::write_peft(&desk.path("adapter"), &round, &file[..file.len() - 1]);
    let (size, found) = (file.len(), file.len() - 1);
    desk.run(publish).wrong(1, &[&format!("{refused}: the file is {found} bytes long, but its header describes {size}")]);
    let wider = adapters::round("fits", 1, 5, []);
    write_adapter(&desk, "adapter", &wider, 1);
    let shape = "has shape [4, 5], but the round's adapter shape needs [4, 4]";
    desk.run(publish).wrong(1, &[&format!("{refused}: the tensor {named} {shape}")]);
    std::fs::rename(desk.path("adapter/adapter_model.safetensors"), desk.path("adapter/adapter_model.bin")).expect("renamed");
    desk.run(publish).wrong(
        1,
        &["error: DIR/adapter/adapter_model.bin holds pickled weights, which can run code when they are read: save the adapter as safetensors"],
    );
    let config = std::fs::read_to_string(desk.path("adapter/adapter_config.json")).expect("a configuration");
    desk.write("adapter/adapter_config.json", &config.replace("\"r\":4", "\"r\":8"));
    desk.run(publish).wrong(1, &["error: DIR/adapter has rank 8, but round \"fits\" needs 4"]);
}

#[test]
fn merging_offline_refuses_what_cannot_be_averaged() {
    let desk = desk();
    let round = adapters::round("merge", 2, 5, []);
    write_adapter(&desk, "a", &round, 1);
    write_adapter(&desk, "b", &round, 2);
    let config = std::fs::read_to_string(desk.path("b/adapter_config.json")).expect("a configuration");
    desk.write("b/adapter_config.json", &config.replace("\"r\":4", "\"r\":2"));
    desk.run("merge DIR/a=1 DIR/b=1 --out DIR/out")
        .wrong(1, &["error: DIR/b has rank 2 and scale 4, but DIR/a has rank 4 and scale 2 in model.layers.0.self_attn.q_proj: they cannot be averaged tensor by tensor"]);
    let nan = adapters::file_of(&round, |index| if index == 0 { f32::NAN } else { 0.0 });
    adapters::write_peft(&desk.path("b"), &round, &nan);
    desk.run("merge DIR/a=1 DIR/b=1 --out DIR/out").wrong(
        1,
        &["error: DIR/b cannot be merged: element 0 of the tensor base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight is NaN"],
    );
    for (weight, shown) in [("0", "\"0\""), ("-1", "\"-1\""), ("1.5", "\"1.5\""), ("", "\"\"")] {
        let said = desk.run(&format!("merge DIR/a={weight} --out DIR/out"));
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains(&format!("{shown} is not a weight: expected a whole number of at least 1")), "{said:?}");
    }
    let said = desk.run("merge DIR/a=2147483648 --out DIR/out");
    said.wrong(1, &["error: adding weight 2147483648 to a total of 0 reaches the limit of 2147483648"]);
    assert!(!desk.path("out").exists(), "nothing is half written");
}

#[test]
fn merging_offline_gives_the_same_bytes_in_any_order() {
    let desk = desk();
    let round = adapters::round("merge", 3, 7, []);
    (1..=3).for_each(|seed| write_adapter(&desk, &format!("a{seed}"), &round, seed));
    let mut merged = Vec::new();
    for (index, order) in [[1, 2, 3], [3, 1, 2], [2, 3, 1], [3, 2, 1]].into_iter().enumerate() {
        let arguments: Vec<String> = order.iter().map(|number| format!("DIR/a{number}={}", number * 100)).collect();
        let said = desk.run(&format!("merge {} --out DIR/out{index} --json", arguments.join(" "))).right();
        let bytes = bytes_of(&desk.path(&format!("out{index}/adapter_model.safetensors")));
        assert_eq!(json(&said)["merged_hash"].as_str(), Some(blake3::hash(&bytes).to_hex().as_str()));
        assert_eq!(json(&said)["weight"], 600);
        merged.push(bytes);
    }
    assert!(merged.windows(2).all(|pair| pair[0] == pair[1]));
    // Other weights are another merge, or the comparison above would show nothing.
    desk.run("merge DIR/a1=100 DIR/a2=200 DIR/a3=301 --out DIR/other").right();
    assert_ne!(bytes_of(&desk.path("other/adapter_model.safetensors")), merged[0]);
    assert_eq!(mingle::peft::read(&desk.path("out0")).expect("a PEFT directory").config.rank, 4);
}

/// Every rule, in any order of the arguments; a stack of what no mean takes, and each refusal.
#[test]
fn merging_offline_by_every_rule_gives_the_same_bytes_in_any_order() {
    let desk = desk();
    let round = adapters::round("merge", 2, 7, []);
    (1..=5).for_each(|seed| write_adapter(&desk, &format!("a{seed}"), &round, seed));
    let merge = |order: &[u64], rule: &str, out: &str| {
        let arguments: Vec<String> = order.iter().map(|number| format!("DIR/a{number}=7")).collect();
        desk.run(&format!("merge {} {rule} --out DIR/{out} --json", arguments.join(" ")))
    };
    let mut hashes = std::collections::BTreeSet::new();
    for (index, (rule, stands)) in [
        ("--rule mean", 0),
        ("--rule mean --clip 0.5", 0),
        ("--rule stack", 0),
        ("--rule trimmed-mean --trim 1", 1),
        ("--rule median --clip 0.5", 1),
        ("--rule multi-krum --faulty 1", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let one = json(&merge(&[1, 2, 3, 4, 5], rule, &format!("one{index}")).right());
        let other = json(&merge(&[4, 2, 5, 1, 3], rule, &format!("other{index}")).right());
        assert_eq!((&one["merged_hash"], &one["stands"]), (&other["merged_hash"], &stands.into()), "{rule}");
        assert_eq!(one["left_out"].as_array().map(Vec::len), Some(usize::from(rule.contains("krum"))), "{one}");
        assert_eq!(one["clipped"].as_object().map(serde_json::Map::len), Some(if rule.contains("clip") { 5 } else { 0 }));
        assert!(hashes.insert(one["merged_hash"].to_string()), "{rule} is another rule's merge");
    }
    let stack = mingle::peft::read(&desk.path("one2")).expect("a PEFT directory").config;
    assert_eq!((stack.rank, stack.alpha, stack.rslora), (20, 20.0, false));
    // Other scales are no hindrance for a stack.
    let config = std::fs::read_to_string(desk.path("a1/adapter_config.json")).expect("a configuration");
    desk.write("a1/adapter_config.json", &config.replace("\"lora_alpha\":8", "\"lora_alpha\":12"));
    assert_ne!(config, std::fs::read_to_string(desk.path("a1/adapter_config.json")).expect("a configuration"), "{config}");
    assert!(json(&merge(&[1, 2], "--rule stack", "scaled").right())["merged_hash"].is_string());
    merge(&[2, 3, 4, 5], "--rule multi-krum --faulty 1", "few")
        .wrong(1, &["error: the rule multi-krum needs 5 adapters, but only 4 are there"]);
    desk.run("merge DIR/a2=1 DIR/a3=2 DIR/a4=1 --rule median --out DIR/few")
        .wrong(1, &["error: the rule median counts every adapter alike; give all the same weight"]);
    merge(&[2, 3], "--rule median --trim 1", "few").wrong(1, &["error: --trim is of the rule trimmed-mean, not of median"]);
    assert_eq!(merge(&[2, 3], "--rule trimmed-mean", "few").code, 2);
    assert_eq!(merge(&[2, 3], "--clip 1e3", "few").code, 2);
    let left: Vec<_> = std::fs::read_dir(desk.path("")).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("few")), "{left:?}");
}

#[test]
fn status_of_a_home_without_a_peer_says_so() {
    let desk = desk();
    desk.run("status").wrong(1, &["error: no peer has run in DIR/home", "hint: name the home of the peer with --home"]);
}

#[test]
fn help_names_the_exit_codes_and_a_wrong_line_ends_with_2() {
    let desk = desk();
    // Help is wrapped to the terminal's width.
    let unwrapped = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = unwrapped(desk.run("--help").right());
    assert!(help.contains("Exit codes: 0 done, 1 failed, 2 wrong usage, 3 goal not reached in time, 4 verification found something false"));
    for verb in [
        "key new",
        "round new",
        "run",
        "train",
        "publish",
        "fetch",
        "bundle export",
        "bundle import",
        "merge",
        "verify",
        "eval",
        "export",
        "status",
    ] {
        let help = unwrapped(desk.run(&format!("{verb} --help")).right());
        assert!(help.contains("Examples:") && help.contains(&format!("mingle {verb}")), "{verb}: {help}");
    }
    assert_eq!(desk.run("melt").code, 2);
    assert_eq!(desk.run("merge").code, 2);
    assert!(!Path::new(&desk.path("home")).exists(), "help leaves nothing behind");
}

#[test]
fn a_withdrawal_that_nobody_could_confirm_ends_with_3() {
    let desk = with_round("");
    desk.run("withdraw --round DIR/round.json --timeout 0.5 --listen /ip4/127.0.0.1/tcp/0 --quiet")
        .wrong(3, &["nothing was withdrawn: this home announced nothing, and no neighbour told what this key said before"]);
}
