//! What a run found, as a table for people and JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::round::PeerResult;
use crate::scores::Scores;

/// Wall seconds of the parts of a run.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Seconds {
    pub one_round: f64,
    pub multi_round: f64,
    pub centralised: f64,
    pub evaluation: f64,
    pub total: f64,
}

/// The results of a run; `--json` writes exactly this.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// Identity of the one-shot round.
    pub round: String,
    pub peers: Vec<PeerResult>,
    pub scores: Scores,
    pub hash_equal: bool,
    pub seconds: Seconds,
    pub setup: Setup,
}

/// What was run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Setup {
    pub base: String,
    pub data: String,
    pub split: String,
    pub members: u32,
    pub readers: u32,
    pub examples: Vec<u64>,
    pub held_out: usize,
    pub epochs: u32,
    pub rounds: u32,
    pub method: String,
    /// Of each member's adapter on the wire.
    pub sent_bytes: Vec<u64>,
    pub rank: u32,
    pub alpha: u32,
    pub batch_size: u32,
    pub learning_rate: f64,
    pub seed: u64,
}

impl Report {
    /// The table with the sentence about hashes.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let setup = &self.setup;
        let _ = writeln!(text, "Held-out loss in nats a token (lower is better), {} examples of {}.", setup.held_out, setup.data);
        let _ = writeln!(
            text,
            "Base {}, method {} of rank {} alpha {}, {} epochs, batch {}, learning rate {}, split {}, seed {}.\n",
            setup.base, setup.method, setup.rank, setup.alpha, setup.epochs, setup.batch_size, setup.learning_rate, setup.split, setup.seed
        );
        let base = self.scores.base;
        let mut row = |name: &str, loss: f64, note: &str| {
            let _ = writeln!(text, "  {name:34} {loss:8.4}  {:>+8.4}  {note}", loss - base);
        };
        row("base", base, "");
        for (index, loss) in self.scores.alone.iter().enumerate() {
            row(&format!("member {} alone", index + 1), *loss, &format!("{} examples", setup.examples.get(index).unwrap_or(&0)));
        }
        for (index, loss) in self.scores.merged.iter().enumerate() {
            let name = if index == 0 { "merged after 1 adapter".to_owned() } else { format!("merged after {} adapters", index + 1) };
            row(&name, *loss, if index + 1 == self.scores.merged.len() { "one round" } else { "" });
        }
        if let Some(loss) = self.scores.multi_round {
            row(&format!("multi-round, {} chained rounds", setup.rounds), loss, "same epochs in all");
        }
        if let Some(loss) = self.scores.centralised {
            row("all data in one place", loss, "same epochs, nothing private");
        }
        text += "\n";
        text += &self.verdict();
        let hash = self.peers.first().map_or("", |peer| peer.merged_hash.as_str());
        let answer = if self.hash_equal { "yes" } else { "NO" };
        let _ = writeln!(text, "\nmerged hash equal at all peers and readers: {answer} ({hash})");
        if !self.hash_equal {
            for peer in &self.peers {
                let _ = writeln!(text, "  {:?} {}: {} adapters, {}", peer.role, peer.peer, peer.admitted, peer.merged_hash);
            }
        }
        let largest = setup.sent_bytes.iter().max().copied().unwrap_or(0);
        let _ = writeln!(text, "bytes each member sent: {largest}");
        let seconds = &self.seconds;
        let _ = writeln!(
            text,
            "seconds: one round {:.1}, multi-round {:.1}, one place {:.1}, measuring {:.1}, in all {:.1}",
            seconds.one_round, seconds.multi_round, seconds.centralised, seconds.evaluation, seconds.total
        );
        text
    }

    /// What the numbers say, whichever way they came out.
    fn verdict(&self) -> String {
        let Some(merged) = self.scores.merged.last() else { return String::new() };
        let mean = self.scores.alone.iter().sum::<f64>() / self.scores.alone.len().max(1) as f64;
        let best = self.scores.alone.iter().copied().fold(f64::INFINITY, f64::min);
        let mut text = match (merged < &best, *merged < mean) {
            (true, _) => format!("The merge beats every member alone (best {best:.4}, mean {mean:.4}).\n"),
            (false, true) => format!("The merge beats the mean member ({mean:.4}), but not the best one ({best:.4}).\n"),
            (false, false) => format!("Here merging does not help: members alone reach {mean:.4} in the mean.\n"),
        };
        if let Some(multi) = self.scores.multi_round {
            let rounds = self.setup.rounds;
            for (than, loss) in [("the base", self.scores.base), ("a member alone", mean)] {
                if multi < loss {
                    let part = 100.0 * (loss - merged) / (loss - multi);
                    let _ = writeln!(
                        text,
                        "Of what {rounds} rounds gain over {than}, one round reaches {part:.1} %, for 1/{rounds} of the traffic."
                    );
                }
            }
        }
        text
    }

    /// # Errors
    /// What the file system says.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}
