//! `mingle round link` and `mingle round get`: a round as one line of chat, and back.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use mingle_protocol::link::RoundLink;
use mingle_protocol::round::RoundFile;
use serde_json::json;

use super::args::{HomeArgs, TlsArgs, multiaddr};
use super::source;
use crate::files;
use crate::network::Multiaddr;

#[derive(clap::Args)]
pub struct LinkArgs {
    /// The round file
    file: PathBuf,
    /// Peer that has the round file, such as one that runs; may be given several times, besides those the file names
    #[arg(long = "peer", value_name = "MULTIADDR", value_parser = multiaddr)]
    peers: Vec<Multiaddr>,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct GetArgs {
    /// What `mingle round link` printed
    link: RoundLink,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "round.json")]
    pub out: PathBuf,
    /// Peer to ask besides those the link names; may be given several times
    #[arg(long = "peer", value_name = "MULTIADDR", value_parser = multiaddr)]
    peers: Vec<Multiaddr>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    pub json: bool,
}

pub fn print(args: &LinkArgs) -> Result<ExitCode> {
    let file = source::read_file(&args.file)?;
    let mut peers = file.peers.clone();
    for peer in args.peers.iter().map(Multiaddr::to_string) {
        if !peers.contains(&peer) {
            peers.push(peer);
        }
    }
    let link = RoundLink { round: file.round.id(), peers };
    // What is printed must be readable again.
    let text = link.to_string();
    text.parse::<RoundLink>()?;
    if args.json {
        println!("{}", json!({ "link": text, "round": link.round, "peers": link.peers }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{text}");
    if link.peers.is_empty() {
        eprintln!("hint: the link names no peer to get the round file from; add the address of one that runs with --peer");
    }
    if !file.is_signed() {
        eprintln!("hint: the round file is not signed by its founders yet, so nobody can join by this link until it is");
    }
    Ok(ExitCode::SUCCESS)
}

pub fn get(args: &GetArgs) -> Result<RoundFile> {
    if args.out.exists() {
        bail!("{} exists already; a round file is never overwritten", args.out.display());
    }
    let file = source::follow(&args.link, &args.home.open()?, &args.peers, &args.tls.web()?)?;
    files::write(&args.out, file.to_json().as_bytes())?;
    Ok(file)
}
