//! What the testnet can be asked.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::attacks::AttackOptions;
use crate::pretrain::MakeBase;
use crate::tasks::Split;

const EXAMPLES: &str = "\
Examples:
  mingle-testnet                                  4 members, 1 reader, the embedded base and tasks
  mingle-testnet --members 6 --readers 2 --split domain
  mingle-testnet --method subspace --rounds 0
  mingle-testnet --base ./small-llama --data gsm8k_train.jsonl --examples 0
  mingle-testnet --http                           all peers on one page, at http://127.0.0.1:7700
  mingle-testnet --http --serve                   and chat with what they merge, at http://127.0.0.1:8080/v1
  mingle-testnet attacks                          merge rules against attackers
  mingle-testnet --json report.json --report ./report

Exit codes: 0 every peer and reader holds the same merged hash, 1 something failed, 2 wrong usage";

/// Start members and readers as real processes on this machine, fine-tune, merge, and compare.
#[derive(Parser, Clone, Debug)]
#[command(name = "mingle-testnet", version, about, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Members, each with a private shard
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub members: u32,
    /// Read-only peers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub readers: u32,
    /// Hugging Face directory of another base than the embedded one
    #[arg(long, value_name = "DIR", requires = "data")]
    pub base: Option<PathBuf>,
    /// JSON lines to share out instead of the embedded tasks; with `--split domain` one file a member, cycling
    #[arg(long, value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// JSON lines to measure on [default: the sibling of `--data` with "test" for "train" in its name, else a part of the data]
    #[arg(long, value_name = "FILE", requires = "data")]
    pub eval_data: Option<PathBuf>,
    /// Examples to measure on at most; 0 for all
    #[arg(long, default_value_t = 400, value_name = "N")]
    pub eval_examples: usize,
    /// Examples of each member; 0 for all the data there is
    #[arg(long, default_value_t = 192, value_name = "N")]
    pub examples: usize,
    /// How tasks are shared out
    #[arg(long, default_value = "iid")]
    pub split: Split,
    /// What members train and send
    #[arg(long, default_value = "lora", value_parser = ["lora", "frozen-a", "subspace", "full"])]
    pub method: String,
    /// Random subspaces of `--method subspace`
    #[arg(long, default_value_t = 8, value_name = "K")]
    pub subspaces: u32,
    /// Steps in one subspace before the next one's turn
    #[arg(long, default_value_t = 10, value_name = "STEPS")]
    pub interval: u32,
    /// Epochs of each member in all; the multi-round run spreads them over its rounds [default: 9 on the embedded tasks,
    /// 3 on data of your own]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub epochs: Option<u32>,
    /// Rounds of the multi-round comparison; 0 leaves it out
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Leave out the training on all data in one place
    #[arg(long)]
    pub no_centralised: bool,
    /// LoRA rank
    #[arg(long, default_value_t = 8)]
    pub rank: u32,
    /// LoRA alpha [default: 64; with subspaces the rank, which scales by 1]
    #[arg(long)]
    pub alpha: Option<u32>,
    #[arg(long, default_value_t = 8)]
    pub batch_size: u32,
    #[arg(long, default_value_t = 2e-3)]
    pub learning_rate: f64,
    /// Tokens an example is cut at
    #[arg(long, default_value_t = 256)]
    pub max_length: u32,
    /// Seed of tasks, shards, common start and shuffling (the defaults of rank, alpha, rate and epochs were chosen on seeds
    /// 1 and 2)
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// Folder for the report: table, JSON and the merged adapter
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// File for the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Show all peers on one page, in a browser; it stays at the end until Ctrl-C [address without a value: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = mingle::http::DEFAULT_ADDRESS, value_parser = mingle::http::address)]
    pub http: Option<SocketAddr>,
    /// Answer from the first member's merge as it comes, behind OpenAI's API, and go on after the comparison until Ctrl-C
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = mingle::serving::DEFAULT_ADDRESS)]
    pub serve: Option<SocketAddr>,
    /// Keep the peers' homes and logs
    #[arg(long)]
    pub keep: bool,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Verb {
    /// Make the embedded base anew
    MakeBase(MakeBase),
    /// Measure what each merge rule stands of attackers
    Attacks(AttackOptions),
}

impl Options {
    pub fn alpha(&self) -> u32 {
        self.alpha.unwrap_or(if self.method == "subspace" { self.rank } else { 64 })
    }

    /// Epochs of each member in all.
    pub fn epochs(&self) -> u32 {
        self.epochs.unwrap_or(if self.data.is_empty() { 9 } else { 3 })
    }
}
