//! `mingle round`: the file that says what a round's members agree on.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::Subcommand;
use mingle_protocol::adapter::{LoraShape, Scaling, Tensor};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::Roster;
use mingle_protocol::round::{AdapterKind, BaseModel, Manifest, MergeRule, Parent, Round, RoundFile, VERSION, WeightRule};
use mingle_protocol::standing::Readers;
use mingle_protocol::verdict::{JUDGED_MEMBERS_MAX, VerdictRule};

use super::args::{HomeArgs, RuleArgs};
use super::base::BaseArg;
use super::founding::{Founding, FoundingArgs};
use super::link::{self, GetArgs, LinkArgs};
use super::method::{MethodArg, MethodArgs};
use super::next::{NextArgs, next};
use super::{progress, source};
use crate::bases::name_of;
use crate::merged::{CheckedProof, Proof};
use crate::models::{self, base_digest};
use crate::train::tensors_of;
use crate::{files, rule};

const EXAMPLES: &str = "\
Examples:
  mingle round new --name \"ward notes\" --base ./tinyllama --rank 16 --out round.json
  mingle round new --base ./tinyllama --method subspace --subspaces 8 --rank 8 --out round.json
  mingle round new --base ./tinyllama --member 3f6a...  --member 91bc... --reader 07d2... --out round.json
  mingle round new --base ./tinyllama --member 3f6a... --founder 91bc... --founder 55e0... --threshold 2 --out round.json
  mingle round new --base ./tinyllama --peer /dns4/seed.example/tcp/4001 --out round.json
  mingle round sign round.json
  mingle round new --base ./tinyllama --rule multi-krum --faulty 2 --clip 2.5 --out round.json
  mingle round new --parent ./merged --name \"second round\" --out next.json
  mingle round next ./merged --out next.json         the same terms: base, shape, members, founders, peers
  mingle round show round.json --json
  mingle round link round.json                       one line for chat; --round takes it wherever it takes a file
  mingle round get \"mingle:...\" --out round.json";

/// Most members where nothing else is said.
const MEMBER_MAX: u32 = 1_000;

#[derive(Subcommand)]
pub enum Verb {
    /// Write a round file
    #[command(after_help = EXAMPLES)]
    New(Box<NewArgs>),
    /// Write the file of a round that goes on from a merged adapter, under the same terms
    #[command(after_help = EXAMPLES)]
    Next(NextArgs),
    /// Sign a round file as one of its founders
    #[command(after_help = EXAMPLES)]
    Sign(SignArgs),
    /// Show a round file: what it says, and who has signed it
    #[command(after_help = EXAMPLES)]
    Show(ShowArgs),
    /// Print a link to a round, short enough for chat
    #[command(after_help = EXAMPLES)]
    Link(LinkArgs),
    /// Follow a link and write the round file
    #[command(after_help = EXAMPLES)]
    Get(GetArgs),
}

#[derive(clap::Args)]
pub struct NewArgs {
    /// Name for people
    #[arg(long, default_value = "round")]
    name: String,
    /// Hugging Face directory of the base model, or the name of a model (`org/model`): from the Hugging Face cache, else from the hub
    #[arg(long, value_name = "DIR|NAME", required_unless_present = "parent")]
    base: Option<BaseArg>,
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
    #[command(flatten)]
    rule: RuleArgs,
    /// What an adapter counts for: `examples` (its training examples, up to the cap) or `equal` [default: examples; equal where
    /// the rule stands bad adapters]
    #[arg(long)]
    weight: Option<WeightArg>,
    /// Most examples that count for one member
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    weight_cap: u64,
    /// Most members [default: 1000, or what the rule takes; with --verdicts at most 256]
    #[arg(long, value_name = "N")]
    member_max: Option<u32>,
    /// Members judge each other's adapters on data of their own, and one counts once K others approve it; with 0 verdicts are
    /// only shown. Needs --member
    #[arg(long, value_name = "K")]
    verdicts: Option<u32>,
    #[command(flatten)]
    founding: FoundingArgs,
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
pub struct SignArgs {
    file: PathBuf,
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
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
        Verb::Next(args) => next(&args),
        Verb::Sign(args) => sign(&args),
        Verb::Show(args) => show(&source::read_file(&args.file)?, args.json),
        Verb::Link(args) => link::print(&args),
        Verb::Get(args) => show(&link::get(&args)?, args.json),
    }
}

fn new(args: NewArgs) -> Result<ExitCode> {
    let (base, kind, parent) = match &args.parent {
        Some(folder) => from_parent(folder, &args)?,
        None => (base_model(&args)?, kind(&args)?, None),
    };
    let rule = args.rule.rule()?;
    let weight = match args.weight {
        None if rule.is_robust() => WeightRule::Equal,
        None | Some(WeightArg::Examples) => WeightRule::Examples { cap: args.weight_cap },
        Some(WeightArg::Equal) => WeightRule::Equal,
    };
    // What a rule takes at most is the default where that is less.
    let most = [Some(MEMBER_MAX), rule.members_max(), args.verdicts.map(|_| JUDGED_MEMBERS_MAX)];
    let member_max = args.member_max.unwrap_or_else(|| most.into_iter().flatten().min().unwrap_or(MEMBER_MAX));
    if args.out.exists() {
        bail!("{} exists already; a round file is never overwritten", args.out.display());
    }
    let Founding { roster, founders, readers, peers, signer } = args.founding.settle()?;
    let manifest = Manifest {
        version: VERSION,
        name: args.name.clone(),
        base,
        kind,
        rule,
        weight,
        member_max,
        roster,
        parent,
        founders,
        readers,
        clip_millionths: args.rule.clip,
        verdicts: args.verdicts.map(|approvals| VerdictRule { approvals }),
    };
    let mut file = RoundFile { peers, ..Round::new(manifest)?.into() };
    if let Some(signer) = signer {
        file.sign(&signer);
    }
    file.check()?;
    files::write(&args.out, file.to_json().as_bytes())?;
    show(&file, args.json)
}

fn sign(args: &SignArgs) -> Result<ExitCode> {
    let (mut file, key) = (source::read_file(&args.file)?, args.home.open()?.key()?);
    let manifest = file.round.manifest();
    let founders = manifest.founders.as_ref().with_context(|| format!("round \"{}\" has no founders who could sign it", manifest.name))?;
    let member = key.member();
    anyhow::ensure!(founders.keys.contains(&member), "{member} is not a founder of round \"{}\"", manifest.name);
    file.sign(&key);
    // Those of strangers and of another file say nothing.
    let signers: Vec<_> = file.signers().collect();
    file.signatures.retain(|founder, _| signers.contains(founder));
    file.check()?;
    files::write(&args.file, file.to_json().as_bytes())?;
    show(&file, args.json)
}

fn base_of(args: &NewArgs) -> Result<PathBuf> {
    args.base.as_ref().context("--base is needed")?.directory()
}

fn base_model(args: &NewArgs) -> Result<BaseModel> {
    let folder = base_of(args)?;
    let name = args.base_name.clone().or_else(|| name_of(&folder)).context("--base-name is needed for this base directory")?;
    let _digesting = progress::working(!args.json, "digesting the base's weights");
    Ok(BaseModel { name, digest: base_digest(&folder)? })
}

fn kind(args: &NewArgs) -> Result<AdapterKind> {
    let folder = base_of(args)?;
    let modules = models::ModelConfig::read(&folder)?.modules(&args.method.targets)?;
    let tensor = |(name, tensor): (String, candle_core::Tensor)| {
        Tensor::new(name, tensor.dims().iter().map(|dimension| *dimension as u64).collect::<Vec<_>>())
    };
    let (mut saved, mut weights) = (Vec::new(), Vec::new());
    // Only what is trained whole needs more than the configuration.
    if args.method.method() == MethodArg::Full {
        weights = models::BaseModel::load(&folder, &Device::Cpu)?.decoder().weights().into_iter().map(tensor).collect();
    } else if !args.method.save_modules.is_empty() {
        let base = models::BaseModel::load(&folder, &Device::Cpu)?;
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

/// A merged adapter to go on from, with its proof.
pub(super) fn parent_of(folder: &Path) -> Result<(CheckedProof, Parent)> {
    let checked = Proof::read(folder)?
        .check_in(folder)
        .and_then(CheckedProof::whole)
        .with_context(|| format!("{} is not a merged adapter to go on from", folder.display()))?;
    let parent = Parent { round: checked.round.id(), merged: checked.receipt.merged };
    Ok((checked, parent))
}

/// A round that goes on from a merged adapter has its base, its shape and its merged hash.
fn from_parent(folder: &Path, args: &NewArgs) -> Result<(BaseModel, AdapterKind, Option<Parent>)> {
    let (checked, parent) = parent_of(folder)?;
    let manifest = checked.round.manifest();
    anyhow::ensure!(
        manifest.rule != MergeRule::Stack,
        "{} is a stack, whose rank is that of all its members together: no member can go on from it with the round's rank",
        folder.display()
    );
    if args.base.is_some() {
        let given = base_model(args)?;
        anyhow::ensure!(
            given.digest == manifest.base.digest,
            "--base has digest {}, but the parent round used {}",
            given.digest,
            manifest.base.digest
        );
    }
    Ok((manifest.base.clone(), manifest.kind.clone(), Some(parent)))
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

pub(super) fn show(file: &RoundFile, json: bool) -> Result<ExitCode> {
    let (round, signers) = (&file.round, file.signers().collect::<Vec<_>>());
    let manifest = round.manifest();
    if json {
        let value = serde_json::json!({ "id": round.id(), "manifest": manifest, "private": round.is_private(), "signed": file.is_signed(),
            "signed_by": signers, "peers": file.peers });
        println!("{value}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("round    {}  \"{}\"", round.id(), manifest.name);
    println!("base     {}  digest {}", manifest.base.name, manifest.base.digest);
    println!("adapter  {}, {} elements sent", sentence(round.kind()), round.tensors().elements());
    println!("merge    {}", rule::pinned(manifest));
    let most = match &manifest.roster {
        Roster::Open => u64::from(manifest.member_max),
        Roster::Members(members) => members.len() as u64,
    };
    if manifest.rule.is_robust() {
        println!("         stands {} bad adapters of {most}; needs {}", manifest.rule.stands(most), manifest.rule.needs());
    }
    match &manifest.roster {
        Roster::Open => println!("roster   open, at most {} members", manifest.member_max),
        Roster::Members(members) => {
            println!("roster   {} members", members.len());
            members.iter().for_each(|member| println!("         {member}"));
        }
    }
    match manifest.verdicts {
        None => {}
        Some(VerdictRule { approvals: 0 }) => println!("verdicts members judge each other's adapters; all count"),
        Some(VerdictRule { approvals }) => println!("verdicts an adapter counts once {approvals} other members approve it"),
    }
    match &manifest.readers {
        None | Some(Readers::Open) => println!("readers  everybody"),
        Some(Readers::Listed(readers)) => {
            println!("readers  {}; the round is private: members, readers and founders connect, nobody else", readers.len());
            readers.iter().for_each(|reader| println!("         {reader}"));
        }
    }
    if let Some(founders) = &manifest.founders {
        let signed = if file.is_signed() { "" } else { "; not signed by enough of them to be run" };
        println!("founders {}, of whom {} must agree{signed}", founders.keys.len(), founders.threshold);
        for founder in &founders.keys {
            println!("         {founder}  {}", if signers.contains(founder) { "signed" } else { "not signed" });
        }
    }
    file.peers.iter().for_each(|peer| println!("peer     {peer}"));
    if let Some(parent) = &manifest.parent {
        println!("parent   round {}, merged adapter {}", parent.round, parent.merged);
    }
    Ok(ExitCode::SUCCESS)
}
