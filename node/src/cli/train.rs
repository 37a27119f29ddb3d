//! `mingle train`: a training on this machine alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mingle_protocol::number::{Spread, seeded};
use serde_json::json;

use super::EXIT_UNREACHED;
use super::args::{HomeArgs, OutputArgs};
use super::base::{self, BaseArg};
use super::interrupt::Interrupt;
use super::method::{MethodArgs, PatternArgs};
use super::progress;
use super::source::read_round;
use super::training::TrainingArgs;
use crate::bases::name_of;
use crate::console::Console;
use crate::contribution::{Beginning, TrainingPlan, check_base, diagnose, name_base, status_of, train};
use crate::driver::Event;
use crate::files;
use crate::peft::{DIFFERENCE, Split, StoredUpdate, Update, export};
use crate::train::diagnostics::Diagnostics;
use crate::train::estimate::{Estimate, size};
use crate::train::{Control, Outcome, Trained, checkpoint};

const EXAMPLES: &str = "\
Examples:
  mingle train --base ./tinyllama --data notes.jsonl --out ./adapter
  mingle train --base ./tinyllama --data notes.jsonl --rank 8 --targets q_proj,v_proj --out ./adapter
  mingle train --base ./tinyllama --data notes.jsonl --round round.json --out ./adapter
  mingle train --base ./tinyllama --data notes.jsonl --method full --out ./model
  mingle train --base ./tinyllama --data notes.jsonl --preset paper-lora --dry-run
  mingle train --base ./tinyllama --data notes.jsonl --evaluate-every 20 --patience 3 --keep-best \\
               --metrics run.jsonl --tensorboard ./runs/1 --out ./adapter

Stopped (Ctrl-C) or killed, the same command goes on from the last checkpoint and ends with the same bytes.";

/// What a round says by itself.
const THE_ROUNDS: [&str; 10] =
    ["method", "rank", "alpha", "targets", "rslora", "save_modules", "subspaces", "interval", "rank_pattern", "alpha_pattern"];

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the base, or the name of a model (`org/model`): from the Hugging Face cache, else from the hub
    #[arg(long, value_name = "DIR|NAME")]
    base: BaseArg,
    /// Training data: JSON lines, .csv, .parquet or (with classes) .tsv; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    /// Directory to write: PEFT's, or with `--method full` the whole model
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Say what the training would take, and do not train
    #[arg(long)]
    dry_run: bool,
    /// Take rank, alpha, modules and the common start from this round
    #[arg(long, value_name = "FILE", conflicts_with_all = THE_ROUNDS)]
    round: Option<PathBuf>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    patterns: PatternArgs,
    /// Start from this PEFT directory
    #[arg(long, value_name = "DIR")]
    start_from: Option<PathBuf>,
    /// Also measure what the one-round theorem speaks of (smoothness, size of the update), into diagnostics.json
    #[arg(long)]
    diagnostics: bool,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let home = args.home.open()?;
    let round = args.round.as_deref().map(|round| read_round(round, &home)).transpose()?;
    let origin = args.base.directory()?;
    let mut plan = args.training.plan(origin.clone(), args.data, args.start_from);
    args.method.set(&mut plan.settings);
    args.patterns.set(&mut plan.settings.low_rank);
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&plan.settings.seed.to_le_bytes());
    if let Some(round) = &round {
        let _checking = progress::working(!args.output.json, base::CHECKING);
        check_base(&origin, round, &home.digests())?;
        plan = plan.for_round(round);
        seed = round.kind().low_rank().map_or(seed, |shape| shape.seed);
    }
    let Some(out) = args.out.filter(|_| !args.dry_run) else { return dry_run(&plan, args.output.json) };
    let unfinished = beside(&out);
    if out.exists() {
        return exists(&out, &unfinished, args.output);
    }
    let device = plan.device.open()?;
    let (base, examples) = plan.load(&device)?;
    let from = plan.start_from.as_deref().map(Update::read).transpose()?;
    let draw = |name: &str, count: usize, spread: Spread| seeded(&seed, name, count, spread).collect::<Vec<f32>>();
    let start = Beginning { draw: &draw, from: from.as_ref() };
    let mut console = Console::new(args.output.json, args.output.quiet);
    if !(args.output.json || args.output.quiet) {
        console.line(&format!("computing on {}", device.line()));
        if let Some(why) = device.fallback.as_ref().filter(|_| cfg!(any(feature = "cuda", feature = "metal"))) {
            console.line(&format!("no GPU is used: {why}"));
        }
    }
    let interrupt = Interrupt::new()?;
    let outcome = train(&base, &examples, &plan, start, Some(&unfinished), |progress| {
        console.show(&Event::Training(status_of(progress)));
        if interrupt.asked() { Control::Stop } else { Control::Continue }
    })?;
    let mut trained = match outcome {
        Outcome::Finished(trained) => trained,
        Outcome::Stopped { step, steps } => {
            if args.output.json {
                println!("{}", json!({ "event": "stopped", "step": step, "steps": steps, "checkpoint": unfinished }));
            } else {
                console.line(&format!("stopped after step {step} of {steps}; the same command goes on from there"));
            }
            return Ok(ExitCode::from(EXIT_UNREACHED));
        }
    };
    let name = name_of(&origin);
    name_base(&mut trained.adapter, round.as_ref().map(|round| round.manifest().base.name.clone()).or(name));
    let folder = files::unfinished_folder(&out)?;
    match (&trained.adapter, &round) {
        // Outside a round people want the model, not what was added to it.
        (update @ Update::Difference(_), None) => {
            update.write(&folder)?;
            export(base.dir(), &StoredUpdate::open(&folder)?, &folder, Split::AsBase)?;
            std::fs::remove_file(folder.join(DIFFERENCE))?;
        }
        (update, _) => update.write(&folder)?,
    }
    let diagnostics = args.diagnostics.then(|| diagnose(&base, from.as_ref(), &trained, &examples, &plan.settings)).transpose()?;
    if let Some(found) = &diagnostics {
        found.write(&folder)?;
    }
    files::replace_folder(&folder, &out)?;
    remove_checkpoint(&unfinished)?;
    tell(&trained, diagnostics.as_ref(), &out, args.output, &mut console);
    Ok(ExitCode::SUCCESS)
}

/// Where the checkpoint of a training that will write `out` lies.
fn beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".training");
    name.into()
}

/// A result that stands there already is kept, unless it is this training's own: one that was killed after it had written
/// its adapter and before it had removed its checkpoint.
fn exists(out: &Path, unfinished: &Path, output: OutputArgs) -> Result<ExitCode> {
    if !unfinished.join(checkpoint::FILE).exists() {
        bail!("{} exists already; choose another directory to write", out.display());
    }
    remove_checkpoint(unfinished)?;
    match output.json {
        true => println!("{}", json!({ "event": "written", "out": out })),
        false => eprintln!("{} was complete already", out.display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn remove_checkpoint(folder: &Path) -> Result<()> {
    checkpoint::remove(folder).context("the adapter is written, but its checkpoint cannot be removed")?;
    // Only if it is empty: it may have been there before.
    let _ = std::fs::remove_dir(folder);
    Ok(())
}

fn tell(trained: &Trained<Update>, diagnostics: Option<&Diagnostics>, out: &Path, output: OutputArgs, console: &mut Console) {
    let losses = trained.losses;
    console.show(&Event::Trained {
        examples: trained.examples,
        loss_before: Some(losses.before),
        loss_after: Some(losses.after),
        seconds: trained.seconds,
    });
    let steps = trained.step_losses.len();
    if output.json {
        let evaluation = |evaluation: &crate::train::Evaluation| json!({ "step": evaluation.step, "loss": evaluation.loss });
        let evaluations: Vec<_> = trained.evaluations.iter().map(evaluation).collect();
        let summary = json!({ "event": "written", "out": out, "examples": trained.examples, "tokens": trained.tokens,
            "seconds": trained.seconds, "loss_before": losses.before, "loss_after": losses.after, "steps": steps,
            "chosen_step": trained.chosen_step, "stopped_early": trained.stopped_early, "evaluations": evaluations, "diagnostics": diagnostics,
            "privacy": trained.promise });
        println!("{summary}");
    } else if !output.quiet {
        if let Some(promise) = &trained.promise {
            console.line(&promise.to_string());
        }
        if trained.stopped_early {
            console.line(&format!("ended after {steps} steps: the held-out loss no longer improved"));
        }
        if trained.chosen_step < steps {
            console.line(&format!("the adapter is that of step {}, where the held-out loss was lowest", trained.chosen_step));
        }
        if let Some(found) = diagnostics {
            let Diagnostics { smoothness, tau, gamma, epsilon, .. } = found;
            console.line(&format!("one-round theorem: L {smoothness:.3}, tau {tau:.2e}, gamma {gamma:.2e}, epsilon {epsilon:.3}"));
        }
        console.line(&format!("wrote {}", out.display()));
    }
}

/// Says what a training would take.
fn dry_run(plan: &TrainingPlan, json: bool) -> Result<ExitCode> {
    let examples = plan.examples()?;
    let found = plan.estimate(&examples)?;
    plan.settings.check()?;
    let promise = plan.settings.promise(examples.train.len(), found.steps as usize)?;
    if json {
        let fits = found.check().is_ok();
        println!("{}", json!({ "estimate": found, "held_out_examples": examples.held_out.len(), "fits": fits, "privacy": promise }));
    } else {
        print!("{}", table(&found, examples.held_out.len(), plan));
        promise.iter().for_each(|promise| println!("{promise}"));
    }
    if !plan.ignore_memory {
        found.check()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(found: &Estimate, held_out: usize, plan: &TrainingPlan) -> String {
    let bytes = &found.bytes;
    let share = 100.0 * found.trainable_parameters as f64 / found.parameters.max(1) as f64;
    let mut lines = vec![
        ("parameters", format!("{}", found.parameters)),
        ("trained", format!("{} ({share:.2} %)", found.trainable_parameters)),
        ("examples", format!("{}, and {held_out} held out; the longest has {} tokens", found.examples, found.longest_tokens)),
        ("steps", format!("{} over {} epochs, {} tokens", found.steps, plan.settings.epochs, found.tokens)),
        ("weights", size(bytes.weights + bytes.packed)),
        ("trained values", size(bytes.trained + bytes.best)),
        ("gradients", size(bytes.gradients)),
        ("moments", size(bytes.moments)),
        ("activations", format!("{}; with --recompute {}", size(bytes.activations_kept), size(bytes.activations_recomputed))),
        ("examples, program", size(bytes.examples + bytes.process)),
        ("needed", format!("{}; with --recompute {}", size(found.needed_bytes), size(found.needed_recomputed()))),
    ];
    lines.extend(found.available_bytes.map(|available| ("free", size(available))));
    lines.into_iter().map(|(name, value)| format!("{name:18}{value}\n")).collect()
}
