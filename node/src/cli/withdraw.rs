//! `mingle withdraw`: a member takes its adapter back.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::EXIT_UNREACHED;
use super::args::{PeerArgs, seconds};
use crate::driver::{Goal, Work};

const EXAMPLES: &str = "\
Examples:
  mingle withdraw --round round.json --peer /ip4/10.0.0.7/tcp/4001
  mingle withdraw --round round.json --peer /ip4/10.0.0.7/tcp/4001 --timeout 60

Every peer that hears of it takes the adapter out of its merge, exactly: what is left is what it would be without it.
Copies that others have made stay with them. It ends once a peer has heard of it: the record lives on with them.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Stop after so many seconds, heard or not [default: wait for a peer that hears it]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    peer: PeerArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let goal = Goal { deadline: args.timeout, withdrawn: true, ..Goal::default() };
    let outcome = args.peer.open()?.run(Work::Withdraw, goal)?;
    if outcome.withdrawn {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("nothing was withdrawn: this home announced nothing, and no neighbour told what this key said before");
    Ok(ExitCode::from(EXIT_UNREACHED))
}
