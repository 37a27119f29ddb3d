//! The words the generator draws from, by kind. Lists only: how they are put together is the grammar's business.
//!
//! Names of people, places, ships and titles are composed rather than listed (`compose`), so that there are hundreds of
//! thousands of them and a model has to learn to copy a name instead of remembering it.

use super::dice::Dice;

/// A named list of words or phrases.
type List = &'static [&'static str];

pub const DAYS: List = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
pub const MONTHS: List =
    &["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
pub const NUMBERS: List = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];
pub const SYMPTOMS: List = &[
    "chest pain",
    "a dry cough",
    "a high fever",
    "back pain",
    "a swollen ankle",
    "a rash",
    "headache",
    "dizziness",
    "a sore throat",
    "stomach pain",
    "nausea",
    "a broken wrist",
    "blurred vision",
    "earache",
    "short breath",
    "a deep cut",
    "a burn",
    "chills",
    "fatigue",
    "joint pain",
    "a nosebleed",
    "toothache",
    "palpitations",
    "numb fingers",
];
pub const WARDS: List = &["north", "south", "east", "west", "garden", "river", "tower", "chapel"];
pub const DRUGS: List = &["aspirin", "iodine", "quinine", "codeine", "saline", "zinc salve", "cough syrup", "mint drops", "barley water"];
pub const CARGOES: List = &[
    "timber", "coal", "wool", "salt", "copper", "grain", "tea", "coffee", "sugar", "cotton", "glass", "paper", "oil", "wine", "rope",
    "tar", "iron", "marble", "rubber", "silk", "rice", "tobacco", "lamp oil", "fish", "hides", "cement", "bricks", "tin", "linen", "spice",
];
pub const CONTAINERS: List = &["crates", "barrels", "sacks", "bales", "chests", "drums", "casks", "boxes"];
pub const SUBJECTS: List = &[
    "history",
    "botany",
    "music",
    "law",
    "geology",
    "poetry",
    "chemistry",
    "painting",
    "astronomy",
    "travel",
    "medicine",
    "grammar",
    "algebra",
    "drama",
    "farming",
    "religion",
    "sailing",
    "weaving",
    "cookery",
    "trade",
    "birds",
    "maps",
    "clocks",
    "bridges",
];
pub const FOODS: List = &[
    "flour",
    "sugar",
    "butter",
    "milk",
    "rice",
    "honey",
    "oats",
    "lentils",
    "beans",
    "cream",
    "salt",
    "vinegar",
    "olive oil",
    "barley",
    "raisins",
    "almonds",
    "yoghurt",
    "syrup",
    "cocoa",
    "stock",
    "cheese",
    "mustard",
    "pepper",
    "ginger",
];
pub const DISHES: List = &[
    "bread",
    "soup",
    "stew",
    "a pie",
    "a pudding",
    "porridge",
    "dumplings",
    "a salad",
    "pancakes",
    "a tart",
    "biscuits",
    "a roast",
    "jam",
];
pub const UNITS: List = &["cups", "spoons", "jugs", "pounds", "pinches", "bowls", "ladles", "handfuls"];
pub const THINGS: List = &[
    "apple", "pear", "plum", "lamp", "chair", "table", "clock", "key", "rope", "bell", "hammer", "ladder", "basket", "blanket", "candle",
    "mirror", "kettle", "spade", "bucket", "wagon", "pencil", "ribbon", "button", "needle", "feather", "stone", "shell", "drum", "flute",
    "map", "letter", "coin", "boot", "glove", "hat", "coat", "cup", "plate", "knife", "spoon", "box", "barrel", "brush", "saw", "nail",
    "wheel", "anchor", "sail", "oar", "net",
];
pub const FRUITS: List = &["apple", "pear", "plum", "cherry", "fig", "grape", "lemon", "peach", "melon", "quince"];
pub const ANIMALS: List = &["horse", "goat", "sheep", "cow", "hen", "goose", "dog", "cat", "mule", "pig", "rabbit", "pigeon"];
pub const TOOLS: List = &["hammer", "saw", "spade", "chisel", "rake", "axe", "drill", "file", "plane", "wrench"];
pub const COLOURS: List = &["red", "blue", "green", "yellow", "black", "white", "grey", "brown", "violet", "orange"];
pub const MATERIALS: List = &["oak", "pine", "brass", "iron", "clay", "leather", "silver", "stone", "glass", "wool"];
pub const WEATHERS: List =
    &["rain", "fog", "snow", "hail", "sun", "drizzle", "frost", "thunder", "a clear sky", "low cloud", "a stiff breeze", "a light wind"];
pub const WINDS: List = &["north", "south", "east", "west", "north-east", "north-west", "south-east", "south-west"];
pub const TRADES: List = &[
    "baker",
    "nurse",
    "clerk",
    "sailor",
    "teacher",
    "miller",
    "tailor",
    "porter",
    "farmer",
    "printer",
    "doctor",
    "cook",
    "captain",
    "librarian",
    "carpenter",
    "gardener",
    "painter",
    "driver",
    "smith",
    "weaver",
];
pub const ROOMS: List = &["kitchen", "office", "cellar", "hall", "library", "workshop", "stable", "garden", "attic", "yard", "store room"];
pub const ADJECTIVES: List = &[
    "old", "new", "small", "large", "quiet", "narrow", "heavy", "broken", "clean", "empty", "long", "bright", "dark", "cold", "warm",
    "plain", "strong", "soft", "rough", "early",
];
pub const ADVERBS: List =
    &["slowly", "quietly", "at once", "with care", "again", "without a word", "in a hurry", "as usual", "for the second time"];
pub const VERBS: List = &[
    "found", "carried", "sold", "cleaned", "lost", "mended", "bought", "painted", "counted", "moved", "borrowed", "weighed", "packed",
    "hid", "kept", "returned", "measured", "ordered",
];
pub const REASONS: List = &[
    "because the road was closed",
    "because nobody had asked",
    "since the bell had rung",
    "as the lamp was broken",
    "because the boat was late",
    "since the price had risen",
    "as it was almost dark",
    "because the list was wrong",
    "since the key was missing",
    "as the rain would not stop",
];
pub const TIMES: List = &["at dawn", "before noon", "at noon", "after lunch", "in the evening", "at night", "at six", "at half past nine"];
pub const ABSTRACTS: List =
    &["The Art of", "A Short History of", "Notes on", "Letters about", "The Book of", "Lessons in", "A Guide to", "Essays on"];
pub const SHIPS: List = &["Star", "Hope", "Swallow", "Venture", "Lady", "Pearl", "Falcon", "Breeze", "Fortune", "Heron"];
const FIRST: List = &[
    "Ada", "Alba", "Amos", "Anna", "Arne", "Basil", "Bea", "Boris", "Bruno", "Carla", "Cecil", "Clara", "Cyrus", "Dora", "Edgar", "Edith",
    "Elena", "Elias", "Emil", "Erna", "Esther", "Felix", "Flora", "Frida", "Georg", "Greta", "Hanna", "Hugo", "Ida", "Igor", "Irma",
    "Ivan", "Jonas", "Judith", "Karl", "Kira", "Lars", "Laura", "Leo", "Lina", "Lorenz", "Lucia", "Magda", "Marco", "Maria", "Martin",
    "Mira", "Nadia", "Nils", "Nora", "Olga", "Oscar", "Otto", "Paula", "Peter", "Petra", "Ralph", "Rita", "Robert", "Rosa", "Rufus",
    "Sara", "Simon", "Sofia", "Stella", "Sven", "Thea", "Tomas", "Ulla", "Vera", "Victor", "Vilma", "Walter", "Wanda", "Willa", "Xenia",
    "Yara", "Zeno",
];
const ONSETS: List = &[
    "B", "Br", "C", "D", "Dr", "F", "G", "Gr", "H", "J", "K", "Kr", "L", "M", "N", "P", "R", "S", "St", "T", "Tr", "V", "W", "Z", "Sch",
    "Fl",
];
const MIDDLES: List =
    &["al", "an", "ar", "ed", "el", "en", "er", "il", "im", "in", "ol", "on", "or", "und", "urn", "ess", "ick", "amm", "ost", "ain"];
const NAME_ENDS: List = &["er", "mann", "son", "sen", "ley", "ford", "berg", "man", "ing", "ow", "ek", "etti", "ard", "wood", "ström", "a"];
const TOWN_ENDS: List = &["ton", "ham", "burg", "port", "mouth", "field", "dale", "stad", "by", "wick", "haven", "bridge", "mere", "ia"];

/// A word of the kind, or `None` when the kind is not known here.
pub fn draw(kind: &str, dice: &mut Dice) -> Option<String> {
    let list = match kind {
        "day" => DAYS,
        "month" => MONTHS,
        "symptom" => SYMPTOMS,
        "ward" => WARDS,
        "drug" => DRUGS,
        "cargo" => CARGOES,
        "container" => CONTAINERS,
        "subject" => SUBJECTS,
        "food" => FOODS,
        "dish" => DISHES,
        "unit" => UNITS,
        "thing" => THINGS,
        "fruit" => FRUITS,
        "animal" => ANIMALS,
        "tool" => TOOLS,
        "colour" => COLOURS,
        "material" => MATERIALS,
        "weather" => WEATHERS,
        "wind" => WINDS,
        "trade" => TRADES,
        "room" => ROOMS,
        "adjective" => ADJECTIVES,
        "adverb" => ADVERBS,
        "verb" => VERBS,
        "reason" => REASONS,
        "time" => TIMES,
        "first" => FIRST,
        _ => return compose(kind, dice),
    };
    Some(dice.pick(list).to_string())
}

/// Kinds that are put together from parts: names, places, ships, titles, dates, prices and codes.
fn compose(kind: &str, dice: &mut Dice) -> Option<String> {
    Some(match kind {
        "last" => format!("{}{}{}", dice.pick(ONSETS), dice.pick(MIDDLES), dice.pick(NAME_ENDS)),
        "person" => format!("{} {}", draw("first", dice)?, compose("last", dice)?),
        "town" => format!("{}{}{}", dice.pick(ONSETS), dice.pick(MIDDLES), dice.pick(TOWN_ENDS)),
        "ship" => match dice.below(3) {
            0 => format!("{} of {}", dice.pick(SHIPS), compose("town", dice)?),
            1 => format!("{} {}", draw("first", dice)?, dice.pick(SHIPS)),
            _ => format!("{} {}", capitalise(dice.pick(COLOURS)), dice.pick(SHIPS)),
        },
        "title" => match dice.below(3) {
            0 => format!("{} {}", dice.pick(ABSTRACTS), capitalise(dice.pick(SUBJECTS))),
            1 => format!("The {} {}", capitalise(dice.pick(ADJECTIVES)), capitalise(dice.pick(THINGS))),
            _ => format!("{} of {}", capitalise(dice.pick(SUBJECTS)), compose("town", dice)?),
        },
        "number" => dice.pick(&NUMBERS[2..]).to_string(),
        "year" => dice.between(1820, 1989).to_string(),
        "age" => dice.between(3, 94).to_string(),
        "small" => dice.between(2, 12).to_string(),
        "count" => dice.between(2, 99).to_string(),
        "large" => dice.between(100, 990).to_string(),
        "price" => format!("{}.{}0", dice.between(1, 60), dice.below(10)),
        "temperature" => format!("{}.{}", dice.between(36, 40), dice.below(10)),
        "date" => format!("{} {}", dice.between(1, 30), dice.pick(MONTHS)),
        "hour" => format!("{}:{}{}", dice.between(1, 12), dice.below(6), 5 * dice.below(2)),
        "letter" => char::from(b'A' + dice.below(8) as u8).to_string(),
        "code" => format!("{}{}", char::from(b'A' + dice.below(8) as u8), dice.between(1, 9)),
        "mark" => format!("{}{}0", dice.between(1, 9), dice.between(0, 9)),
        _ => return None,
    })
}

/// The word with its first letter in upper case.
pub fn capitalise(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
