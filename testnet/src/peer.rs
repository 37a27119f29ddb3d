//! Peers as processes: this program started again as `mingle`, each with its own home and log.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mingle::driver::Status;
use mingle::home::Home;
use mingle_protocol::round::RoundId;

use crate::options::Options;

/// The hidden first argument that makes this program a `mingle` peer.
pub const PEER_VERB: &str = "peer";
/// Lines of a log shown when its peer has failed.
const LOG_LINES: usize = 12;
/// A peer says where it listens within this, on the most loaded machine.
const START_MAX: Duration = Duration::from_secs(60);

/// How `mingle` is started.
#[derive(Clone, Debug)]
pub struct Program {
    pub executable: PathBuf,
    /// Arguments before those of `mingle`.
    pub prefix: Vec<String>,
}

impl Program {
    /// This very program.
    ///
    /// # Errors
    /// The system does not know where it is.
    pub fn this() -> Result<Self> {
        let executable = std::env::current_exe().context("cannot find this program to start it again")?;
        Ok(Self { executable, prefix: vec![PEER_VERB.into()] })
    }

    /// Runs a verb to its end.
    ///
    /// # Errors
    /// What it printed, when it failed.
    pub fn call(&self, arguments: &[&str], log: &Path) -> Result<()> {
        let status = self.command(arguments, log)?.status().context("cannot start mingle")?;
        anyhow::ensure!(status.success(), "mingle {} failed:\n{}", arguments.first().unwrap_or(&""), tail(log));
        Ok(())
    }

    /// Starts a verb that goes on until it is stopped, and speaks for itself.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, arguments: &[&str]) -> Result<Child> {
        Command::new(&self.executable).args(&self.prefix).args(arguments).stdin(Stdio::null()).spawn().context("cannot start mingle")
    }

    /// Trains on one file in a process of its own, with what the options say of a training.
    ///
    /// # Errors
    /// What it printed, when it failed.
    pub fn train(&self, options: &Options, epochs: u32, [base, data, out, round]: [&Path; 4], log: &Path) -> Result<()> {
        let texts = [base, data, out, round].map(|path| path.to_string_lossy().into_owned());
        let numbers = [
            epochs.to_string(),
            options.batch_size.to_string(),
            options.learning_rate.to_string(),
            options.max_length.to_string(),
            options.seed.to_string(),
        ];
        let flags =
            ["--base", "--data", "--out", "--round", "--epochs", "--batch-size", "--learning-rate", "--max-length", "--training-seed"];
        let mut arguments = vec!["train"];
        for (flag, text) in flags.iter().zip(texts.iter().chain(&numbers)) {
            arguments.extend([*flag, text]);
        }
        self.call(&arguments, log)
    }

    fn command(&self, arguments: &[&str], log: &Path) -> Result<Command> {
        let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(&self.executable);
        command.args(&self.prefix).args(arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Ok(command)
    }
}

/// What a peer is in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Member,
    Reader,
}

/// One running process. It is killed when it is dropped.
pub struct Peer {
    pub role: Role,
    pub name: String,
    pub home: Home,
    child: Child,
    log: PathBuf,
    status: PathBuf,
}

impl Peer {
    /// Starts `mingle ARGUMENTS` with a home of its own in `round`.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(program: &Program, role: Role, name: &str, home: Home, round: RoundId, arguments: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(home.folder())?;
        let log = home.folder().join("log.txt");
        let folder = home.folder().to_string_lossy().into_owned();
        let all: Vec<&str> = arguments.iter().copied().chain(["--home", &folder]).collect();
        let status = home.round(round).status_path();
        // An earlier run's status must not be taken for this one's.
        let _ = std::fs::remove_file(&status);
        let child = program.command(&all, &log)?.spawn().context("cannot start mingle")?;
        Ok(Self { role, name: name.into(), home, child, log, status })
    }

    /// Where it keeps its curves.
    pub fn history_path(&self) -> PathBuf {
        self.status.with_file_name("history.json")
    }

    pub fn status(&self) -> Option<Status> {
        Status::read(&self.status).ok()
    }

    /// Waits until the peer says where it listens.
    ///
    /// # Errors
    /// It has ended, or says nothing for a minute.
    pub fn addresses(&mut self) -> Result<Vec<String>> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.status().filter(|status| !status.listening.is_empty()) {
                return Ok(status.listening);
            }
            self.check()?;
            if started.elapsed() > START_MAX {
                bail!("{} does not listen after {} s:\n{}", self.name, START_MAX.as_secs(), tail(&self.log));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the process has ended well.
    ///
    /// # Errors
    /// It has failed; with the end of its log.
    pub fn check(&mut self) -> Result<bool> {
        match self.child.try_wait()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => bail!("{} has ended with {status}:\n{}", self.name, tail(&self.log)),
        }
    }

    /// Asks the process to end, and kills it when it does not.
    pub fn stop(&mut self) {
        ask_to_end(&self.child);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends SIGTERM by the system's own program, so that this crate needs no unsafe call for it.
fn ask_to_end(child: &Child) {
    let _ = Command::new("kill").arg(child.id().to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}
