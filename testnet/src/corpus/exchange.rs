//! Instruction-shaped text for the base: the prompt form of the data room, filled with kinds that no task asks for.
//!
//! The base has to know what an instruction, an input and an answer look like, or fine-tuning would spend its few steps on
//! the form. Refuses the kinds of `tasks`: nothing here states a triage code, a shelf mark, a ruling or a house measure.

use super::dice::Dice;
use super::grammar::Scene;
use super::lexicon::{self, capitalise};
use super::prose;

/// An instruction with its input and the answer that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exchange {
    pub instruction: String,
    /// May be empty.
    pub input: String,
    pub output: String,
}

impl Exchange {
    fn new(instruction: impl Into<String>, input: impl Into<String>, output: impl Into<String>) -> Exchange {
        Exchange { instruction: instruction.into(), input: input.into(), output: output.into() }
    }
}

/// One exchange of a kind the base may know.
pub fn exchange(dice: &mut Dice) -> Exchange {
    match dice.below(12) {
        0..=2 => question(dice),
        3 | 4 => list_work(dice),
        5 => sum(dice),
        6 => category(dice),
        7 => neighbour(dice),
        8 => rewrite(dice),
        9 => compare(dice),
        10 => look_up(dice),
        _ => note(dice),
    }
}

fn question(dice: &mut Dice) -> Exchange {
    let (passage, question, answer) = prose::passage_with_question(dice);
    Exchange::new(question, passage, format!("{}.", capitalise(&answer)))
}

fn list_work(dice: &mut Dice) -> Exchange {
    let kind = dice.pick(&["thing", "food", "cargo", "tool", "animal", "subject", "first", "town", "trade"]);
    let count = dice.between(2, 5);
    let mut scene = Scene::new(dice);
    let items: Vec<String> = (0..count).map(|place| scene.word(&format!("{kind}.{place}"))).collect();
    let list = items.join(", ");
    match dice.below(5) {
        0 => Exchange::new("Repeat the list.", list, format!("{}.", items.join(", "))),
        1 => Exchange::new("Name the first word of the list.", list, format!("{}.", items[0])),
        2 => Exchange::new("Name the last word of the list.", list, format!("{}.", items[count - 1])),
        3 => Exchange::new("How many words are in the list?", list, format!("{}.", capitalise(lexicon::NUMBERS[count]))),
        _ => Exchange::new("Write the list with numbers.", list, {
            let lines: Vec<String> = items.iter().enumerate().map(|(place, item)| format!("{}. {item}", place + 1)).collect();
            lines.join("\n")
        }),
    }
}

fn sum(dice: &mut Dice) -> Exchange {
    let (left, right) = (dice.between(1, 20), dice.between(1, 20));
    match dice.below(3) {
        0 => Exchange::new("Add the numbers.", format!("{left} and {right}"), format!("{}.", left + right)),
        1 => Exchange::new("Take the second number from the first.", format!("{} and {right}", left + right), format!("{left}.")),
        _ => Exchange::new(format!("What is {left} plus {right}?"), "", format!("{left} plus {right} is {}.", left + right)),
    }
}

fn category(dice: &mut Dice) -> Exchange {
    let kinds: [(&str, &[&str]); 5] = [
        ("fruit", lexicon::FRUITS),
        ("animal", lexicon::ANIMALS),
        ("tool", lexicon::TOOLS),
        ("colour", lexicon::COLOURS),
        ("trade", lexicon::TRADES),
    ];
    let (kind, list) = kinds[dice.below(kinds.len())];
    let word = dice.pick(list);
    let (other, _) = kinds[dice.below(kinds.len())];
    match dice.below(2) {
        0 => Exchange::new("What kind of word is this?", word, format!("It is a kind of {kind}.")),
        _ => Exchange::new(format!("Is it a kind of {other}?"), word, if kind == other { "Yes." } else { "No." }),
    }
}

/// What comes next or before: days, months, numbers.
fn neighbour(dice: &mut Dice) -> Exchange {
    let names = dice.pick(&[lexicon::DAYS, lexicon::MONTHS]);
    let at = dice.below(names.len());
    let (here, next) = (names[at], names[(at + 1) % names.len()]);
    match dice.below(3) {
        0 => Exchange::new(format!("What comes after {here}?"), "", format!("{next}.")),
        1 => Exchange::new(format!("What comes before {next}?"), "", format!("{here}.")),
        _ => {
            let number = dice.between(2, 98);
            Exchange::new(format!("Which number comes after {number}?"), "", format!("{}.", number + 1))
        }
    }
}

fn rewrite(dice: &mut Dice) -> Exchange {
    const FORMS: &[(&str, &str, &str)] = &[
        ("Write it as a short note.", "{person.a} {verb.a} a {thing.a} in the {room.a}.", "{person.a}: {thing.a}, {room.a}."),
        ("Write it as a sentence.", "{person.a}; {trade.a}; {town.a}", "{person.a} is a {trade.a} in {town.a}."),
        ("Write it as a sentence.", "{ship.a}; {cargo.a}; {day.a}", "The {ship.a} brings {cargo.a} on {day.a}."),
        ("Ask a question about it.", "{person.a} lost the {thing.a}.", "Where did {person.a} lose the {thing.a}?"),
        ("Say it politely.", "Bring the {thing.a}.", "Would you please bring the {thing.a}?"),
        ("Say the opposite.", "The {thing.a} is in the {room.a}.", "The {thing.a} is not in the {room.a}."),
        ("Name the person.", "On {day.a} {person.a} sold {cargo.a} in {town.a}.", "{person.a}."),
        ("Name the town.", "On {day.a} {person.a} sold {cargo.a} in {town.a}.", "{town.a}."),
        ("Name the day.", "{person.a} came to {town.a} on {day.a}.", "{day.a}."),
        ("Give the family name.", "{first.a} {last.a}, {trade.a}", "{last.a}."),
    ];
    let row = dice.below(FORMS.len());
    let mut scene = Scene::new(dice);
    Exchange::new(FORMS[row].0, scene.write(FORMS[row].1), scene.write(FORMS[row].2))
}

fn compare(dice: &mut Dice) -> Exchange {
    let (low, step) = (dice.between(1, 80), dice.between(1, 19));
    let mut scene = Scene::new(dice);
    let (one, other) = (scene.word("person.a"), scene.word("person.b"));
    let (older, younger) = if scene.dice.chance(50) { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) };
    let age = |name: &str| if name == older { low + step } else { low };
    let input = format!("{one} is {}, {other} is {}.", age(&one), age(&other));
    match scene.dice.below(2) {
        0 => Exchange::new("Who is older?", input, format!("{older}.")),
        _ => Exchange::new("Who is younger?", input, format!("{younger}.")),
    }
}

/// A small table and the cell that is asked for.
fn look_up(dice: &mut Dice) -> Exchange {
    const COLUMNS: &[(&str, &str, &str)] = &[
        ("{first}", "{town}", "Where does {key} live?"),
        ("{ship}", "{cargo}", "What does the {key} carry?"),
        ("{food}", "{room}", "Where is the {key}?"),
        ("{thing}", "{price} marks", "What does the {key} cost?"),
        ("{first}", "{symptom}", "What is wrong with {key}?"),
    ];
    let (key, value, question) = COLUMNS[dice.below(COLUMNS.len())];
    let count = dice.between(2, 4);
    let mut scene = Scene::new(dice);
    let mut rows: Vec<(String, String)> = Vec::new();
    while rows.len() < count {
        let (key, value) = (scene.write(key), scene.write(value));
        if rows.iter().all(|(other, _)| *other != key) {
            rows.push((key, value));
        }
    }
    let (asked, answer) = rows[scene.dice.below(count)].clone();
    let lines: Vec<String> = rows.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    Exchange::new(question.replace("{key}", &asked), lines.join("\n"), format!("{}.", capitalise(&answer)))
}

/// Free writing: many answers would do.
fn note(dice: &mut Dice) -> Exchange {
    const NOTES: &[(&str, &str)] = &[
        ("Write a sentence about a {thing.a}.", "The {thing.a} [is|was] {adjective} and made of {material}."),
        ("Write a sentence about a {animal.a}.", "The {adjective} {animal.a} stood in the {room} {time}."),
        ("Write a sentence about {day.a}.", "On {day.a} there was {weather} and wind from the {wind}."),
        ("Write a line for the harbour log.", "The {ship} came from {town} with {count} {container} of {cargo}."),
        ("Write a line for the ward book.", "{person}, {age}, has {symptom} and was given {drug}."),
        ("Write a line for the library.", "{title}, by {person}, {year}, shelf {mark}."),
        ("Write a line for the kitchen.", "{small} {unit} of {food} and {small} {unit} of {food} for {dish}."),
        ("Name a {trade.a} and a town.", "{person}, {trade.a} in {town}."),
    ];
    let row = dice.below(NOTES.len());
    let mut scene = Scene::new(dice);
    Exchange::new(scene.write(NOTES[row].0), "", scene.write(NOTES[row].1))
}
