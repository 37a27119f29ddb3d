//! `mingle eval`: how good a base is on data, alone or with an adapter.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::TemplateArg;
use super::base::BaseArg;
use super::progress;
use super::training::ComputeArgs;
use crate::data::{self, ChoiceForm, Field, FieldMap, Record, TokenizedExample, Tokens};
use crate::evaluate::{
    AnswerEnd, GSM8K_STOPS, Report, choice_prompts, choices, classify, exact_match, gsm8k_prompts, held_out_loss, template_prompts,
};
use crate::models::{BaseModel, Decoder};
use crate::{files, peft};

const EXAMPLES: &str = "\
Examples:
  mingle eval --base ./tinyllama --data test.jsonl
  mingle eval --base ./tinyllama --adapter ./merged --data test.jsonl --task exact-match --limit 100
  mingle eval --base ./bert --adapter ./adapter --data sst2_dev.tsv --task classes
  mingle eval --base ./tinyllama --data mmlu/test --task mmlu --dev mmlu/dev --shots 5 --json
  mingle eval --base ./tinyllama --data ARC-Easy-Test.jsonl --task arc
  mingle eval --base ./tinyllama --data gsm8k/test.jsonl --task gsm8k --dev gsm8k/train.jsonl --shots 5

Scores and prompts of mmlu, arc and gsm8k are those of lm-evaluation-harness.";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Task {
    /// Mean loss and perplexity over what training would teach
    Loss,
    /// Loss, accuracy, F1 and Matthews correlation of a model with a classification head
    Classes,
    /// Loss, and greedy answers to questions laid out as in training
    ExactMatch,
    /// GSM8K: greedy answers, compared by their final number
    Gsm8k,
    /// MMLU: comma-separated files of the original release, or JSON lines of the hub; a file or a folder
    Mmlu,
    /// ARC: JSON lines of the original release or of the hub
    Arc,
}

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the base, or the name of a model (`org/model`): from the Hugging Face cache, else from the hub
    #[arg(long, value_name = "DIR|NAME")]
    base: BaseArg,
    /// PEFT directory of an adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Data to measure on
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// The column that a field of an example is in, such as instruction=prompt; may be given several times
    #[arg(long, value_name = "FIELD=COLUMN")]
    map: Vec<Field>,
    /// What to measure
    #[arg(long, default_value = "loss")]
    task: Task,
    /// Solved examples to show before each question (mmlu, arc, gsm8k), in the form of the data
    #[arg(long, value_name = "PATH", requires = "shots")]
    dev: Option<PathBuf>,
    /// How many of them, from the first
    #[arg(long, value_name = "N", requires = "dev")]
    shots: Option<usize>,
    /// Use the first N records only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Longest answer, in tokens [default: 64, gsm8k 256]
    #[arg(long, value_name = "N")]
    answer_tokens: Option<usize>,
    /// Tokens an example is cut at, where its loss is measured
    #[arg(long, default_value_t = 512)]
    max_length: usize,
    /// How a prompt is laid out (loss, exact-match)
    #[arg(long, default_value = "short")]
    template: TemplateArg,
    /// Write every question's outcome as JSON lines
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let folder = args.base.directory()?;
    let loading = progress::working(!args.json, "loading the base");
    let base = BaseModel::load_on(&folder, &args.compute.device.open()?, args.compute.precision)?;
    let tokens = Tokens::read(&folder, base.config())?;
    let decoder = match &args.adapter {
        Some(folder) => peft::Update::read(folder)?.apply(&base)?,
        None => base.decoder(),
    };
    drop(loading);
    let bar = progress::count(!args.json);
    let report = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let measured = measure(&args, &decoder, &tokens, &report)?;
    bar.finish_and_clear();
    match args.json {
        true => {
            let mut all = json!({ "base": folder, "adapter": args.adapter, "data": args.data });
            if let (Some(all), Value::Object(found)) = (all.as_object_mut(), measured) {
                all.extend(found);
            }
            println!("{all}");
        }
        false => print_sentences(&measured),
    }
    Ok(ExitCode::SUCCESS)
}

/// The task's results, by name.
fn measure(args: &Args, decoder: &Decoder, tokens: &Tokens, report: &Report) -> Result<Value> {
    match args.task {
        Task::Loss => Ok(json!({ "loss": held_out_loss(decoder, &examples(args, tokens)?)? })),
        Task::Classes => {
            let examples = examples(args, tokens)?;
            let found = classify(decoder, &examples, report)?;
            write_samples(args, &found.samples)?;
            Ok(json!({ "loss": held_out_loss(decoder, &examples)?, "classes": found }))
        }
        Task::ExactMatch => {
            let loss = held_out_loss(decoder, &examples(args, tokens)?)?;
            let prompts = template_prompts(tokens, &records(args)?, args.template.into())?;
            let end = AnswerEnd { tokens_max: args.answer_tokens.unwrap_or(64), stops: &[] };
            let found = exact_match(decoder, tokens, &prompts, end, report)?;
            write_samples(args, &found.samples)?;
            Ok(json!({ "loss": loss, "exact_match": found }))
        }
        Task::Gsm8k => {
            let examples = args.dev.as_deref().map(data::read_jsonl).transpose()?.unwrap_or_default();
            let prompts = gsm8k_prompts(tokens, &records(args)?, &examples, args.shots.unwrap_or(0))?;
            let end = AnswerEnd { tokens_max: args.answer_tokens.unwrap_or(256), stops: &GSM8K_STOPS };
            let found = exact_match(decoder, tokens, &prompts, end, report)?;
            write_samples(args, &found.samples)?;
            Ok(json!({ "exact_match": found }))
        }
        Task::Mmlu | Task::Arc => {
            let form = if args.task == Task::Mmlu { ChoiceForm::Mmlu } else { ChoiceForm::Arc };
            let mut questions = data::read_choices(&args.data, form)?;
            questions.truncate(args.limit.unwrap_or(usize::MAX));
            let examples = args.dev.as_deref().map(|path| data::read_choices(path, form)).transpose()?.unwrap_or_default();
            let prompts = choice_prompts(form, &questions, &examples, args.shots.unwrap_or(0))?;
            let found = choices(decoder, tokens, &prompts, report)?;
            write_samples(args, &found.samples)?;
            Ok(json!({ "multiple_choice": found }))
        }
    }
}

fn records(args: &Args) -> Result<Vec<Record>> {
    let mut records = data::read_records(&args.data, &FieldMap(args.map.clone()))?;
    records.truncate(args.limit.unwrap_or(usize::MAX));
    Ok(records)
}

fn examples(args: &Args, tokens: &Tokens) -> Result<Vec<TokenizedExample>> {
    let examples = tokens.examples(&records(args)?, args.template.into(), args.max_length)?;
    if examples.is_empty() {
        bail!("no example in {} has a label within {} tokens", args.data.display(), args.max_length);
    }
    Ok(examples)
}

fn write_samples<T: Serialize>(args: &Args, samples: &[T]) -> Result<()> {
    let Some(path) = &args.samples else { return Ok(()) };
    let lines = samples.iter().map(|sample| serde_json::to_string(sample).map(|line| line + "\n"));
    let text = lines.collect::<Result<String, _>>()?;
    files::replace(path, text.as_bytes(), files::PUBLIC).with_context(|| format!("cannot write {}", path.display()))
}

/// The same for people: one line a score.
fn print_sentences(measured: &Value) {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let percent = |value: &Value| format!("{:.1} %", number(value) * 100.0);
    let loss = &measured["loss"];
    if loss.is_object() {
        println!("loss        {:.4} nats a label over {} labels of {} examples", number(&loss["loss"]), loss["tokens"], loss["examples"]);
        println!("perplexity  {:.3}", number(&loss["perplexity"]));
    }
    let found = &measured["classes"];
    if found.is_object() {
        println!("accuracy    {} of {} texts", percent(&found["accuracy"]), found["examples"]);
        if found["f1"].is_number() {
            println!("F1          {:.4} of class 1", number(&found["f1"]));
        }
        println!("macro F1    {:.4}", number(&found["f1_macro"]));
        println!("Matthews    {:.4}", number(&found["matthews"]));
    }
    let found = &measured["exact_match"];
    if found.is_object() {
        println!("exact match {} of {} answers", percent(&found["whole"]), found["examples"]);
        if found["strict_match"].is_number() {
            println!("  strict    {} by the number after ####", percent(&found["strict_match"]));
            println!("  flexible  {} by the last number", percent(&found["flexible_extract"]));
        }
    }
    let found = &measured["multiple_choice"];
    if let Some(groups) = found["groups"].as_object() {
        let total = &found["total"];
        for (name, scores) in groups.iter().filter(|_| groups.len() > 1).chain([(&"all".to_string(), total)]) {
            let (acc, norm) = (percent(&scores["acc"]), percent(&scores["acc_norm"]));
            println!("{name:36} acc {acc:>7}   acc_norm {norm:>7}   of {} questions", scores["questions"]);
        }
        println!("standard errors: acc {}, acc_norm {}", percent(&total["acc_stderr"]), percent(&total["acc_norm_stderr"]));
    }
}
