//! `mingle bundle`: a round as one file, for sites without a network.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use mingle_protocol::round::{Round, RoundFile};

use super::args::{HomeArgs, OutputArgs};
use super::{EXIT_FALSE, progress, source};
use crate::bundle::{self, Bundle, BundleError, Imported, Refusals, Selection};
use crate::files;
use crate::home::Home;
use crate::merged::{self, Proof};
use crate::network::web::Web;
use crate::store::Store;
use crate::train::estimate::size;

const EXAMPLES: &str = "\
Examples:
  mingle bundle export --round round.json --out round.bundle                     all that this home knows
  mingle bundle import round.bundle --out ./merged                               at the site without a network
  mingle publish ./my-adapter --round round.json --examples 1200 --offline       its own adapter (or `mingle run --offline`)
  mingle bundle export --round round.json --adapters own --out back.bundle       and back
  mingle bundle import back.bundle --round round.json

A bundle holds the round file, the signed records and the adapters. An import believes none of it: records are verified
as if they had come over the network, adapters against their hash group by group, and the merge is computed here.
A peer that runs keeps its home locked: stop it first; started again, it goes on where it was.";

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Write what this home knows of a round as one file
    #[command(after_help = EXAMPLES)]
    Export(ExportArgs),
    /// Take what a bundle holds into this home, and merge
    #[command(after_help = EXAMPLES)]
    Import(ImportArgs),
    /// Say what is in a bundle
    #[command(after_help = EXAMPLES)]
    Show(ShowArgs),
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum AdaptersArg {
    /// Those of all members
    All,
    /// This member's alone
    Own,
    /// None: records only
    None,
}

#[derive(clap::Args)]
pub struct ExportArgs {
    /// The round file
    #[arg(long, value_name = "FILE")]
    round: PathBuf,
    /// The bundle to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Whose adapters to put in
    #[arg(long, default_value = "all")]
    adapters: AdaptersArg,
    /// Put the merged adapter in, for sites that need no more (with --adapters none: a small bundle)
    #[arg(long)]
    merged: bool,
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
pub struct ImportArgs {
    /// The bundle
    bundle: PathBuf,
    /// The round file: a bundle of any other round is refused [default: the one in the bundle]
    #[arg(long, value_name = "FILE")]
    round: Option<PathBuf>,
    /// Directory to write the merged adapter to, with its receipt
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args)]
pub struct ShowArgs {
    bundle: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Export(args) => export(&args),
        Verb::Import(args) => import(&args),
        Verb::Show(args) => show(&args),
    }
}

fn export(args: &ExportArgs) -> Result<ExitCode> {
    let home = args.home.open()?;
    let file = source::read(&args.round, &home, &[], &Web::default())?;
    let (round, text) = (file.round.clone(), file.to_json().into_bytes());
    let round_home = home.round(round.id());
    if args.out.exists() {
        bail!("{} exists already; choose another file to write", args.out.display());
    }
    ensure!(round_home.store().exists(), "{} knows nothing of round \"{}\"", home.folder().display(), round.manifest().name);
    let store = Store::open(round_home.store())?;
    let ledger = bundle::ledger_of(&store, &round)?;
    let selection = match args.adapters {
        AdaptersArg::All => Selection::All,
        AdaptersArg::None => Selection::None,
        AdaptersArg::Own => {
            let member = home.key()?.member();
            ensure!(ledger.candidates().any(|entry| entry.member == member), "member {member} has announced no adapter that counts");
            Selection::Of(member)
        }
    };
    let merged = round_home.merged_current();
    ensure!(!args.merged || merged.exists(), "{} has no merged adapter of this round yet", home.folder().display());
    let bar = progress::bytes(!(args.output.json || args.output.quiet));
    let merged = args.merged.then_some(merged.as_path());
    let told = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let exported = bundle::export(&args.out, (&round, &text), (&store, &ledger), selection, merged, told)?;
    bar.finish_and_clear();
    if args.output.json {
        let mut value = serde_json::to_value(&exported)?;
        value["out"] = serde_json::to_value(&args.out)?;
        value["round"] = serde_json::to_value(round.id())?;
        println!("{value}");
    } else if !args.output.quiet {
        println!("wrote {}: {}", args.out.display(), size(exported.bytes));
        println!("records   {}", exported.records);
        println!("adapters  {}", exported.adapters);
        if let Some(merged) = exported.merged {
            println!("merged    {merged}");
        }
    }
    if !exported.missing.is_empty() && !args.output.json {
        eprintln!("{} adapters are announced but not in this home, so they are not in the bundle", exported.missing.len());
    }
    Ok(ExitCode::SUCCESS)
}

fn import(args: &ImportArgs) -> Result<ExitCode> {
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        bail!("{} exists already; choose another directory to write", out.display());
    }
    let home = args.home.open()?;
    let expected = args.round.as_deref().map(|round| source::read_round(round, &home)).transpose()?;
    let unusable = || format!("{} is not a bundle to be used here, and nothing was taken from it", args.bundle.display());
    let bundle = open(&args.bundle)?;
    let file = round_in(&bundle, expected).with_context(unusable)?;
    let round = file.round.clone();
    let round_home = home.round(round.id());
    // What this home has may have more signatures and addresses.
    if !round_home.round_file().exists() {
        round_home.keep(&file)?;
    }
    let bar = progress::bytes(!(args.output.json || args.output.quiet));
    let told = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let imported = bundle::import(&bundle, &round, &round_home, told).map_err(|error| match error.is::<BundleError>() {
        true => error.context(unusable()),
        false => error,
    })?;
    bar.finish_and_clear();
    let recomputed = args.out.as_deref().map(|out| write_merged(&bundle, &round, &imported, out)).transpose()?.flatten();
    if args.output.json {
        print_json(args, &bundle, &round, &imported, recomputed)?;
    } else {
        print(args, &home, &bundle, &round, &imported, recomputed);
    }
    Ok(if imported.is_clean() && bundle.missing() == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FALSE) })
}

fn open(path: &Path) -> Result<Bundle> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Bundle::open(file).with_context(|| format!("{} is no bundle", path.display()))
}

/// The bundle's round file, which is of the expected round.
fn round_in(bundle: &Bundle, expected: Option<Round>) -> Result<RoundFile, BundleError> {
    let file = RoundFile::from_json(&bundle.round_file()?)?;
    let expected = expected.map_or(bundle.index.round, |expected| expected.id());
    for found in [file.round.id(), bundle.index.round] {
        if found != expected {
            return Err(BundleError::OtherRound { found, expected });
        }
    }
    Ok(file)
}

/// Writes the merged adapter to `out`; whether it was computed here. Where adapters are missing, the one that travelled along
/// is taken, if its receipt is about the very set that counts here. `None` when there is neither.
fn write_merged(bundle: &Bundle, round: &Round, imported: &Imported, out: &Path) -> Result<Option<bool>> {
    if let (Some((_, folder)), true) = (&imported.merged, imported.missing.is_empty()) {
        files::copy_folder(folder, out)?;
        return Ok(Some(true));
    }
    if let (Some(receipt), Some(merged)) = (bundle.receipt()?, bundle.merged()?) {
        let proof: Proof = serde_json::from_slice(&receipt).context("the bundle's receipt is not a receipt")?;
        let checked = proof.check().and_then(merged::CheckedProof::whole).context("the bundle's receipt is refused")?;
        if checked.round.id() == round.id() && checked.receipt.admitted == imported.admitted {
            merged::write_given(out, round, &proof, merged)?;
            return Ok(Some(false));
        }
    }
    let Some((_, folder)) = &imported.merged else { return Ok(None) };
    files::copy_folder(folder, out)?;
    Ok(Some(true))
}

fn print_json(args: &ImportArgs, bundle: &Bundle, round: &Round, imported: &Imported, recomputed: Option<bool>) -> Result<()> {
    let mut value = serde_json::to_value(imported)?;
    value["round"] = serde_json::to_value(round.id())?;
    value["bytes_missing"] = bundle.missing().into();
    value["merged"] = match &imported.merged {
        None => serde_json::Value::Null,
        Some((receipt, _)) => serde_json::json!({
            "adapters": receipt.admitted.len(), "weight": receipt.weight(), "set_root": receipt.set_root, "merged_hash": receipt.merged,
        }),
    };
    value["out"] = serde_json::to_value(args.out.as_ref().filter(|_| recomputed.is_some()))?;
    value["recomputed"] = serde_json::to_value(recomputed)?;
    println!("{value}");
    Ok(())
}

fn print(args: &ImportArgs, home: &Home, bundle: &Bundle, round: &Round, imported: &Imported, recomputed: Option<bool>) {
    let refused = |what: &str, refusals: &Refusals| {
        refusals.reasons.iter().for_each(|why| eprintln!("refused {what}: {why}"));
        let more = refusals.count.saturating_sub(refusals.reasons.len() as u64);
        if more > 0 {
            eprintln!("refused {what}: {more} more");
        }
    };
    refused("record", &imported.records.refused);
    refused("adapter", &imported.adapters.refused);
    if bundle.missing() > 0 {
        eprintln!("the bundle ends {} bytes early; what came before was taken if it verified", bundle.missing());
    }
    if args.output.quiet {
        return;
    }
    println!("round     {}  \"{}\"", round.id(), round.manifest().name);
    for (what, taken) in [("records", &imported.records), ("adapters", &imported.adapters)] {
        println!("{what:9} {} new, {} known, {} refused", taken.new, taken.known, taken.refused.count);
    }
    if !imported.missing.is_empty() {
        println!("          {} adapters are announced but not here", imported.missing.len());
    }
    match &imported.merged {
        None => println!("merged    nothing yet"),
        Some((receipt, _)) => {
            println!("merged    {} adapters, total weight {}", receipt.admitted.len(), receipt.weight());
            println!("          merged hash {}", receipt.merged);
            println!("          {}", home.round(round.id()).merged_current().display());
        }
    }
    match (&args.out, recomputed) {
        (Some(out), Some(true)) => println!("wrote {}", out.display()),
        (Some(out), Some(false)) => {
            println!("wrote {} as the bundle has it: the adapters are not here, so its hash could not be computed anew", out.display());
        }
        (Some(out), None) => eprintln!("there is no merged adapter to write to {}", out.display()),
        (None, _) => {}
    }
}

fn show(args: &ShowArgs) -> Result<ExitCode> {
    let bundle = open(&args.bundle)?;
    let round = round_in(&bundle, None).with_context(|| format!("{} cannot be used", args.bundle.display()))?.round;
    let mut records: u64 = 0;
    bundle.records::<anyhow::Error>(|_| {
        records += 1;
        Ok(())
    })?;
    let index = &bundle.index;
    let bytes = index.adapters.iter().map(|part| part.size).fold(0, u64::saturating_add);
    let merged = index.merged.map(|parts| parts.file.hash);
    if args.json {
        let value = serde_json::json!({
            "round": round.id(), "name": round.manifest().name, "records": records, "adapters": index.adapters, "merged": merged,
            "bytes_missing": bundle.missing(),
        });
        println!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("round     {}  \"{}\"", round.id(), round.manifest().name);
    println!("records   {records}");
    println!("adapters  {} of {} in all", index.adapters.len(), size(bytes));
    if let Some(merged) = merged {
        println!("merged    {merged}");
    }
    if bundle.missing() > 0 {
        println!("the file ends {} bytes early", bundle.missing());
    }
    Ok(ExitCode::SUCCESS)
}
