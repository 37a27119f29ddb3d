//! `mingle train`: a training on this machine alone.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mingle_protocol::number::{Spread, seeded};
use serde_json::json;

use super::args::{OutputArgs, TrainingArgs, read_round};
use super::method::MethodArgs;
use crate::console::Console;
use crate::contribution::{check_base, status_of, train};
use crate::driver::Event;
use crate::peft;
use crate::train::{Control, Start, checkpoint};

const EXAMPLES: &str = "\
Examples:
  mingle train --base ./tinyllama --data notes.jsonl --out ./adapter
  mingle train --base ./tinyllama --data notes.jsonl --rank 8 --targets q_proj,v_proj --out ./adapter
  mingle train --base ./tinyllama --data notes.jsonl --round round.json --out ./adapter

Interrupted, the same command goes on from the last checkpoint and ends with the same bytes.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the base
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Training data, JSON lines; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// PEFT directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Take rank, alpha, modules and the common start from this round
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "rank", "alpha", "targets", "rslora", "save_modules", "subspaces", "interval"])]
    round: Option<PathBuf>,
    #[command(flatten)]
    method: MethodArgs,
    /// Start from this PEFT directory
    #[arg(long, value_name = "DIR")]
    start_from: Option<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    if args.out.exists() {
        bail!("{} exists already; choose another directory to write", args.out.display());
    }
    let round = args.round.as_deref().map(read_round).transpose()?;
    let mut plan = args.training.plan(args.base.clone(), args.data, args.start_from);
    args.method.set(&mut plan.settings);
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&plan.settings.seed.to_le_bytes());
    if let Some(round) = &round {
        check_base(&args.base, round)?;
        plan = plan.for_round(round);
        seed = round.kind().low_rank().map_or(seed, |shape| shape.seed);
    }
    let (base, examples) = plan.load()?;
    let from = plan.start_from.as_deref().map(peft::read).transpose()?;
    let draw = |name: &str, count: usize, spread: Spread| seeded(&seed, name, count, spread).collect::<Vec<f32>>();
    let start = from.as_ref().map_or(Start::Drawn(&draw), Start::Adapter);
    let mut unfinished = args.out.clone().into_os_string();
    unfinished.push(".training");
    let unfinished = PathBuf::from(unfinished);
    let mut console = Console::new(args.output.json, args.output.quiet);
    let mut trained = train(&base, &examples, &plan.settings, start, Some(&unfinished), |progress| {
        console.show(&Event::Training(status_of(progress)));
        Control::Continue
    })?;
    let name = std::path::absolute(&args.base)?.file_name().map(|name| name.to_string_lossy().into_owned());
    trained.adapter.config.base = round.as_ref().map(|round| round.manifest().base.name.clone()).or(name);
    peft::write(&args.out, &trained.adapter)?;
    checkpoint::remove(&unfinished).context("the adapter is written, but its checkpoint cannot be removed")?;
    // Only if it is empty: it may have been there before.
    let _ = std::fs::remove_dir(&unfinished);
    let losses = trained.losses;
    console.show(&Event::Trained {
        examples: trained.examples as u64,
        loss_before: Some(losses.before),
        loss_after: Some(losses.after),
        seconds: trained.seconds,
    });
    if args.output.json {
        let summary = json!({ "event": "written", "out": args.out, "examples": trained.examples, "tokens": trained.tokens,
            "seconds": trained.seconds, "loss_before": losses.before, "loss_after": losses.after });
        println!("{summary}");
    } else if !args.output.quiet {
        console.line(&format!("wrote {}", args.out.display()));
    }
    Ok(ExitCode::SUCCESS)
}
