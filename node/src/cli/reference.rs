//! What the command line says of itself elsewhere: completions for shells, manual pages, and docs/cli.md.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Command;

/// Columns of the reference's help texts.
const WIDTH: usize = 110;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mingle completions bash > ~/.local/share/bash-completion/completions/mingle
  mingle completions zsh > ~/.zfunc/_mingle")]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mingle man --out ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub fn completions(args: &CompletionsArgs, mut command: Command) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mingle", &mut text);
    // A closed pipe is no reason to fail over it.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), &text);
    ExitCode::SUCCESS
}

pub fn man(args: &ManArgs, command: Command) -> Result<ExitCode> {
    let unwritten = || format!("cannot write manual pages into {}", args.out.display());
    std::fs::create_dir_all(&args.out).with_context(unwritten)?;
    clap_mangen::generate_to(command, &args.out).with_context(unwritten)?;
    let pages = std::fs::read_dir(&args.out).with_context(unwritten)?.count();
    println!("{pages} pages in {}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// docs/cli.md: the help of every verb.
pub fn reference(command: Command) -> String {
    let mut command = command.term_width(WIDTH);
    command.build();
    let mut text = "# Command line\n\nThe help of every verb, as the program prints it (`--help`). Each option can also be set in \
         the environment and in a configuration file: see `mingle config show`.\n"
        .to_owned();
    section(&mut command, "mingle", &mut text);
    text
}

fn section(command: &mut Command, path: &str, text: &mut String) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    *text += &format!("\n## {path}\n\n```text\n{}\n```\n", lines.join("\n").trim());
    let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).filter(|name| name != "help").collect();
    for name in names {
        if let Some(sub) = command.find_subcommand_mut(&name) {
            section(sub, &format!("{path} {name}"), text);
        }
    }
}
