//! `mingle merge`: the same merge as a round's, offline, over PEFT directories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use mingle_protocol::adapter::{FullShape, MergedFile, Tensor, TensorList, Updates};
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::{MergeRule, Plan};

use super::args::RuleArgs;
use super::progress;
use crate::files;
use crate::merged::write_tensors;
use crate::merger::{Source, merge_files};
use crate::peft::{self, Adapter, AdapterConfig};

const EXAMPLES: &str = "\
Examples:
  mingle merge hospital-a=1200 hospital-b=800 --out ./merged
  mingle merge a=1 b=1 c=1 --rule median --out ./merged
  mingle merge a=1200 b=800 --rule stack --clip 2.5 --out ./merged --json

Each DIR is a PEFT directory; all need the same modules, and but for a stack the same ranks and scales. Any order of the
arguments gives the same bytes. Rules that stand bad adapters need equal weights.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Adapters and what each counts for
    #[arg(required = true, value_name = "DIR=WEIGHT", value_parser = weighted)]
    adapters: Vec<(PathBuf, u64)>,
    #[command(flatten)]
    rule: RuleArgs,
    /// PEFT directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

fn weighted(text: &str) -> Result<(PathBuf, u64), String> {
    let (folder, weight) = text.rsplit_once('=').ok_or("expected DIR=WEIGHT, such as ./adapter=1200")?;
    match weight.parse() {
        Ok(weight) if weight > 0 => Ok((folder.into(), weight)),
        _ => Err(format!("{weight:?} is not a weight: expected a whole number of at least 1")),
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} exists already; choose another directory to write", args.out.display());
    }
    let rule = args.rule.rule()?;
    let (first, first_weight) = args.adapters.first().context("there is nothing to merge")?;
    let equal = args.adapters.iter().all(|(_, weight)| weight == first_weight);
    ensure!(equal || !rule.is_robust(), "the rule {} counts every adapter alike; give all the same weight", rule.name());
    let adapter = peft::read(first)?;
    let (config, modules) = (adapter.config.clone(), adapter.modules());
    let configs = args.adapters.iter().map(|(folder, _)| Ok(peft::read_config(folder)?)).collect::<Result<Vec<_>>>()?;
    if rule != MergeRule::Stack {
        for ((folder, _), found) in args.adapters.iter().zip(&configs) {
            check_same(&modules, first, &config, folder, found)?;
        }
    }
    let tensors = tensors_of(&adapter, rule, &configs).with_context(|| format!("{} cannot be merged", first.display()))?;
    let updates = updates_of(&tensors, &config);
    let whole = "some tensors are stored whole, and how far they moved cannot be seen without the base";
    ensure!(args.rule.clip.is_none() || !updates.are_mixed(), "--clip cannot be used: {whole}");
    let plan = Plan::new(rule, args.rule.clip, updates, MergedFile::of_means(tensors));
    let mut sources = Vec::new();
    for ((folder, weight), config) in args.adapters.iter().zip(&configs) {
        let weight = if rule.is_robust() { 1 } else { *weight };
        let source = Source::scaled(&plan, &updates_of(plan.tensors(), config), MemberKey([0; 32]), weight, &folder.join(peft::WEIGHTS));
        sources.push((folder, source.with_context(|| format!("{} cannot be merged", folder.display()))?));
    }
    // Whoever is called first: the files' own order.
    sources.sort_by_key(|(_, source)| (source.adapter, source.weight));
    let (folders, mut sources): (Vec<&PathBuf>, Vec<Source>) = sources.into_iter().unzip();
    for (index, source) in sources.iter_mut().enumerate() {
        source.key.0[..8].copy_from_slice(&(index as u64).to_be_bytes());
    }
    let folder = files::unfinished_folder(&args.out)?;
    let merging = progress::working(!args.json, format!("merging {} adapters", sources.len()));
    let (merged, made) = write_tensors(&folder.join(peft::WEIGHTS), |sink| merge_files(&plan, &sources, sink))
        .inspect_err(|_| _ = std::fs::remove_dir_all(&folder))?;
    let config = if rule == MergeRule::Stack { stacked(config, made.tensors.rank()) } else { config };
    files::write(&folder.join(peft::CONFIG), format!("{:#}\n", config.to_json()).as_bytes())?;
    files::replace_folder(&folder, &args.out)?;
    drop(merging);
    let (adapters, weight) = (sources.len(), sources.iter().fold(0_u64, |sum, source| sum.saturating_add(source.weight)));
    let name = |index: usize| folders.get(index).map(PathBuf::from).unwrap_or_default();
    let place = |key: &MemberKey| key.0.first_chunk().map_or(0, |index| u64::from_be_bytes(*index) as usize);
    let clipped: BTreeMap<PathBuf, f64> = made.account.clipped.iter().map(|(key, clip)| (name(place(key)), clip.value())).collect();
    let left_out: Vec<PathBuf> = made.account.left_out.iter().map(|key| name(place(key))).collect();
    if args.json {
        let told = serde_json::json!({ "out": args.out, "rule": rule, "adapters": adapters, "weight": weight, "merged_hash": merged,
            "stands": rule.stands(adapters as u64), "clipped": clipped, "left_out": left_out });
        println!("{told}");
        return Ok(ExitCode::SUCCESS);
    }
    clipped.iter().for_each(|(folder, part)| println!("clipped {} to {part:.6} of its update", folder.display()));
    left_out.iter().for_each(|folder| println!("left out {}", folder.display()));
    println!("merged {adapters} adapters (total weight {weight}) into {}", args.out.display());
    println!("rule {}, which stands {} bad ones among so many", rule.name(), rule.stands(adapters as u64));
    println!("merged hash {merged}");
    Ok(ExitCode::SUCCESS)
}

fn check_same(modules: &[String], first: &Path, config: &AdapterConfig, folder: &Path, found: &AdapterConfig) -> Result<()> {
    let differs = |name: &&String| (found.rank_of(name), found.scale_of(name)) != (config.rank_of(name), config.scale_of(name));
    if let Some(module) = modules.iter().find(differs) {
        let said = |folder: &Path, config: &AdapterConfig| {
            format!("{} has rank {} and scale {}", folder.display(), config.rank_of(module), config.scale_of(module))
        };
        bail!("{}, but {} in {module}: they cannot be averaged tensor by tensor", said(folder, found), said(first, config));
    }
    Ok(())
}

/// The tensors of an adapter on disk; for a stack with the highest rank that anybody gives a module.
fn tensors_of(adapter: &Adapter, rule: MergeRule, configs: &[AdapterConfig]) -> Result<TensorList> {
    let most = |tensor: &str| configs.iter().map(|config| config.rank_of(module_of(tensor)) as u64).max().unwrap_or(0);
    let dims = |tensor: &peft::AdapterTensor| {
        let mut dims: Vec<u64> = tensor.dims.iter().map(|dimension| *dimension as u64).collect();
        let place = if tensor.name.ends_with(".lora_A.weight") { 0 } else { 1 };
        if let Some(rank) = dims.get_mut(place).filter(|_| rule == MergeRule::Stack && tensor.name.contains(".lora_")) {
            *rank = most(&tensor.name);
        }
        dims
    };
    let weights = adapter.tensors.iter().map(|tensor| Tensor::new(tensor.name.clone(), dims(tensor))).collect();
    let tensors = FullShape { weights }.tensors()?;
    Ok(if rule == MergeRule::Stack { tensors.up_to()? } else { tensors })
}

fn updates_of(tensors: &TensorList, config: &AdapterConfig) -> Updates {
    Updates::of_pairs(tensors, |tensor| config.scale_of(module_of(tensor)))
}

/// The module of a low-rank tensor, as the base names it.
fn module_of(tensor: &str) -> &str {
    let module = tensor.strip_prefix("base_model.model.").unwrap_or(tensor);
    module.rsplit_once(".lora_").map_or(module, |(module, _)| module)
}

/// The scales are in B, and every module has the one rank.
fn stacked(config: AdapterConfig, rank: u64) -> AdapterConfig {
    let (rank_pattern, alpha_pattern) = (Vec::new(), Vec::new());
    AdapterConfig { rank: rank as usize, alpha: rank as f64, rslora: false, rank_pattern, alpha_pattern, ..config }
}
