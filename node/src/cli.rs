//! The `mingle` program: one file a verb, one way to end.
//!
//! Exit codes: 0 done; 1 failed, with a sentence and where possible a hint on standard error; 2 the command line is
//! wrong; 3 stopped or out of time before the goal was reached; 4 a verification found something false.

mod args;
mod base;
mod bundle;
mod config;
mod current;
mod eval;
mod export;
mod fetch;
mod founding;
mod hint;
mod http;
mod interrupt;
mod judging;
mod key;
mod link;
mod merge;
mod method;
mod next;
mod preview;
mod probe;
mod progress;
mod publish;
mod reference;
mod roster;
mod round;
mod run;
mod seed;
mod serve;
mod source;
mod status;
mod train;
mod training;
mod verify;
mod watch;
mod withdraw;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use config::Settings;

pub const EXIT_UNREACHED: u8 = 3;
pub const EXIT_FALSE: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  mingle key new                                    make this institution's key
  mingle round new --base ./base --out round.json   agree on what is trained
  mingle run --round round.json --data notes.jsonl  join: all else is in the file, or in the link to it
  mingle fetch --round round.json --peer /ip4/10.0.0.7/tcp/4001 --adapters 3 --out ./merged
  mingle verify ./merged

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 goal not reached in time, 4 verification found something false";

/// Fine-tune one foundation model together, with no server.
#[derive(Parser)]
#[command(name = "mingle", bin_name = "mingle", version, about, after_help = EXAMPLES)]
struct Cli {
    /// Configuration file [default: config.toml in the home; see `mingle config show --help`]
    #[arg(long = "config", global = true, value_name = "FILE")]
    _config: Option<std::path::PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make or show this institution's key
    #[command(subcommand)]
    Key(key::Verb),
    /// Make or show a round: what its members agree on
    #[command(subcommand)]
    Round(round::Verb),
    /// Change who belongs to a round while it runs
    #[command(subcommand)]
    Roster(roster::Verb),
    /// Run a member: train, announce, fetch, merge, and keep serving
    Run(run::Args),
    /// Check before joining: data, base, memory, disk, GPU, and what the network lets through
    Probe(probe::Args),
    /// Run a public peer that others meet at, which relays and keeps for them
    Seed(seed::Args),
    /// Show what a model would be given of some data, and what of it it would learn
    Preview(preview::Args),
    /// Train here only and write a PEFT directory
    Train(train::Args),
    /// Announce a PEFT directory made by any trainer, and keep serving it
    Publish(publish::Args),
    /// Take this member's adapter back: every peer's merge is then as if it had never been in
    Withdraw(withdraw::Args),
    /// Read only: fetch the adapters, verify and merge them, and write the result
    Fetch(fetch::Args),
    /// Carry a round to a site without a network, and back, as one file
    #[command(subcommand)]
    Bundle(bundle::Verb),
    /// Merge PEFT directories offline with the same exact arithmetic
    Merge(merge::Args),
    /// Check a merged directory: signatures, set root and, with the adapters, every byte of the merge
    Verify(verify::Args),
    /// Ask the round whether a merged directory still holds only what counts
    Current(current::Args),
    /// Measure a base or an adapter on held-out data
    Eval(eval::Args),
    /// Answer from a base, an adapter or a round's merge, behind OpenAI's API
    Serve(serve::Args),
    /// Merge an adapter into its base and write the model
    Export(export::Args),
    /// Show what a peer is doing
    Status(status::Args),
    /// Show where the values of options come from: command line, environment, configuration file
    #[command(subcommand)]
    Config(config::Verb),
    /// Print what makes a shell complete this program's options
    Completions(reference::CompletionsArgs),
    /// Write a manual page for every verb
    Man(reference::ManArgs),
    /// Show what a peer is doing as it changes, in a terminal
    Watch(watch::Args),
}

/// Runs the program on this process's arguments.
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

/// As a shell has it for a program that was stopped by a closed pipe.
const EXIT_UNHEARD: i32 = 141;

/// Ends the program where nobody reads any more what it says (`mingle status | head`), instead of calling that a fault.
fn end_unheard() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let why = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if why.starts_with("failed printing to stdout") && why.contains("Broken pipe") {
            std::process::exit(EXIT_UNHEARD);
        }
        usual(panic);
    }));
}

/// Runs the program on given arguments, the first being its name.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    end_unheard();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = Cli::command();
    let settings = match Settings::read(&command, &arguments) {
        Ok(settings) => settings,
        Err(error) => return failed(&error, ExitCode::from(2)),
    };
    let parsed = settings.apply(command).try_get_matches_from(&arguments).and_then(|found| Cli::from_arg_matches(&found));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail over a help text.
            let _ = error.print();
            if let Some(place) = settings.blamed(&error, &arguments) {
                eprintln!("hint: {place}");
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MINGLE_LOG").unwrap_or_else(|_| "off".into());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let done = match cli.verb {
        Verb::Key(verb) => key::run(verb),
        Verb::Round(verb) => round::run(verb),
        Verb::Roster(verb) => roster::run(verb),
        Verb::Run(args) => run::run(args),
        Verb::Probe(args) => probe::run(args),
        Verb::Seed(args) => seed::run(args),
        Verb::Preview(args) => preview::run(&args),
        Verb::Train(args) => train::run(args),
        Verb::Publish(args) => publish::run(args),
        Verb::Withdraw(args) => withdraw::run(args),
        Verb::Fetch(args) => fetch::run(args),
        Verb::Bundle(verb) => bundle::run(verb),
        Verb::Merge(args) => merge::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Current(args) => current::run(args),
        Verb::Eval(args) => eval::run(args),
        Verb::Serve(args) => serve::run(args),
        Verb::Export(args) => export::run(args),
        Verb::Status(args) => status::run(args),
        Verb::Config(verb) => config::run(verb, &Cli::command(), &settings),
        Verb::Completions(args) => Ok(reference::completions(&args, Cli::command())),
        Verb::Man(args) => reference::man(&args, Cli::command()),
        Verb::Watch(args) => watch::run(args),
    };
    done.unwrap_or_else(|error| failed(&error, ExitCode::FAILURE))
}

/// The text of docs/cli.md.
pub fn reference() -> String {
    reference::reference(Cli::command())
}

fn failed(error: &anyhow::Error, code: ExitCode) -> ExitCode {
    eprintln!("error: {}", hint::sentence(error));
    if let Some(hint) = hint::hint(error) {
        eprintln!("hint: {hint}");
    }
    code
}
