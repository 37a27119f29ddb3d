//! `mingle export`: an adapter in the form that other programs read, or merged into its base's weights.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::base::BaseArg;
use super::progress;
use crate::card::Origin;
use crate::files;
use crate::merger::hash_of;
use crate::peft::{self, DIFFERENCE, Split, StoredUpdate, Truncated, Update};

const EXAMPLES: &str = "\
Examples:
  mingle export --adapter ./merged --rank 16 --out ./small              plain LoRA of rank 16, and what that leaves out
  mingle export --adapter ./merged --out ./plain                        plain LoRA of its greatest rank, nothing left out
  mingle export --base ./tinyllama --adapter ./merged --out ./model     a model of its own, in the base's types

The adapter is a PEFT directory; with --base it may also be the merged directory of a round of full training. Plain LoRA has one
rank and scale 1: what any program that reads PEFT directories reads right. The model is a Hugging Face directory that needs
neither PEFT nor mingle; it is written tensor by tensor, so memory need not hold it.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What was trained
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Rank of the plain LoRA to write: the best approximation of every module's update [default: its greatest rank]
    #[arg(long, value_name = "R", conflicts_with = "base", value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// Hugging Face directory of the base, to merge the adapter into
    #[arg(long, value_name = "DIR|NAME")]
    base: Option<BaseArg>,
    /// Most bytes of a file of weights, such as 5GB or 500MB [default: the files of the base, or 5GB]
    #[arg(long, value_name = "SIZE", requires = "base", value_parser = bytes)]
    shard_size: Option<u64>,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

/// As Hugging Face writes sizes: powers of 1000, or of 1024 with an `i`.
fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let size = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|size| *size > 0);
    size.ok_or_else(|| format!("{text:?} is no size: expected a whole number with or without a unit, such as 5GB or 500MiB"))
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} exists already; choose another directory to write", args.out.display());
    }
    match &args.base {
        Some(base) => as_model(&args, &base.directory()?),
        None => as_plain(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn as_model(args: &Args, base: &Path) -> Result<()> {
    let trained = StoredUpdate::open(&args.adapter)?;
    let origin = Origin::read(&args.adapter, trained.base(), Some(base))?;
    let file = [DIFFERENCE, peft::WEIGHTS].map(|name| args.adapter.join(name)).into_iter().find(|path| path.exists());
    let hash = hash_of(&file.context("there is no file of weights")?)?;
    let folder = files::unfinished_folder(&args.out)?;
    let refused = || format!("{} cannot be merged into {}", args.adapter.display(), base.display());
    let writing = progress::working(!args.json, "writing the model");
    peft::export(base, &trained, &folder, args.shard_size.map_or(Split::AsBase, Split::Bytes)).with_context(refused)?;
    let made = format!("`mingle export` merged what was trained (its file: BLAKE3 `{hash}`) into the base's weights.");
    origin.write(&folder, "transformers", &title(args), &made)?;
    files::replace_folder(&folder, &args.out)?;
    drop(writing);
    match args.json {
        true => println!("{}", json!({ "event": "written", "out": args.out })),
        false => println!("wrote {}", args.out.display()),
    }
    Ok(())
}

fn as_plain(args: &Args) -> Result<()> {
    let shown = args.adapter.display();
    let Update::Adapter(adapter) = Update::read(&args.adapter)? else {
        bail!("{shown} holds the differences of a full training, which have no rank: give --base to merge them into it");
    };
    let origin = Origin::read(&args.adapter, adapter.config.base.as_deref(), None)?;
    let rank = args.rank.map_or_else(|| adapter.rank_max(), |rank| rank as usize);
    let cutting = progress::working(!args.json, format!("finding the nearest adapter of rank {rank}"));
    let (plain, modules) = peft::truncate(&adapter, rank)?;
    drop(cutting);
    let share = Truncated::share(&modules);
    let folder = files::unfinished_folder(&args.out)?;
    peft::write(&folder, &plain)?;
    let source = hash_of(&args.adapter.join(peft::WEIGHTS))?;
    let mut made = format!("Plain LoRA of rank {rank}, made by `mingle export` of the adapter with BLAKE3 `{source}`.");
    if share > 0.0 {
        made += &format!(" Left out: {share:.3e} of the update's squared norm.");
    }
    origin.write(&folder, "peft", &title(args), &made)?;
    files::replace_folder(&folder, &args.out)?;
    if args.json {
        let module = |found: &Truncated| -> Value {
            json!({ "module": found.module, "rank": found.rank, "discarded": Truncated::share(std::slice::from_ref(found)) })
        };
        let modules: Vec<Value> = modules.iter().map(module).collect();
        println!("{}", json!({ "event": "written", "out": args.out, "rank": rank, "discarded": share, "modules": modules }));
        return Ok(());
    }
    let width = modules.iter().map(|found| found.module.len()).max().unwrap_or(0);
    println!("{:width$}  rank  left out", "module");
    for found in &modules {
        println!("{:width$}  {:4}  {:8.2e}", found.module, found.rank, Truncated::share(std::slice::from_ref(found)));
    }
    println!("{:width$}  {rank:4}  {share:8.2e}", "in all");
    println!("wrote {}", args.out.display());
    Ok(())
}

fn title(args: &Args) -> String {
    args.out.file_name().map_or_else(|| "adapter".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_as_hugging_face_writes_them() {
        let sizes = ["5GB", "500MiB", "12", "3 KB"].map(bytes);
        assert_eq!(sizes, [Ok(5_000_000_000), Ok(500 << 20), Ok(12), Ok(3_000)]);
        for wrong in ["", "GB", "0", "-1GB", "1.5GB", "99999999999TB", "5 apples"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
