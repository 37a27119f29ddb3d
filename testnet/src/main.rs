//! The `mingle-testnet` program. Started with the hidden verb `peer` it is `mingle` itself, so one build is enough.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use mingle_testnet::live::LiveView;
use mingle_testnet::options::{Options, Verb};
use mingle_testnet::page::Page;
use mingle_testnet::peer::{PEER_VERB, Program};
use mingle_testnet::report::Report;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "mingle".into());
    if std::env::args_os().nth(1).is_some_and(|verb| verb == PEER_VERB) {
        return mingle::cli::main_with(std::iter::once(name).chain(arguments.skip(1)));
    }
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all peers agreed.
fn run(options: Options) -> Result<bool> {
    if let Some(Verb::MakeBase(make)) = &options.verb {
        make.run()?;
        return Ok(true);
    }
    if let Some(Verb::Attacks(attacks)) = &options.verb {
        attacks.run(&Program::this()?)?;
        return Ok(true);
    }
    let folder = tempfile::Builder::new().prefix("mingle-testnet-").tempdir().context("cannot make a temporary folder")?;
    let page = options.http.map(Page::open).transpose()?;
    if let Some(page) = &page {
        eprintln!("all peers on one page: {}", page.url());
    }
    let mut live = LiveView::with_page(page);
    let outcome = mingle_testnet::run::run_shown(&options, &Program::this()?, folder.path(), &mut live);
    if let Ok(report) = &outcome {
        print!("{}", report.table());
        write_results(&options, report, folder.path())?;
        let mut answering = options.serve.map(|address| answer(&options, address, folder.path())).transpose()?;
        if let Some(page) = live.page() {
            page.stay()?;
        }
        if let Some(server) = &mut answering {
            // Ctrl-C reaches it as well.
            server.wait()?;
        }
    }
    if options.keep {
        eprintln!("the peers' homes and logs are kept in {}", folder.keep().display());
    }
    Ok(outcome?.hash_equal)
}

/// Goes on answering from what the members merged, now that they have stopped.
fn answer(options: &Options, address: SocketAddr, folder: &Path) -> Result<Child> {
    let base = mingle_testnet::setting::base_in(options, &folder.join("setting"));
    let paths = [folder.join("one-round/one-round.json"), base, folder.join("one-round/member-1")];
    let [round, base, home] = paths.map(|path| path.to_string_lossy().into_owned());
    let address = address.to_string();
    Program::this()?.start(&["serve", "--round", &round, "--base", &base, "--home", &home, "--listen", &address])
}

fn write_results(options: &Options, report: &Report, folder: &Path) -> Result<()> {
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    if let Some(target) = &options.report {
        std::fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
        report.write_json(&target.join("report.json"))?;
        std::fs::write(target.join("report.txt"), report.table())?;
        copy_merged(&folder.join("one-round/member-1/rounds"), report, &target.join("merged"))?;
    }
    Ok(())
}

/// Leaves the merged adapter, with its receipt, in the report.
fn copy_merged(rounds: &Path, report: &Report, target: &Path) -> Result<()> {
    let round: String = report.round.chars().take(16).collect();
    let merged: PathBuf = rounds.join(round).join("merged/current");
    std::fs::create_dir_all(target)?;
    for entry in std::fs::read_dir(&merged).with_context(|| format!("cannot read {}", merged.display()))? {
        let entry = entry?;
        std::fs::copy(entry.path(), target.join(entry.file_name()))?;
    }
    Ok(())
}
