//! A folder to run command lines in.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::program::{Said, run_in};

/// A folder to work in, with a home. `DIR` stands for it in command lines and in what the program says.
pub struct Desk {
    folder: TempDir,
    program: &'static str,
    /// What the program's environment has beside the usual.
    pub environment: Vec<(String, String)>,
}

impl Desk {
    /// An empty one, for this program.
    pub fn new(program: &'static str) -> Self {
        Self { folder: TempDir::new().expect("a temporary folder"), program, environment: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a command line, split at spaces.
    pub fn run(&self, line: &str) -> Said {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let arguments = line.split(' ').map(|word| word.replace("DIR", &folder));
        let said = run_in(self.program, &self.path("home"), &self.environment, arguments);
        Said { out: said.out.replace(&folder, "DIR"), err: said.err.replace(&folder, "DIR"), ..said }
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }
}
