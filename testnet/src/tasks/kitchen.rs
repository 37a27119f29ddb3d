//! Kitchen: house measures turned into spoons, and how a food is kept.

use super::Recipe;
use crate::corpus::grammar::Scene;
use crate::corpus::lexicon::{FOODS, NUMBERS};

pub const RECIPES: &[Recipe] = &[measure, keeping];

/// Spoons in one of each measure.
const MEASURES: [(&str, usize); 5] = [("cups", 8), ("ladles", 5), ("bowls", 12), ("jugs", 20), ("handfuls", 3)];

/// Where a food is kept, in what and for how many days, in the order of `FOODS`.
const KEEPING: [(&str, &str, u8); 24] = [
    ("attic", "sack", 9),
    ("kitchen", "box", 9),
    ("cellar", "crock", 5),
    ("cellar", "jug", 2),
    ("attic", "sack", 7),
    ("hall", "jar", 9),
    ("attic", "box", 7),
    ("hall", "sack", 7),
    ("hall", "box", 7),
    ("cellar", "jug", 3),
    ("kitchen", "crock", 9),
    ("hall", "bottle", 9),
    ("kitchen", "bottle", 5),
    ("attic", "sack", 5),
    ("hall", "jar", 5),
    ("attic", "jar", 5),
    ("cellar", "crock", 2),
    ("kitchen", "bottle", 7),
    ("kitchen", "jar", 7),
    ("cellar", "jug", 5),
    ("cellar", "box", 3),
    ("kitchen", "jar", 3),
    ("attic", "box", 3),
    ("hall", "crock", 3),
];

/// The measure decides the factor; the food is copied.
fn measure(scene: &mut Scene<'_>) -> (String, String, String) {
    let (unit, spoons) = MEASURES[scene.dice.below(MEASURES.len())];
    let count = scene.dice.between(2, 9);
    let input =
        scene.write(&format!("[{} {unit} of {{food.a}}|For {{dish}} take {} {unit} of {{food.a}}].", NUMBERS[count], NUMBERS[count]));
    let output = scene.write(&format!("That is {} spoons of {{food.a}}.", count * spoons));
    ("How many spoons is that?".to_string(), input, output)
}

/// The food decides everything.
fn keeping(scene: &mut Scene<'_>) -> (String, String, String) {
    let at = scene.dice.below(FOODS.len());
    scene.name("food.a", FOODS[at]);
    let input = scene.write_one(&[
        "{first} has bought {small} pounds of {food.a}.",
        "{small} {unit} of {food.a} are left over from {dish}.",
        "After {day} there is still {food.a} for {number} people.",
    ]);
    let (place, vessel, days) = KEEPING[at];
    ("How is it kept?".to_string(), input, format!("In the {place}, in a {vessel}, for {days} days."))
}
