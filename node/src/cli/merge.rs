//! `mingle merge`: the same fold as a round's, offline, over PEFT directories.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mingle_protocol::adapter::{LoraShape, Module};
use mingle_protocol::merge::{Accumulator, Direction};

use crate::files;
use crate::merged::write_tensors;
use crate::merger::CheckedAdapter;
use crate::peft::{self, AdapterConfig};

const EXAMPLES: &str = "\
Examples:
  mingle merge hospital-a=1200 hospital-b=800 --out ./merged
  mingle merge a=1 b=1 c=1 --out ./merged --json

Each DIR is a PEFT directory of plain LoRA; all need the same rank, alpha and modules. The result is the exact weighted
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
    let config = peft::read_config(first)?;
    let mut average = Accumulator::new(&shape_of(first, &config)?)?;
    let tensors = average.tensors().clone();
    for (folder, weight) in &args.adapters {
        let found = peft::read_config(folder)?;
        if (found.rank, found.alpha) != (config.rank, config.alpha) {
            bail!(
                "{} has rank {} and alpha {}, but {} has rank {} and alpha {}: they cannot be averaged tensor by tensor",
                folder.display(),
                found.rank,
                found.alpha,
                first.display(),
                config.rank,
                config.alpha
            );
        }
        let refused = || format!("{} cannot be merged", folder.display());
        let file = File::open(folder.join(peft::WEIGHTS)).with_context(refused)?;
        let mut checked = CheckedAdapter::read(file, &tensors).with_context(refused)?;
        checked.fold(&mut average, *weight, Direction::Add).with_context(refused)?;
    }
    let folder = files::unfinished_folder(&args.out)?;
    let merged = write_tensors(&folder.join(peft::WEIGHTS), &average)?;
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

/// The shape of an adapter on disk, from its tensors: what its configuration says of modules is a pattern, not a list.
fn shape_of(folder: &Path, config: &AdapterConfig) -> Result<LoraShape> {
    let adapter = peft::read(folder)?;
    let alpha = config.alpha;
    anyhow::ensure!(
        alpha.fract() == 0.0 && (1.0..=65_536.0).contains(&alpha),
        "{} has alpha {alpha}, but a whole number is needed",
        folder.display()
    );
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for name in adapter.modules() {
        let dims = |which| {
            let wanted = peft::Adapter::tensor_name(&name, which);
            let found = adapter.tensors.iter().find(|tensor| tensor.name == wanted);
            found.map(|tensor| tensor.dims).with_context(|| format!("{} lacks {wanted}", folder.display()))
        };
        let (inputs, outputs) = (dims('A')?[1] as u64, dims('B')?[0] as u64);
        modules.insert(name.clone(), Module { name, inputs, outputs });
    }
    Ok(LoraShape { rank: u32::try_from(config.rank)?, alpha: alpha as u32, seed: [0; 32], modules: modules.into_values().collect() })
}
