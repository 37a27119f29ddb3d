//! One run of the program to its end, and what it said.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// How a run of the program ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the program to its end, with a home of its own unless the arguments name one.
pub fn run<A: AsRef<OsStr>>(program: &str, home: &Path, arguments: impl IntoIterator<Item = A>) -> Said {
    run_in(program, home, &[], arguments)
}

/// As [`run`], with more in its environment.
pub fn run_in<A: AsRef<OsStr>>(
    program: &str,
    home: &Path,
    environment: &[(String, String)],
    arguments: impl IntoIterator<Item = A>,
) -> Said {
    let output = Command::new(program)
        .args(arguments)
        .env("MINGLE_HOME", home)
        .env_remove("MINGLE_LOG")
        // Models that this machine has for other reasons are not for tests.
        .env("HF_HUB_CACHE", home.join("hub"))
        .env_remove("MINGLE_BASES")
        // No test asks anything beyond this machine.
        .env("HF_HUB_OFFLINE", "1")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .output()
        .expect("the program can be started");
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Said {
    /// The run was right, and this is its standard output.
    #[track_caller]
    pub fn right(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// The run failed with this exit code and exactly these lines on standard error.
    #[track_caller]
    pub fn wrong(&self, code: i32, lines: &[&str]) {
        assert_eq!(self.err.lines().collect::<Vec<_>>(), lines, "exit code {}, standard output {:?}", self.code, self.out);
        assert_eq!(self.code, code, "{self:?}");
    }
}
