//! What the peers of a run are given: a base, private shards, and held-out data that nobody trains on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mingle::data::batches::Draw;
use mingle::data::split_held_out;

use crate::base;
use crate::options::Options;
use crate::tasks::{self, Split};

/// Part of the data that is held out when there is no file to measure on.
const HELD_OUT_PART: f64 = 0.1;

/// The files of a run.
pub struct Setting {
    pub base: PathBuf,
    pub base_name: String,
    /// One file a member.
    pub shards: Vec<PathBuf>,
    /// All shards in one file, for training in one place.
    pub all: PathBuf,
    pub held_out: PathBuf,
    /// Where the examples come from, in one line.
    pub origin: String,
}

impl Setting {
    /// Writes everything under `folder`.
    ///
    /// # Errors
    /// Data that cannot be read, or too little of it.
    pub fn prepare(options: &Options, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let base = base_in(options, folder);
        let base_name = match options.base {
            Some(_) => name_of(&base),
            None => {
                base::write_to(&base)?;
                "mingle-testnet-base".into()
            }
        };
        let (shards, held_out, origin) = if options.data.is_empty() { embedded(options)? } else { given(options)? };
        let write = |name: &str, lines: &[String]| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, lines.concat()).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let all = write("all.jsonl", &shards.concat())?;
        let held_out = write("held-out.jsonl", &held_out)?;
        let shards =
            shards.iter().enumerate().map(|(index, lines)| write(&format!("shard-{}.jsonl", index + 1), lines)).collect::<Result<_>>()?;
        Ok(Self { base, base_name, shards, all, held_out, origin })
    }
}

/// Where the base of a run in this folder lies.
pub fn base_in(options: &Options, folder: &Path) -> PathBuf {
    options.base.clone().unwrap_or_else(|| folder.join("base"))
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map_or_else(|| "base".into(), |name| name.to_string_lossy().into_owned())
}

type Lines = Vec<String>;

fn embedded(options: &Options) -> Result<(Vec<Lines>, Lines, String)> {
    if options.examples == 0 {
        bail!("the embedded tasks are endless: give --examples a number above 0");
    }
    let held_out = if options.eval_examples == 0 { 400 } else { options.eval_examples };
    let made = tasks::make_tasks(options.seed, options.members as usize, options.examples, held_out, options.split);
    let lines = |examples: &[tasks::Example]| -> Result<Lines> {
        examples.iter().map(|example| Ok(serde_json::to_string(example)? + "\n")).collect()
    };
    let shards = made.shards.iter().map(|shard| lines(shard)).collect::<Result<_>>()?;
    Ok((shards, lines(&made.held_out)?, "the embedded tasks".into()))
}

fn given(options: &Options) -> Result<(Vec<Lines>, Lines, String)> {
    let members = options.members as usize;
    let mut files = options.data.iter().map(|path| read_lines(path)).collect::<Result<Vec<Lines>>>()?;
    let (held_out, measured_on) = match eval_file(options) {
        Some(path) => (read_lines(&path)?, path.display().to_string()),
        None => {
            let mut held_out = Vec::new();
            for file in &mut files {
                let count = (file.len() as f64 * HELD_OUT_PART) as usize;
                let (rest, held) = split_held_out(std::mem::take(file), count, options.seed);
                *file = rest;
                held_out.extend(held);
            }
            (held_out, "a tenth of the data, held out".into())
        }
    };
    let limit = |lines: Lines, most: usize| if most == 0 { lines } else { shuffled(lines, options.seed).into_iter().take(most).collect() };
    let shards: Vec<Lines> = match options.split {
        // Member i has file i, cycling; members that share a file take turns in it.
        Split::Domain => (0..members)
            .map(|member| {
                let file = member % files.len();
                let (turn, turns) = (member / files.len(), members.saturating_sub(file).div_ceil(files.len()));
                files[file].iter().skip(turn).step_by(turns).cloned().collect()
            })
            .collect(),
        Split::Iid => {
            let all = shuffled(files.concat(), options.seed);
            (0..members).map(|member| all.iter().skip(member).step_by(members).cloned().collect()).collect()
        }
    };
    let shards: Vec<Lines> = shards.into_iter().map(|shard| limit(shard, options.examples)).collect();
    if let Some(empty) = shards.iter().position(Vec::is_empty) {
        bail!("there is too little data: nothing is left for member {}", empty + 1);
    }
    let names: Vec<String> = options.data.iter().map(|path| path.display().to_string()).collect();
    Ok((shards, limit(held_out, options.eval_examples), format!("{}, measured on {measured_on}", names.join(", "))))
}

fn shuffled(mut lines: Lines, seed: u64) -> Lines {
    Draw::new(seed, "testnet/shares", 0).shuffle(&mut lines);
    lines
}

/// The file to measure on: given, or the training file's sibling with "test" for "train" in its name.
fn eval_file(options: &Options) -> Option<PathBuf> {
    options.eval_data.clone().or_else(|| {
        let [path] = options.data.as_slice() else { return None };
        let name = path.file_name()?.to_str()?;
        let sibling = path.with_file_name(name.replace("train", "test"));
        (name.contains("train") && sibling.exists()).then_some(sibling)
    })
}

fn read_lines(path: &Path) -> Result<Lines> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{line}\n")).collect())
}
