//! Records: ledgers with small sums that are right, tables, numbered lists, timetables and dialogues.
//!
//! Refuses arithmetic that is wrong: totals are computed, never drawn.

use super::dice::Dice;
use super::grammar::Scene;
use super::lexicon::{self, capitalise};

/// One record.
pub fn document(dice: &mut Dice) -> String {
    match dice.below(7) {
        0 => ledger(dice),
        1 => table(dice),
        2 => numbered_list(dice),
        3 => timetable(dice),
        4 => dialogue(dice),
        5 => counting(dice),
        _ => inventory(dice),
    }
}

fn ledger(dice: &mut Dice) -> String {
    let mut scene = Scene::new(dice);
    let mut text = scene.write("Ledger of {person}, {town}, {date}.\n");
    let rows = scene.dice.between(2, 5);
    let mut total = 0;
    for _ in 0..rows {
        let amount = scene.dice.between(2, 40);
        total += amount;
        let what = scene.write("[{small} {unit} of {food}|{small} {container} of {cargo}|a {adjective} {thing}|{drug}]");
        text.push_str(&format!("{what}: {amount} marks\n"));
    }
    text.push_str(&format!("Total: {total} marks"));
    text
}

fn table(dice: &mut Dice) -> String {
    let mut scene = Scene::new(dice);
    let (head, row) = match scene.dice.below(4) {
        0 => ("name | age | ward", "{person} | {age} | {ward}"),
        1 => ("ship | cargo | quay", "{ship} | {cargo} | {small}"),
        2 => ("book | year | shelf", "{title} | {year} | {mark}"),
        _ => ("food | amount | place", "{food} | {small} {unit} | {room}"),
    };
    let mut text = head.to_string();
    for _ in 0..scene.dice.between(2, 5) {
        text.push('\n');
        text.push_str(&scene.write(row));
    }
    text
}

fn numbered_list(dice: &mut Dice) -> String {
    let mut scene = Scene::new(dice);
    let kind = scene.dice.pick(&["thing", "food", "cargo", "tool", "animal", "trade", "subject", "drug"]);
    let mut text = scene.write("[To buy|To do|List|Wanted|For {day}|For {first}]:\n");
    for place in 1..=scene.dice.between(3, 6) {
        let word = scene.word(kind);
        text.push_str(&format!("{place}. {word}\n"));
    }
    text.trim_end().to_string()
}

/// Days and months in their order, with something for each.
fn timetable(dice: &mut Dice) -> String {
    let months = dice.chance(25);
    let names = if months { lexicon::MONTHS } else { lexicon::DAYS };
    let start = dice.below(names.len());
    let count = dice.between(3, 7);
    let mut scene = Scene::new(dice);
    let row = scene.dice.pick(&[
        "{weather}, wind {wind}",
        "{dish}",
        "{person}, {ward} ward",
        "the {ship} to {town}",
        "{first} and {first}",
        "{subject}",
    ]);
    let lines: Vec<String> = (start..start + count).map(|at| format!("{}: {}", names[at % names.len()], scene.write(row))).collect();
    lines.join("\n")
}

fn dialogue(dice: &mut Dice) -> String {
    const TURNS: &[(&str, &str)] = &[
        ("Have you seen the {thing.a}?", "The {thing.a} is in the {room}."),
        ("When does the {ship.a} sail?", "The {ship.a} sails on {day}, {time}."),
        ("Who wrote {title.a}?", "That was {person}."),
        ("How is {person.c} today?", "{first.x} has {symptom}, but it is better."),
        ("What do you need for {dish.a}?", "Some {food}, some {food} and {small} {unit} of {food}."),
        ("What did the {trade.a} want?", "The {trade.a} wanted a {adjective} {thing}."),
        ("Is there any {cargo.a} left?", "Yes, {count} {container} of {cargo.a}."),
        ("What is the weather in {town.a}?", "There is {weather} in {town.a}."),
    ];
    let count = dice.between(1, 3);
    let mut rows: Vec<usize> = (0..TURNS.len()).collect();
    dice.shuffle(&mut rows);
    let mut scene = Scene::new(dice);
    let (one, other) = (scene.word("first.p"), scene.word("first.q"));
    let turns: Vec<String> =
        rows[..count].iter().map(|row| format!("{one}: {}\n{other}: {}", scene.write(TURNS[*row].0), scene.write(TURNS[*row].1))).collect();
    turns.join("\n")
}

/// Numbers in order, by ones, twos, fives or tens, in figures or words.
fn counting(dice: &mut Dice) -> String {
    let step = [1, 1, 2, 3, 5, 10][dice.below(6)];
    let start = dice.between(0, 30);
    let count = dice.between(4, 9);
    let numbers = (0..count).map(|place| start + place * step);
    if step <= 2 && start + count * step <= 20 {
        return numbers.map(|number| lexicon::NUMBERS[number]).collect::<Vec<_>>().join(", ");
    }
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(", ")
}

fn inventory(dice: &mut Dice) -> String {
    let mut scene = Scene::new(dice);
    let mut text = scene.write("[In the {room.a} there are|The {trade.a} of {town.a} owns|{first.a} packed] ");
    let count = scene.dice.between(2, 4);
    let items: Vec<String> =
        (0..count).map(|_| scene.write("[{small} {container} of {cargo}|a {colour} {thing}|{small} {unit} of {food}]")).collect();
    text.push_str(&items.join(", "));
    let again = capitalise(&items.join(", "));
    text.push_str(&scene.write(". [Nothing else was found|The list was read out|It was checked on {day}]: "));
    text.push_str(&again);
    text.push('.');
    text
}
