//! `mingle fetch`: a reader takes the merged adapter and announces nothing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use super::EXIT_UNREACHED;
use super::args::{PeerArgs, seconds};
use crate::driver::{Goal, Work};
use crate::files;

const EXAMPLES: &str = "\
Examples:
  mingle fetch --round round.json --peer /ip4/10.0.0.7/tcp/4001 --adapters 3 --out ./merged
  mingle fetch --round round.json --peer /ip4/10.0.0.7/tcp/4001 --adapters 10 --timeout 3600 --out ./merged
  mingle fetch --round round.json --offline --out ./merged       from what this home has

Every adapter is fetched, verified against its hash and its member's signature, and merged here: nobody is trusted for it.
At the deadline what is there is written, and the exit code is 3 if it was fewer than asked for.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Wait until at least so many adapters are merged
    #[arg(long, default_value_t = 1, value_name = "N")]
    adapters: usize,
    /// Longest wait, in seconds [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Directory to write: a PEFT adapter with its receipt
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    peer: PeerArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} exists already; choose another directory to write", args.out.display());
    }
    let peer = args.peer.open()?;
    if args.peer.network.peers.is_empty() && !args.peer.network.mdns && !args.peer.network.offline {
        eprintln!("hint: without --peer or --mdns this waits until somebody dials it");
    }
    let goal = Goal { adapters: Some(args.adapters.max(1)), deadline: args.timeout, ..Goal::default() };
    let outcome = peer.run(Work::Read, goal)?;
    let merged = outcome.merged.as_ref();
    if let Some((_, folder)) = merged {
        files::copy_folder(folder, &args.out)?;
    }
    let adapters = merged.map_or(0, |(receipt, _)| receipt.admitted.len());
    if args.peer.output.json {
        let receipt = merged.map(|(receipt, _)| receipt);
        println!("{}", serde_json::json!({ "event": "fetched_merge", "reached": outcome.reached, "out": args.out, "receipt": receipt }));
    } else if adapters > 0 && !args.peer.output.quiet {
        eprintln!("wrote {} ({adapters} adapters); check it with: mingle verify {}", args.out.display(), args.out.display());
    }
    if outcome.reached {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("stopped with {adapters} of {} adapters", args.adapters);
    Ok(ExitCode::from(EXIT_UNREACHED))
}
