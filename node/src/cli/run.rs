//! `mingle run`: a member's daemon.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::args::PeerArgs;
use super::base::BaseArg;
use super::http::HttpArgs;
use super::judging::JudgingArgs;
use super::serve::{ServingArgs, teller};
use super::training::TrainingArgs;
use crate::driver::{Goal, Work};
use crate::serving::{DEFAULT_ADDRESS, Over, Told};

const EXAMPLES: &str = "\
Examples:
  mingle run --round round.json --data notes.jsonl
  mingle run --round round.json --base ./tinyllama --data a.jsonl --data b.jsonl --peer /dns4/peer.example/tcp/4001
  mingle run --round round.json                     serve what was announced before
  mingle run --round round.json --data notes.jsonl --serve        and answer from the merge as it comes
  mingle run --round round.json --data notes.jsonl --http      and watch it at http://127.0.0.1:7700

Without --base, the base is looked for by its name beside the round file, in the current folder, in the folders of
$MINGLE_BASES (as in PATH), and in the Hugging Face cache; where it is in none and has a name like org/model, it is fetched from the
hub (with $HF_TOKEN; not with --offline or HF_HUB_OFFLINE=1). Only weights with the round's digest are taken.
Where the round has verdicts, others' adapters are judged by --judge-with, else by what is held out of --data.
Data is JSON lines, .csv or .parquet: instruction/input/output, question/answer, messages, text, or for a classifier text/label (also
.tsv). Other columns are named by --map; `mingle preview` shows what the model is given.
It runs until it is stopped (Ctrl-C); killed at any point, it goes on where it was.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the round's base [default: looked for by its name, see below]
    #[arg(long, value_name = "DIR|NAME")]
    base: Option<BaseArg>,
    /// Private training data: JSON lines, .csv, .parquet or (with classes) .tsv; may be given several times
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Merged directory of the parent round [default: the one this home has]
    #[arg(long, value_name = "DIR")]
    start_from: Option<PathBuf>,
    /// Also answer from the merge as it comes, behind OpenAI's API, at this address (see `mingle serve`)
    #[arg(long, help_heading = "Serving", value_name = "ADDRESS", num_args = 0..=1, default_missing_value = DEFAULT_ADDRESS)]
    serve: Option<SocketAddr>,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    judging: JudgingArgs,
    /// Measure what is merged on what training holds out, for the dashboard; --http does it, too
    #[arg(long, help_heading = "Evaluation")]
    score_merges: bool,
    #[command(flatten)]
    http: HttpArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let mut peer = args.peer.open()?;
    peer.http = args.http;
    if args.data.is_empty() && args.judging.judge_with.is_empty() && args.serve.is_none() {
        if args.base.is_some() {
            bail!("--base is for training, which needs --data, for judging, which needs --judge-with, and for --serve");
        }
        peer.run(Work::Serve, Goal::default())?;
        return Ok(ExitCode::SUCCESS);
    }
    // What is wrong with base or data is said now, not after joining.
    let base = peer.base(args.base.as_ref(), &args.peer.round)?;
    let plan = args.training.plan(base, args.data, args.start_from);
    for path in &plan.data {
        crate::data::read_records(path, &plan.fields)?;
    }
    peer.judge = args.judging.judge(&peer.round, &peer.home, &plan, args.score_merges || peer.http.http.is_some())?;
    if let Some(listen) = args.serve {
        let over = Over::Round(peer.home.round(peer.round.id()));
        let serving = args.serving.open(listen, plan.base.clone(), over, &args.training.compute)?;
        let (output, tell) = (args.peer.output, teller(args.peer.output));
        let serve = move || {
            // The peer goes on whatever becomes of this.
            if let Err(error) = serving.run(tell, std::future::pending()) {
                teller(output)(&Told::Trouble { why: format!("cannot serve: {error:#}") });
            }
        };
        std::thread::Builder::new().name("serving".into()).stack_size(16 << 20).spawn(serve).context("cannot start a thread")?;
    }
    let work = match plan.data.is_empty() {
        true => Work::Serve,
        false => {
            let (round, home) = (peer.round.clone(), peer.home.clone());
            Work::Train(Box::new(move |desk| plan.prepare(&round, &home, desk)))
        }
    };
    peer.run(work, Goal::default())?;
    Ok(ExitCode::SUCCESS)
}
