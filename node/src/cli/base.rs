//! A base as people name one: a directory, a model in the Hugging Face cache, or one that the hub has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use mingle_protocol::round::Round;

use super::progress::{self, Working};
use super::source;
use crate::bases::hub::Fetching;
use crate::bases::{self, Digests, Places};
use crate::contribution::check_base;
use crate::train::estimate::size;

/// Without a terminal, progress becomes a line this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What takes its time with a large base.
pub const CHECKING: &str = "checking the base's weights";

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

/// The base of a round: the one that was given, else one on this machine that has its digest, else, unless no connection is to
/// be opened, the hub's.
///
/// # Errors
/// Other weights than the round's, or every place that was looked at.
pub fn of_round(given: Option<&BaseArg>, round: &Round, source: &Path, digests: &Digests, offline: bool) -> Result<PathBuf> {
    if let Some(given) = given {
        let base = given.directory()?;
        let _checking = progress::working(true, CHECKING);
        return check_base(&base, round, digests).map(|()| base);
    }
    let base = &round.manifest().base;
    let places = Places::of_process(Some(source).filter(|source| !source::is_link(source)));
    let mut download = Download { checking: Some(progress::working(true, CHECKING)), ..Download::new(base.name.clone()) };
    let found = match offline {
        true => bases::find(base, &places, digests),
        false => bases::find_or_fetch(base, &places, digests, &mut |told| download.tell(told)),
    };
    download.end(found.is_ok());
    Ok(found?)
}

/// A fetch from the hub as people see it.
struct Download {
    name: String,
    /// What was done before it.
    checking: Option<Working>,
    bar: ProgressBar,
    bytes: u64,
    said: Option<Instant>,
}

impl Download {
    fn new(name: String) -> Self {
        Self { name, checking: None, bar: progress::bytes(true), bytes: 0, said: None }
    }

    fn tell(&mut self, told: Fetching<'_>) {
        self.checking = None;
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

    fn end(mut self, whole: bool) {
        self.checking = None;
        self.bar.finish_and_clear();
        if whole && self.said.is_some() {
            self.line(&format!("{} is in the Hugging Face cache", self.name));
        }
    }
}
