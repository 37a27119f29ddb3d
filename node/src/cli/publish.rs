//! `mingle publish`: announce an adapter that any trainer made.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::args::PeerArgs;
use super::base::BaseArg;
use super::http::HttpArgs;
use super::judging::JudgingArgs;
use crate::contribution::{TrainingPlan, from_directory};
use crate::driver::{Goal, Work};

const EXAMPLES: &str = "\
Examples:
  mingle publish ./my-peft-adapter --round round.json --examples 1200
  mingle publish ./my-peft-adapter --round round.json --examples 1200 --peer /ip4/10.0.0.7/tcp/4001
  mingle publish ./my-peft-adapter --round round.json --examples 1200 --offline      then `mingle bundle export`

The directory holds adapter_config.json and adapter_model.safetensors, of the round's rank, scale and modules.
A second adapter published in the same round supersedes the first.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// PEFT directory
    directory: PathBuf,
    /// Training examples the adapter saw
    #[arg(long, value_name = "N")]
    examples: u64,
    #[command(flatten)]
    peer: PeerArgs,
    /// Hugging Face directory of the round's base, for judging [default: looked for by its name]
    #[arg(long, help_heading = "Verdicts", value_name = "DIR|NAME", requires = "judge_with")]
    base: Option<BaseArg>,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    http: HttpArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let mut peer = args.peer.open()?;
    peer.http = args.http;
    let prepared = from_directory(&args.directory, &peer.round, &peer.home, args.examples)?;
    if !args.judging.judge_with.is_empty() {
        let plan = TrainingPlan::of_base(peer.base(args.base.as_ref(), &args.peer.round)?);
        peer.judge = args.judging.judge(&peer.round, &peer.home, &plan, false)?;
    }
    peer.run(Work::Publish(prepared), Goal::default())?;
    Ok(ExitCode::SUCCESS)
}
