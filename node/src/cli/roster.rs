//! `mingle roster`: who belongs to a round, and how its founders change that while it runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mingle_protocol::identity::{MemberKey, Roster};
use mingle_protocol::record::SignedRecord;
use mingle_protocol::round::{Round, RoundId};
use mingle_protocol::standing::{Standing, Statement};
use serde_json::json;

use super::EXIT_UNREACHED;
use super::args::{HomeArgs, NetworkArgs, OutputArgs, PeerArgs, seconds};
use super::source::{is_link, read_round};
use crate::bundle::ledger_of;
use crate::driver::{Goal, StandingStatus, Status, Work};
use crate::home::{Home, RoundHome};
use crate::roster::{CHANGES_MAX, Proposal, Proposed, hand_over};
use crate::store::{Store, StoreError};

const EXAMPLES: &str = "\
Examples:
  mingle roster propose --round round.json --member 3f6a... --out 91bc... --file change.json
  mingle roster sign change.json                     another founder approves it
  mingle roster publish change.json                  through the peer that runs in this home, or a short-lived one
  mingle roster show --round round.json --json

A change counts when as many founders approve it as the round file asks for. What a member says counts from then on, or no
more: every peer's merge is as if who is out had never been in. In a private round who is out is disconnected.";
/// A peer that runs looks into its inbox a few times a second.
const TAKEN_MAX: Duration = Duration::from_secs(15);

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Write changes for founders to approve; approved by this home's key if it is a founder's
    #[command(after_help = EXAMPLES)]
    Propose(ProposeArgs),
    /// Approve changes as a founder
    #[command(after_help = EXAMPLES)]
    Sign(SignArgs),
    /// Tell the round's peers of changes that enough founders approve
    #[command(after_help = EXAMPLES)]
    Publish(PublishArgs),
    /// Show who belongs, and who changed it
    #[command(after_help = EXAMPLES)]
    Show(ShowArgs),
}

#[derive(clap::Args)]
pub struct ProposeArgs {
    /// The round file
    #[arg(long, value_name = "FILE")]
    round: PathBuf,
    /// Key that becomes a member; given several times
    #[arg(long = "member", value_name = "KEY")]
    members: Vec<MemberKey>,
    /// Key that becomes a reader; given several times
    #[arg(long = "reader", value_name = "KEY")]
    readers: Vec<MemberKey>,
    /// Key that is out; given several times
    #[arg(long = "out", value_name = "KEY")]
    outs: Vec<MemberKey>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct SignArgs {
    file: PathBuf,
    /// The round file [default: the one this home has]
    #[arg(long, value_name = "FILE")]
    round: Option<PathBuf>,
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct PublishArgs {
    file: PathBuf,
    /// The round file [default: the one this home has]
    #[arg(long, value_name = "FILE")]
    round: Option<PathBuf>,
    /// Longest wait for a neighbour, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    timeout: Duration,
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// The round file
    #[arg(long, value_name = "FILE")]
    round: PathBuf,
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Propose(args) => propose(&args),
        Verb::Sign(args) => sign(&args),
        Verb::Publish(args) => publish(args),
        Verb::Show(args) => show(&args),
    }
}

fn propose(args: &ProposeArgs) -> Result<ExitCode> {
    let home = args.home.open()?;
    let round = read_round(&args.round, &home)?;
    let name = &round.manifest().name;
    let founders = round.manifest().founders.as_ref().with_context(|| format!("round \"{name}\" has no founders who could change it"))?;
    if args.file.exists() {
        bail!("{} exists already; choose another file to write", args.file.display());
    }
    let wishes = [(Standing::Member, &args.members), (Standing::Reader, &args.readers), (Standing::Out, &args.outs)];
    let wishes: Vec<(MemberKey, Standing)> =
        wishes.into_iter().flat_map(|(becomes, keys)| keys.iter().map(move |key| (*key, becomes))).collect();
    let subjects: BTreeSet<MemberKey> = wishes.iter().map(|(key, _)| *key).collect();
    ensure!(!wishes.is_empty(), "nothing is proposed: give --member, --reader or --out with a key");
    ensure!(subjects.len() == wishes.len(), "a key is named twice");
    ensure!(wishes.len() <= CHANGES_MAX, "{} changes are proposed, but a file holds at most {CHANGES_MAX}", wishes.len());
    let known = known(&home.round(round.id()), &round)?;
    let sequence = |key| known.iter().find(|change| change.key == key).map_or(0, |change| change.sequence) + 1;
    let statement = |(subject, becomes)| Statement { round: round.id(), subject, sequence: sequence(subject), becomes };
    let changes = wishes.into_iter().map(|wish| Proposed { statement: statement(wish), approvals: Vec::new() }).collect();
    let mut proposal = Proposal { round: round.id(), changes };
    if let Ok(key) = home.key()
        && founders.keys.contains(&key.member())
    {
        proposal.changes.iter_mut().for_each(|change| change.approve(&key));
    }
    proposal.write(&args.file)?;
    tell(&args.file, &proposal, &round, args.json)
}

fn sign(args: &SignArgs) -> Result<ExitCode> {
    let (mut proposal, home) = (Proposal::read(&args.file)?, args.home.open()?);
    let key = home.key()?;
    let round = round_of(args.round.as_deref(), &home, proposal.round)?;
    let manifest = round.manifest();
    let founds = manifest.founders.as_ref().is_some_and(|founders| founders.keys.contains(&key.member()));
    ensure!(founds, "{} is not a founder of round \"{}\"", key.member(), manifest.name);
    proposal.changes.iter_mut().for_each(|change| change.approve(&key));
    proposal.write(&args.file)?;
    tell(&args.file, &proposal, &round, args.json)
}

fn publish(args: PublishArgs) -> Result<ExitCode> {
    let (proposal, home) = (Proposal::read(&args.file)?, args.home.open()?);
    let key = home.key()?;
    let round = round_of(args.round.as_deref(), &home, proposal.round)?;
    let member = key.member();
    let unapproved = |change: &&Proposed| !change.approvals.iter().any(|approval| approval.founder == member);
    if let Some(change) = proposal.changes.iter().find(unapproved) {
        bail!("{member} has not approved the change for {} in {}", change.statement.subject, args.file.display());
    }
    let records = proposal.records(&round, &key).with_context(|| format!("{} cannot be published", args.file.display()))?;
    let round_home = home.round(round.id());
    check_current(&known(&round_home, &round)?, &proposal)?;
    // A peer that ended a moment ago has left a status that looks alive; the store says who holds it.
    let running = matches!(Store::open(round_home.store()), Err(StoreError::Held { .. }));
    let told = if running { through_peer(&round_home, &records)? } else { alone(&args, &home, &round, records)? };
    // Neighbours may have told of a later change.
    check_current(&known(&round_home, &round)?, &proposal)?;
    if args.output.json {
        println!("{}", json!({ "event": "published", "changes": proposal.changes.len(), "told": told, "by_running_peer": running }));
    } else if told && !args.output.quiet {
        println!("published {} changes", proposal.changes.len());
    }
    if told || args.network.offline {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("nobody was told: no neighbour answered; the changes stay in this home, and its next peer tells of them");
    Ok(ExitCode::from(EXIT_UNREACHED))
}

/// A later change for the same key makes this one mean nothing.
fn check_current(known: &[StandingStatus], proposal: &Proposal) -> Result<()> {
    for Proposed { statement, .. } in &proposal.changes {
        let later = |known: &&StandingStatus| {
            known.key == statement.subject && (known.sequence, known.standing) != (statement.sequence, statement.becomes)
        };
        if let Some(known) = known.iter().filter(later).find(|known| known.sequence >= statement.sequence) {
            bail!(
                "the change for {} was superseded: it has sequence {}, but the round has {} ({})",
                statement.subject,
                statement.sequence,
                known.sequence,
                known.standing.name()
            );
        }
    }
    Ok(())
}

/// Leaves the records for the peer that runs, until it has taken them.
fn through_peer(home: &RoundHome, records: &[SignedRecord]) -> Result<bool> {
    let left: Vec<PathBuf> = records.iter().map(|record| hand_over(&home.inbox(), record)).collect::<Result<_>>()?;
    let began = Instant::now();
    while left.iter().any(|path| path.exists()) {
        if began.elapsed() > TAKEN_MAX {
            left.iter().for_each(|path| _ = std::fs::remove_file(path));
            bail!("the peer that runs in this home does not take the changes; see `mingle status`");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Its status, which is asked next, is as old as one look into the inbox.
    std::thread::sleep(Duration::from_millis(500));
    Ok(true)
}

/// Runs a peer for as long as it takes to tell a neighbour.
fn alone(args: &PublishArgs, home: &Home, round: &Round, records: Vec<SignedRecord>) -> Result<bool> {
    let file = args.round.clone().unwrap_or_else(|| home.round(round.id()).folder().join("round.json"));
    let peer = PeerArgs { round: file, home: args.home.clone(), network: args.network.clone(), output: args.output };
    let goal = Goal { deadline: Some(args.timeout), ..Goal::default() };
    Ok(peer.open()?.run(Work::Tell(records), goal)?.reached && !args.network.offline)
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let home = args.home.open()?;
    let round = read_round(&args.round, &home)?;
    let manifest = round.manifest();
    let changes = known(&home.round(round.id()), &round)?;
    let keys: BTreeSet<MemberKey> = manifest.named().into_iter().chain(changes.iter().map(|change| change.key)).collect();
    let rows: Vec<_> = keys
        .into_iter()
        .filter_map(|key| match changes.iter().find(|change| change.key == key) {
            Some(change) => Some(change.clone()),
            None => Some(StandingStatus { key, standing: manifest.standing(&key)?, sequence: 0, approved_by: Vec::new() }),
        })
        .collect();
    if args.json {
        println!("{}", json!({ "round": round.id(), "private": round.is_private(), "founders": manifest.founders, "keys": rows }));
        return Ok(ExitCode::SUCCESS);
    }
    let kind = if round.is_private() { "private" } else { "open to readers" };
    println!("round    {}  \"{}\", {kind}", round.id(), manifest.name);
    if let Some(founders) = &manifest.founders {
        println!("founders {}, of whom {} must agree", founders.keys.len(), founders.threshold);
        founders.keys.iter().for_each(|founder| println!("         {founder}"));
    }
    if manifest.roster == Roster::Open {
        println!("roster   open: every key is a member that is not named here");
    }
    for row in &rows {
        let by: Vec<String> = row.approved_by.iter().map(MemberKey::short).collect();
        let since = if row.sequence == 0 { "by the round file".to_owned() } else { format!("by founders {}", by.join(", ")) };
        println!("{:8} {}  {since}", row.standing.name(), row.key);
    }
    Ok(ExitCode::SUCCESS)
}

/// The changes this home knows of: from the peer that runs, or from its store.
fn known(home: &RoundHome, round: &Round) -> Result<Vec<StandingStatus>> {
    if let Ok(status) = Status::read(&home.status_path())
        && status.is_live()
    {
        return Ok(status.standings);
    }
    if !home.store().exists() {
        return Ok(Vec::new());
    }
    let ledger = ledger_of(&Store::open(home.store())?, round)?;
    Ok(ledger.standing_records().filter_map(SignedRecord::standing).map(Into::into).collect())
}

fn round_of(file: Option<&Path>, home: &Home, id: RoundId) -> Result<Round> {
    let path = file.map_or_else(|| home.round(id).folder().join("round.json"), Path::to_owned);
    ensure!(is_link(&path) || path.exists(), "this home does not have the file of round {id}; give it with --round");
    let round = read_round(&path, home)?;
    ensure!(round.id() == id, "the changes are for round {id}, but {} is round {}", path.display(), round.id());
    Ok(round)
}

/// What a proposal says, and how many founders have yet to approve it.
fn tell(file: &Path, proposal: &Proposal, round: &Round, json: bool) -> Result<ExitCode> {
    let founders = round.manifest().founders.as_ref();
    let valid = |change: &Proposed| {
        let counts = |founder: &MemberKey| founders.is_none_or(|founders| founders.keys.contains(founder));
        change.approvals.iter().filter(|approval| counts(&approval.founder) && approval.is_of(&change.statement)).count()
    };
    let approvals = proposal.changes.iter().map(valid).min().unwrap_or_default();
    let threshold = founders.map_or(1, |founders| founders.threshold as usize);
    if json {
        let value = json!({ "file": file, "round": proposal.round, "changes": proposal.changes, "approvals": approvals,
            "threshold": threshold, "enough": approvals >= threshold });
        println!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    for Proposed { statement, .. } in &proposal.changes {
        println!("{} becomes {} (sequence {})", statement.subject, statement.becomes.name(), statement.sequence);
    }
    match approvals < threshold {
        true => println!("{}: approved by {approvals} of {threshold} founders; more do so with `mingle roster sign`", file.display()),
        false => println!("{}: approved by {approvals} founders; `mingle roster publish` tells the round", file.display()),
    }
    Ok(ExitCode::SUCCESS)
}
