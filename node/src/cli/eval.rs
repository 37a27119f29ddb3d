//! `mingle eval`: how good a base is on data, alone or with an adapter.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use candle_core::Device;
use serde_json::json;

use super::args::TemplateArg;
use crate::data::{self, Tokens};
use crate::evaluate::{exact_match, held_out_loss, same_final_answer, same_text};
use crate::models::BaseModel;
use crate::peft;

const EXAMPLES: &str = "\
Examples:
  mingle eval --base ./tinyllama --data test.jsonl
  mingle eval --base ./tinyllama --adapter ./merged --data test.jsonl --json
  mingle eval --base ./tinyllama --adapter ./merged --data test.jsonl --exact-match --limit 100";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the base
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// PEFT directory of an adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Data to measure on, JSON lines
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Use the first N records only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Also answer every question greedily and count the right ones
    #[arg(long)]
    exact_match: bool,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 64, value_name = "N")]
    answer_tokens: usize,
    /// Tokens an example is cut at
    #[arg(long, default_value_t = 512)]
    max_length: usize,
    /// How a prompt is laid out
    #[arg(long, default_value = "short")]
    template: TemplateArg,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let base = BaseModel::load(&args.base, &Device::Cpu)?;
    let tokens = Tokens::read(&args.base, base.config())?;
    let mut records = data::read_jsonl(&args.data)?;
    records.truncate(args.limit.unwrap_or(usize::MAX));
    let template = args.template.into();
    let examples = tokens.examples(&records, template, args.max_length)?;
    if examples.is_empty() {
        bail!("no example in {} has a label within {} tokens", args.data.display(), args.max_length);
    }
    let decoder = match &args.adapter {
        Some(folder) => peft::Update::read(folder)?.apply(&base)?,
        None => base.decoder().clone(),
    };
    let loss = held_out_loss(&decoder, &examples)?;
    let agrees = if records.iter().any(|record| record.question_and_answer(template).is_some_and(|(_, answer)| answer.contains("####"))) {
        same_final_answer
    } else {
        same_text
    };
    let matched = args.exact_match.then(|| exact_match(&decoder, &tokens, &records, template, args.answer_tokens, agrees)).transpose()?;
    if args.json {
        println!("{}", json!({ "base": args.base, "adapter": args.adapter, "data": args.data, "loss": loss, "exact_match": matched }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("loss        {:.4} nats a token over {} labelled tokens of {} examples", loss.loss, loss.tokens, loss.examples);
    println!("perplexity  {:.3}", loss.perplexity);
    if let Some(matched) = matched {
        println!("exact match {:.1} % ({} of {})", matched.accuracy * 100.0, matched.correct, matched.examples);
    }
    Ok(ExitCode::SUCCESS)
}
