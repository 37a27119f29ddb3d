//! A training's course on disk: JSON lines, and TensorBoard event files. A resumed training continues both as if it had
//! never been broken off.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::TrainError;
use super::progress::Progress;
use super::tensorboard::EventFile;
use crate::files;

/// Where a training's course is written.
#[derive(Clone, Debug, Default)]
pub struct MetricsPlan {
    /// One JSON object for each step and each evaluation.
    pub jsonl: Option<PathBuf>,
    /// Folder of TensorBoard event files.
    pub tensorboard: Option<PathBuf>,
}

/// The files of one process, opened at the first step it makes.
pub struct Metrics<'a> {
    plan: &'a MetricsPlan,
    open: Option<(Option<File>, Option<EventFile>)>,
}

fn refuse(path: &Path, reason: impl ToString) -> TrainError {
    TrainError::Metrics { path: path.into(), reason: reason.to_string() }
}

impl<'a> Metrics<'a> {
    /// Refuses a file that holds something else than metrics before anything is trained.
    pub fn new(plan: &'a MetricsPlan) -> Result<Self, TrainError> {
        if let Some(path) = &plan.jsonl {
            lines_before(path, 0)?;
        }
        Ok(Self { plan, open: None })
    }

    /// Writes what a step brought.
    pub fn record(&mut self, progress: &Progress) -> Result<(), TrainError> {
        let Self { plan, open } = self;
        let first = open.is_none();
        let (jsonl, board) = match open {
            Some(open) => open,
            None => open.insert(open_from(plan, progress.step)?),
        };
        let mut lines = Vec::new();
        if first && progress.step == 1 {
            lines.push(json!({ "step": 0, "held_out_loss": progress.loss_before }));
        }
        lines.push(step_line(progress));
        if let Some(loss) = progress.held_out_loss {
            lines.push(json!({ "step": progress.step, "held_out_loss": loss }));
        }
        if let (Some(file), Some(path)) = (jsonl, &plan.jsonl) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            file.write_all(text.as_bytes()).map_err(|error| refuse(path, error))?;
        }
        if let (Some(file), Some(path)) = (board, &plan.tensorboard) {
            for line in &lines {
                let step = line["step"].as_u64().unwrap_or(0) as usize;
                let scalars: Vec<(&str, f64)> = TAGS.iter().filter_map(|(name, tag)| Some((*tag, line[*name].as_f64()?))).collect();
                file.scalars(step, &scalars).map_err(|error| refuse(path, error))?;
            }
        }
        Ok(())
    }
}

/// What goes to TensorBoard, and under which name.
const TAGS: [(&str, &str); 6] = [
    ("loss", "train/loss"),
    ("learning_rate", "train/learning_rate"),
    ("gradient_norm", "train/gradient_norm"),
    ("tokens_per_second", "speed/tokens_per_second"),
    ("resident_bytes", "memory/resident_bytes"),
    ("held_out_loss", "held_out/loss"),
];

fn step_line(progress: &Progress) -> Value {
    let mut line = json!({
        "step": progress.step, "epoch": progress.epoch, "loss": progress.loss, "learning_rate": progress.learning_rate,
        "gradient_norm": progress.gradient_norm, "tokens": progress.tokens, "seconds": progress.seconds,
        "tokens_per_second": progress.tokens_per_second,
    });
    if let Some(memory) = progress.memory {
        line["resident_bytes"] = json!(memory.resident);
        line["peak_bytes"] = json!(memory.peak);
    }
    line
}

/// Opens what the plan names, to be written from step `step` on: a killed process may have told of steps after its last
/// checkpoint, which come again.
fn open_from(plan: &MetricsPlan, step: usize) -> Result<(Option<File>, Option<EventFile>), TrainError> {
    let jsonl = match &plan.jsonl {
        Some(path) => {
            // A training that begins anew takes back the file of the one before.
            let kept = if step > 1 { lines_before(path, step)? } else { String::new() };
            let file = files::replace(path, kept.as_bytes(), files::PUBLIC).and_then(|()| File::options().append(true).open(path));
            Some(file.map_err(|error| refuse(path, error))?)
        }
        None => None,
    };
    let board = plan.tensorboard.as_ref().map(|dir| EventFile::create(dir, step).map_err(|error| refuse(dir, error)));
    Ok((jsonl, board.transpose()?))
}

/// The lines of a metrics file that tell of steps before `step`; nothing where there is no file. A last line that a killed
/// process left unfinished does not count.
fn lines_before(path: &Path, step: usize) -> Result<String, TrainError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(refuse(path, error)),
    };
    let mut kept = String::new();
    for (index, line) in text.split_inclusive('\n').enumerate().filter(|(_, line)| line.ends_with('\n')) {
        let found = serde_json::from_str::<Value>(line).ok().and_then(|line| line["step"].as_u64());
        let found = found.ok_or_else(|| refuse(path, format!("line {} holds no metrics; name another file", index + 1)))?;
        if found < step as u64 {
            kept += line;
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::resources::Memory;

    fn progress(step: usize) -> Progress {
        Progress {
            step,
            steps: 9,
            epoch: 1,
            epochs: 1,
            loss: 1.0 / step as f64,
            learning_rate: 1e-3,
            gradient_norm: 0.5,
            tokens: 10 * step as u64,
            seconds: 1.5,
            tokens_per_second: 7.0,
            remaining: std::time::Duration::ZERO,
            memory: Some(Memory { resident: 5, peak: 6 }),
            loss_before: 3.0,
            held_out_loss: step.is_multiple_of(2).then_some(0.25),
        }
    }

    fn write(plan: &MetricsPlan, steps: std::ops::RangeInclusive<usize>) {
        let mut metrics = Metrics::new(plan).unwrap();
        steps.for_each(|step| metrics.record(&progress(step)).unwrap());
    }

    #[test]
    fn a_resumed_training_continues_the_file_without_gap_or_repetition() {
        let dir = tempfile::tempdir().unwrap();
        let plan = MetricsPlan { jsonl: Some(dir.path().join("m.jsonl")), tensorboard: Some(dir.path().join("board")) };
        let read = || std::fs::read_to_string(dir.path().join("m.jsonl")).unwrap();
        write(&plan, 1..=5);
        let whole = read();
        let first: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(first[0], json!({ "step": 0, "held_out_loss": 3.0 }));
        assert_eq!((first.len(), &first[3]), (8, &json!({ "step": 2, "held_out_loss": 0.25 })));
        assert_eq!((&first[1]["loss"], &first[1]["peak_bytes"]), (&json!(1.0), &json!(6)));
        // Killed in the middle of a line, and resumed from a checkpoint two steps before.
        std::fs::write(dir.path().join("m.jsonl"), format!("{whole}{{\"step\": 6, \"lo")).unwrap();
        write(&plan, 4..=5);
        assert_eq!(read(), whole);
        assert_eq!(std::fs::read_dir(dir.path().join("board")).unwrap().count(), 2);
        write(&plan, 1..=2);
        assert_eq!(read().lines().count(), 4, "a training that begins anew");
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, "{\"question\": \"a\", \"answer\": \"b\"}\n").unwrap();
        let plan = MetricsPlan { jsonl: Some(path.clone()), tensorboard: None };
        let error = Metrics::new(&plan).err().unwrap().to_string();
        assert!(error.contains("line 1 holds no metrics"), "{error}");
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 1);
    }
}
