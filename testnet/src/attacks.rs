//! What merge rules stand: honest members train once, some of them are replaced by attackers, and every rule merges what came.
//!
//! Adapters are trained by this program's own `train` verb and kept in a folder, so that every attack meets the same honest work.
//! Attackers see all honest adapters and work together. A score is the part of what the honest mean gains over the base, in held-out
//! loss, that a merge keeps: 100 is the mean of honest adapters, 0 the base, and below 0 the merge does harm.

mod craft;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mingle::merged;
use mingle::peft::{self, Update};
use mingle::sent::merged_file;
use mingle_protocol::adapter::{Dtype, Layout, canonical_header};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::{MemberKey, Roster};
use mingle_protocol::merge::{Member, MergeError, MergeRule, Plan};
use mingle_protocol::round::{Manifest, Round, WeightRule};

use crate::options::Options;
use crate::peer::Program;
use crate::scores::Examiner;
use crate::setting::Setting;
use crate::tasks;
pub use craft::Attack;
pub use table::{Row, Table};

/// Part of a largest honest norm that the clip allows: members do not know each other's norms when a round is agreed on.
const CLIP_ROOM: f64 = 1.25;

/// Measure what each merge rule stands, on real adapters of the embedded base.
#[derive(Args, Clone, Debug)]
pub struct AttackOptions {
    /// Members, attackers included
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(5..=64))]
    members: u32,
    /// Most attackers among them; every number up to it is measured, and the robust rules are told it
    #[arg(long, default_value_t = 3)]
    attackers: u32,
    /// What members train and send
    #[arg(long, default_value = "frozen-a", value_parser = ["lora", "frozen-a"])]
    method: String,
    /// Examples of each member
    #[arg(long, default_value_t = 192)]
    examples: usize,
    /// Epochs of each member
    #[arg(long, default_value_t = 9)]
    epochs: u32,
    /// Held-out questions
    #[arg(long, default_value_t = 200)]
    questions: usize,
    /// Seed of tasks, shards and chance
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Folder in which trained adapters are kept for the next run
    #[arg(long, value_name = "DIR", default_value = "attack-adapters")]
    cache: PathBuf,
    /// File for the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl AttackOptions {
    /// Trains what is not there yet, measures, prints.
    ///
    /// # Errors
    /// A training that fails, or a folder that cannot be written.
    pub fn run(&self, program: &Program) -> Result<()> {
        let table = self.measure(program)?;
        print!("{}", table.text());
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_vec_pretty(&table)?).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn measure(&self, program: &Program) -> Result<Table> {
        ensure!(2 * self.attackers + 3 <= self.members, "no rule stands {} attackers among {} members", self.attackers, self.members);
        let field = Field::prepare(self, program)?;
        let clip = field.clip()?;
        let rules: Vec<(String, MergeRule, Option<u64>)> = [
            (MergeRule::Mean, None),
            (MergeRule::Mean, Some(clip)),
            (MergeRule::TrimmedMean { trim: self.attackers }, None),
            (MergeRule::TrimmedMean { trim: self.attackers }, Some(clip)),
            (MergeRule::Median, None),
            (MergeRule::MultiKrum { faulty: self.attackers }, None),
        ]
        .map(|(rule, clip)| (if clip.is_some() { format!("{} + clip", rule.name()) } else { rule.name().into() }, rule, clip))
        .into();
        let mut rows = Vec::new();
        let field = field.scaled()?;
        let honest = (0_u32, None);
        let attacks = (1..=self.attackers).flat_map(|faulty| Attack::ALL.map(|attack| (faulty, Some(attack))));
        for (faulty, attack) in std::iter::once(honest).chain(attacks) {
            let files = field.files(faulty as usize, attack)?;
            let scores = rules.iter().map(|(_, rule, clip)| field.score(&files, *rule, *clip)).collect::<Result<Vec<_>>>()?;
            eprintln!("{faulty} of {} {:22} {scores:?}", self.members, attack.map_or("nobody attacks", Attack::name));
            rows.push(Row { attackers: faulty, attack: attack.map(|attack| attack.name().into()), scores });
        }
        Ok(Table {
            method: self.method.clone(),
            members: self.members,
            questions: self.questions,
            clip: clip as f64 / 1e6,
            base: field.base,
            honest: field.honest_mean,
            rules: rules.into_iter().map(|(name, ..)| name).collect(),
            rows,
        })
    }
}

/// Honest and poisoned adapters, and what measures them.
struct Field {
    round: Round,
    examiner: Examiner,
    folder: PathBuf,
    /// What each member's training moved, all sent tensors one after the other, and where all of them began.
    start: Vec<f32>,
    honest: Vec<Vec<f32>>,
    /// The last members' trainings on questions with wrong answers.
    poisoned: Vec<Vec<f32>>,
    seed: u64,
    /// Held-out losses with the base alone, and with the mean of honest adapters.
    base: f64,
    honest_mean: f64,
}

impl Field {
    fn prepare(options: &AttackOptions, program: &Program) -> Result<Self> {
        let folder =
            options.cache.join(format!("{}-{}-{}-{}-{}", options.method, options.members, options.examples, options.epochs, options.seed));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let testnet = Options {
            members: options.members,
            examples: options.examples,
            eval_examples: options.questions,
            method: options.method.clone(),
            seed: options.seed,
            ..<Options as clap::Parser>::parse_from(["mingle-testnet"])
        };
        let setting = Setting::prepare(&testnet, &folder.join("setting"))?;
        let round = make_round(&testnet, &setting, program, &folder)?;
        let train = |name: &str, data: &Path| -> Result<Vec<f32>> {
            let out = folder.join(name);
            if !out.exists() {
                eprintln!("training {name}");
                let files = [&setting.base, data, &out, &folder.join("round.json")];
                program.train(&testnet, options.epochs, files, &out.with_extension("txt"))?;
            }
            sent_values(&Update::read(&out)?, &round)
        };
        let honest = setting.shards.iter().enumerate().map(|(member, shard)| train(&format!("honest-{}", member + 1), shard));
        let honest = honest.collect::<Result<Vec<_>>>()?;
        let first = options.members - options.attackers;
        let poisoned = (first..options.members).map(|member| {
            let data = folder.join(format!("setting/poisoned-{}.jsonl", member + 1));
            poison(options, member as usize, &data)?;
            train(&format!("poisoned-{}", member + 1), &data)
        });
        let poisoned = poisoned.collect::<Result<Vec<_>>>()?;
        let examiner = Examiner::new(&setting.base, &setting.held_out, testnet.max_length as usize)?;
        let start = start(&round);
        let moved = |values: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
            values.into_iter().map(|values| values.iter().zip(&start).map(|(value, start)| value - start).collect()).collect()
        };
        let (honest, poisoned) = (moved(honest), moved(poisoned));
        let base = examiner.base()?;
        Ok(Self { round, examiner, folder, start, honest, poisoned, seed: options.seed, base, honest_mean: base })
    }

    /// Measures what scores are counted in.
    fn scaled(mut self) -> Result<Self> {
        let loss = self.loss(&self.files(0, None)?, MergeRule::Mean, None)?;
        self.honest_mean = loss.context("the mean of honest adapters can be made")?;
        ensure!(self.honest_mean < self.base, "honest training gains nothing, so nothing can be lost");
        Ok(self)
    }

    /// What every member sends when the last `faulty` of them attack.
    fn files(&self, faulty: usize, attack: Option<Attack>) -> Result<Vec<Vec<u8>>> {
        let honest = self.honest.len() - faulty;
        let mut sent: Vec<Vec<f32>> = self.honest.iter().take(honest).cloned().collect();
        if let Some(attack) = attack {
            for member in honest..self.honest.len() {
                let poisoned = &self.poisoned[self.poisoned.len() - (self.honest.len() - member)];
                let seed = self.seed ^ (member as u64) << 32;
                sent.push(craft::craft(attack, &self.honest[..honest], &self.honest[member], poisoned, seed));
            }
        }
        Ok(sent.into_iter().map(|moved| self.file(&moved)).collect())
    }

    fn file(&self, moved: &[f32]) -> Vec<u8> {
        let max = mingle_protocol::number::MAGNITUDE_MAX;
        let mut bytes = canonical_header(self.round.tensors(), Dtype::F32);
        // An attacker stays within what is admitted, or it would not count at all; clamping leaves what is no number.
        let values = moved.iter().zip(&self.start).map(|(moved, start)| (moved + start).clamp(-max, max));
        bytes.extend(values.flat_map(f32::to_le_bytes));
        bytes
    }

    /// The largest honest norm with some room, in millionths.
    fn clip(&self) -> Result<u64> {
        const SMALL: u64 = 10_000;
        let plan = self.plan(MergeRule::Mean, Some(SMALL))?;
        let mut largest = 0.0_f64;
        for file in self.files(0, None)? {
            let layout = Layout::parse(&file, file.len() as u64, self.round.tensors())?;
            let factor = plan.clip(&layout, plan.updates(), &file)?;
            largest = largest.max(SMALL as f64 / factor.value());
        }
        Ok((largest * CLIP_ROOM) as u64)
    }

    fn plan(&self, rule: MergeRule, clip_millionths: Option<u64>) -> Result<Plan> {
        let manifest = Manifest { rule, clip_millionths, ..self.round.manifest().clone() };
        Ok(Plan::of(&Round::new(manifest)?))
    }

    /// What the merge keeps of the honest gain, of a hundred; `None` where the rule makes none of what is admitted.
    fn score(&self, files: &[Vec<u8>], rule: MergeRule, clip: Option<u64>) -> Result<Option<f64>> {
        let loss = self.loss(files, rule, clip)?;
        Ok(loss.map(|loss| 100.0 * (self.base - loss) / (self.base - self.honest_mean)))
    }

    /// The held-out loss with the merge.
    fn loss(&self, files: &[Vec<u8>], rule: MergeRule, clip: Option<u64>) -> Result<Option<f64>> {
        let plan = self.plan(rule, clip)?;
        let mut admitted = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let layout = Layout::parse(file, file.len() as u64, self.round.tensors())?;
            let mut scan = layout.scan();
            // As every peer does: what does not fit the round does not count.
            if scan.push(layout.data_of(file)).and_then(|()| scan.finish()).is_ok() {
                let clip = plan.clip(&layout, plan.updates(), file)?;
                admitted.push((MemberKey([u8::try_from(index).unwrap_or(u8::MAX); 32]), layout, clip, file));
            }
        }
        let members: Vec<Member<'_>> = admitted
            .iter()
            .map(|(key, layout, clip, file)| Member {
                key: *key,
                adapter: ContentHash::of(file),
                weight: 1,
                clip: *clip,
                layout,
                updates: plan.updates(),
                data: *file,
            })
            .collect();
        if plan.check_enough(members.len() as u64).is_err() {
            return Ok(None);
        }
        let folder = self.folder.join("merged");
        std::fs::create_dir_all(&folder)?;
        let mut bytes = Vec::new();
        plan.recompute(&members, |piece| {
            bytes.extend_from_slice(piece);
            Ok::<(), MergeError>(())
        })?;
        std::fs::write(merged_file(&folder, self.round.kind()), bytes)?;
        let config = merged::config_of(&self.round).context("a low-rank round has a configuration")?;
        std::fs::write(folder.join(peft::CONFIG), config.to_json().to_string())?;
        self.examiner.adapter(&folder).map(Some)
    }
}

/// A round of these members, each of weight 1.
fn make_round(options: &Options, setting: &Setting, program: &Program, folder: &Path) -> Result<Round> {
    let file = folder.join("round.json");
    if !file.exists() {
        let texts = [&file, &setting.base, &folder.join("founder")].map(|path| path.to_string_lossy().into_owned());
        let (rank, alpha) = (options.rank.to_string(), options.alpha().to_string());
        let arguments = ["round", "new", "--name", "attacks", "--out", &texts[0], "--base", &texts[1], "--home", &texts[2]];
        let shape = ["--weight", "equal", "--rank", &rank, "--alpha", &alpha, "--method", &options.method];
        program.call(&[arguments.as_slice(), &shape].concat(), &folder.join("round-new.txt"))?;
    }
    let manifest = Round::from_json(&std::fs::read(&file)?)?.manifest().clone();
    Ok(Round::new(Manifest { weight: WeightRule::Equal, member_max: options.members, roster: Roster::Open, ..manifest })?)
}

/// A member's own questions, each with the answer of another.
fn poison(options: &AttackOptions, member: usize, path: &Path) -> Result<()> {
    let made = tasks::make_tasks(options.seed, options.members as usize, options.examples, 1, tasks::Split::Iid);
    let shard = made.shards.get(member).context("a shard a member")?;
    let answers = shard.iter().cycle().skip(options.examples / 2 + 1).map(|example| example.output.clone());
    let poisoned: Vec<tasks::Example> =
        shard.iter().zip(answers).map(|(example, output)| tasks::Example { output, ..example.clone() }).collect();
    Ok(tasks::write_jsonl(path, &poisoned)?)
}

/// All sent tensors of an adapter, one after the other.
fn sent_values(update: &Update, round: &Round) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for tensor in round.tensors().iter() {
        let held = update.tensor(&tensor.name).with_context(|| format!("an adapter lacks {}", tensor.name))?;
        values.extend_from_slice(&held.values);
    }
    Ok(values)
}

/// Where every member began.
fn start(round: &Round) -> Vec<f32> {
    let drawn = round.kind().drawn();
    let of = |name: &str| drawn.iter().find(|drawn| drawn.tensor.name == name);
    let mut values = Vec::new();
    for tensor in round.tensors().iter() {
        match of(&tensor.name) {
            Some(drawn) => values.extend(drawn.values()),
            None => values.extend(std::iter::repeat_n(0.0, usize::try_from(tensor.elements()).unwrap_or_default())),
        }
    }
    values
}
