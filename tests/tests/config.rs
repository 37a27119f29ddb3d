//! One precedence for every option: command line, environment, configuration file, default; and `mingle config show` says which.

use std::process::Command;

use mingle_tests::{Desk, base};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

/// A run with one more variable in its environment, and what it says on standard output and error.
fn with_variable(desk: &Desk, name: &str, value: &str, line: &str) -> (i32, String, String) {
    let folder = desk.path("").to_string_lossy().trim_end_matches('/').to_owned();
    let output = Command::new(PROGRAM)
        .args(line.split(' ').map(|word| word.replace("DIR", &folder)))
        .env("MINGLE_HOME", desk.path("home"))
        .env(name, value)
        .output()
        .expect("the program can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&folder, "DIR");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn desk() -> Desk {
    let desk = Desk::new(PROGRAM);
    std::fs::create_dir_all(desk.path("home")).expect("a home");
    base::write_base(&desk.path("base"), 1);
    base::write_data(&desk.path("data.jsonl"), 16, 1);
    desk
}

/// How many steps a training would take.
fn steps_of(told: &str) -> u64 {
    let told: Value = serde_json::from_str(told).unwrap_or_else(|error| panic!("{error}: {told}"));
    told["estimate"]["steps"].as_u64().unwrap_or_else(|| panic!("no steps in {told}"))
}

#[test]
fn an_option_is_taken_from_the_first_place_that_has_it() {
    let desk = desk();
    let line = "train --base DIR/base --data DIR/data.jsonl --batch-size 1 --held-out 0 --dry-run --json";
    let steps = |line: &str| steps_of(&desk.run(line).right());
    assert_eq!(steps(line), 48, "three epochs by default");
    desk.write("home/config.toml", "epochs = 5\n[train]\nepochs = 4\n[run]\nepochs = 6\n");
    assert_eq!(steps(line), 64, "its own table");
    let (code, out, err) = with_variable(&desk, "MINGLE_EPOCHS", "2", line);
    assert_eq!((code, steps_of(&out)), (0, 32), "{err}");
    let (code, out, err) = with_variable(&desk, "MINGLE_EPOCHS", "2", &format!("{line} --epochs 1"));
    assert_eq!((code, steps_of(&out)), (0, 16), "{err}");
    let (code, out, _) = with_variable(&desk, "MINGLE_EPOCHS", "", line);
    assert_eq!((code, steps_of(&out)), (0, 64), "an empty variable says nothing");
    desk.write("other.toml", "epochs = 7");
    assert_eq!(steps(&format!("{line} --config DIR/other.toml")), 112);
    // What a verb must be given may stand in the file as well, lists and switches too.
    let data = desk.path("data.jsonl");
    let text = format!("[train]\nbase = {:?}\ndata = [{data:?}]\njson = true\nbatch_size = 1\nheld_out = 0\n", desk.path("base"));
    desk.write("home/config.toml", &text);
    assert_eq!(steps("train --dry-run"), 48);
}

#[test]
fn config_show_tells_where_each_value_comes_from() {
    let desk = desk();
    desk.write("home/config.toml", "mdns = true\n[run]\npeer = [\"/ip4/10.0.0.7/tcp/4001\"]\nepochs = 4\n");
    let (code, out, err) = with_variable(&desk, "MINGLE_EPOCHS", "2", "config show run --json");
    assert_eq!(code, 0, "{err}");
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&told["file"], &told["read"]), (&"DIR/home/config.toml".into(), &true.into()));
    let of = |name: &str| {
        let options = told["options"].as_array().expect("options");
        options.iter().find(|option| option["option"] == name).unwrap_or(&Value::Null).clone()
    };
    let found = |name: &str| (of(name)["source"].clone(), of(name)["values"][0].clone(), of(name)["where"].clone());
    assert_eq!(found("epochs"), ("environment".into(), "2".into(), "MINGLE_EPOCHS".into()));
    assert_eq!(found("peer"), ("file".into(), "/ip4/10.0.0.7/tcp/4001".into(), "[run]".into()));
    assert_eq!(found("mdns"), ("file".into(), "true".into(), "for all verbs".into()));
    assert_eq!(found("device"), ("default".into(), "auto".into(), Value::Null));
    assert_eq!(of("preset"), Value::Null, "what nothing sets is shown with --all");
    let shown = desk.run("config show").right();
    assert!(shown.contains("--epochs") && shown.contains("<- file ([run])"), "{shown}");
}

#[test]
fn a_value_that_is_refused_is_blamed_on_where_it_stands() {
    let desk = desk();
    desk.write("home/config.toml", "[train]\nepochs = \"many\"\n");
    let line = "train --base DIR/base --data DIR/data.jsonl --dry-run";
    let said = desk.run(line);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("'many'") && said.err.ends_with("hint: the value is in DIR/home/config.toml, [train]\n"), "{said:?}");
    std::fs::remove_file(desk.path("home/config.toml")).expect("removed");
    let (code, _, err) = with_variable(&desk, "MINGLE_EPOCHS", "some", line);
    assert_eq!(code, 2, "{err}");
    assert!(err.ends_with("hint: the value is that of the environment variable MINGLE_EPOCHS\n"), "{err}");
    let said = desk.run("status --config DIR/nowhere.toml");
    said.wrong(2, &["error: cannot read the configuration DIR/nowhere.toml: No such file or directory (os error 2)"]);
}
