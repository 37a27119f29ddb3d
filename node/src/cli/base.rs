//! A base as people name one: a directory, a model in the Hugging Face cache, or one that the hub has.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mingle_protocol::round::BaseModel;

use crate::bases::hub::Fetching;
use crate::bases::{self, Digests, Places};
use crate::train::estimate::size;

/// Without a terminal, progress becomes a line this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What `--base` was given.
#[derive(Clone, Debug)]
pub struct BaseArg(PathBuf);

impl From<OsString> for BaseArg {
    fn from(given: OsString) -> Self {
        Self(given.into())
    }
}

impl BaseArg {
    /// Its directory on this machine, fetched from the hub where it is not yet.
    ///
    /// # Errors
    /// Why the hub does not give it.
    pub fn directory(&self) -> Result<PathBuf> {
        let mut download = Download::new(self.0.display().to_string());
        let found = bases::named(&self.0, &mut |told| download.tell(told));
        download.end(found.is_ok());
        found.with_context(|| format!("--base {} is no directory here and no model in the Hugging Face cache", self.0.display()))
    }
}

/// The base of a round: on this machine, or fetched from the hub unless no connection is to be opened.
///
/// # Errors
/// Every place that was looked at.
pub fn of_round(base: &BaseModel, round: Option<&Path>, digests: &Digests, offline: bool) -> Result<PathBuf> {
    let places = Places::of_process(round);
    if offline {
        return Ok(bases::find(base, &places, digests)?);
    }
    let mut download = Download::new(base.name.clone());
    let found = bases::find_or_fetch(base, &places, digests, &mut |told| download.tell(told));
    download.end(found.is_ok());
    Ok(found?)
}

/// A fetch from the hub as people see it.
struct Download {
    name: String,
    bar: ProgressBar,
    bytes: u64,
    said: Option<Instant>,
}

impl Download {
    fn new(name: String) -> Self {
        let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg:28!} [{bar:32}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { name, bar, bytes: 0, said: None }
    }

    fn tell(&mut self, told: Fetching<'_>) {
        match told {
            Fetching::Begins { files: 0, .. } => {}
            Fetching::Begins { files, bytes } => {
                self.line(&format!("fetching {} from the hub: {files} files, {}", self.name, size(bytes)));
                (self.bytes, self.said) = (bytes, Some(Instant::now()));
                self.bar.set_length(bytes);
            }
            Fetching::Waits { file } => self.line(&format!("another process fetches {file}; waiting for it")),
            Fetching::Again { file, why } => self.line(&format!("{file}: {why}; going on where it was")),
            // Of the index of shards, which says what the rest is.
            Fetching::Has { .. } if self.said.is_none() => {}
            Fetching::Has { file, bytes } => {
                self.bar.set_message(file.to_owned());
                self.bar.set_position(bytes);
                if self.bar.is_hidden() && self.said.is_some_and(|said| said.elapsed() >= LINE_EVERY) {
                    self.said = Some(Instant::now());
                    self.line(&format!("fetched {} of {}", size(bytes), size(self.bytes)));
                }
            }
        }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn end(&self, whole: bool) {
        self.bar.finish_and_clear();
        if whole && self.said.is_some() {
            self.line(&format!("{} is in the Hugging Face cache", self.name));
        }
    }
}
