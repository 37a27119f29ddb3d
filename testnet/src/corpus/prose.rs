//! Continuous prose in the manner of institutions: hospital, harbour, library, kitchen, weather station, town.
//!
//! A document is an opening, some sentences of its genre in random order and an ending, all in one scene, so that the
//! people and things named at the start come back. Refuses to state any rule that a task asks for (see `tasks`).

use super::dice::Dice;
use super::grammar::Scene;
use super::lexicon::capitalise;

/// The sentences one genre is made of.
struct Genre {
    openings: &'static [&'static str],
    middles: &'static [&'static str],
    endings: &'static [&'static str],
}

const HOSPITAL: Genre = Genre {
    openings: &[
        "{person.a}, {age.a}, came to the {ward.a} ward {time} with {symptom.a}.",
        "Note for the {ward.a} ward, {day.a}. {person.a}, {age.a} years old, complains of {symptom.a}.",
        "Seen {time} on {day.a}: {person.a}, a {trade.a} of {age.a}, with {symptom.a} since {day.b}.",
        "The patient {person.a} was brought in from {town.a} with {symptom.a} and {symptom.b}.",
    ],
    middles: &[
        "The temperature was {temperature} and [fell|rose] to {temperature} {time}.",
        "The nurse gave [one spoon|two spoons|half a spoon|a glass] of {drug.a} {time}.",
        "{first.b}, the nurse, wrote code {code} on the card.",
        "There was {symptom.b} on {day.b}, but no {drug.b} was needed.",
        "Dr {last.c} asked for {drug.a} and sent the card to the {ward.b} ward.",
        "The family in {town.a} was told [on {day}|by letter|{time}].",
        "{person.a} works as a {trade.a} and {verb} a {thing} {adverb}.",
        "[Sleep|Food|Rest|Walking] was [good|poor|better than on {day.b}].",
        "The bed by the [window|door|wall] in the {ward.a} ward is free from {day}.",
    ],
    endings: &[
        "{person.a} went home on {day} with {drug.a}.",
        "To be seen again in {small} days.",
        "Review on {day.d}, {ward.a} ward, Dr {last.c}.",
        "No change. Ask about {symptom.a} again {time}.",
        "The card of {person.a} is kept in the {ward.a} ward.",
    ],
};

const HARBOUR: Genre = Genre {
    openings: &[
        "The {ship.a} from {town.a} lands {count.a} {container.a} of {cargo.a} at quay {small.q}.",
        "Harbour log, {day.a}. The {ship.a} came in from {town.a} {time} with {cargo.a}.",
        "On {date.a} the {ship.a} tied up at quay {small.q} with {count.a} {container.a} of {cargo.a} and {count.b} of {cargo.b}.",
    ],
    middles: &[
        "Captain {last.a} had the papers [in order|ready|in a tin box|under the {thing}].",
        "The papers for the {cargo.a} were [missing|late|wet|in order|signed].",
        "Wind {wind}, {weather}.",
        "The clerk counted {count.a} {container.a} and wrote it down twice.",
        "{small} {container.a} of {cargo.a} were [broken|wet|open|short], so the porter called the {trade.b}.",
        "The crane at quay {small.q} was [out of use|slow|mended] on {day.b}.",
        "First the {cargo.b} was unloaded, then the {cargo.a}.",
        "The duty for {cargo.a} came to {price} marks.",
        "They had to [hold|release|inspect|weigh] the {container.a} {time} {reason}.",
        "[Hold|Release|Inspect] the {cargo.b}, the master said, and call the {trade.b}.",
    ],
    endings: &[
        "The {ship.a} leaves for {town.b} on {day}.",
        "All {count.a} {container.a} were released {time}.",
        "The {cargo.a} stays in the {room} until {day}.",
        "Signed, {person.b}, harbour clerk.",
    ],
};

const LIBRARY: Genre = Genre {
    openings: &[
        "{title.a}, by {person.a}, {year.a}. Subject: {subject.a}.",
        "New on the shelf: {title.a} by {person.a}, printed in {town.a} in {year.a}.",
        "{person.b}, a {trade.b}, borrowed {title.a} by {person.a} on {day.a}.",
    ],
    middles: &[
        "It stands with {subject.a}, [shelf {mark.a}|near the {thing}|in the {room}].",
        "The shelf mark is {mark.a}, {last} {year.a}.",
        "The book has {large} pages and a {colour} cover.",
        "It was due back on {day.b} and came back on {day.c}.",
        "It is a book about {subject.a} and a little {subject.b}.",
        "{person.a} was a {trade} in {town.a} before writing it.",
        "A [short|long] loan was asked for {reason}.",
        "The copy from {year.b} is [lost|on loan|at the binder].",
        "Readers of {subject.b} may like {title.b}.",
    ],
    endings: &[
        "Please return {title.a} by {day}.",
        "The librarian, {person.c}, keeps the card.",
        "{person.a} also wrote {title.c} ({year}).",
        "Ask at the desk for {mark.a}.",
    ],
};

const KITCHEN: Genre = Genre {
    openings: &[
        "To make {dish.a} for {small.a}, take {small} {unit.a} of {food.a} and {small} {unit.b} of {food.b}.",
        "{first.a}'s recipe for {dish.a}: {small} {unit.a} of {food.a}, {small} {unit.b} of {food.b}, a little {food.c}.",
        "On {day.a} the cook made {dish.a} with {food.a} and {food.b}.",
    ],
    middles: &[
        "Stir the {food.a} into the {food.b} {adverb}.",
        "Add {number} {unit.b} of {food.c} and wait {small} minutes.",
        "If there is no {food.c}, use {food.d}.",
        "Keep the {food.b} in the {room}, in a [jar|box|crock|sack|bottle], for {small} days.",
        "Warm the {food.a}, then cool it {time}.",
        "One [cup|jug|bowl|ladle] holds {small} [spoons|pinches|handfuls] in some houses and {small} in others.",
        "{first.a} weighs {small} pounds of {food.d} every {day}.",
        "Cut the {fruit} into {small} pieces and cover it with {food.d}.",
    ],
    endings: &[
        "Serve the {dish.a} warm with {food.d}.",
        "It feeds {small.a} people.",
        "{first.a} sold the rest to the {trade} for {price} marks.",
        "Do not forget the {food.c}.",
    ],
};

const TOWN: Genre = Genre {
    openings: &[
        "{person.a} {verb} a {adjective.a} {thing.a} in the {room.a}.",
        "In {town.a} there lived a {adjective} {trade.a} called {first.a}.",
        "Dear {first.b}, on {day.a} I came to {town.a} and met {person.a}.",
        "Weather diary, {date}. There was {weather} [in the morning|{time}], wind {wind}.",
        "The council of {town.a} met on {day.a} {time}.",
    ],
    middles: &[
        "{first.a} {verb} the {adjective.a} {thing.a} {adverb} {reason}.",
        "The {trade.a} asked the {trade.b} for a {thing.b}, and the {trade.b} said no.",
        "It had {weather} all {day.b}, and the {animal.a} stayed in the {room.a}.",
        "\"Where is the {thing.a}?\" asked {first.b}. \"In the {room.a},\" said {first.a}.",
        "A {colour} {thing.b} made of {material} hung over the door.",
        "After {number} years the {thing.a} was still in the {room.a}.",
        "Nobody in {town.a} had seen a {animal.a} so {adjective}.",
        "{first.a} paid {small} marks for the {thing.b} and {small} for the {animal.a}.",
        "By {day.b} the wind had turned to the {wind}, with {weather}.",
        "The {adjective} {animal.a} [slept|stood|waited|ran] near the {thing.a}.",
        "First came the {trade.a}, then the {trade.b}, then the {trade.c}.",
    ],
    endings: &[
        "In the end {first.a} kept the {thing.a}.",
        "That was all that happened in {town.a} on {day.b}.",
        "So the {trade.a} went home {adverb}.",
        "The {thing.b} is still there.",
        "Yours, {first.c}.",
    ],
};

const GENRES: [&Genre; 5] = [&HOSPITAL, &HARBOUR, &LIBRARY, &KITCHEN, &TOWN];

/// One document of prose.
pub fn document(dice: &mut Dice) -> String {
    let genre = GENRES[dice.below(GENRES.len())];
    let count = dice.between(2, 6);
    let middles = dice.several(genre.middles, count);
    let mut scene = Scene::new(dice);
    let mut text = capitalise(&scene.write_one(genre.openings));
    for middle in middles {
        text.push(if scene.dice.chance(12) { '\n' } else { ' ' });
        text.push_str(&capitalise(&scene.write(middle)));
    }
    if scene.dice.chance(70) {
        text.push(' ');
        text.push_str(&scene.write_one(genre.endings));
    }
    text
}

/// A short passage of two or three sentences and a question about it, with the answer that stands in the passage.
pub fn passage_with_question(dice: &mut Dice) -> (String, String, String) {
    // Each row: a sentence, a question about it, its answer.
    const FACTS: &[(&str, &str, &str)] = &[
        ("{person.a} came from {town.a}.", "Where did {person.a} come from?", "{town.a}"),
        ("{person.a} works as a {trade.a}.", "What is the work of {person.a}?", "{trade.a}"),
        ("{person.b} kept the {thing.a} in the {room.a}.", "Where was the {thing.a}?", "In the {room.a}"),
        ("{person.b} {verb.a} a {colour.a} {thing.a}.", "What colour was the {thing.a}?", "{colour.a}"),
        ("The {ship.a} brought {count.a} {container.a} of {cargo.a}.", "How many {container.a} came?", "{count.a}"),
        ("The {ship.a} brought {cargo.a} from {town.b}.", "What did the {ship.a} bring?", "{cargo.a}"),
        ("The {ship.a} sailed from {town.b} on {day.a}.", "When did the {ship.a} sail?", "On {day.a}"),
        ("{title.a} was written by {person.c} in {year.a}.", "Who wrote {title.a}?", "{person.c}"),
        ("{title.a} was written by {person.c} in {year.a}.", "In which year was it written?", "{year.a}"),
        ("The cook used {small.a} {unit.a} of {food.a}.", "How much {food.a} was used?", "{small.a} {unit.a}"),
        ("The nurse in the {ward.a} ward gave {drug.a}.", "What did the nurse give?", "{drug.a}"),
        ("{person.d} lay in the {ward.a} ward with {symptom.a}.", "Which ward was {person.d} in?", "The {ward.a} ward"),
        ("{person.d} lay in the {ward.b} ward with {symptom.a}.", "What was wrong with {person.d}?", "{symptom.a}"),
        ("The {thing.b} cost {price.a} marks.", "What did the {thing.b} cost?", "{price.a} marks"),
        ("The {animal.a} slept next to the {thing.c}.", "Which animal was it?", "A {animal.a}"),
    ];
    let count = dice.between(1, 4);
    let mut rows: Vec<usize> = (0..FACTS.len()).collect();
    dice.shuffle(&mut rows);
    rows.truncate(count);
    let asked = rows[dice.below(count)];
    let mut scene = Scene::new(dice);
    let sentences: Vec<String> = rows.iter().map(|row| scene.write(FACTS[*row].0)).collect();
    let question = scene.write(FACTS[asked].1);
    let answer = scene.write(FACTS[asked].2);
    (sentences.join(" "), question, answer)
}
