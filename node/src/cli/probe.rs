//! `mingle probe`: what would go wrong after joining, said before it.

mod here;
mod reach;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::args::{HomeArgs, NetworkArgs, peers_of, seconds};
use super::base::BaseArg;
use super::source;
use super::training::TrainingArgs;
use crate::bases::Places;

const EXAMPLES: &str = "\
Examples:
  mingle probe --round round.json --data notes.jsonl --base ./tinyllama --peer /dns4/seed.example/tcp/4001
  mingle probe --round round.json --data notes.jsonl --json

Each line is one check: ok, warn (it works, but not as well as it could), fail (joining would fail), or skip (not asked for).
Exit code 0 when nothing failed, 1 when something did. Other options of `mingle run` for the training are taken too.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The round file
    #[arg(long, value_name = "FILE")]
    round: PathBuf,
    /// Private training data: JSON lines, .csv, .parquet or (with classes) .tsv; may be given several times
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Hugging Face directory of the round's base [default: found by its name]
    #[arg(long, value_name = "DIR|NAME")]
    base: Option<BaseArg>,
    /// Longest wait for other peers, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    timeout: Duration,
    /// One JSON object a check on standard output instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    home: HomeArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    training: TrainingArgs,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    Warn,
    Fail,
    Skip,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub check: &'static str,
    pub level: Level,
    pub fact: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(check: &'static str, fact: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, fact: fact.into(), remedy: None }
    }

    fn skip(check: &'static str, fact: impl Into<String>) -> Self {
        Self { check, level: Level::Skip, fact: fact.into(), remedy: None }
    }

    fn warn(check: &'static str, fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, fact: fact.into(), remedy: Some(remedy.into()) }
    }

    fn fail(check: &'static str, fact: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, fact: fact.into(), remedy: Some(remedy.into()) }
    }

    /// What an error says, with the advice there is for it.
    fn error(check: &'static str, error: &anyhow::Error, otherwise: &str) -> Self {
        Self::fail(check, super::hint::sentence(error), super::hint::hint(error).unwrap_or_else(|| otherwise.to_owned()))
    }

    fn show(&self, json: bool) {
        if json {
            println!("{}", serde_json::json!(self));
            return;
        }
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
            Level::Skip => "skip",
        };
        println!("{level:5} {:10} {}", self.check, self.fact);
        if let Some(remedy) = &self.remedy {
            println!("{:16} {remedy}", "");
        }
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let home = args.home.open()?;
    let file = source::read(&args.round, &home, &args.network.peers, &args.network.tls.web()?)?;
    let round = &file.round;
    let (key, _) = home.key_or_create()?;
    let mut failed = false;
    let mut show = |checks: Vec<Check>| {
        for check in checks {
            check.show(args.json);
            failed |= check.level == Level::Fail;
        }
    };
    show(vec![here::round(&file), here::key(round, &key, !args.data.is_empty())]);
    let (base, digests) = (args.base.as_ref().map(BaseArg::directory).transpose()?, home.digests());
    show(here::training(round, &Places::of_process(Some(&args.round)), base.as_deref(), &digests, &args.data, &args.training));
    show(vec![here::disk(round, home.folder()), here::gpu(args.training.compute.device), here::udp()]);
    let mut network = args.network.clone();
    network.peers = peers_of(&args.round, &file, &network)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start the runtime")?;
    show(runtime.block_on(reach::checks(round, &key, &network, args.timeout))?);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
