//! `mingle-testnet make-base`: makes the embedded base, from nothing but this repository and a seed.
//!
//! Generates the corpus, trains the tokenizer on its beginning, packs the documents into sequences of one length and
//! trains a small Llama from random weights with the trainer of the node (every weight, AdamW, warm-up and cosine). The
//! same options give the same files on one machine. `testnet/base/README.md` says how the shipped one was made.
//!
//! An interrupted run goes on from its checkpoint (`OUT/checkpoint`), bit for bit; the checkpoint is removed when the
//! base is written. Refuses a checkpoint of other options, and any text but the generator's.

pub mod vocabulary;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use candle_core::Device;
use clap::Args;
use mingle::data::{Record, Template, TokenizedExample};
use mingle::models::ModelConfig;
use mingle::models::families::tiny_llama;
use mingle::train::{Control, Outcome, Progress, Schedule, TrainData, TrainSettings, checkpoint, random_decoder, train_full};
use tokenizers::Tokenizer;

use crate::corpus::{Corpus, Document};
use vocabulary::{END, START, save_tokenizer, train_tokenizer};

/// Positions the base is made for; fine-tuning examples must be shorter.
pub const POSITIONS_MAX: usize = 512;
/// Tokens a pre-training sequence feeds.
const SEQUENCE_TOKENS: usize = 256;
/// Documents the tokenizer is trained on.
const TOKENIZER_DOCUMENTS: usize = 30_000;
/// Documents tokenised together.
const DOCUMENTS_AT_ONCE: usize = 4_096;
/// Sequences of the stream "check" that the loss is measured on before and after.
const CHECK_SEQUENCES: usize = 128;

/// Makes a small pre-trained base from the repository's own text generator.
///
/// Example: mingle-testnet make-base --out testnet/base --threads 8
#[derive(Args, Clone, Debug)]
pub struct MakeBase {
    /// Folder that gets config.json, tokenizer.json, tokenizer_config.json and model.safetensors.
    #[arg(long)]
    pub out: PathBuf,
    /// Gradient steps; each feeds `--batch` sequences of 256 tokens that were not fed before.
    #[arg(long, default_value_t = 2_000)]
    pub steps: usize,
    /// Sequences of one step. Threads share them out one by one, so at least one for each thread.
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 2e-3)]
    pub learning_rate: f64,
    /// Seed of the text, of the first weights and of the order of the batches.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads; all processors when left out.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Steps between checkpoints; 0 writes none. The same command goes on from the last one.
    #[arg(long, default_value_t = 500)]
    pub checkpoint_every: usize,
    /// Width of the model: a multiple of 32.
    #[arg(long, default_value_t = 128)]
    pub hidden: usize,
    /// Blocks of the model.
    #[arg(long, default_value_t = 5)]
    pub layers: usize,
    /// Entries of the tokenizer.
    #[arg(long, default_value_t = 1_536)]
    pub vocabulary: usize,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct MadeBase {
    pub parameters: usize,
    /// Tokens fed over all steps.
    pub tokens: u64,
    pub seconds: f64,
    /// Mean loss over the tokens of text that was not trained on, in nats.
    pub loss_before: f64,
    pub loss_after: f64,
}

impl MakeBase {
    /// Generates, trains and writes; tells its progress on standard error.
    ///
    /// # Errors
    /// When the training refuses its settings or diverges, or a file cannot be written.
    pub fn run(&self) -> anyhow::Result<MadeBase> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("creating {}", self.out.display()))?;
        eprintln!("tokenizer: {} entries from {TOKENIZER_DOCUMENTS} documents", self.vocabulary);
        let beginning: Vec<String> = training_texts(self.seed, "train").take(TOKENIZER_DOCUMENTS).collect();
        let tokenizer = train_tokenizer(&beginning, self.vocabulary)?;
        drop(beginning);

        let sequences = self.steps * self.batch;
        eprintln!("text: {sequences} sequences of {SEQUENCE_TOKENS} tokens");
        let train = packed_sequences(&tokenizer, self.seed, "train", sequences)?;
        let held_out = packed_sequences(&tokenizer, self.seed, "check", CHECK_SEQUENCES)?;

        let (decoder, variables) = random_decoder(self.config(), self.seed, &Device::Cpu)?;
        let parameters = variables.iter().map(|(_, variable)| variable.elem_count()).sum();
        eprintln!("model: {parameters} parameters, {} steps", self.steps);
        let folder = self.out.join("checkpoint");
        let data = TrainData { train: &train, held_out: &held_out };
        let outcome = train_full(&decoder, &variables, data, &self.settings(), Some(&folder), &mut teller())?;
        let Outcome::Finished(trained) = outcome else { bail!("the training stopped before its last step") };

        decoder.save(&self.out)?;
        save_tokenizer(&tokenizer, &self.out)?;
        checkpoint::remove(&folder)?;
        // Only if empty: whatever else stands there is not ours.
        let _ = std::fs::remove_dir(&folder);
        let losses = trained.losses;
        eprintln!(
            "loss on unseen text: {:.4} before, {:.4} after {} tokens in {:.0} s; written to {}",
            losses.before,
            losses.after,
            trained.tokens,
            trained.seconds,
            self.out.display()
        );
        let (tokens, seconds) = (trained.tokens, trained.seconds);
        Ok(MadeBase { parameters, tokens, seconds, loss_before: losses.before, loss_after: losses.after })
    }

    /// Llama with grouped queries and a tied head.
    fn config(&self) -> ModelConfig {
        ModelConfig {
            hidden: self.hidden,
            intermediate: self.hidden * 3,
            layers: self.layers,
            heads: self.hidden / 32,
            kv_heads: (self.hidden / 64).max(1),
            head_dim: 32,
            vocabulary: self.vocabulary,
            positions_max: POSITIONS_MAX,
            tied: true,
            ..tiny_llama()
        }
    }

    fn settings(&self) -> TrainSettings {
        TrainSettings {
            epochs: 1,
            batch_size: self.batch,
            learning_rate: self.learning_rate,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.02,
            weight_decay: 0.05,
            beta2: 0.95,
            length_max: SEQUENCE_TOKENS + 1,
            seed: self.seed,
            checkpoint_every_steps: self.checkpoint_every,
            threads: self.threads,
            ..TrainSettings::default()
        }
    }
}

/// A line of progress every ten seconds and after the last step, on a terminal or not.
fn teller() -> impl FnMut(&Progress) -> Control {
    const QUIET: Duration = Duration::from_secs(10);
    let mut told = Instant::now();
    move |progress| {
        if told.elapsed() >= QUIET || progress.step == progress.steps {
            told = Instant::now();
            tell(progress);
        }
        Control::Continue
    }
}

fn tell(progress: &Progress) {
    let left = progress.remaining.as_secs();
    eprintln!(
        "step {:>5}/{} loss {:.3} rate {:.2e} {:>6.0} tokens/s, {}:{:02} left",
        progress.step,
        progress.steps,
        progress.loss,
        progress.learning_rate,
        progress.tokens_per_second,
        left / 60,
        left % 60
    );
}

/// The corpus as plain text, one document an item; exchanges in the data room's own prompt form.
pub fn training_texts(seed: u64, stream: &str) -> impl Iterator<Item = String> + use<> {
    Corpus::new(seed, stream).map(|document| {
        let record = match document {
            Document::Text(text) => Record::Text(text),
            Document::Exchange(exchange) => {
                let (instruction, input, output) = (exchange.instruction, exchange.input, exchange.output);
                Record::Instruction { instruction, input, output }
            }
        };
        record.segments(Template::default()).into_iter().map(|segment| segment.text).collect()
    })
}

/// `count` sequences of one length: documents between start and end marks, one after the other, cut wherever a sequence
/// is full. Every token is learned, prompts too: the base should know questions as well as answers.
fn packed_sequences(tokenizer: &Tokenizer, seed: u64, stream: &str, count: usize) -> anyhow::Result<Vec<TokenizedExample>> {
    let mark = |word| tokenizer.token_to_id(word).with_context(|| format!("the tokenizer has no {word}"));
    let (start, end) = (mark(START)?, mark(END)?);
    let mut texts = training_texts(seed, stream);
    let mut sequences = Vec::with_capacity(count);
    let mut waiting: Vec<u32> = Vec::new();
    while sequences.len() < count {
        let documents: Vec<String> = texts.by_ref().take(DOCUMENTS_AT_ONCE).collect();
        let encoded = tokenizer.encode_batch(documents, false).map_err(|reason| anyhow::anyhow!("tokenising: {reason}"))?;
        for document in encoded {
            waiting.push(start);
            waiting.extend_from_slice(document.get_ids());
            waiting.push(end);
        }
        // One token more than is fed, since the last is only predicted.
        let whole = waiting.len() / (SEQUENCE_TOKENS + 1) * (SEQUENCE_TOKENS + 1);
        for tokens in waiting[..whole].chunks_exact(SEQUENCE_TOKENS + 1).take(count - sequences.len()) {
            sequences.push(TokenizedExample::all_learned(tokens.to_vec()));
        }
        waiting.drain(..whole);
    }
    Ok(sequences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_full_and_follow_each_other() {
        let texts: Vec<String> = training_texts(1, "train").take(300).collect();
        let tokenizer = train_tokenizer(&texts, 512).expect("a tokenizer");
        let sequences = packed_sequences(&tokenizer, 1, "train", 20).expect("sequences");
        assert_eq!(sequences.len(), 20);
        assert!(sequences.iter().all(|sequence| sequence.tokens.len() == SEQUENCE_TOKENS + 1));
        assert_eq!(sequences[0].tokens[0], 1, "the first document begins with the start mark");
        let joined: Vec<u32> = sequences.iter().flat_map(|sequence| sequence.tokens.clone()).collect();
        let end = joined.iter().position(|token| *token == 2).expect("a document ends within twenty sequences");
        assert_eq!(tokenizer.decode(&joined[..end], true).expect("decoded"), texts[0]);
        assert_eq!(joined[end + 1], 1, "the next document begins where the last one ended");
    }

    #[test]
    fn a_tiny_base_is_made_twice_alike_and_learns() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let make = |name: &str| {
            let out = folder.path().join(name);
            let options = MakeBase {
                out: out.clone(),
                steps: 6,
                batch: 2,
                learning_rate: 5e-3,
                seed: 1,
                threads: Some(2),
                checkpoint_every: 0,
                hidden: 32,
                layers: 1,
                vocabulary: 320,
            };
            let made = options.run().expect("made");
            assert!(made.loss_after < made.loss_before - 0.1, "{made:?}");
            ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
                .map(|file| std::fs::read(out.join(file)).expect("written"))
        };
        assert!(make("one") == make("two"), "the same options give the same files");
    }
}
