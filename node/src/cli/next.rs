//! `mingle round next`: a round that goes on from the merge of another, under the same terms.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use mingle_protocol::identity::Roster;
use mingle_protocol::round::{Manifest, Round, RoundFile};

use super::args::{HomeArgs, multiaddr};
use super::round::{parent_of, show};
use crate::files;
use crate::network::Multiaddr;

#[derive(clap::Args)]
pub struct NextArgs {
    /// Merged directory of the round to go on from
    merged: PathBuf,
    /// Name for people [default: that of the round before, with the next number]
    #[arg(long)]
    name: Option<String>,
    /// Address of a peer that whoever has the round file dials; given several times [default: those of the round before, where
    /// this home has its file]
    #[arg(long = "peer", value_name = "MULTIADDR", value_parser = multiaddr)]
    peers: Vec<Multiaddr>,
    #[command(flatten)]
    home: HomeArgs,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "next.json")]
    out: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn next(args: &NextArgs) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} exists already; a round file is never overwritten", args.out.display());
    }
    let (checked, parent) = parent_of(&args.merged)?;
    let before = checked.round.manifest();
    let mut manifest =
        Manifest { name: args.name.clone().unwrap_or_else(|| numbered(&before.name)), parent: Some(parent), ..before.clone() };
    // Whom founders admitted while the round ran, and who is in its merge, belongs from the start now.
    if let Roster::Members(members) = &mut manifest.roster {
        members.extend(checked.receipt.admitted.iter().map(|entry| entry.member));
    }
    let home = args.home.open()?;
    let known = std::fs::read(home.round(checked.round.id()).round_file()).ok().and_then(|text| RoundFile::from_json(&text).ok());
    let peers = match args.peers.is_empty() {
        true => known.map(|file| file.peers).unwrap_or_default(),
        false => args.peers.iter().map(ToString::to_string).collect(),
    };
    let mut file = RoundFile { peers, ..Round::new(manifest)?.into() };
    if let Some(founders) = &before.founders
        && home.key_path().exists()
        && founders.keys.contains(&home.key()?.member())
    {
        file.sign(&home.key()?);
    }
    file.check()?;
    files::write(&args.out, file.to_json().as_bytes())?;
    show(&file, args.json)
}

/// "ward notes" is followed by "ward notes 2", and that by "ward notes 3".
fn numbered(name: &str) -> String {
    let counted = name.rsplit_once(' ').and_then(|(name, number)| Some((name, number.parse::<u32>().ok()?.checked_add(1)?)));
    let (name, number) = counted.unwrap_or((name, 2));
    format!("{name} {number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_on() {
        assert_eq!(
            ["ward notes", "ward notes 2", "9", "a 4294967295"].map(numbered),
            ["ward notes 2", "ward notes 3", "9 2", "a 4294967295 2"]
        );
    }
}
