//! `mingle preview`: the first examples of some data as a training would see them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::args::TemplateArg;
use super::base::BaseArg;
use crate::data::{self, Field, FieldMap, Record, TokenizedExample, Tokens};
use crate::models::ModelConfig;

const EXAMPLES: &str = "\
Examples:
  mingle preview --base ./tinyllama --data notes.jsonl
  mingle preview --base ./tinyllama --data train.parquet --map instruction=prompt --map output=completion
  mingle preview --base ./bert --data reviews.csv --count 5 --json

What is given is what the model reads; what is learned is what it is trained to say, the end-of-text token included.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Hugging Face directory of the base: of it the tokenizer and the configuration are read
    #[arg(long, value_name = "DIR|NAME")]
    base: BaseArg,
    /// Data: JSON lines, .csv, .parquet or (with classes) .tsv
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The column that a field of an example is in, such as instruction=prompt; may be given several times
    #[arg(long, value_name = "FIELD=COLUMN")]
    map: Vec<Field>,
    /// How a prompt is laid out
    #[arg(long, default_value = "short")]
    template: TemplateArg,
    /// Tokens an example is cut at
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_length: usize,
    /// Examples to show, from the first
    #[arg(long, default_value_t = 3, value_name = "N")]
    count: usize,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Tokens in a row that are all given, or all learned.
struct Run {
    learned: bool,
    text: String,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let records = data::read_records(&args.data, &FieldMap(args.map.clone()))?;
    let base = args.base.directory()?;
    let tokens = Tokens::read(&base, &ModelConfig::read(&base)?)?;
    let mut shown = Vec::new();
    for (index, record) in records.iter().take(args.count).enumerate() {
        let whole = tokens.example(record, args.template.into(), usize::MAX)?;
        let example = tokens.example(record, args.template.into(), args.max_length)?;
        let runs = runs(&tokens, record, &example)?;
        if args.json {
            shown.push(as_json(&example, &whole, &runs));
        } else {
            show(index + 1, args.max_length, &example, &whole, &runs);
        }
    }
    match args.json {
        true => println!("{}", json!({ "records": records.len(), "examples": shown })),
        false => println!("{} examples in {}", records.len(), args.data.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A classifier learns no token: there all is given.
fn runs(tokens: &Tokens, record: &Record, example: &TokenizedExample) -> Result<Vec<Run>> {
    let learned = |place: usize| !matches!(record, Record::Classification { .. }) && example.learned.get(place) == Some(&true);
    let (mut runs, mut first) = (Vec::new(), 0);
    for place in 1..=example.tokens.len() {
        if place == example.tokens.len() || learned(place) != learned(first) {
            let text = tokens.decode_with_specials(&example.tokens[first..place])?;
            runs.push(Run { learned: learned(first), text });
            first = place;
        }
    }
    Ok(runs)
}

fn as_json(example: &TokenizedExample, whole: &TokenizedExample, runs: &[Run]) -> Value {
    let runs: Vec<Value> = runs.iter().map(|run| json!({ "learned": run.learned, "text": run.text })).collect();
    json!({ "tokens": example.tokens, "learned": example.learned, "class": example.label, "labels": example.labels(),
        "tokens_uncut": whole.tokens.len(), "runs": runs })
}

fn show(number: usize, length_max: usize, example: &TokenizedExample, whole: &TokenizedExample, runs: &[Run]) {
    let cut = match whole.tokens.len() > example.tokens.len() {
        true => format!(", cut from {} by --max-length {length_max}", whole.tokens.len()),
        false => String::new(),
    };
    let learns = match (example.label, example.labels()) {
        (Some(class), _) => format!("class {class}"),
        (None, 0) => "nothing to learn: it is left out".to_owned(),
        (None, labels) => format!("{labels} learned"),
    };
    println!("example {number}  {} tokens{cut}, {learns}", example.tokens.len());
    for run in runs {
        println!("  {}  {:?}", if run.learned { "learned" } else { "given  " }, run.text);
    }
    println!();
}
