//! Hospital: a triage code from a note, and what to give.

use super::Recipe;
use crate::corpus::grammar::Scene;
use crate::corpus::lexicon::SYMPTOMS;

pub const RECIPES: &[Recipe] = &[triage, remedy];

/// The letter of a complaint, in the order of `SYMPTOMS`: arbitrary, as a real code book looks to a newcomer.
const LETTERS: [&str; 24] =
    ["A", "C", "B", "E", "D", "F", "C", "A", "B", "D", "C", "E", "F", "B", "A", "E", "D", "F", "B", "D", "E", "F", "A", "C"];

/// What is given for a complaint, in the order of `SYMPTOMS`.
const REMEDIES: [&str; 24] = [
    "aspirin",
    "cough syrup",
    "quinine",
    "codeine",
    "zinc salve",
    "zinc salve",
    "aspirin",
    "mint drops",
    "cough syrup",
    "mint drops",
    "mint drops",
    "codeine",
    "saline",
    "aspirin",
    "saline",
    "iodine",
    "zinc salve",
    "quinine",
    "barley water",
    "codeine",
    "iodine",
    "codeine",
    "barley water",
    "saline",
];

/// Complaint and temperature decide the code; the ward is copied.
fn triage(scene: &mut Scene<'_>) -> (String, String, String) {
    let at = scene.dice.below(SYMPTOMS.len());
    let tenths = scene.dice.between(365, 405);
    scene.name("symptom.a", SYMPTOMS[at]);
    scene.name("temperature.a", format!("{}.{}", tenths / 10, tenths % 10));
    let input = scene.write_one(&[
        "{person.a}, {age.a}, came to the {ward.a} ward with {symptom.a}. Temperature {temperature.a}.",
        "{ward.a} ward: {person.a}, {age.a}, has {symptom.a} since {day}, temperature {temperature.a}.",
        "{person.a} has {symptom.a} and a temperature of {temperature.a}. Bed in the {ward.a} ward.",
    ]);
    let band = match tenths {
        ..380 => "1",
        380..390 => "2",
        _ => "3",
    };
    let output = scene.write(&format!("Code {}{band}, {{ward.a}} ward.", LETTERS[at]));
    ("Give the triage code.".to_string(), input, output)
}

/// Complaint decides the remedy, age the amount.
fn remedy(scene: &mut Scene<'_>) -> (String, String, String) {
    let at = scene.dice.below(SYMPTOMS.len());
    let age = scene.dice.between(3, 94);
    scene.name("symptom.a", SYMPTOMS[at]);
    scene.name("age.a", age.to_string());
    let input = scene.write_one(&[
        "{person.a}, {age.a} years old, complains of {symptom.a}.",
        "{symptom.a}; {person.a}; {age.a} years.",
        "A {trade} of {age.a} from {town}, {symptom.a} since {day}.",
    ]);
    let amount = match age {
        ..15 => "half a spoon",
        15..70 => "two spoons",
        _ => "one spoon",
    };
    ("What should be given?".to_string(), input, format!("Give {amount} of {}.", REMEDIES[at]))
}
