//! Where there is no screen: a line when something changes, for people or for programs.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::LOOK_EVERY;
use super::seen::{Seen, read};
use crate::cli::words::plural;
use crate::driver::{History, Status, unix_ms};

/// Writes a sentence whenever it is another one than before.
///
/// # Errors
/// No status at first, and what the system says when it does not take the line.
pub fn sentences(path: &Path) -> Result<ExitCode> {
    let mut last = String::new();
    follow(path, |read| {
        let line = sentence(&Seen::new(read, unix_ms())?);
        let news = line != last;
        last.clone_from(&line);
        Ok(news.then_some(line))
    })
}

/// Writes status and history as one object whenever they say something new.
///
/// # Errors
/// As [`sentences`].
pub fn json(path: &Path) -> Result<ExitCode> {
    let mut last = None;
    follow(path, |(status, history)| {
        // As on the page, a status that says nothing new but the time is no news.
        let said = Some((Status { updated_unix_ms: 0, ..status.clone() }, status.is_live(), history.clone()));
        if said == last {
            return Ok(None);
        }
        last = said;
        object(&status, status.is_live(), &history).map(Some)
    })
}

fn follow(path: &Path, mut news: impl FnMut((Status, History)) -> Result<Option<String>>) -> Result<ExitCode> {
    // What cannot be read at first is an error; later it is between two writings.
    let mut found = Some(read(path)?);
    loop {
        if let Some(line) = found.map(&mut news).transpose()?.flatten() {
            let mut out = std::io::stdout().lock();
            match writeln!(out, "{line}").and_then(|()| out.flush()) {
                Ok(()) => {}
                // Who listened has heard enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
                Err(error) => return Err(error.into()),
            }
        }
        std::thread::sleep(LOOK_EVERY);
        found = read(path).ok();
    }
}

pub(super) fn object(status: &Status, live: bool, history: &History) -> Result<String> {
    let mut status = serde_json::to_value(status)?;
    status["live"] = live.into();
    Ok(json!({ "status": status, "history": history }).to_string())
}

pub(super) fn sentence(seen: &Seen) -> String {
    // Of a peer that is gone it is said once, not anew every second.
    let doing = if seen.live() { seen.doing().sentence() } else { seen.doing().word.to_owned() };
    let warnings = seen.warnings().len() as u64;
    let warned = if warnings > 0 { format!("; {}", plural(warnings, "warning")) } else { String::new() };
    format!("{doing}; merged {}; score {}{warned}", seen.merged(), seen.score())
}
