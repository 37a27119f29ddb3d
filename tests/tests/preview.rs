//! What a model would be given is shown before anything is trained: of any form of data, with columns of any names, and of
//! a base by its name in the hub's cache.

use mingle_tests::{Desk, base};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

fn desk() -> Desk {
    let desk = Desk::new(PROGRAM);
    // Where the tests' own environment has the hub's cache.
    base::write_base(&desk.path("home/hub/models--org--tiny/snapshots/1a2b"), 1);
    desk.write("data.csv", "frage,antwort,note\n\"count from one to two\",one two,x\ncount from two,two three four,y\n");
    desk
}

#[test]
fn examples_are_shown_with_what_is_learned_of_them() {
    let desk = desk();
    let line = "preview --base org/tiny --data DIR/data.csv --map question=frage --map answer=antwort";
    let shown = desk.run(line).right();
    let expected = "\
example 1  9 tokens, 3 learned
  given    \"<s> count from one to two\"
  learned  \"one two </s>\"

example 2  8 tokens, 4 learned
  given    \"<s> count from two\"
  learned  \"two three four </s>\"

2 examples in DIR/data.csv
";
    assert_eq!(shown, expected);
    let cut = desk.run(&format!("{line} --max-length 6 --count 1")).right();
    assert!(cut.starts_with("example 1  6 tokens, cut from 9 by --max-length 6, nothing to learn: it is left out\n"), "{cut}");
    let told: Value = serde_json::from_str(&desk.run(&format!("{line} --json")).right()).expect("JSON");
    assert_eq!((&told["records"], told["examples"].as_array().map(Vec::len)), (&2.into(), Some(2)));
    let first = &told["examples"][0];
    assert_eq!(first["learned"].as_array().expect("a mask").iter().filter(|learned| **learned == true).count(), 3);
    assert_eq!(first["runs"][1]["text"], "one two </s>");
}

#[test]
fn a_base_is_found_by_its_name_and_a_wrong_one_is_told_with_what_to_do() {
    let desk = desk();
    let dry = "--data DIR/data.csv --map question=frage --map answer=antwort --dry-run --json";
    let told: Value = serde_json::from_str(&desk.run(&format!("train --base org/tiny {dry}")).right()).expect("JSON");
    assert_eq!(told["estimate"]["longest_tokens"], 9, "{told}");
    desk.run("round new --base org/tiny --rank 2 --out DIR/round.json").right();
    let round: Value = serde_json::from_str(&desk.run("round show DIR/round.json --json").right()).expect("JSON");
    assert_eq!(round["manifest"]["base"]["name"], "org/tiny");
    desk.run(&format!("train --base org/small {dry}")).wrong(
        1,
        &[
            "error: --base org/small is no directory here and no model in the Hugging Face cache: the hub is not asked for \"org/small\", since \
             HF_HUB_OFFLINE is set",
            "hint: give the directory of the base, fetch it once without HF_HUB_OFFLINE, or bring it with `hf download`",
        ],
    );
}
