//! `mingle key`: the institution's identity.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use mingle_protocol::identity::SecretKey;

use super::args::HomeArgs;
use crate::network::peer_of;

const EXAMPLES: &str = "\
Examples:
  mingle key new
  mingle key show --json
  mingle key new --home /srv/mingle";

#[derive(Subcommand)]
pub enum Verb {
    /// Make a key; an existing one is never overwritten
    #[command(after_help = EXAMPLES)]
    New(Args),
    /// Show the public key, to be listed in a round's roster
    #[command(after_help = EXAMPLES)]
    Show(Args),
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(verb: Verb) -> Result<ExitCode> {
    let (key, args) = match &verb {
        Verb::New(args) => (args.home.open()?.create_key()?, args),
        Verb::Show(args) => (args.home.open()?.key()?, args),
    };
    show(&key, args)
}

fn show(key: &SecretKey, args: &Args) -> Result<ExitCode> {
    let (member, path) = (key.member(), args.home.open()?.key_path());
    let peer = peer_of(&member).map(|peer| peer.to_string()).unwrap_or_default();
    if args.json {
        println!("{}", serde_json::json!({ "member": member, "peer": peer, "file": path }));
    } else {
        println!("member {member}");
        println!("peer   {peer}");
        println!("file   {} (keep it secret, keep a copy)", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
