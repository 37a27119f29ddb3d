//! Network namespaces by the program `ip`: made, furnished, and taken away again, those of killed runs as well.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// How all our namespaces begin; the process that made one follows.
const PREFIX: &str = "mingle-lab-";

/// A namespace of this process. Dropped, it is gone.
pub struct Space {
    name: String,
}

impl Space {
    pub fn new(name: &str) -> Result<Self, String> {
        let space = Self { name: format!("{PREFIX}{}-{name}", std::process::id()) };
        ip(&["netns", "add", &space.name])?;
        space.batch(&["link set dev lo up".into()])?;
        Ok(space)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs these `ip` commands inside.
    pub fn batch(&self, commands: &[String]) -> Result<(), String> {
        let what = format!("ip -n {}: {}", self.name, commands.join("; "));
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), &commands.join("\n"), &what)
    }

    /// Runs a program inside, with this on its standard input.
    pub fn run(&self, program: &[&str], input: &str) -> Result<(), String> {
        let what = format!("{} in {}", program.join(" "), self.name);
        feed(Command::new("ip").args(["netns", "exec", &self.name]).args(program), input, &what)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

/// Runs `ip`; its standard output.
pub fn ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    finished(output.map_err(|error| format!("the program ip cannot be started: {error}"))?, &format!("ip {}", arguments.join(" ")))
}

/// Removes the namespaces of runs that were killed, and the peers that still run in them.
pub fn sweep() -> Result<(), String> {
    for line in ip(&["netns", "list"])?.lines() {
        let Some(name) = line.split_whitespace().next().filter(|name| name.starts_with(PREFIX)) else { continue };
        let maker = name[PREFIX.len()..].split('-').next().and_then(|text| text.parse::<u32>().ok());
        if maker.is_none_or(|process| std::fs::exists(format!("/proc/{process}")).unwrap_or(true)) {
            continue;
        }
        // Two tests may sweep at once; what is gone is gone.
        let left = ip(&["netns", "pids", name]).unwrap_or_default();
        for process in left.split_whitespace() {
            let _ = Command::new("kill").args(["-9", process]).stderr(Stdio::null()).status();
        }
        let _ = ip(&["netns", "delete", name]);
    }
    Ok(())
}

fn feed(command: &mut Command, input: &str, what: &str) -> Result<(), String> {
    let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| format!("{what}: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why by itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| format!("{what}: {error}"))?;
    finished(output, what).map(drop)
}

fn finished(output: Output, what: &str) -> Result<String, String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{what} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
