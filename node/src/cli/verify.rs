//! `mingle verify`: what a merged directory proves, offline.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::merge::{MergeError, Plan};
use serde_json::json;

use super::args::HomeArgs;
use super::hint::sentence;
use super::{EXIT_FALSE, progress};
use crate::merged::{CheckedProof, Proof, promises};
use crate::merger::{Source, hash_of, merge_files};
use crate::rule;

const EXAMPLES: &str = "\
Examples:
  mingle verify ./merged                         signatures, set root and merged hash; the merge itself where the adapters
                                                 are in this peer's home
  mingle verify ./merged --adapters ./adapters   recompute from adapter files in a folder (found by their hash)
  mingle verify ./merged --json

Exit code 4 if anything is false.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Merged directory, with its receipt.json
    directory: PathBuf,
    /// Folder with the members' adapter files
    #[arg(long, value_name = "DIR")]
    adapters: Option<PathBuf>,
    #[command(flatten)]
    home: HomeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

/// What the recomputation of a merge found.
enum Recomputed {
    Same,
    Different {
        found: ContentHash,
    },
    /// Adapters that are not at hand.
    Missing(Vec<ContentHash>),
}

pub fn run(args: Args) -> Result<ExitCode> {
    let proof = Proof::read(&args.directory)?;
    let merging = progress::working(!args.json, format!("merging {} adapters again", proof.receipt.admitted.len()));
    let examined = examine(&args, &proof);
    drop(merging);
    let (checked, recomputed) = match examined {
        Ok(found) => found,
        Err(error) => {
            if args.json {
                println!("{}", json!({ "verified": false, "why": sentence(&error) }));
            }
            eprintln!("error: {}", sentence(&error));
            return Ok(ExitCode::from(EXIT_FALSE));
        }
    };
    let receipt = &checked.receipt;
    let recomputation = match &recomputed {
        Recomputed::Same => "same",
        Recomputed::Different { .. } => "different",
        Recomputed::Missing(_) => "not_at_hand",
    };
    let verified = !matches!(recomputed, Recomputed::Different { .. });
    if args.json {
        let mut found = json!({ "verified": verified, "recomputed": recomputation, "round": receipt.round, "adapters": receipt.admitted.len(),
            "approvals": checked.round.manifest().verdicts.map(|rule| rule.approvals), "vouching": checked.vouching, "weight": receipt.weight(), "set_root": receipt.set_root, "merged_hash": receipt.merged });
        if let Some(slice) = &checked.slice {
            found["layers"] = json!(slice.layers());
        }
        println!("{found}");
    } else {
        tell(&checked, &proof, &recomputed);
    }
    Ok(if verified { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FALSE) })
}

fn examine(args: &Args, proof: &Proof) -> Result<(CheckedProof, Recomputed)> {
    let checked = proof.check_in(&args.directory)?;
    let home = args.home.open()?.round(checked.round.id()).store().join("blobs");
    let places: Vec<PathBuf> = args.adapters.iter().cloned().chain([args.directory.join("adapters"), home]).collect();
    let recomputed = recompute(&checked, proof, &places)?;
    Ok((checked, recomputed))
}

fn recompute(checked: &CheckedProof, proof: &Proof, places: &[PathBuf]) -> Result<Recomputed> {
    let plan = Plan::of(&checked.round);
    let (mut sources, mut missing) = (Vec::new(), Vec::new());
    for entry in &checked.receipt.admitted {
        match find(entry.adapter, places) {
            None => missing.push(entry.adapter),
            Some(path) => {
                let refused = || format!("the adapter in {} cannot be merged", path.display());
                let source = Source::read(&plan, entry.member, entry.weight, &path).with_context(refused)?;
                anyhow::ensure!(source.adapter == entry.adapter, "{} has hash {}, not that of its name", path.display(), source.adapter);
                sources.push(source);
            }
        }
    }
    if !missing.is_empty() {
        return Ok(Recomputed::Missing(missing));
    }
    let mut hasher = blake3::Hasher::new();
    let made = merge_files(&plan, &sources, |piece| {
        hasher.update(piece);
        Ok::<(), MergeError>(())
    })?;
    // Who did not merge by itself says nothing of single members.
    anyhow::ensure!(
        proof.account == made.account || (!proof.attestations.is_empty() && proof.account.is_empty()),
        "the receipt says otherwise whose update was clipped or left out than merging again does"
    );
    let found = ContentHash(*hasher.finalize().as_bytes());
    Ok(if found == checked.receipt.merged { Recomputed::Same } else { Recomputed::Different { found } })
}

/// A file in one of the places that is named by the hash, with any ending, or that has it.
fn find(adapter: ContentHash, places: &[PathBuf]) -> Option<PathBuf> {
    let name = adapter.to_string();
    let files = || places.iter().flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten()).map(|entry| entry.path());
    let named = |path: &Path| path.file_stem().is_some_and(|stem| stem.to_string_lossy() == name) && is_adapter(path);
    files()
        .find(|path| named(path))
        .or_else(|| files().find(|path| is_safetensors(path) && hash_of(path).is_ok_and(|hash| hash == adapter)))
}

fn is_adapter(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "blob") || is_safetensors(path)
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "safetensors")
}

fn tell(checked: &CheckedProof, proof: &Proof, recomputed: &Recomputed) {
    let (receipt, manifest) = (&checked.receipt, checked.round.manifest());
    println!(
        "This is the merge of {} adapters (total weight {}) of round \"{}\" ({}) for base {}.",
        receipt.admitted.len(),
        receipt.weight(),
        manifest.name,
        receipt.round,
        manifest.base.digest
    );
    println!("Rule: {}.", rule::among(manifest, receipt.admitted.len()));
    println!(
        "Each of them was announced by its member: every signature is valid, and each member in the roster, where the round has one, \
         or admitted by founders whose signatures are here."
    );
    if let Some(rule) = manifest.verdicts.filter(|rule| rule.approvals > 0) {
        println!("Each was approved by at least {} other members, whose signed verdicts are here.", rule.approvals);
    }
    for promise in promises(&checked.round, proof) {
        println!("{promise}");
    }
    match &checked.slice {
        None => {
            println!("The set root {} follows from that set, and the file here has the merged hash {}.", receipt.set_root, receipt.merged)
        }
        Some(slice) => println!(
            "The set root {} follows from that set. Here are layers {} of merge {}, and the proof that these are its bytes; the whole \
             merge is not here.",
            receipt.set_root,
            slice.layers(),
            receipt.merged
        ),
    }
    if !checked.vouching.is_empty() {
        let members: Vec<String> = checked.vouching.iter().map(|member| member.short()).collect();
        println!("{} members signed that merging that set gave them this hash: {}.", members.len(), members.join(", "));
    }
    match recomputed {
        Recomputed::Same if checked.slice.is_some() => println!("Merging the members' adapters again gives that merge."),
        Recomputed::Same => println!("Merging the members' adapters again gives the same bytes."),
        Recomputed::Different { found } => println!("FALSE: merging the members' adapters again gives {found}, not what is here."),
        Recomputed::Missing(missing) => {
            println!(
                "Not shown: that these bytes are the merge of that set, because {} adapters are not at hand (--adapters).",
                missing.len()
            );
        }
    }
}
