//! `mingle fetch`: a reader takes the merged adapter and announces nothing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use mingle_protocol::adapter::Layers;
use mingle_protocol::identity::Roster;
use mingle_protocol::machine::Quorum;
use mingle_protocol::round::Round;

use super::EXIT_UNREACHED;
use super::args::{PeerArgs, seconds};
use super::http::HttpArgs;
use crate::driver::{Goal, Work};
use crate::files;

const EXAMPLES: &str = "\
Examples:
  mingle fetch --round round.json --peer /ip4/10.0.0.7/tcp/4001 --adapters 3 --out ./merged
  mingle fetch --round round.json --peer /ip4/10.0.0.7/tcp/4001 --adapters 10 --timeout 3600 --out ./merged
  mingle fetch --round round.json --peer /ip4/10.0.0.7/tcp/4001 --adapters 10 --merged --attestations 3 --out ./merged
  mingle fetch --round round.json --peer /ip4/10.0.0.7/tcp/4001 --merged --layers 0-3,8 --out ./layers
  mingle fetch --round round.json --offline --out ./merged       from what this home has

Every adapter is fetched, verified against its hash and its member's signature, and merged here: nobody is trusted for it.
With --merged only the merged file is fetched, whatever the number of members. Then as many members as --attestations says are
trusted to have merged rightly: each signed that merging this very set gave these bytes. With --layers only the header and the
tensors of these layers are fetched of that file, each group of 16 KiB proved against the hash that was signed.
At the deadline what is there is written, and the exit code is 3 if it was fewer than asked for.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Wait until at least so many adapters are merged
    #[arg(long, default_value_t = 1, value_name = "N")]
    adapters: usize,
    /// Fetch one merged file that enough members vouch for, instead of every member's adapter
    #[arg(long)]
    merged: bool,
    /// Of the merged file fetch these layers only, such as 0-3,8; `rest` means what is in no numbered layer, such as a head
    #[arg(long, value_name = "LAYERS", requires = "merged")]
    layers: Option<Layers>,
    /// Members that must vouch for the same merge [default: 2, or 1 where the roster has one member]
    #[arg(long, value_name = "MEMBERS", requires = "merged", value_parser = clap::value_parser!(u16).range(1..))]
    attestations: Option<u16>,
    /// Longest wait, in seconds [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Directory to write: a PEFT adapter with its receipt
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    peer: PeerArgs,
    #[command(flatten)]
    http: HttpArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} exists already; choose another directory to write", args.out.display());
    }
    let mut peer = args.peer.open()?;
    peer.http = args.http;
    if args.peer.network.peers.is_empty() && !args.peer.network.mdns && !args.peer.network.offline {
        eprintln!("hint: without --peer or --mdns this waits until somebody dials it");
    }
    let slice = args.layers.as_ref().map(|layers| peer.round.slice(layers)).transpose()?;
    let goal = Goal { adapters: Some(args.adapters.max(1)), deadline: args.timeout, ..Goal::default() };
    let members = args.attestations.map_or_else(|| quorum(&peer.round), usize::from);
    let work = match args.merged {
        true => Work::Believe(Quorum { members, adapters: args.adapters.max(1) }, slice),
        false => Work::Read,
    };
    let outcome = peer.run(work, goal)?;
    let merged = outcome.merged.as_ref();
    if let Some((_, folder)) = merged {
        files::copy_folder(folder, &args.out)?;
    }
    let adapters = merged.map_or(0, |(receipt, _)| receipt.admitted.len());
    if args.peer.output.json {
        let receipt = merged.map(|(receipt, _)| receipt);
        let mut told = serde_json::json!({ "event": "fetched_merge", "reached": outcome.reached, "out": args.out, "receipt": receipt });
        if let Some(layers) = &args.layers {
            told["layers"] = serde_json::json!(layers);
        }
        println!("{told}");
    } else if adapters > 0 && !args.peer.output.quiet {
        if args.merged {
            eprintln!("at least {members} members signed that merging these adapters gave these bytes; it was not merged again here");
        }
        let of = args.layers.as_ref().map(|layers| format!("layers {layers} of ")).unwrap_or_default();
        eprintln!("wrote {} ({of}{adapters} adapters); check it with: mingle verify {}", args.out.display(), args.out.display());
    }
    if outcome.reached {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("stopped with {adapters} of {} adapters", args.adapters);
    if args.merged && adapters == 0 {
        eprintln!("hint: fewer than {members} members vouch for one merge of so many adapters; ask for fewer with --attestations");
    }
    Ok(ExitCode::from(EXIT_UNREACHED))
}

/// Members that must agree where nothing else is said: no single one, if there can be two.
fn quorum(round: &Round) -> usize {
    match &round.manifest().roster {
        Roster::Members(members) => members.len().clamp(1, 2),
        Roster::Open => 2,
    }
}
