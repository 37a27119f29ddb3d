//! `mingle export`: a base with an adapter merged into its weights, as a model of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use serde_json::json;

use crate::files;
use crate::models::BaseModel;
use crate::peft::{self, Update};

const EXAMPLES: &str = "\
Examples:
  mingle export --base ./tinyllama --adapter ./merged --out ./model

The adapter is a PEFT directory, or the merged directory of a round of full training. The result is a Hugging Face directory
that needs neither PEFT nor mingle.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the base
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// What was trained on it
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} exists already; choose another directory to write", args.out.display());
    }
    let update = Update::read(&args.adapter)?;
    let base = BaseModel::load(&args.base, &Device::Cpu)?;
    let folder = files::unfinished_folder(&args.out)?;
    peft::export(&base, &update, &folder)
        .with_context(|| format!("{} cannot be merged into {}", args.adapter.display(), args.base.display()))?;
    files::replace_folder(&folder, &args.out)?;
    match args.json {
        true => println!("{}", json!({ "event": "written", "out": args.out })),
        false => println!("wrote {}", args.out.display()),
    }
    Ok(ExitCode::SUCCESS)
}
