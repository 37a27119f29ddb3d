//! `mingle watch`: the dashboard in a terminal, from the files a running peer leaves in its home.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::args::HomeArgs;
use super::status::status_path;
use crate::driver::{History, Phase, SlotStatus, Status};
use crate::train::estimate::size;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Rows of members and of what happened, so that all fits on a screen.
const MEMBERS_MAX: usize = 12;
const HAPPENED_MAX: usize = 5;
/// Letters of a bar and of a curve.
const BAR: usize = 24;
const CURVE: usize = 48;
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

const EXAMPLES: &str = "\
Examples:
  mingle watch
  mingle watch --round round.json

It shows what `mingle status` shows and its way there, as it changes, until Ctrl-C. Where there is no terminal, a line is
written when something changes.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The round file [default: the round that was active last]
    #[arg(long, value_name = "FILE")]
    round: Option<PathBuf>,
    #[command(flatten)]
    home: HomeArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let path = status_path(args.round.as_deref(), &args.home)?;
    let mut screen = Screen::new();
    // What cannot be read at first is an error; later it is between two writings.
    let mut seen = look(&path)?;
    loop {
        screen.show(&view(&seen.0, &seen.1));
        std::thread::sleep(LOOK_EVERY);
        if let Ok(now) = look(&path) {
            seen = now;
        }
    }
}

fn look(path: &Path) -> Result<(Status, History)> {
    let status = Status::read(path)?;
    let history = std::fs::read(path.with_file_name("history.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
    Ok((status, history.unwrap_or_default()))
}

/// Rows of a terminal that are written anew, or lines where there is none.
struct Screen {
    terminal: bool,
    group: MultiProgress,
    rows: Vec<ProgressBar>,
    last: String,
}

impl Screen {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, group: MultiProgress::new(), rows: Vec::new(), last: String::new() }
    }

    fn show(&mut self, lines: &[String]) {
        if !self.terminal {
            let line = lines.get(1..4).unwrap_or_default().join("; ");
            if line != self.last {
                println!("{line}");
                self.last = line;
            }
            return;
        }
        while self.rows.len() > lines.len() {
            if let Some(row) = self.rows.pop() {
                row.finish_and_clear();
                self.group.remove(&row);
            }
        }
        while self.rows.len() < lines.len() {
            let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            self.rows.push(self.group.add(ProgressBar::new(1).with_style(style)));
        }
        for (row, line) in self.rows.iter().zip(lines) {
            row.set_message(line.clone());
        }
    }
}

/// All that is shown, a line each. Texts of others cannot move the cursor.
fn view(status: &Status, history: &History) -> Vec<String> {
    let mut lines = vec![
        format!("{}   round {}   {} {}", status.name, status.round.get(..8).unwrap_or_default(), status.role, status.member.short()),
        format!("{:9} {}", "state", state(status)),
        format!("{:9} {}", "merged", merged(status)),
        format!("{:9} {}", "score", scores(history)),
    ];
    let losses: Vec<f64> = history.training.iter().map(|point| point.loss).collect();
    if !losses.is_empty() {
        lines.push(format!("{:9} {}  {:.3}", "loss", curve(&losses), losses.last().copied().unwrap_or_default()));
    }
    let relayed = status.links.iter().filter(|link| link.relayed).count();
    let traffic = &status.traffic;
    let (got, sent) = (size(traffic.control_in + traffic.blob_in), size(traffic.control_out + traffic.blob_out));
    lines.push(format!("{:9} {} neighbours, {relayed} of them relayed; {got} in, {sent} out", "network", status.neighbours));
    lines.push(String::new());
    lines.extend(status.slots.iter().take(MEMBERS_MAX).map(|slot| member(slot, status)));
    let more = status.slots.len().saturating_sub(MEMBERS_MAX);
    if more > 0 {
        lines.push(format!("and {more} more members"));
    }
    let faults = status.faults.iter().map(|fault| fault.members.map(|member| member.short()).join(" and "));
    lines.extend(faults.map(|members| format!("FAULT     members {members} signed different merges of one set")));
    lines.push(String::new());
    let newest = history.happened.iter().rev().take(HAPPENED_MAX);
    lines.extend(newest.map(|happening| format!("{} {}", if happening.warning { "!" } else { " " }, happening.text)));
    lines.into_iter().map(|line| line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()).collect()
}

fn state(status: &Status) -> String {
    match (status.is_live(), status.phase, &status.training) {
        (false, ..) => "not running".into(),
        (true, Phase::Training, Some(training)) => format!(
            "training {} epoch {}/{}, step {}/{}, {:.0} tokens/s, {:.0} s left",
            bar(training.step, training.steps),
            training.epoch,
            training.epochs,
            training.step,
            training.steps,
            training.tokens_per_second,
            training.seconds_left
        ),
        (true, Phase::Training, None) => "training: loading".into(),
        (true, Phase::Announced, _) => "announced its adapter, serving".into(),
        (true, Phase::Waiting, _) => "waits for the founders to admit this key".into(),
        (true, Phase::Following, _) => "following".into(),
        (true, Phase::Failed, _) => "training failed".into(),
    }
}

fn merged(status: &Status) -> String {
    let Some(merged) = &status.merged else { return "nothing yet".into() };
    let heard = status.slots.iter().filter(|slot| slot.adapter.is_some()).count();
    format!("{} of {heard} adapters, merged hash {}, {} vouch", merged.adapters, merged.merged_hash.short(), status.vouching)
}

fn scores(history: &History) -> String {
    let scored: Vec<String> = history.merges.iter().filter_map(|merge| Some(format!("{}: {:.3}", merge.adapters, merge.loss?))).collect();
    let base = history.base_loss.map(|loss| format!("base: {loss:.3}  ")).unwrap_or_default();
    let first = scored.len().saturating_sub(6);
    match scored.is_empty() {
        true => "-".into(),
        false => format!("{base}{}", scored.get(first..).unwrap_or_default().join("  ")),
    }
}

fn member(slot: &SlotStatus, status: &Status) -> String {
    let state = match (&slot.refused, slot.merged, slot.state.as_str()) {
        (Some(why), ..) => format!("refused: {why}"),
        (None, true, _) => "merged".into(),
        (None, false, "adapter") if slot.have < slot.size => {
            format!("{} {} of {}", bar(slot.have, slot.size), size(slot.have), size(slot.size))
        }
        (None, false, "adapter") if slot.approvals() < slot.approvals_needed => {
            format!("candidate, {} of {} approvals", slot.approvals(), slot.approvals_needed)
        }
        (None, false, "adapter") => "here, to be merged".into(),
        (None, false, state) => state.to_owned(),
    };
    let you = if slot.member == status.member { " (this peer)" } else { "" };
    format!("{}  weight {:6}  {state}{you}", slot.member.short(), slot.weight)
}

fn bar(done: u64, all: u64) -> String {
    let full = (BAR as u64).saturating_mul(done.min(all)).checked_div(all).unwrap_or(0) as usize;
    format!("[{}{}]", "=".repeat(full), " ".repeat(BAR - full))
}

/// A curve as high as a line, its columns the means of as many parts.
fn curve(values: &[f64]) -> String {
    let columns = values.len().min(CURVE);
    let means: Vec<f64> = (0..columns)
        .filter_map(|column| {
            let part = values.get(column * values.len() / columns..(column + 1) * values.len() / columns)?;
            Some(part.iter().sum::<f64>() / part.len() as f64)
        })
        .collect();
    let (least, most) = means.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), mean| (least.min(*mean), most.max(*mean)));
    let height = |mean: &f64| ((mean - least) / (most - least).max(f64::MIN_POSITIVE) * 7.0).round() as usize;
    means.iter().filter_map(|mean| HEIGHTS.get(height(mean).min(7))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_a_line_and_no_text_moves_the_cursor() {
        let member = mingle_protocol::identity::SecretKey::from_bytes(&[1; 32]).member();
        let slot = json!({
            "member": member, "state": "adapter", "sequence": 1, "adapter": "22".repeat(32), "weight": 9, "examples": 9, "size": 2048,
            "have": 1024, "merged": false, "refused": null,
        });
        let status: Status = serde_json::from_value(json!({
            "updated_unix_ms": 1, "process": 1, "role": "member", "member": member, "peer": "12D3", "round": "33".repeat(32),
            "name": "a \u{1b}[2J round\n", "listening": [], "neighbours": 2, "phase": "following", "training": null, "slots": [slot],
            "merged": null, "home": "/home",
        }))
        .expect("a status");
        let history: History = serde_json::from_value(json!({
            "training": (1..=100).map(|step| json!({ "step": step, "loss": 4.0 - step as f64 / 30.0 })).collect::<Vec<_>>(),
            "happened": [{ "unix_ms": 1, "warning": true, "text": "trouble: \u{7}", "times": 1 }],
        }))
        .expect("a history");
        let lines = view(&status, &history);
        assert!(lines.iter().all(|line| !line.contains(char::is_control)), "{lines:?}");
        let text = lines.join("\n");
        for part in ["not running", "nothing yet", "█", "▁", "[============            ] 1 KiB of 2 KiB", "! trouble"] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }

    #[test]
    fn a_curve_falls_from_the_top_to_the_bottom() {
        assert_eq!(curve(&[3.0, 2.0, 1.0]), "█▅▁");
        assert_eq!(curve(&[1.0]), "▁");
        assert_eq!(curve(&[f64::NAN; 3]).chars().count(), 3);
        assert_eq!(curve(&(0..1000).map(f64::from).collect::<Vec<_>>()).chars().count(), CURVE);
        assert_eq!(bar(0, 0), format!("[{}]", " ".repeat(BAR)));
    }
}
