//! Many mingle peers on one machine: real processes on loopback, real training, one report.

use clap::{Parser, Subcommand};
use mingle_testnet::pretrain::MakeBase;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the embedded base anew.
    MakeBase(MakeBase),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::MakeBase(make) => make.run().map(drop),
    }
}
