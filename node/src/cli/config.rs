//! Where an option's value comes from: the command line, else the environment, else the configuration file, else its
//! default. And `mingle config`, which tells.
//!
//! Every option of every verb can be set in each of these ways, under one name: `--max-length`, `MINGLE_MAX_LENGTH`,
//! `max-length`. Nothing is written here: the file is its owner's.

mod file;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};
use serde_json::json;

use crate::home;
use file::ConfigFile;

const FILE: &str = "config.toml";
/// What only makes sense on a command line.
const ELSEWHERE: [&str; 3] = ["config", "help", "version"];

const EXAMPLES: &str = "\
Examples:
  mingle config show                    what is set, for every verb, and where
  mingle config show run                all that `mingle run` would be given
  mingle config show round new --all    also options that nothing sets

An option is taken from the command line, else from the environment (MINGLE_ and its name: MINGLE_BATCH_SIZE), else from the
configuration file, else it has its default. A list is taken whole from the first of these that has it.
The file is config.toml in the peer's home, or the one of --config or MINGLE_CONFIG:

  peer = [\"/dns4/seed.example/tcp/4001\"]    # of every verb that has --peer

  [run]                                     # of this verb alone
  data = [\"notes.jsonl\"]
  threads = 8
  mdns = true

  [round.new]
  threshold = 2";

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Show the values of options and where each comes from
    Show(ShowArgs),
}

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArgs {
    /// Of this verb alone
    #[arg(value_name = "VERB")]
    verb: Vec<String>,
    /// Also options that have no value
    #[arg(long)]
    all: bool,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

/// The program's command line with what environment and configuration file say of its options.
pub struct Settings {
    file: ConfigFile,
}

impl Settings {
    /// Reads the file that these arguments lead to.
    ///
    /// # Errors
    /// A file that was asked for and is not there, or one that cannot be used.
    pub fn read(command: &Command, arguments: &[OsString]) -> Result<Self> {
        let given = option(arguments, "--config").or_else(|| variable("MINGLE_CONFIG"));
        let path = match &given {
            Some(path) => Some(PathBuf::from(path)),
            None => {
                let home = option(arguments, "--home").or_else(|| variable("MINGLE_HOME")).map(PathBuf::from);
                home.or_else(home::default_folder).map(|folder| folder.join(FILE))
            }
        };
        Ok(Self { file: ConfigFile::read(path, given.is_some(), command)? })
    }

    /// The command whose options have the values that are set for them as defaults.
    pub fn apply(&self, command: Command) -> Command {
        self.apply_to(command, &mut Vec::new())
    }

    fn apply_to(&self, command: Command, verb: &mut Vec<String>) -> Command {
        let mut command = command.mut_args(|arg| self.settle(arg, verb));
        let names: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        for name in names {
            verb.push(name.clone());
            command = command.mut_subcommand(name, |sub| self.apply_to(sub, verb));
            verb.pop();
        }
        command
    }

    fn settle(&self, arg: Arg, verb: &[String]) -> Arg {
        let Some(name) = name_of(&arg) else { return arg };
        let mut arg = arg;
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            arg = arg.value_parser(BoolishValueParser::new());
        }
        // An empty variable is one that somebody meant to take away.
        let named = variable_of(&name);
        if arg.get_env().is_none() && variable(&named).is_some() {
            arg = arg.env(named);
        }
        // What holds for all verbs may be a list in one verb and a single value in another.
        let is_list = matches!(arg.get_action(), ArgAction::Append);
        match self.file.get(verb, &name).filter(|(_, values)| is_list || values.len() == 1) {
            Some((_, values)) => arg.required(false).default_values(values.to_vec()),
            None => arg,
        }
    }

    /// Where a value comes from that the command line refuses, if not from there.
    pub fn blamed(&self, error: &clap::Error, arguments: &[OsString]) -> Option<String> {
        let Some(clap::error::ContextValue::String(shown)) = error.get(clap::error::ContextKind::InvalidArg) else { return None };
        let name = shown.split([' ', '=']).next()?.strip_prefix("--")?;
        if option(arguments, &format!("--{name}")).is_some() {
            return None;
        }
        let variable_name = variable_of(name);
        if variable(&variable_name).is_some() {
            return Some(format!("the value is that of the environment variable {variable_name}"));
        }
        // No verb has more than two words.
        let verb: Vec<String> = arguments.iter().skip(1).take(2).map(|word| word.to_string_lossy().into_owned()).collect();
        self.file.get(&verb, name).map(|(table, _)| format!("the value is in {}, {table}", self.file.shown()))
    }
}

/// The name of an option that can be set elsewhere than on the command line.
fn name_of(arg: &Arg) -> Option<String> {
    arg.get_long().filter(|name| !ELSEWHERE.contains(name)).map(str::to_owned)
}

fn variable_of(name: &str) -> String {
    format!("MINGLE_{}", name.to_uppercase().replace('-', "_"))
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// What follows an option among arguments.
fn option(arguments: &[OsString], name: &str) -> Option<OsString> {
    let before_end = || arguments.iter().take_while(|argument| *argument != "--");
    let apart = before_end().position(|argument| argument == name).and_then(|place| arguments.get(place + 1)).cloned();
    let joined = || before_end().find_map(|argument| Some(OsString::from(argument.to_str()?.strip_prefix(name)?.strip_prefix('=')?)));
    apart.or_else(joined)
}

/// One option with its value.
struct Row {
    verb: String,
    name: String,
    values: Vec<String>,
    source: &'static str,
    place: Option<String>,
}

pub fn run(verb: Verb, command: &Command, settings: &Settings) -> Result<ExitCode> {
    let Verb::Show(args) = verb;
    let mut chosen = command;
    for name in &args.verb {
        let known: Vec<&str> = chosen.get_subcommands().map(Command::get_name).collect();
        let found = chosen.find_subcommand(name);
        ensure!(found.is_some(), "there is no verb {:?}{}", args.verb.join(" "), file::nearest(name, known));
        chosen = found.unwrap_or(chosen);
    }
    let mut rows = Vec::new();
    collect(chosen, &mut args.verb.clone(), settings, &mut rows);
    // Of all verbs at once what is set is of interest, not every default.
    rows.retain(|row| args.all || matches!(row.source, "environment" | "file") || (!args.verb.is_empty() && row.source == "default"));
    if args.json {
        let option =
            |row: &Row| json!({ "verb": row.verb, "option": row.name, "values": row.values, "source": row.source, "where": row.place });
        let options: Vec<_> = rows.iter().map(option).collect();
        println!("{}", json!({ "file": settings.file.path, "read": settings.file.is_there, "options": options }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("file  {}", settings.file.shown());
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0) + 2;
    let mut before = String::new();
    for row in &rows {
        if row.verb != before {
            println!("\n{}", row.verb);
            before.clone_from(&row.verb);
        }
        let place = row.place.as_ref().map_or(String::new(), |place| format!(" ({place})"));
        println!("  {:width$}  {}  <- {}{place}", format!("--{}", row.name), row.values.join(" "), row.source);
    }
    if rows.is_empty() {
        println!("nothing is set in the environment or the file; --all shows what could be");
    }
    Ok(ExitCode::SUCCESS)
}

fn collect(command: &Command, verb: &mut Vec<String>, settings: &Settings, rows: &mut Vec<Row>) {
    for arg in command.get_arguments() {
        let Some(name) = name_of(arg) else { continue };
        let named = variable_of(&name);
        let text = |value: &OsStr| value.to_string_lossy().into_owned();
        let (values, source, place) = match (variable(&named), settings.file.get(verb, &name)) {
            (Some(value), _) => (vec![text(&value)], "environment", Some(named)),
            (None, Some((table, values))) => (values.to_vec(), "file", Some(table)),
            (None, None) => {
                let defaults: Vec<String> = arg.get_default_values().iter().map(|value| text(value)).collect();
                let source = if defaults.is_empty() { "not set" } else { "default" };
                (defaults, source, None)
            }
        };
        rows.push(Row { verb: verb.join(" "), name, values, source, place });
    }
    for sub in command.get_subcommands() {
        verb.push(sub.get_name().to_owned());
        collect(sub, verb, settings, rows);
        verb.pop();
    }
}
