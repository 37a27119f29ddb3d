//! `mingle status`: what a peer is doing, from the file it leaves in its home.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::args::HomeArgs;
use super::source::read_round;
use super::words::{doing, standing};
use crate::driver::{SlotStatus, Status};
use crate::merged::promised;

const EXAMPLES: &str = "\
Examples:
  mingle status
  mingle status --round round.json --json";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The round file [default: the round that was active last]
    #[arg(long, value_name = "FILE")]
    round: Option<PathBuf>,
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let status = Status::read(&status_path(args.round.as_deref(), &args.home)?)?;
    if args.json {
        let mut value = serde_json::to_value(&status)?;
        value["live"] = status.is_live().into();
        println!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    show(&status);
    Ok(ExitCode::SUCCESS)
}

/// Where the peer of a round leaves its status; of the round that was active last, where none is named.
pub fn status_path(round: Option<&Path>, home: &HomeArgs) -> Result<PathBuf> {
    let home = home.open()?;
    match round {
        Some(file) => Ok(home.round(read_round(file, &home)?.id()).status_path()),
        None => {
            let rounds = home.rounds();
            Ok(rounds.first().with_context(|| format!("no peer has run in {}", home.folder().display()))?.status_path())
        }
    }
}

fn reached(status: &Status) -> String {
    let relayed = status.links.iter().filter(|link| link.relayed).count();
    let how = match status.reachability.as_str() {
        "public" => "others can dial this peer",
        "private" => "others cannot dial this peer, only through relays",
        _ => "not known yet",
    };
    format!("{how}; {} neighbours directly, {relayed} through a relay", status.links.len() - relayed)
}

fn show(status: &Status) {
    println!("round      {}  \"{}\"", status.round, status.name);
    println!("{:10} {}  (peer {})", status.role, status.member, status.peer);
    let phase = doing(status, status.is_live()).sentence();
    println!("state      {phase}; {} neighbours", status.neighbours);
    status.listening.iter().for_each(|address| println!("listening  {address}"));
    println!("reached    {}", reached(status));
    status.reached_at.iter().for_each(|address| println!("           {address}"));
    println!("members    {}", status.slots.len());
    for slot in &status.slots {
        let note = standing(slot, status).sentence();
        let adapter = slot.adapter.map(|adapter| adapter.short()).unwrap_or_default();
        println!("           {}  adapter {adapter:8}  weight {:6}  {note}", slot.member.short(), slot.weight);
        if let Some(privacy) = slot.privacy {
            println!("             promises its examples {}", promised(privacy.epsilon, privacy.delta));
        }
        show_verdicts(slot);
    }
    show_transfers(status);
    if !status.rule.is_empty() {
        println!("rule       {}", status.rule);
    }
    match &status.merged {
        None => println!("merged     nothing yet"),
        Some(merged) => {
            println!("merged     {} adapters, total weight {}", merged.adapters, merged.weight);
            println!("           merged hash {}", merged.merged_hash);
            println!("           set root    {}", merged.set_root);
            println!("           {}", merged.folder.display());
            println!("           {} members vouch for these bytes", status.vouching);
        }
    }
    for fault in &status.faults {
        let [one, other] = fault.members.map(|member| member.short());
        println!("FAULT      members {one} and {other} signed different merges of set {}; see evidence/", fault.set_root.short());
    }
}

/// What other members say of an adapter.
fn show_verdicts(slot: &SlotStatus) {
    if slot.adapter.is_some() && slot.approvals_needed > 0 {
        println!("             {} of {} approvals", slot.approvals(), slot.approvals_needed);
    }
    for verdict in &slot.verdicts {
        let number = |loss: Option<f64>| loss.map_or_else(|| "none".to_owned(), |loss| format!("{loss:.4}"));
        let does = if verdict.approves { "yes" } else { "no" };
        println!(
            "             {} says {does:3}  loss {} with it, merged {}, base {:.4}, {} examples",
            verdict.judge.short(),
            number(verdict.with_loss),
            number(verdict.merged_loss),
            verdict.base_loss,
            verdict.examples
        );
    }
}

fn show_transfers(status: &Status) {
    /// Bytes of a MiB.
    const MIB: f64 = 1024.0 * 1024.0;
    for transfer in &status.transfers {
        let (have, size) = (transfer.have as f64 / MIB, transfer.size as f64 / MIB);
        println!(
            "fetching   {}  {have:.1} of {size:.1} MiB, {:.1} MiB/s",
            transfer.adapter.short(),
            transfer.bytes_per_second() as f64 / MIB
        );
        for provider in transfer.providers.iter().filter(|provider| provider.bytes > 0 || provider.state == "sending") {
            let (bytes, rate) = (provider.bytes as f64 / MIB, provider.bytes_per_second as f64 / MIB);
            println!("           {}  {}  {bytes:.1} MiB, {rate:.1} MiB/s", provider.peer, provider.state);
        }
    }
    let (sent, rate) = status.uploads.iter().fold((0, 0), |(sent, rate), upload| (sent + upload.bytes, rate + upload.bytes_per_second));
    if sent > 0 {
        println!("served     {:.1} MiB to {} peers, {:.1} MiB/s", sent as f64 / MIB, status.uploads.len(), rate as f64 / MIB);
    }
}
