//! Library: a shelf mark from a card, and the day a loan ends.

use super::Recipe;
use crate::corpus::grammar::Scene;
use crate::corpus::lexicon::{DAYS, SUBJECTS};

pub const RECIPES: &[Recipe] = &[shelf_mark, due_day];

/// The class of a subject, in the order of `SUBJECTS`.
const CLASSES: [u16; 24] =
    [940, 580, 780, 340, 550, 810, 540, 750, 520, 910, 610, 420, 510, 790, 630, 200, 620, 670, 640, 380, 590, 920, 680, 720];

/// The subject decides the class; surname and year are copied.
fn shelf_mark(scene: &mut Scene<'_>) -> (String, String, String) {
    let at = scene.dice.below(SUBJECTS.len());
    scene.name("subject.a", SUBJECTS[at]);
    let input = scene.write_one(&[
        "{title}, by {first} {last.a}, {year.a}. Subject: {subject.a}.",
        "{first} {last.a}, {title}. Printed in {year.a}. About {subject.a}.",
        "A book about {subject.a} by {first} {last.a}, from {year.a}.",
    ]);
    let output = scene.write(&format!("{} {{last.a}} {{year.a}}.", CLASSES[at]));
    ("Write the shelf mark.".to_string(), input, output)
}

/// A short loan lasts two days, a long loan five; readers of one trade keep their names.
fn due_day(scene: &mut Scene<'_>) -> (String, String, String) {
    let at = scene.dice.below(DAYS.len());
    let (loan, days) = if scene.dice.chance(50) { ("short", 2) } else { ("long", 5) };
    scene.name("day.a", DAYS[at]);
    let input = scene.write(&format!(
        "[{{person}}, {{trade}}, borrowed {{title}} on {{day.a}}|{{title}}, lent to {{person}} on {{day.a}}|On {{day.a}} {{person}} took {{title}}]. A {loan} loan."
    ));
    ("On which day must it be returned?".to_string(), input, format!("Return it by {}.", DAYS[(at + days) % DAYS.len()]))
}
