//! A whole run: one round of real peers, the same epochs in chained rounds, all data in one place, and the comparison.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use mingle::merged::Proof;
use mingle::sent::{merged_file, sent_file};

use crate::live::LiveView;
use crate::options::Options;
use crate::peer::Program;
use crate::report::{Report, Seconds, Setup};
use crate::round::{RoundPlan, RoundResult};
use crate::scores::{Examiner, Scores};
use crate::setting::Setting;

/// Runs everything that `options` asks for in `folder`.
///
/// # Errors
/// A peer that fails or data that cannot be used. Unequal hashes are no error here: the report says so.
pub fn run(options: &Options, program: &Program, folder: &Path) -> Result<Report> {
    run_shown(options, program, folder, &mut LiveView::default())
}

/// As [`run`], shown by `live`.
///
/// # Errors
/// As [`run`].
pub fn run_shown(options: &Options, program: &Program, folder: &Path, live: &mut LiveView) -> Result<Report> {
    let started = Instant::now();
    let setting = Setting::prepare(options, &folder.join("setting"))?;
    let mut seconds = Seconds::default();

    let plan = RoundPlan {
        options,
        setting: &setting,
        program,
        folder: folder.join("one-round"),
        name: "one-round".into(),
        epochs: options.epochs(),
        readers: options.readers,
        parent: None,
        training_seed: options.seed,
    };
    let one_round = plan.run(live)?;
    seconds.one_round = one_round.seconds;

    let rounds = options.rounds.min(options.epochs());
    let multi_round = if rounds > 1 { Some(run_chain(options, &setting, program, folder, rounds, live)?) } else { None };
    seconds.multi_round = multi_round.as_ref().map_or(0.0, |chain| chain.seconds);

    let centralised =
        if options.no_centralised { None } else { Some(train_in_one_place(options, &setting, program, folder, &one_round, live)?) };
    seconds.centralised = centralised.as_ref().map_or(0.0, |(_, seconds)| *seconds);

    let measuring = Instant::now();
    live.say("measuring");
    let examiner = Examiner::new(&setting.base, &setting.held_out, options.max_length as usize)?;
    let weights = weights_of(&one_round)?;
    let adapters: Vec<(PathBuf, u64)> = one_round.own.iter().cloned().zip(weights.iter().copied()).collect();
    let scores = Scores {
        base: examiner.base()?,
        alone: one_round.own.iter().map(|own| examiner.adapter(own)).collect::<Result<_>>()?,
        merged: examiner.merges(&one_round.round, &adapters, &folder.join("merges"))?,
        multi_round: multi_round.as_ref().map(|chain| examiner.adapter(&chain.merged)).transpose()?,
        centralised: centralised.as_ref().map(|(adapter, _)| examiner.adapter(adapter)).transpose()?,
    };
    seconds.evaluation = measuring.elapsed().as_secs_f64();
    seconds.total = started.elapsed().as_secs_f64();

    let members = options.members as usize;
    let hash_equal =
        one_round.hash_equal(members) && multi_round.as_ref().is_none_or(|chain| chain.hash_equal) && same_bytes(folder, &one_round)?;
    Ok(Report {
        round: one_round.round.id().to_string(),
        peers: one_round.peers.clone(),
        scores,
        hash_equal,
        seconds,
        setup: Setup {
            base: setting.base_name.clone(),
            data: setting.origin.clone(),
            split: format!("{:?}", options.split).to_lowercase(),
            members: options.members,
            readers: options.readers,
            examples: weights,
            held_out: examiner.examples(),
            epochs: options.epochs(),
            rounds,
            method: one_round.round.kind().name().into(),
            sent_bytes: sizes_of(&one_round)?,
            rank: options.rank,
            alpha: options.alpha(),
            batch_size: options.batch_size,
            learning_rate: options.learning_rate,
            seed: options.seed,
        },
    })
}

/// The result of chained rounds.
struct Chain {
    merged: PathBuf,
    hash_equal: bool,
    seconds: f64,
}

/// The same epochs spread over chained rounds: each goes on from the merge of the one before.
fn run_chain(options: &Options, setting: &Setting, program: &Program, folder: &Path, rounds: u32, live: &mut LiveView) -> Result<Chain> {
    let mut chain: Option<Chain> = None;
    for index in 0..rounds {
        let plan = RoundPlan {
            options,
            setting,
            program,
            folder: folder.join("multi-round"),
            name: format!("round-{}-of-{rounds}", index + 1),
            // The first rounds take what does not divide evenly.
            epochs: options.epochs() / rounds + u32::from(index < options.epochs() % rounds),
            readers: 0,
            parent: chain.as_ref().map(|chain| chain.merged.clone()),
            training_seed: options.seed.wrapping_add(u64::from(index)),
        };
        let round = plan.run(live)?;
        let before = chain.map_or((true, 0.0), |chain| (chain.hash_equal, chain.seconds));
        let equal = round.hash_equal(options.members as usize);
        chain = Some(Chain { merged: round.merged, hash_equal: before.0 && equal, seconds: before.1 + round.seconds });
    }
    chain.context("a chain has at least one round")
}

/// All shards in one file, one training with all processors, from the same common start.
fn train_in_one_place(
    options: &Options,
    setting: &Setting,
    program: &Program,
    folder: &Path,
    one_round: &RoundResult,
    live: &mut LiveView,
) -> Result<(PathBuf, f64)> {
    let started = Instant::now();
    live.say("all data in one place");
    let out = folder.join("centralised");
    let files = [&setting.base, &setting.all, &out, &one_round.file].map(PathBuf::as_path);
    program.train(options, options.epochs(), files, &folder.join("centralised.txt"))?;
    Ok((out, started.elapsed().as_secs_f64()))
}

/// Each member's weight in the merge, in the members' order.
fn weights_of(round: &RoundResult) -> Result<Vec<u64>> {
    let receipt = Proof::read(&round.merged)?.receipt;
    let weight = |own: &PathBuf| -> Result<u64> {
        let hash = mingle::merger::hash_of(&sent_file(own, round.round.kind()))?;
        let entry = receipt.admitted.iter().find(|entry| entry.adapter == hash);
        Ok(entry.with_context(|| format!("{} is not in the merge", own.display()))?.weight)
    };
    round.own.iter().map(weight).collect()
}

/// Bytes of each member's adapter on the wire, in the order of their keys.
fn sizes_of(round: &RoundResult) -> Result<Vec<u64>> {
    Ok(Proof::read(&round.merged)?.receipt.admitted.iter().map(|entry| entry.size).collect())
}

/// Whether the files that readers walked away with are those the members merged, byte for byte.
fn same_bytes(folder: &Path, round: &RoundResult) -> Result<bool> {
    let expected = std::fs::read(merged_file(&round.merged, round.round.kind()))?;
    let mut reader = 1;
    loop {
        let file = merged_file(&folder.join(format!("one-round/reader-{reader}/merged")), round.round.kind());
        if !file.exists() {
            return Ok(true);
        }
        if std::fs::read(&file)? != expected {
            return Ok(false);
        }
        reader += 1;
    }
}
