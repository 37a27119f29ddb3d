//! `mingle run`: a member's daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::args::PeerArgs;
use super::source::is_link;
use super::training::TrainingArgs;
use crate::bases::{self, Places};
use crate::contribution::check_base;
use crate::driver::{Goal, Work};

const EXAMPLES: &str = "\
Examples:
  mingle run --round round.json --data notes.jsonl
  mingle run --round round.json --base ./tinyllama --data a.jsonl --data b.jsonl --peer /dns4/peer.example/tcp/4001
  mingle run --round round.json                     serve what was announced before

Without --base, the base is looked for by its name beside the round file, in the current folder, in the folders of
$MINGLE_BASES (as in PATH), and in the Hugging Face cache; only weights with the round's digest are taken.
Data is JSON lines: instruction/input/output, question/answer, messages, text, or for a classifier text/label (also .tsv).
It runs until it is stopped (Ctrl-C); killed at any point, it goes on where it was.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the round's base [default: looked for by its name, see below]
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Private training data, JSON lines or (with classes) .tsv; may be given several times
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Merged directory of the parent round [default: the one this home has]
    #[arg(long, value_name = "DIR")]
    start_from: Option<PathBuf>,
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    training: TrainingArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let peer = args.peer.open()?;
    let work = match (args.base, args.data) {
        (Some(_), data) if data.is_empty() => bail!("--base is for training, which needs --data"),
        (None, data) if data.is_empty() => Work::Serve,
        (base, data) => {
            let digests = peer.home.digests();
            // What is wrong with base or data is said now, not after joining.
            let base = match base {
                Some(base) => check_base(&base, &peer.round, &digests).map(|()| base)?,
                None => bases::find(
                    &peer.round.manifest().base,
                    &Places::of_process(Some(&args.peer.round).filter(|round| !is_link(round)).map(PathBuf::as_path)),
                    &digests,
                )?,
            };
            let plan = args.training.plan(base, data, args.start_from);
            for path in &plan.data {
                crate::data::read_records(path)?;
            }
            let (round, home) = (peer.round.clone(), peer.home.clone());
            Work::Train(Box::new(move |desk| plan.prepare(&round, &home, desk)))
        }
    };
    peer.run(work, Goal::default())?;
    Ok(ExitCode::SUCCESS)
}
