//! Events for people: a progress bar for the long work and a line for everything else, or JSON lines for scripts.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::driver::{Event, TrainingStatus};
use crate::train::estimate::size;

/// Without a terminal, progress becomes a line this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where events are written.
pub struct Console {
    json: bool,
    quiet: bool,
    bar: ProgressBar,
    last_line: Option<Instant>,
}

impl Console {
    /// `json` writes one JSON object a line to standard output; otherwise people read standard error. `quiet` leaves
    /// out all but trouble.
    pub fn new(json: bool, quiet: bool) -> Self {
        let target =
            if json || quiet || !std::io::stderr().is_terminal() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg:12} [{bar:32}] {pos}/{len} {prefix}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { json, quiet, bar, last_line: None }
    }

    pub fn show(&mut self, event: &Event) {
        if self.json {
            if let Ok(line) = serde_json::to_string(event) {
                println!("{line}");
            }
            return;
        }
        match event {
            Event::Training(status) => self.progress(status),
            Event::Fetching { .. } if self.bar.is_hidden() => {}
            Event::Trouble { .. } | Event::Conflict { .. } | Event::AdapterRefused { .. } | Event::RecordRefused { .. } => {
                self.line(&event.to_string())
            }
            _ if self.quiet => {}
            Event::Trained { .. } => {
                self.bar.finish_and_clear();
                self.line(&event.to_string());
            }
            _ => self.line(&event.to_string()),
        }
    }

    /// A sentence between the events.
    pub fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.suspend(|| eprintln!("{text}"));
        }
    }

    fn progress(&mut self, status: &TrainingStatus) {
        let left = HumanDuration(Duration::from_secs_f64(status.seconds_left.max(0.0)));
        let memory = status.resident_bytes.map(|bytes| format!(", {}", size(bytes))).unwrap_or_default();
        if let Some(loss) = status.held_out_loss.filter(|_| !self.quiet) {
            self.line(&format!("held-out loss after step {}: {loss:.4}", status.step));
        }
        if !self.bar.is_hidden() {
            self.bar.set_length(status.steps);
            self.bar.set_position(status.step);
            self.bar.set_message(format!("epoch {}/{}", status.epoch, status.epochs));
            self.bar.set_prefix(format!("loss {:.4}, {:.0} tokens/s{memory}, {left:#} left", status.loss, status.tokens_per_second));
            return;
        }
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if !self.quiet && (due || status.step == status.steps) {
            self.last_line = Some(Instant::now());
            eprintln!(
                "training: epoch {}/{}, step {}/{}, loss {:.4}, {:.0} tokens/s{memory}, {left:#} left",
                status.epoch, status.epochs, status.step, status.steps, status.loss, status.tokens_per_second
            );
        }
    }
}
