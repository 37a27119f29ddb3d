//! Instruction tasks the base is weak at: four institutions, two kinds of question each, with house rules of their own.
//!
//! Every answer follows from its question by a rule that stands nowhere in the pre-training text: a code book, a table of
//! quays, a table of measures, an order. A few hundred examples teach a part of it; no member sees all of what the others
//! see. Held-out questions come from a stream of chance of their own, and one that also stands in a shard is thrown away
//! and drawn again, so no held-out question was ever trained on. Refuses labels made by hand: what is asked for is computed.

pub mod harbour;
pub mod kitchen;
pub mod library;
pub mod ward;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::corpus::dice::Dice;
use crate::corpus::grammar::Scene;

/// One instruction task in Alpaca form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Example {
    pub instruction: String,
    pub input: String,
    pub output: String,
}

/// What is asked, what is given, what is wanted.
type Recipe = fn(&mut Scene<'_>) -> (String, String, String);

/// The institutions, in the order in which members get them.
pub const DOMAINS: [(&str, &[Recipe]); 4] =
    [("ward", ward::RECIPES), ("library", library::RECIPES), ("harbour", harbour::RECIPES), ("kitchen", kitchen::RECIPES)];

/// How the examples are split over the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    /// Every member draws from all domains alike.
    #[default]
    Iid,
    /// Member i has examples of domain i modulo four only.
    Domain,
}

/// What members train on and what everything is measured on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tasks {
    /// One private shard a member.
    pub shards: Vec<Vec<Example>>,
    /// Questions that stand in no shard, all domains in equal parts.
    pub held_out: Vec<Example>,
}

/// Draws tasks for `members` members. The same arguments give the same tasks for ever; adding a member leaves the shards
/// of the others as they were.
pub fn make_tasks(seed: u64, members: usize, examples_per_member: usize, held_out: usize, split: Split) -> Tasks {
    let shards: Vec<Vec<Example>> = (0..members)
        .map(|member| {
            let mut dice = Dice::new(seed, &format!("tasks/member/{member}"));
            (0..examples_per_member)
                .map(|place| {
                    let domain = match split {
                        Split::Iid => place % DOMAINS.len(),
                        Split::Domain => member % DOMAINS.len(),
                    };
                    example(domain, &mut dice)
                })
                .collect()
        })
        .collect();

    let trained: BTreeSet<(&str, &str)> =
        shards.iter().flatten().map(|example| (example.instruction.as_str(), example.input.as_str())).collect();
    let mut dice = Dice::new(seed, "tasks/held-out");
    let mut asked = BTreeSet::new();
    let mut questions = Vec::with_capacity(held_out);
    while questions.len() < held_out {
        let drawn = example(questions.len() % DOMAINS.len(), &mut dice);
        let question = (drawn.instruction.clone(), drawn.input.clone());
        if !trained.contains(&(drawn.instruction.as_str(), drawn.input.as_str())) && asked.insert(question) {
            questions.push(drawn);
        }
    }
    Tasks { shards, held_out: questions }
}

fn example(domain: usize, dice: &mut Dice) -> Example {
    let (_, recipes) = DOMAINS[domain];
    let recipe = recipes[dice.below(recipes.len())];
    let (instruction, input, output) = recipe(&mut Scene::new(dice));
    Example { instruction, input, output }
}

/// Writes examples as JSONL, one object a line.
///
/// # Errors
/// When the file cannot be written.
pub fn write_jsonl(path: &Path, examples: &[Example]) -> Result<(), std::io::Error> {
    let mut lines = String::new();
    for example in examples {
        lines.push_str(&serde_json::to_string(example)?);
        lines.push('\n');
    }
    fs::write(path, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain_of(example: &Example) -> usize {
        let instructions: [&[&str]; 4] = [
            &["Give the triage code.", "What should be given?"],
            &["Write the shelf mark.", "On which day must it be returned?"],
            &["What is the ruling on this notice?", "In which order is it unloaded?"],
            &["How many spoons is that?", "How is it kept?"],
        ];
        instructions.iter().position(|known| known.contains(&example.instruction.as_str())).expect("an instruction of a known domain")
    }

    #[test]
    fn the_same_seed_gives_the_same_tasks() {
        let tasks = make_tasks(1, 4, 50, 40, Split::Iid);
        assert_eq!(tasks, make_tasks(1, 4, 50, 40, Split::Iid));
        assert_ne!(tasks, make_tasks(2, 4, 50, 40, Split::Iid));
        assert_eq!(tasks.shards[..], make_tasks(1, 6, 50, 40, Split::Iid).shards[..4]);
    }

    #[test]
    fn no_held_out_question_stands_in_a_shard() {
        // Large shards, so that the short questions of the kitchen would certainly collide if nothing kept them apart.
        let tasks = make_tasks(3, 4, 1_000, 400, Split::Iid);
        let trained: BTreeSet<_> = tasks.shards.iter().flatten().map(|example| (&example.instruction, &example.input)).collect();
        assert_eq!(tasks.held_out.len(), 400);
        assert!(tasks.held_out.iter().all(|example| !trained.contains(&(&example.instruction, &example.input))));
        let questions: BTreeSet<_> = tasks.held_out.iter().map(|example| (&example.instruction, &example.input)).collect();
        assert_eq!(questions.len(), 400, "held-out questions are all different");
    }

    #[test]
    fn splits_are_as_promised() {
        for (member, shard) in make_tasks(1, 5, 80, 8, Split::Domain).shards.iter().enumerate() {
            assert_eq!(shard.len(), 80);
            assert!(shard.iter().all(|example| domain_of(example) == member % 4));
        }
        let tasks = make_tasks(1, 3, 80, 80, Split::Iid);
        for examples in tasks.shards.iter().chain([&tasks.held_out]) {
            for domain in 0..4 {
                assert_eq!(examples.iter().filter(|example| domain_of(example) == domain).count(), 20);
            }
        }
    }

    #[test]
    fn jsonl_reads_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("shard.jsonl");
        let tasks = make_tasks(1, 1, 20, 4, Split::Iid);
        write_jsonl(&path, &tasks.shards[0]).expect("written");
        let text = fs::read_to_string(&path).expect("read");
        let read: Vec<Example> = text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
        assert_eq!(read, tasks.shards[0]);
    }
}
