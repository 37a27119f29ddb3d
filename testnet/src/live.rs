//! The live view: a line a peer on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mingle::driver::{Phase, Status};

use crate::page::Page;
use crate::peer::Peer;

/// Without a terminal a summary is printed this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows what the peers of a round are doing.
pub struct LiveView {
    terminal: bool,
    group: MultiProgress,
    rows: Vec<ProgressBar>,
    names: Vec<String>,
    title: String,
    started: Instant,
    last_line: Instant,
    page: Option<Page>,
}

impl Default for LiveView {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            terminal: std::io::stderr().is_terminal(),
            group: MultiProgress::new(),
            rows: Vec::new(),
            names: Vec::new(),
            title: String::new(),
            started: now,
            last_line: now,
            page: None,
        }
    }
}

impl LiveView {
    /// One that shows the peers on a page, too.
    pub fn with_page(page: Option<Page>) -> Self {
        Self { page, ..Self::default() }
    }

    pub fn page(&self) -> Option<&Page> {
        self.page.as_ref()
    }

    /// Starts a round's view.
    pub fn begin(&mut self, title: &str, peers: &[Peer]) {
        self.title = title.into();
        self.started = Instant::now();
        self.last_line = Instant::now();
        self.names = peers.iter().map(|peer| peer.name.clone()).collect();
        self.say(&format!("{title}: {} peers", peers.len()));
        if let Some(page) = &mut self.page {
            page.begin(title, peers);
        }
        if self.terminal {
            let style = ProgressStyle::with_template("  {prefix:10} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            let row = |name: &String| self.group.add(ProgressBar::new(1).with_style(style.clone()).with_prefix(name.clone()));
            self.rows = self.names.iter().map(row).collect();
        }
    }

    pub fn show(&mut self, statuses: &[Option<Status>]) {
        if let Some(page) = &mut self.page {
            page.show(statuses);
        }
        if self.terminal {
            for (row, status) in self.rows.iter().zip(statuses) {
                row.set_message(status.as_ref().map_or_else(|| "starting".into(), describe));
            }
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            for (name, status) in self.names.iter().zip(statuses) {
                eprintln!("  {name:10} {}", status.as_ref().map_or_else(|| "starting".into(), describe));
            }
        }
    }

    /// Ends a round's view.
    pub fn end(&mut self) {
        self.rows.drain(..).for_each(|row| row.finish_and_clear());
        let _ = self.group.clear();
        self.say(&format!("{}: done in {:.1} s", self.title, self.started.elapsed().as_secs_f64()));
    }

    /// A sentence of its own.
    pub fn say(&self, text: &str) {
        if self.terminal {
            let _ = self.group.println(text);
        } else {
            eprintln!("{text}");
        }
    }
}

fn describe(status: &Status) -> String {
    let own = match (status.phase, &status.training) {
        (Phase::Training, Some(training)) => {
            format!("epoch {}/{} step {:>4}/{} loss {:.3}", training.epoch, training.epochs, training.step, training.steps, training.loss)
        }
        (Phase::Training, None) => "loading".into(),
        (Phase::Announced, _) => "announced".into(),
        (Phase::Waiting, _) => "waiting".into(),
        (Phase::Following, _) => "reading".into(),
        (Phase::Failed, _) => "failed".into(),
    };
    let merged = status.merged.as_ref().map_or_else(|| "-".into(), |merged| merged.merged_hash.short());
    format!("{own:44} knows {:>2} adapters, merged {merged}", status.slots.len())
}
