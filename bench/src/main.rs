//! One blob from one seed to several peers on loopback: mingle's transfer and iroh-blobs' side by side, in one run.
//!
//! Both sides begin with the blob in the seed's store on disk and end when every peer has it whole, verified, in a store on
//! disk. All peers of a side live in this process, on one runtime with as many threads as there are cores. The sides take turns, so that whatever else
//! the machine does meets both.

mod iroh_side;
mod mingle_side;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

/// Times mingle's blob transfer against iroh-blobs'.
#[derive(Parser)]
struct Options {
    /// Size of the blob, in MiB; may be given several times
    #[arg(long = "mebibytes", default_values_t = [64, 1024])]
    sizes: Vec<u64>,
    /// Peers that fetch it
    #[arg(long, default_value_t = 8)]
    peers: usize,
    /// Turns of each side; the medians are compared
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Only this side: mingle or iroh
    #[arg(long)]
    only: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    println!("{} peers fetch one blob from one seed, loopback, stores on disk", options.peers);
    for mebibytes in options.sizes {
        let blob = drawn(mebibytes << 20);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for turn in 1..=options.turns {
            if options.only.as_deref() != Some("iroh") {
                ours.push(mingle_side::transfer(&blob, options.peers).await?);
                println!("{mebibytes:5} MiB  turn {turn}  mingle      {}", told(ours.last(), mebibytes, options.peers));
            }
            if options.only.as_deref() != Some("mingle") {
                theirs.push(iroh_side::transfer(&blob, options.peers).await?);
                println!("{mebibytes:5} MiB  turn {turn}  iroh-blobs  {}", told(theirs.last(), mebibytes, options.peers));
            }
        }
        if let (Some(ours), Some(theirs)) = (median(&mut ours), median(&mut theirs)) {
            println!("{mebibytes:5} MiB  median: mingle is {:.2} times as fast", theirs.as_secs_f64() / ours.as_secs_f64());
        }
    }
    Ok(())
}

/// Bytes that no file system could shorten.
fn drawn(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    blake3::Hasher::new_derive_key("mingle 2026 bench blob").finalize_xof().fill(&mut bytes);
    bytes
}

fn told(took: Option<&Duration>, mebibytes: u64, peers: usize) -> String {
    let seconds = took.copied().unwrap_or_default().as_secs_f64();
    format!("{seconds:7.2} s  {:7.0} MiB/s in all", mebibytes as f64 * peers as f64 / seconds)
}

fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

/// What a side found at the end must be the blob.
fn same(found: [u8; 32], blob: &[u8]) -> Result<()> {
    ensure!(found == *blake3::hash(blob).as_bytes(), "another blob came out");
    Ok(())
}
