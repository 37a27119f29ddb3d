//! Options of a training, shared by the verbs that train.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::args::TemplateArg;
use crate::contribution::{HeldOut, TrainingPlan};
use crate::data::{Field, FieldMap};
use crate::models::device::{DeviceChoice, Precision};
use crate::train::metrics::MetricsPlan;
use crate::train::{Noise, Preset, Privacy, Schedule, TrainSettings};

/// What is trained on what, and how.
#[derive(Args, Clone, Debug)]
pub struct TrainingArgs {
    /// Settings under a name; every other option goes before it
    #[arg(long, help_heading = "Steps")]
    pub preset: Option<PresetArg>,
    /// Passes over the training data [default: 3]
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub epochs: Option<usize>,
    /// Ends the training after so many steps
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub max_steps: Option<usize>,
    /// Examples of one batch [default: 16]
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub batch_size: Option<usize>,
    /// Instead: as many examples in a batch as have this many tokens together
    #[arg(long, help_heading = "Steps", value_name = "N", conflicts_with = "batch_size")]
    pub batch_tokens: Option<usize>,
    /// Batches of one optimiser step [default: 1]
    #[arg(long, help_heading = "Steps", value_name = "N")]
    pub accumulate: Option<usize>,
    /// Batches of examples of any length, not of similar ones
    #[arg(long, help_heading = "Steps")]
    pub no_length_grouping: bool,

    /// Highest learning rate, after the warm-up [default: 3e-4]
    #[arg(long, help_heading = "Optimiser", value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// How the learning rate goes on after the warm-up [default: cosine]
    #[arg(long, help_heading = "Optimiser")]
    pub schedule: Option<ScheduleArg>,
    /// Part of all steps over which the learning rate rises [default: 0.05]
    #[arg(long, help_heading = "Optimiser", value_name = "FRACTION")]
    pub warmup_ratio: Option<f64>,
    /// Instead: the number of these steps
    #[arg(long, help_heading = "Optimiser", value_name = "N", conflicts_with = "warmup_ratio")]
    pub warmup_steps: Option<usize>,
    /// AdamW's weight decay [default: 0]
    #[arg(long, help_heading = "Optimiser", value_name = "RATE")]
    pub weight_decay: Option<f64>,
    /// Longer gradients are scaled down to this length; 0 leaves them [default: 1]
    #[arg(long, help_heading = "Optimiser", value_name = "LENGTH")]
    pub clip_norm: Option<f64>,
    /// Part of its input that LoRA does not see in a step [default: 0]
    #[arg(long, help_heading = "Optimiser", value_name = "FRACTION")]
    pub dropout: Option<f64>,

    /// Promise each training example differential privacy with this epsilon: everybody's part of a step is bounded, and noise is
    /// added; the announcement says so
    #[arg(long, help_heading = "Privacy", value_name = "EPSILON")]
    pub privacy_epsilon: Option<f64>,
    /// Instead: the noise's standard deviation, in lengths of --privacy-clip
    #[arg(long, help_heading = "Privacy", value_name = "FACTOR", conflicts_with = "privacy_epsilon")]
    pub privacy_noise: Option<f64>,
    /// The chance that the promise does not hold
    #[arg(long, help_heading = "Privacy", default_value_t = 1e-5, value_name = "DELTA")]
    pub privacy_delta: f64,
    /// Largest length of one example's gradient
    #[arg(long, help_heading = "Privacy", default_value_t = 1.0, value_name = "LENGTH")]
    pub privacy_clip: f64,

    /// The column that a field of an example is in, such as instruction=prompt; may be given several times [default: columns are
    /// named as the fields]
    #[arg(long, help_heading = "Data", value_name = "FIELD=COLUMN")]
    pub map: Vec<Field>,
    /// Tokens an example is cut at [default: 512]
    #[arg(long, help_heading = "Data", value_name = "N")]
    pub max_length: Option<usize>,
    /// Lay plain texts one after the other and cut them into blocks of --max-length tokens
    #[arg(long, help_heading = "Data")]
    pub pack: bool,
    /// Part of the examples kept from training, to measure with
    #[arg(long, help_heading = "Data", default_value_t = 0.05, value_name = "FRACTION")]
    pub held_out: f64,
    /// Seed of shuffling, splitting and dropout
    #[arg(long, help_heading = "Data", default_value_t = 0, value_name = "NUMBER")]
    pub training_seed: u64,
    /// How a prompt is laid out
    #[arg(long, help_heading = "Data", default_value = "short")]
    pub template: TemplateArg,

    /// Steps between measurements of the held-out loss [default: only before and after]
    #[arg(long, help_heading = "Evaluation", value_name = "N")]
    pub evaluate_every: Option<usize>,
    /// End after so many measurements without an improvement
    #[arg(long, help_heading = "Evaluation", value_name = "N", requires = "evaluate_every")]
    pub patience: Option<usize>,
    /// Less than this is no improvement
    #[arg(long, help_heading = "Evaluation", default_value_t = 0.0, value_name = "LOSS", requires = "patience")]
    pub min_delta: f64,
    /// Hand out what the best measurement saw, not what the last step made
    #[arg(long, help_heading = "Evaluation", requires = "evaluate_every")]
    pub keep_best: bool,

    /// Keep activations at block boundaries only and compute them again: less memory, more time
    #[arg(long, help_heading = "Memory and speed")]
    pub recompute: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Threads that compute [default: all processors]
    #[arg(long, help_heading = "Memory and speed")]
    pub threads: Option<usize>,
    /// Begin even if the estimate says that the memory will not do
    #[arg(long, help_heading = "Memory and speed")]
    pub ignore_memory: bool,

    /// Steps between checkpoints
    #[arg(long, help_heading = "Progress", default_value_t = 50, value_name = "N")]
    pub checkpoint_every: usize,
    /// Write one JSON object a step and an evaluation
    #[arg(long, help_heading = "Progress", value_name = "FILE.jsonl")]
    pub metrics: Option<PathBuf>,
    /// Write TensorBoard event files
    #[arg(long, help_heading = "Progress", value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
}

/// Where a model computes, and in what.
#[derive(clap::Args, Clone, Debug)]
pub struct ComputeArgs {
    /// auto, cpu, cuda, cuda:N or metal; auto takes a GPU where this program was built for one and finds it
    #[arg(long, help_heading = "Memory and speed", default_value = "auto")]
    pub device: DeviceChoice,
    /// f32, bf16 or f16, of frozen weights and activations [default: bf16 where a GPU multiplies it, else f32]
    #[arg(long, help_heading = "Memory and speed")]
    pub precision: Option<Precision>,
}

/// A preset by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PresetArg {
    /// LoRA as in arXiv 2412.04650: rank 16, rate 3e-4, batches of 64, 3 epochs
    PaperLora,
    /// All weights as in arXiv 2412.04650: rate 3e-5, batches of 64, 3 epochs
    PaperFull,
}

/// A schedule by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ScheduleArg {
    Constant,
    Linear,
    Cosine,
}

impl From<PresetArg> for Preset {
    fn from(preset: PresetArg) -> Self {
        match preset {
            PresetArg::PaperLora => Self::PaperLora,
            PresetArg::PaperFull => Self::PaperFull,
        }
    }
}

impl TrainingArgs {
    /// The preset's settings, or the program's own, with what was given in their place.
    pub fn settings(&self) -> TrainSettings {
        let own = || TrainSettings { epochs: 3, rank: 16, alpha: 32.0, ..TrainSettings::default() };
        let start = self.preset.map_or_else(own, |preset| Preset::from(preset).settings());
        TrainSettings {
            epochs: self.epochs.unwrap_or(start.epochs),
            steps_max: self.max_steps,
            batch_size: self.batch_size.unwrap_or(start.batch_size),
            batch_tokens: self.batch_tokens,
            accumulate: self.accumulate.unwrap_or(start.accumulate),
            group_by_length: !self.no_length_grouping,
            learning_rate: self.learning_rate.unwrap_or(start.learning_rate),
            schedule: match self.schedule {
                Some(ScheduleArg::Constant) => Schedule::Constant,
                Some(ScheduleArg::Linear) => Schedule::Linear,
                Some(ScheduleArg::Cosine) => Schedule::Cosine,
                None => start.schedule,
            },
            warmup_ratio: self.warmup_ratio.unwrap_or(start.warmup_ratio),
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay.unwrap_or(start.weight_decay),
            clip_norm: self.clip_norm.unwrap_or(start.clip_norm),
            dropout: self.dropout.unwrap_or(start.dropout),
            length_max: self.max_length.unwrap_or(start.length_max),
            pack: self.pack,
            seed: self.training_seed,
            evaluate_every_steps: self.evaluate_every.unwrap_or(0),
            patience: self.patience,
            min_delta: self.min_delta,
            keep_best: self.keep_best,
            recompute: self.recompute,
            precision: self.compute.precision,
            checkpoint_every_steps: self.checkpoint_every,
            privacy: self.privacy(),
            threads: self.threads,
            ..start
        }
    }

    fn privacy(&self) -> Option<Privacy> {
        let noise = self.privacy_epsilon.map(Noise::Epsilon).or(self.privacy_noise.map(Noise::Multiplier))?;
        Some(Privacy { clip: self.privacy_clip, noise, delta: self.privacy_delta })
    }

    pub fn plan(&self, base: PathBuf, data: Vec<PathBuf>, start_from: Option<PathBuf>) -> TrainingPlan {
        TrainingPlan {
            base,
            data,
            held_out: HeldOut(self.held_out),
            fields: FieldMap(self.map.clone()),
            template: self.template.into(),
            settings: self.settings(),
            start_from,
            metrics: MetricsPlan { jsonl: self.metrics.clone(), tensorboard: self.tensorboard.clone() },
            ignore_memory: self.ignore_memory,
            device: self.compute.device,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::train::Method;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        training: TrainingArgs,
    }

    fn settings(line: &str) -> TrainSettings {
        Line::parse_from(std::iter::once("mingle").chain(line.split_whitespace())).training.settings()
    }

    #[test]
    fn what_is_given_goes_before_the_preset() {
        let paper = Preset::PaperLora.settings();
        assert_eq!(settings("--preset paper-lora"), paper);
        let changed = settings("--preset paper-lora --batch-size 8 --accumulate 8 --schedule cosine --dropout 0");
        assert_eq!(changed, TrainSettings { batch_size: 8, accumulate: 8, schedule: Schedule::Cosine, dropout: 0.0, ..paper });
        let full = settings("--preset paper-full");
        assert_eq!((full.learning_rate, full.method), (3e-5, Method::Full));
        let own = settings("--no-length-grouping --warmup-steps 7");
        assert_eq!((own.epochs, own.batch_size, own.group_by_length, own.warmup_steps), (3, 16, false, Some(7)));
    }

    #[test]
    fn options_that_need_another_say_so() {
        let refused = |line: &str| Line::try_parse_from(std::iter::once("mingle").chain(line.split_whitespace())).is_err();
        assert!(refused("--patience 3") && refused("--keep-best") && refused("--batch-size 2 --batch-tokens 3"));
        assert!(refused("--warmup-ratio 0.1 --warmup-steps 3"));
        assert!(refused("--privacy-epsilon 8 --privacy-noise 1"));
        assert_eq!(settings("").privacy, None);
        let private = Privacy { clip: 0.5, noise: Noise::Epsilon(8.0), delta: 1e-5 };
        assert_eq!(settings("--privacy-epsilon 8 --privacy-clip 0.5").privacy, Some(private));
        assert!(!refused("--patience 3 --evaluate-every 5 --keep-best --min-delta 0.01"));
    }
}
