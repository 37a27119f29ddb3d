//! What the base and every adapter are worth: mean loss on held-out examples that no member trained on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device;
use mingle::data::{self, Template, TokenizedExample, Tokens};
use mingle::evaluate::held_out_loss;
use mingle::merged;
use mingle::merger::{Source, merge_files};
use mingle::models::BaseModel;
use mingle::peft;
use mingle::sent::sent_file;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::merge::Plan;
use mingle_protocol::round::Round;

/// Held-out losses in nats a token; lower is better.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Scores {
    pub base: f64,
    /// Each member's own adapter, in order.
    pub alone: Vec<f64>,
    /// The merge of the first 1, 2, ... members' adapters.
    pub merged: Vec<f64>,
    pub multi_round: Option<f64>,
    pub centralised: Option<f64>,
}

/// The base with the held-out examples, loaded once for all measurements.
pub struct Examiner {
    base: BaseModel,
    examples: Vec<TokenizedExample>,
}

impl Examiner {
    /// # Errors
    /// A base or examples that cannot be used.
    pub fn new(base: &Path, held_out: &Path, length_max: usize) -> Result<Self> {
        let base = BaseModel::load(base, &Device::Cpu)?;
        let tokens = Tokens::read(base.dir(), base.config())?;
        let examples = tokens.examples(&data::read_jsonl(held_out)?, Template::default(), length_max)?;
        anyhow::ensure!(!examples.is_empty(), "no held-out example has a label within {length_max} tokens");
        Ok(Self { base, examples })
    }

    pub fn examples(&self) -> usize {
        self.examples.len()
    }

    pub fn base(&self) -> Result<f64> {
        Ok(held_out_loss(&self.base.decoder(), &self.examples)?.loss)
    }

    /// # Errors
    /// A directory that is no adapter of this base.
    pub fn adapter(&self, folder: &Path) -> Result<f64> {
        let decoder = peft::Update::read(folder)?.apply(&self.base)?;
        Ok(held_out_loss(&decoder, &self.examples)?.loss)
    }

    /// The merges of the first 1, 2, ... adapters, weighted as the round weighs them, each written under `folder`.
    ///
    /// # Errors
    /// An adapter that does not fit the round.
    pub fn merges(&self, round: &Round, adapters: &[(PathBuf, u64)], folder: &Path) -> Result<Vec<f64>> {
        let (plan, mut sources, mut scores) = (Plan::of(round), Vec::new(), Vec::new());
        for (index, (adapter, weight)) in adapters.iter().enumerate() {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(index as u64).to_be_bytes());
            let file = sent_file(adapter, round.kind());
            let source = Source::read(&plan, MemberKey(key), *weight, &file);
            sources.push(source.with_context(|| format!("{} cannot be merged", adapter.display()))?);
            let out = folder.join(format!("merged-{}", index + 1));
            std::fs::create_dir_all(&out)?;
            merged::write_adapter(&out, round, |sink| merge_files(&plan, &sources, sink))?;
            scores.push(self.adapter(&out)?);
        }
        Ok(scores)
    }
}
