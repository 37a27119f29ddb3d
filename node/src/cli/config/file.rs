//! The configuration file: options by their names, for all verbs or under a verb's.
//!
//! Whatever it holds must be an option of the program: a name that nobody reads would be a setting that does nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgAction, Command};
use toml::{Table, Value};

use super::name_of;

/// More than this is no configuration.
const BYTES_MAX: u64 = 1 << 20;
/// How alike, of 1, a name must be to one that is known to be taken for it.
const ALIKE: f64 = 0.7;

/// What a file says, by verb and option; of no verb, what holds for all.
#[derive(Debug, Default)]
pub struct ConfigFile {
    pub path: Option<PathBuf>,
    pub is_there: bool,
    values: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl ConfigFile {
    /// Reads a file, which may be missing unless it was asked for.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn read(path: Option<PathBuf>, asked_for: bool, command: &Command) -> Result<Self> {
        let mut found = Self { path, ..Self::default() };
        let Some(path) = found.path.clone() else { return Ok(found) };
        if !asked_for && !path.exists() {
            return Ok(found);
        }
        let unread = || format!("cannot read the configuration {}", path.display());
        let size = std::fs::metadata(&path).with_context(unread)?.len();
        ensure!(size <= BYTES_MAX, "{} has {size} bytes, but a configuration has at most {BYTES_MAX}", path.display());
        let text = std::fs::read_to_string(&path).with_context(unread)?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| told(&path, &text, &error))?;
        found.take(&path, command, &mut Vec::new(), table)?;
        found.is_there = true;
        Ok(found)
    }

    fn take(&mut self, path: &Path, command: &Command, verb: &mut Vec<String>, table: Table) -> Result<()> {
        let options = options_of(command);
        for (key, value) in table {
            let name = key.replace('_', "-");
            let within = if verb.is_empty() { String::new() } else { format!("[{}] ", verb.join(".")) };
            match (value, command.find_subcommand(&name)) {
                (Value::Table(table), Some(sub)) => {
                    verb.push(name);
                    self.take(path, sub, verb, table)?;
                    verb.pop();
                }
                (Value::Table(_), None) => {
                    let known = command.get_subcommands().map(Command::get_name);
                    bail!("{}: {within}[{key}] is no verb{}", path.display(), nearest(&name, known));
                }
                (value, _) => {
                    let Some(is_list) = options.get(&name) else {
                        bail!("{}: {within}{key} is no option{}", path.display(), nearest(&name, options.keys().map(String::as_str)));
                    };
                    let values = values(&value).with_context(|| format!("{}: {within}{key}", path.display()))?;
                    ensure!(*is_list || values.len() == 1, "{}: {within}{key} takes one value, not {}", path.display(), values.len());
                    self.values.insert((verb.clone(), name), values);
                }
            }
        }
        Ok(())
    }

    /// The values of an option of a verb, and the table they are in: its own, else that of all its verbs.
    pub fn get(&self, verb: &[String], name: &str) -> Option<(String, &[String])> {
        (0..=verb.len()).rev().find_map(|length| {
            let found = self.values.get(&(verb[..length].to_vec(), name.to_owned()))?;
            let table = if length == 0 { "for all verbs".to_owned() } else { format!("[{}]", verb[..length].join(".")) };
            Some((table, found.as_slice()))
        })
    }

    /// Its path, and whether it is there.
    pub fn shown(&self) -> String {
        match &self.path {
            Some(path) if self.is_there => path.display().to_string(),
            Some(path) => format!("{} (not there)", path.display()),
            None => "none: no home folder of the user is known".to_owned(),
        }
    }
}

/// The options of a verb and of all below it, and whether each takes a list.
fn options_of(command: &Command) -> BTreeMap<String, bool> {
    let own = command.get_arguments().filter_map(|arg| Some((name_of(arg)?, matches!(arg.get_action(), ArgAction::Append))));
    let mut options: BTreeMap<String, bool> = own.collect();
    for sub in command.get_subcommands() {
        for (name, is_list) in options_of(sub) {
            *options.entry(name).or_default() |= is_list;
        }
    }
    options
}

fn values(value: &Value) -> Result<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(truth) => Ok(truth.to_string()),
        other => bail!("is {}, but must be a text, a number, true or false, or a list of these", other.type_str()),
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// ", did you mean ...?", where one of the names is like this one.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let likeness = |known: &'a str| (strsim::jaro_winkler(name, known), known);
    let best = known.into_iter().map(likeness).filter(|(alike, _)| *alike > ALIKE).max_by(|one, other| one.0.total_cmp(&other.0));
    best.map_or_else(String::new, |(_, known)| format!("; did you mean {known}?"))
}

/// A mistake of the syntax with its line.
fn told(path: &Path, text: &str, error: &toml::de::Error) -> anyhow::Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    anyhow::anyhow!("{}:{line}: {}", path.display(), error.message().trim().replace('\n', ", "))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        let peer = || Arg::new("peer").long("peer").action(ArgAction::Append);
        let threads = || Arg::new("threads").long("threads");
        let new = Command::new("new").arg(threads()).arg(Arg::new("name").long("name"));
        Command::new("mingle").subcommand(Command::new("run").arg(peer()).arg(threads())).subcommand(Command::new("round").subcommand(new))
    }

    fn read(text: &str) -> Result<ConfigFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        ConfigFile::read(Some(path), true, &command())
    }

    #[test]
    fn the_nearest_table_counts() {
        let file = read("threads = 1\n[run]\npeer = [\"a\", 'b']\n[round]\nthreads = 2\n[round.new]\nname = \"n\"\n").unwrap();
        let get = |verb: &[&str], name: &str| {
            let verb: Vec<String> = verb.iter().map(ToString::to_string).collect();
            file.get(&verb, name).map(|(table, values)| (table, values.join(",")))
        };
        let found = |table: &str, values: &str| Some((table.to_owned(), values.to_owned()));
        assert_eq!(get(&["run"], "threads"), found("for all verbs", "1"));
        assert_eq!(get(&["run"], "peer"), found("[run]", "a,b"));
        assert_eq!(get(&["round", "new"], "threads"), found("[round]", "2"));
        assert_eq!(get(&["round", "new"], "name"), found("[round.new]", "n"));
        assert_eq!(get(&["run"], "name"), None);
    }

    #[test]
    fn what_nobody_reads_is_refused_with_the_nearest_name() {
        let cases = [
            ("thread = 1", "config.toml: thread is no option; did you mean threads?"),
            ("[run]\nname = \"x\"", "config.toml: [run] name is no option"),
            ("[runs]\nthreads = 1", "config.toml: [runs] is no verb; did you mean run?"),
            ("[round.knew]\nname = \"x\"", "config.toml: [round] [knew] is no verb; did you mean new?"),
            ("[run]\nthreads = [1, 2]", "config.toml: [run] threads takes one value, not 2"),
            ("[run]\npeer = [[1]]", "config.toml: [run] peer: is array, but must be"),
            ("\n[run\n", "config.toml:2: "),
        ];
        for (text, expected) in cases {
            let said = format!("{:#}", read(text).unwrap_err());
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }

    #[test]
    fn only_a_file_that_was_asked_for_must_be_there() {
        let nowhere = PathBuf::from("nowhere/config.toml");
        assert!(!ConfigFile::read(Some(nowhere.clone()), false, &command()).unwrap().is_there);
        assert!(ConfigFile::read(Some(nowhere), true, &command()).is_err());
    }
}
