//! Bar 4 of the trainer: `mingle train` killed (`kill -9`) at ten random steps and started again each time ends with the
//! losses, the evaluations and the adapter bytes of a training that nobody disturbed. Accumulation, evaluations, the best
//! kept and early stopping are on. A failure prints its seed (`MINGLE_TEST_SEED` runs it again).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mingle_tests::peer::{PATIENCE, bytes_of};
use mingle_tests::{Dice, base, dice, run};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mingle-peer");
const KILLS: usize = 10;

/// A training in a folder of its own.
struct Training {
    folder: PathBuf,
    arguments: Vec<String>,
}

impl Training {
    fn new(folder: &Path, name: &str) -> Self {
        let own = folder.join(name);
        std::fs::create_dir(&own).expect("a folder");
        let text = |path: PathBuf| path.display().to_string();
        let options = "train --epochs 80 --batch-size 4 --accumulate 2 --learning-rate 0.02 --schedule constant --warmup-steps 10 \
                       --evaluate-every 5 --patience 16 --min-delta 0.05 --keep-best --held-out 0.4 --checkpoint-every 3 --threads 2 --rank 4 --json";
        let mut arguments: Vec<String> = options.split_whitespace().map(String::from).collect();
        let paths = [
            ("--base", folder.join("base")),
            ("--data", folder.join("data.jsonl")),
            ("--out", own.join("adapter")),
            ("--metrics", own.join("metrics.jsonl")),
        ];
        arguments.extend(paths.into_iter().flat_map(|(option, path)| [option.to_string(), text(path)]));
        Self { folder: own, arguments }
    }

    fn start(&self) -> Child {
        let mut command = Command::new(PROGRAM);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the program can be started")
    }

    /// Runs to the end and returns the last line on standard output.
    fn finish(&self) -> Value {
        let said = run(PROGRAM, &self.folder.join("home"), &self.arguments).right();
        serde_json::from_str(said.lines().last().expect("a line")).expect("JSON")
    }

    /// Whole lines of the metrics.
    fn metrics(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("metrics.jsonl")).unwrap_or_default();
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn steps(&self) -> u64 {
        self.metrics().iter().filter_map(|line| line["step"].as_u64()).max().unwrap_or(0)
    }

    /// What must not depend on when it was killed: everything but times and memory.
    fn course(&self) -> Vec<Value> {
        let mut lines = self.metrics();
        for line in &mut lines {
            let fields = line.as_object_mut().expect("an object");
            ["seconds", "tokens_per_second", "resident_bytes", "peak_bytes"].iter().for_each(|field| drop(fields.remove(*field)));
        }
        lines
    }

    fn adapter(&self) -> Vec<Vec<u8>> {
        ["adapter_model.safetensors", "adapter_config.json"].map(|name| bytes_of(&self.folder.join("adapter").join(name))).into()
    }
}

/// Says how to see a failure again.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("run it again with MINGLE_TEST_SEED={}", self.0);
        }
    }
}

#[test]
fn a_training_killed_ten_times_ends_as_if_undisturbed() {
    let seed = Seed(dice::seed());
    let mut dice = Dice::new(seed.0, "resume");
    let folder = TempDir::new().expect("a temporary folder");
    base::write_base(&folder.path().join("base"), 1);
    base::write_data(&folder.path().join("data.jsonl"), 40, 1);

    let whole = Training::new(folder.path(), "whole");
    let summary = whole.finish();
    let steps = summary["steps"].as_u64().expect("a number");
    assert_eq!(summary["stopped_early"], true, "{summary}");
    assert!(steps > 60 && summary["chosen_step"].as_u64() <= Some(steps), "{summary}");

    let broken = Training::new(folder.path(), "broken");
    let mut killed_at = Vec::new();
    for _ in 0..KILLS {
        // Further than before, and never so far in ten times that it ends.
        let target = broken.steps() + 1 + dice.below(steps as usize / (KILLS + 2)) as u64;
        let mut process = broken.start();
        let began = Instant::now();
        while broken.steps() < target {
            assert!(process.try_wait().expect("a status").is_none(), "it ended by itself at step {}", broken.steps());
            assert!(began.elapsed() < PATIENCE, "it never came to step {target}");
            std::thread::sleep(Duration::from_millis(1));
        }
        // In the middle of a step, of an evaluation, or of a checkpoint.
        std::thread::sleep(Duration::from_micros(dice.below(5_000) as u64));
        process.kill().expect("killed");
        assert!(!process.wait().expect("a status").success(), "it had ended already");
        killed_at.push(broken.steps());
    }
    let again = broken.finish();
    println!("killed at steps {killed_at:?} of {steps}, seed {}", seed.0);
    assert_eq!(broken.course(), whole.course());
    assert_eq!(broken.adapter(), whole.adapter());
    for field in ["steps", "loss_before", "loss_after", "tokens", "chosen_step", "stopped_early", "evaluations"] {
        assert_eq!(again[field], summary[field], "{field}");
    }
    assert_eq!(std::fs::read_dir(&broken.folder).expect("a folder").count(), 2, "nothing else is left");
}

#[cfg(unix)]
#[test]
fn ctrl_c_writes_a_checkpoint_and_says_how_to_go_on() {
    let folder = TempDir::new().expect("a temporary folder");
    base::write_base(&folder.path().join("base"), 1);
    base::write_data(&folder.path().join("data.jsonl"), 40, 1);
    let whole = Training::new(folder.path(), "whole");
    whole.finish();
    let mut stopped = Training::new(folder.path(), "stopped");
    // No checkpoint by itself: the one there is comes from the signal.
    let every = stopped.arguments.iter().position(|argument| argument == "--checkpoint-every").expect("the option");
    stopped.arguments[every + 1] = "1000".into();
    stopped.arguments.retain(|argument| argument != "--json");
    let mut command = Command::new(PROGRAM);
    let mut process =
        command.args(&stopped.arguments).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program can be started");
    let began = Instant::now();
    while stopped.steps() < 7 {
        assert!(began.elapsed() < PATIENCE && process.try_wait().expect("a status").is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &process.id().to_string()]).status().expect("kill can be run");
    let output = process.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("; the same command goes on from there"), "{said}");
    assert!(!stopped.folder.join("adapter").exists() && stopped.folder.join("adapter.training/checkpoint.safetensors").exists());
    let at = stopped.steps();
    let again = run(PROGRAM, &stopped.folder.join("home"), &stopped.arguments);
    again.right();
    assert!(at >= 7 && stopped.adapter() == whole.adapter() && stopped.course() == whole.course(), "stopped at step {at}");
}
