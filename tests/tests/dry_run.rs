//! What a training will take is said before it is loaded, and one that cannot fit does not begin.

use mingle_tests::{base, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");

struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(TempDir::new().expect("a temporary folder"));
        base::write_base(&desk.0.path().join("base"), 1);
        base::write_data(&desk.0.path().join("data.jsonl"), 40, 1);
        desk
    }

    fn train(&self, options: &str) -> mingle_tests::Said {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        let mut arguments = vec!["train".to_string(), "--base".into(), path("base"), "--data".into(), path("data.jsonl")];
        arguments.extend(options.split_whitespace().map(|option| option.replace("DIR", &self.0.path().display().to_string())));
        run(PROGRAM, &self.0.path().join("home"), arguments)
    }
}

#[test]
fn a_dry_run_counts_what_the_training_then_does() {
    let desk = Desk::new();
    let options = "--rank 4 --epochs 2 --batch-size 4 --accumulate 2 --held-out 0.1";
    let said: Value = serde_json::from_str(&desk.train(&format!("{options} --dry-run --json")).right()).expect("JSON");
    let (estimate, bytes) = (&said["estimate"], &said["estimate"]["bytes"]);
    assert_eq!(said["fits"], true);
    assert_eq!((&estimate["examples"], &said["held_out_examples"], &estimate["steps"]), (&36.into(), &4.into(), &10.into()));
    // Two layers of width 32, keys and values of 16, a feed-forward part of 64: inputs and outputs of every linear map.
    let widths = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 64) + (64 + 32));
    assert_eq!((&estimate["trainable_parameters"], &bytes["moments"]), (&(4 * widths).into(), &(8 * 4 * widths).into()));
    assert!(bytes["activations_recomputed"].as_u64() <= bytes["activations_kept"].as_u64());
    assert!(!desk.0.path().join("adapter").exists());
    let done = desk.train(&format!("{options} --out DIR/adapter --json --checkpoint-every 0")).right();
    let done: Value = serde_json::from_str(done.lines().last().expect("a line")).expect("JSON");
    for field in ["examples", "steps"] {
        assert_eq!(done[field], estimate[field], "{field}");
    }
    // The estimate counts whole examples; a language model is not fed their last tokens.
    let fed = estimate["tokens"].as_u64().expect("a number") - 2 * 36;
    assert_eq!(done["tokens"], fed);
    let table = desk.train(&format!("{options} --dry-run")).right();
    assert!(table.contains("10 over 2 epochs") && table.contains("with --recompute"), "{table}");
}

#[test]
fn a_training_that_cannot_fit_is_refused_before_it_is_loaded() {
    let desk = Desk::new();
    for options in ["--out DIR/adapter", "--dry-run --json"] {
        let said = desk.train(&format!("--rank 2000000000 {options}"));
        let lines: Vec<&str> = said.err.lines().collect();
        assert_eq!(said.code, 1, "{said:?}");
        assert!(lines[0].starts_with("error: this training needs about ") && lines[0].contains(" GiB of memory, but "), "{said:?}");
        assert_eq!(
            lines[1],
            "hint: try --recompute, or a lower --max-length, --batch-size, --rank or --precision; or begin anyway with --ignore-memory"
        );
    }
    assert!(!desk.0.path().join("adapter").exists() && !desk.0.path().join("adapter.training").exists());
}
