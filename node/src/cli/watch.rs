//! `mingle watch`: the dashboard in a terminal, from the files a running peer leaves in its home.
//!
//! It only reads: what a peer does is not changed by somebody who looks. What is drawn follows from what was read, the size
//! of the terminal and the place in it alone (`draw`), so that tests see the same screens as people.

mod charts;
mod draw;
mod help;
mod ink;
mod keys;
mod lines;
mod members;
mod panes;
#[cfg(test)]
pub(super) mod sample;
mod screen;
mod seen;
#[cfg(test)]
mod tests;
mod text;
mod tiles;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::args::HomeArgs;
use super::status::status_path;

const LOOK_EVERY: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  mingle watch
  mingle watch --round round.json
  mingle watch --json | jq -c '[.status.phase, .status.merged.adapters]'

It shows what the page of --http shows, as it changes, until `q`; `?` tells the other keys. Where standard output is no
terminal, a line is written when something changes. Colours are left out where NO_COLOR is set.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The round file [default: the round that was active last]
    #[arg(long, value_name = "FILE")]
    round: Option<PathBuf>,
    #[command(flatten)]
    home: HomeArgs,
    /// One JSON object a line on standard output, with `status` and `history`, whenever they change
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let path = status_path(args.round.as_deref(), &args.home)?;
    // What a terminal that knows no addressing would show of a screen is of no use.
    let screen = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|name| name != "dumb");
    match (args.json, screen) {
        (true, _) => lines::json(&path),
        (false, true) => screen::watch(&path),
        (false, false) => lines::sentences(&path),
    }
}
