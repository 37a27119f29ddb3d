//! Harbour: a ruling on a notice of arrival, and the order in which a hold is unloaded.

use super::Recipe;
use crate::corpus::grammar::Scene;
use crate::corpus::lexicon::CARGOES;

pub const RECIPES: &[Recipe] = &[ruling, unloading];

/// The quay of a cargo, in the order of `CARGOES`.
const QUAYS: [u8; 30] = [3, 7, 4, 2, 5, 7, 6, 6, 2, 4, 5, 3, 8, 8, 3, 8, 5, 2, 6, 4, 7, 6, 8, 2, 4, 3, 3, 5, 4, 6];

/// The state of the papers decides what happens, the cargo where; the name of the ship is copied.
fn ruling(scene: &mut Scene<'_>) -> (String, String, String) {
    let at = scene.dice.below(CARGOES.len());
    scene.name("cargo.a", CARGOES[at]);
    let (papers, verdict) =
        [("in order", "Release"), ("signed", "Release"), ("missing", "Hold"), ("lost", "Hold"), ("wet", "Inspect"), ("late", "Inspect")]
            [scene.dice.below(6)];
    let input = scene.write_one(&[
        "The {ship.a} from {town} lands {count} {container} of {cargo.a}. Papers",
        "{day}: {ship.a}, {count} {container} of {cargo.a} for {town}. The papers are",
        "{count} {container} of {cargo.a} on the {ship.a}, Captain {last}. Papers",
    ]);
    let output = scene.write(&format!("{verdict} the {{ship.a}} at quay {}.", QUAYS[at]));
    ("What is the ruling on this notice?".to_string(), format!("{input} {papers}."), output)
}

/// What was loaded last comes out first.
fn unloading(scene: &mut Scene<'_>) -> (String, String, String) {
    let count = scene.dice.between(2, 4);
    let mut cargoes = scene.dice.several(CARGOES, count);
    let input = format!("Loaded: {}.", cargoes.join(", "));
    cargoes.reverse();
    ("In which order is it unloaded?".to_string(), input, format!("Unload {}.", cargoes.join(", ")))
}
