//! Options by which a member judges others' adapters, where its round asks for that.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use mingle_protocol::round::Round;

use crate::contribution::{TrainingPlan, start_of};
use crate::data;
use crate::home::Home;
use crate::judge::{self, Judge, TOLERANCE};

#[derive(clap::Args, Clone, Debug)]
pub struct JudgingArgs {
    /// Data to judge others' adapters by, in a round with verdicts, and to score merges by; may be given several times [default:
    /// what training holds out]
    #[arg(long, help_heading = "Verdicts", value_name = "FILE")]
    pub judge_with: Vec<PathBuf>,
    /// How much more than at the round's start, or with what is merged, the loss may be with an adapter that is approved
    #[arg(long, help_heading = "Verdicts", default_value_t = TOLERANCE, value_name = "FRACTION", value_parser = fraction)]
    pub verdict_tolerance: f64,
}

fn fraction(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number from 0"))
}

impl JudgingArgs {
    /// A judge with base, device and layout of `plan`: by the files that were given, else by what the plan holds out of its
    /// data. None where there is neither, or where neither the round asks for verdicts nor `scores` for scores.
    ///
    /// # Errors
    /// Files that are of no use: said now, not after joining.
    pub fn judge(&self, round: &Round, home: &Home, plan: &TrainingPlan, scores: bool) -> Result<Option<Judge>> {
        let manifest = round.manifest();
        let asked = manifest.verdicts.is_some() || scores;
        ensure!(asked || self.judge_with.is_empty(), "round \"{}\" asks for no verdicts, so --judge-with is of no use", manifest.name);
        for path in &self.judge_with {
            data::read_records(path, &plan.fields)?;
        }
        let held_out = !plan.data.is_empty() && plan.held_out.0 > 0.0;
        if !asked || (self.judge_with.is_empty() && !held_out) {
            return Ok(None);
        }
        let (files, of) = (self.judge_with.clone(), plan.clone());
        let (of_round, home, from) = (round.clone(), home.clone(), plan.start_from.clone());
        let examples = move || match files.is_empty() {
            true => Ok(of.examples()?.held_out),
            false => judge::read(&of.base, &files, &of.fields, of.template, of.settings.length_max),
        };
        // Half of the processors, where nothing else is said: the peer goes on serving meanwhile.
        let half = || std::thread::available_parallelism().ok().map(|all| all.get().div_ceil(2));
        Ok(Some(Judge {
            base: plan.base.clone(),
            device: plan.device,
            precision: plan.settings.precision,
            threads: plan.settings.threads.or_else(half),
            tolerance: self.verdict_tolerance,
            start: Box::new(move || start_of(&of_round, &home, from.as_deref())),
            scores,
            examples: Box::new(examples),
        }))
    }
}
