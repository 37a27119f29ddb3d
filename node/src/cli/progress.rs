//! What long work looks like: bars where there is a measure of it, else what is done and for how long. On standard error, only
//! where that is a terminal, and gone when the work is done.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that is done sooner is not spoken of.
const UNSPOKEN: Duration = Duration::from_secs(1);
const TURN_EVERY: Duration = Duration::from_millis(120);

/// A bar of bytes that come or go.
pub fn bytes(shown: bool) -> ProgressBar {
    bar(shown, "{msg} [{bar:32}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left")
}

/// A bar of things that are counted.
pub fn count(shown: bool) -> ProgressBar {
    bar(shown, "[{bar:32}] {pos}/{len}, {eta} left")
}

fn bar(shown: bool, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target(shown));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn target(shown: bool) -> ProgressDrawTarget {
    if shown && std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// Work without a measure. It is over when this is dropped.
pub struct Working(Option<(Sender<()>, JoinHandle<()>)>);

/// Says what is done, once it has taken a second.
pub fn working(shown: bool, what: impl Into<String>) -> Working {
    if !shown || !std::io::stderr().is_terminal() {
        return Working(None);
    }
    let (over, ended) = channel();
    let what = what.into();
    let show = move || {
        if ended.recv_timeout(UNSPOKEN) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let spinner = ProgressBar::new_spinner().with_message(what).with_elapsed(UNSPOKEN);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            spinner.set_style(style);
        }
        while ended.recv_timeout(TURN_EVERY) == Err(RecvTimeoutError::Timeout) {
            spinner.tick();
        }
        spinner.finish_and_clear();
    };
    // Where there is no thread to be had, work is not spoken of.
    Working(std::thread::Builder::new().name("progress".into()).spawn(show).ok().map(|thread| (over, thread)))
}

impl Drop for Working {
    fn drop(&mut self) {
        if let Some((over, thread)) = self.0.take() {
            drop(over);
            // What is written next comes after the line is cleared.
            let _ = thread.join();
        }
    }
}
