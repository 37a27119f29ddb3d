//! `mingle current`: whether a merged directory is still what the round's members stand for.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mingle_protocol::identity::MemberKey;
use mingle_protocol::ledger::{Admitted, Ledger, SlotState};
use mingle_protocol::standing::Standing;
use serde_json::json;

use super::args::{PeerArgs, seconds};
use super::{EXIT_FALSE, EXIT_UNREACHED};
use crate::driver::{Goal, Work};
use crate::merged::Proof;

const EXAMPLES: &str = "\
Examples:
  mingle current ./merged --round round.json --peer /ip4/10.0.0.7/tcp/4001
  mingle current ./merged --round round.json --offline      by what this home has heard

It asks a peer of the round what its members say now, and fetches no adapter. Exit code 4 if an adapter in the directory counts no
more (its member took it back or replaced it, contradicted itself, or was put out): do not use the directory any longer. An adapter
that came since makes it older, not wrong.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Merged directory, with its receipt.json
    directory: PathBuf,
    /// Longest wait for a peer of the round, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    timeout: Duration,
    #[command(flatten)]
    peer: PeerArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let checked = Proof::read(&args.directory)?.check().with_context(|| format!("{} proves nothing", args.directory.display()))?;
    let peer = args.peer.open()?;
    let round = &peer.round;
    ensure!(
        round.id() == checked.round.id(),
        "{} is a merge of round {}, but {} is round {}",
        args.directory.display(),
        checked.round.id(),
        args.peer.round.display(),
        round.id()
    );
    let goal = Goal { deadline: Some(args.timeout), ..Goal::default() };
    // Whoever has nothing to tell has only listened.
    let outcome = peer.run(Work::Tell(Vec::new()), goal)?;
    if !outcome.reached && !args.peer.network.offline {
        eprintln!("no peer of the round answered within {:?}, so nothing is known about now", args.timeout);
        return Ok(ExitCode::from(EXIT_UNREACHED));
    }
    let (gone, since) = compare(&checked.receipt.admitted, &outcome.ledger);
    if args.peer.output.json {
        let gone: Vec<_> = gone.iter().map(|(member, why)| json!({ "member": member, "why": why })).collect();
        let since: Vec<MemberKey> = since.iter().map(|entry| entry.member).collect();
        let told = json!({ "event": "compared", "superseded": !gone.is_empty(), "gone": gone, "since": since,
            "set_root": checked.receipt.set_root, "merged_hash": checked.receipt.merged });
        println!("{told}");
    } else {
        for (member, why) in &gone {
            println!("SUPERSEDED: member {member} {why}.");
        }
        match (gone.is_empty(), since.len()) {
            (true, 0) => println!("This is the merge of all {} adapters that count now.", checked.receipt.admitted.len()),
            (true, new) => println!("All {} adapters in it still count; {new} more came since.", checked.receipt.admitted.len()),
            (false, _) => {
                println!("Do not use this directory any longer: fetch the merge anew, or ask a peer that follows the round for it.")
            }
        }
    }
    Ok(if gone.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FALSE) })
}

/// Whose adapters in a merge count no more, and why; and the adapters that came since.
fn compare(merged: &[Admitted], ledger: &Ledger) -> (Vec<(MemberKey, &'static str)>, Vec<Admitted>) {
    let now: Vec<Admitted> = ledger.admitted().collect();
    let why = |entry: &Admitted| {
        if ledger.standing(&entry.member) != Some(Standing::Member) {
            return "was put out of the round";
        }
        match ledger.slot(&entry.member) {
            Some(SlotState::Withdrawn) => "has taken its adapter back",
            Some(SlotState::Conflict(..)) => "has said two things at once, so that neither counts",
            Some(SlotState::Adapter(said)) if said.adapter != entry.adapter => "has announced another adapter in its place",
            Some(SlotState::Adapter(_)) => "has announced its adapter anew",
            None => "has announced nothing that this peer has heard of",
        }
    };
    let counts = |entry: &&Admitted| now.contains(entry);
    let gone = merged.iter().filter(|entry| !counts(entry)).map(|entry| (entry.member, why(entry))).collect();
    let since = now.iter().filter(|entry| !merged.iter().any(|old| old.member == entry.member)).cloned().collect();
    (gone, since)
}
