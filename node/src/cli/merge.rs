//! `mingle merge`: the same fold as a round's, offline, over PEFT directories.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mingle_protocol::adapter::{FullShape, MergedFile, Tensor, TensorList};
use mingle_protocol::merge::{Accumulator, Direction};

use crate::files;
use crate::merged::write_tensors;
use crate::merger::CheckedAdapter;
use crate::peft::{self, Adapter, AdapterConfig};

const EXAMPLES: &str = "\
Examples:
  mingle merge hospital-a=1200 hospital-b=800 --out ./merged
  mingle merge a=1 b=1 c=1 --out ./merged --json

Each DIR is a PEFT directory; all need the same ranks, scales and modules. The result is the exact weighted
mean: any order of the arguments gives the same bytes.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Adapters and what each counts for
    #[arg(required = true, value_name = "DIR=WEIGHT", value_parser = weighted)]
    adapters: Vec<(PathBuf, u64)>,
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
    let (first, _) = args.adapters.first().context("there is nothing to merge")?;
    let adapter = peft::read(first)?;
    let tensors = tensors_of(&adapter).with_context(|| format!("{} cannot be merged", first.display()))?;
    let (config, modules) = (adapter.config.clone(), adapter.modules());
    let mut average = Accumulator::new(&tensors);
    for (folder, weight) in &args.adapters {
        let found = peft::read_config(folder)?;
        let differs = |name: &&String| (found.rank_of(name), found.scale_of(name)) != (config.rank_of(name), config.scale_of(name));
        if let Some(module) = modules.iter().find(differs) {
            let said = |folder: &Path, config: &AdapterConfig| {
                format!("{} has rank {} and scale {}", folder.display(), config.rank_of(module), config.scale_of(module))
            };
            bail!("{}, but {} in {module}: they cannot be averaged tensor by tensor", said(folder, &found), said(first, &config));
        }
        let refused = || format!("{} cannot be merged", folder.display());
        let file = File::open(folder.join(peft::WEIGHTS)).with_context(refused)?;
        let mut checked = CheckedAdapter::read(file, &tensors).with_context(refused)?;
        checked.fold(&mut average, *weight, Direction::Add).with_context(refused)?;
    }
    let folder = files::unfinished_folder(&args.out)?;
    let merged = write_tensors(&folder.join(peft::WEIGHTS), &average, &MergedFile::of_means(tensors))?;
    files::write(&folder.join(peft::CONFIG), format!("{:#}\n", config.to_json()).as_bytes())?;
    files::replace_folder(&folder, &args.out)?;
    let (adapters, weight) = (average.members(), average.total_weight());
    if args.json {
        println!("{}", serde_json::json!({ "out": args.out, "adapters": adapters, "weight": weight, "merged_hash": merged }));
    } else {
        println!("merged {adapters} adapters (total weight {weight}) into {}", args.out.display());
        println!("merged hash {merged}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The tensors of an adapter on disk.
fn tensors_of(adapter: &Adapter) -> Result<TensorList> {
    let dims = |dims: &[usize]| dims.iter().map(|dimension| *dimension as u64).collect::<Vec<_>>();
    let weights = adapter.tensors.iter().map(|tensor| Tensor::new(tensor.name.clone(), dims(&tensor.dims))).collect();
    Ok(FullShape { weights }.tensors()?)
}
