//! `mingle round`: the file that says what a round's members agree on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::Subcommand;
use mingle_protocol::adapter::{LoraShape, Scaling, Tensor};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::{MemberKey, Roster};
use mingle_protocol::round::{AdapterKind, BaseModel, Manifest, MergeRule, Parent, Round, VERSION, WeightRule};

use super::args::read_round;
use super::method::{MethodArg, MethodArgs};
use crate::merged::Proof;
use crate::models::{self, base_digest};
use crate::sent::merged_file;
use crate::train::tensors_of;
use crate::{files, merger};

const EXAMPLES: &str = "\
Examples:
  mingle round new --name \"ward notes\" --base ./tinyllama --rank 16 --out round.json
  mingle round new --base ./tinyllama --method subspace --subspaces 8 --rank 8 --out round.json
  mingle round new --base ./tinyllama --member 3f6a...  --member 91bc... --out round.json
  mingle round new --parent ./merged --name \"second round\" --out next.json
  mingle round show round.json --json";

#[derive(Subcommand)]
pub enum Verb {
    /// Write a round file
    #[command(after_help = EXAMPLES)]
    New(Box<NewArgs>),
    /// Show a round file
    #[command(after_help = EXAMPLES)]
    Show(ShowArgs),
}

#[derive(clap::Args)]
pub struct NewArgs {
    /// Name for people
    #[arg(long, default_value = "round")]
    name: String,
    /// Hugging Face directory of the base model
    #[arg(long, value_name = "DIR", required_unless_present = "parent")]
    base: Option<PathBuf>,
    /// Name of the base, as PEFT will look it up [default: the directory's name]
    #[arg(long, value_name = "NAME")]
    base_name: Option<String>,
    /// Merged directory of an earlier round to go on from: its base and adapter shape are taken over
    #[arg(long, value_name = "DIR")]
    parent: Option<PathBuf>,
    #[command(flatten)]
    method: MethodArgs,
    /// 64 hex digits that all members draw their common start from [default: random]
    #[arg(long, value_name = "HEX")]
    seed: Option<ContentHash>,
    /// What an adapter counts for: `examples` (its training examples, up to the cap) or `equal`
    #[arg(long, default_value = "examples")]
    weight: WeightArg,
    /// Most examples that count for one member
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    weight_cap: u64,
    /// Most members
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    member_max: u32,
    /// Public key of a member that may announce; given several times. Without any, everybody may
    #[arg(long = "member", value_name = "KEY")]
    members: Vec<MemberKey>,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "round.json")]
    out: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum WeightArg {
    Examples,
    Equal,
}

#[derive(clap::Args)]
pub struct ShowArgs {
    file: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::New(args) => new(*args),
        Verb::Show(args) => show(&read_round(&args.file)?, args.json),
    }
}

fn new(args: NewArgs) -> Result<ExitCode> {
    let (base, kind, parent) = match &args.parent {
        Some(folder) => from_parent(folder, &args)?,
        None => (base_model(&args)?, kind(&args)?, None),
    };
    let weight = match args.weight {
        WeightArg::Examples => WeightRule::Examples { cap: args.weight_cap },
        WeightArg::Equal => WeightRule::Equal,
    };
    let roster =
        if args.members.is_empty() { Roster::Open } else { Roster::Members(args.members.iter().copied().collect::<BTreeSet<_>>()) };
    let manifest = Manifest {
        version: VERSION,
        name: args.name.clone(),
        base,
        kind,
        rule: MergeRule::Mean,
        weight,
        member_max: args.member_max,
        roster,
        parent,
        founders: None,
        readers: None,
    };
    let round = Round::new(manifest)?;
    if args.out.exists() {
        bail!("{} exists already; a round file is never overwritten", args.out.display());
    }
    files::write(&args.out, round.to_json().as_bytes())?;
    show(&round, args.json)
}

fn base_model(args: &NewArgs) -> Result<BaseModel> {
    let folder = args.base.as_deref().context("--base is needed")?;
    let named = std::path::absolute(folder)?.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = args.base_name.clone().or(named).context("--base-name is needed for this base directory")?;
    Ok(BaseModel { name, digest: base_digest(folder)? })
}

fn kind(args: &NewArgs) -> Result<AdapterKind> {
    let folder = args.base.as_deref().context("--base is needed")?;
    let modules = models::ModelConfig::read(folder)?.modules(&args.method.targets)?;
    let tensor = |(name, tensor): (String, candle_core::Tensor)| {
        Tensor::new(name, tensor.dims().iter().map(|dimension| *dimension as u64).collect::<Vec<_>>())
    };
    let (mut saved, mut weights) = (Vec::new(), Vec::new());
    // Only what is trained whole needs more than the configuration.
    if args.method.method() == MethodArg::Full {
        weights = models::BaseModel::load(folder, &Device::Cpu)?.decoder().weights().into_iter().map(tensor).collect();
    } else if !args.method.save_modules.is_empty() {
        let base = models::BaseModel::load(folder, &Device::Cpu)?;
        saved = tensors_of(&base, &args.method.save_modules)?.into_iter().map(tensor).collect();
    }
    let seed = match args.seed {
        Some(seed) => seed.0,
        None => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random numbers from the operating system: {error}"))?;
            seed
        }
    };
    args.method.kind(&modules, saved, weights, seed)
}

/// A round that goes on from a merged adapter has its base, its shape and its merged hash.
fn from_parent(folder: &Path, args: &NewArgs) -> Result<(BaseModel, AdapterKind, Option<Parent>)> {
    let checked = Proof::read(folder)?.check().with_context(|| format!("{} is not a merged adapter to go on from", folder.display()))?;
    let merged = merger::hash_of(&merged_file(folder, checked.round.kind()))?;
    if merged != checked.receipt.merged {
        bail!("{} does not hold the merged adapter its receipt speaks of", folder.display());
    }
    let manifest = checked.round.manifest();
    if args.base.is_some() {
        let given = base_model(args)?;
        anyhow::ensure!(
            given.digest == manifest.base.digest,
            "--base has digest {}, but the parent round used {}",
            given.digest,
            manifest.base.digest
        );
    }
    Ok((manifest.base.clone(), manifest.kind.clone(), Some(Parent { round: checked.round.id(), merged })))
}

fn sentence(kind: &AdapterKind) -> String {
    let low_rank = |shape: &LoraShape| {
        let scaling = if shape.scaling == Scaling::Rslora { " scaled by the root of the rank" } else { "" };
        let saved = if shape.saved.is_empty() { String::new() } else { format!(", {} tensors whole", shape.saved.len()) };
        format!("rank {}, alpha {}{scaling}, {} modules{saved}", shape.rank, shape.alpha, shape.modules.len())
    };
    match kind {
        AdapterKind::Lora(shape) | AdapterKind::FrozenA(shape) => format!("{}, {}", kind.name(), low_rank(shape)),
        AdapterKind::Subspace(shape) => {
            format!("subspace, {} times {}, in turns of {} steps", shape.seeds, low_rank(&shape.lora), shape.interval)
        }
        AdapterKind::Full(shape) => format!("full, {} weights", shape.weights.len()),
    }
}

fn show(round: &Round, json: bool) -> Result<ExitCode> {
    let manifest = round.manifest();
    if json {
        println!("{}", serde_json::json!({ "id": round.id(), "manifest": manifest }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("round    {}  \"{}\"", round.id(), manifest.name);
    println!("base     {}  digest {}", manifest.base.name, manifest.base.digest);
    println!("adapter  {}, {} elements sent", sentence(round.kind()), round.tensors().elements());
    match manifest.weight {
        WeightRule::Equal => println!("merge    mean, every adapter counts 1"),
        WeightRule::Examples { cap } => println!("merge    mean, weighted by examples up to {cap}"),
    }
    match &manifest.roster {
        Roster::Open => println!("roster   open, at most {} members", manifest.member_max),
        Roster::Members(members) => {
            println!("roster   {} members", members.len());
            members.iter().for_each(|member| println!("         {member}"));
        }
    }
    if let Some(parent) = &manifest.parent {
        println!("parent   round {}, merged adapter {}", parent.round, parent.merged);
    }
    Ok(ExitCode::SUCCESS)
}
