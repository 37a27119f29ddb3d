//! `mingle withdraw`: a member takes its adapter back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::args::{HomeArgs, NetworkArgs, OutputArgs, read_round, run_peer, seconds};
use crate::driver::{Goal, Work};

const EXAMPLES: &str = "\
Examples:
  mingle withdraw --round round.json --peer /ip4/10.0.0.7/tcp/4001
  mingle withdraw --round round.json --peer /ip4/10.0.0.7/tcp/4001 --timeout 60

Every peer that hears of it takes the adapter out of its merge, exactly: what is left is what it would be without it.
Copies that others have made stay with them. It runs until it is stopped, so that peers hear of it; the record then lives
on with them.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The round file
    #[arg(long, value_name = "FILE")]
    round: PathBuf,
    /// Stop after so many seconds [default: run until stopped]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let goal = Goal { adapters: None, deadline: args.timeout };
    run_peer(&args.home.open()?, read_round(&args.round)?, &args.network, args.output, Work::Withdraw, goal)?;
    Ok(ExitCode::SUCCESS)
}
