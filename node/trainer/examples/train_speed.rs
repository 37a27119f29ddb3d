//! Measures LoRA training on a base: tokens per second, and the loss before and after.
//!
//! `cargo run --release -p mingle --example train_speed -- BASE DATA.jsonl [STEPS] [THREADS] [RANK]`

use std::path::Path;

use mingle_trainer::data::{Template, Tokens, read_jsonl, split_held_out};
use mingle_trainer::models::BaseModel;
use mingle_trainer::train::{Control, Outcome, Start, TrainData, TrainSettings, seeded_draw, train_adapter};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, data, rest @ ..] = arguments.as_slice() else { anyhow::bail!("needs BASE and DATA.jsonl") };
    let steps_max = rest.first().map_or(Ok(100), |text| text.parse())?;
    let threads = rest.get(1).map(|text| text.parse()).transpose()?;
    let rank = rest.get(2).map_or(Ok(8), |text| text.parse())?;
    let base = BaseModel::load(Path::new(base), &candle_core::Device::Cpu)?;
    let settings = TrainSettings { steps_max: Some(steps_max), threads, epochs: 100, rank, ..TrainSettings::default() };
    let tokens = Tokens::read(base.dir(), base.config())?;
    let records = read_jsonl(Path::new(data))?;
    let examples = tokens.examples(&records, Template::Short, settings.length_max)?;
    println!("{} of {} examples carry labels", examples.len(), records.len());
    let (train, held_out) = split_held_out(examples, 200, 1);
    let mut report = |progress: &mingle_trainer::train::Progress| {
        if progress.step.is_multiple_of(20) || progress.step == progress.steps {
            println!("step {} loss {:.4} {:.0} tokens/s", progress.step, progress.loss, progress.tokens_per_second);
        }
        Control::Continue
    };
    let draw = seeded_draw(1);
    let data = TrainData { train: &train, held_out: &held_out };
    if let Outcome::Finished(done) = train_adapter(&base, data, &settings, Start::Drawn(&draw), None, &mut report)? {
        let (losses, speed) = (done.losses, done.tokens as f64 / done.seconds);
        println!("held-out loss {:.4} -> {:.4}; {} tokens, {speed:.0} tokens/s", losses.before, losses.after, done.tokens);
    }
    Ok(())
}
