//! Templates with slots, choices and memory: the whole grammar of the generated prose.
//!
//! `{kind}` draws a word of the kind. `{kind.tag}` draws it once and repeats it wherever the same slot stands again in the
//! scene, which is what makes a document hang together (and copying worth learning). `[one|another]` chooses one branch;
//! branches may hold slots but no further choices. Refuses, by panicking in the tests that visit every template, a slot
//! whose kind nobody knows.

use std::collections::BTreeMap;

use super::dice::Dice;
use super::lexicon;

/// One document in the making: its chance and what it has already named.
#[derive(Debug)]
pub struct Scene<'dice> {
    pub dice: &'dice mut Dice,
    named: BTreeMap<String, String>,
}

impl<'dice> Scene<'dice> {
    /// A scene in which nothing is named yet.
    pub fn new(dice: &'dice mut Dice) -> Scene<'dice> {
        Scene { dice, named: BTreeMap::new() }
    }

    /// Fixes what a tagged slot such as `person.a` stands for.
    pub fn name(&mut self, slot: &str, word: impl Into<String>) {
        self.named.insert(slot.to_string(), word.into());
    }

    /// Writes the template out.
    pub fn write(&mut self, template: &str) -> String {
        let mut text = String::with_capacity(template.len() * 2);
        self.write_to(template, &mut text);
        with_articles(text)
    }

    /// Writes one of the templates out.
    pub fn write_one(&mut self, templates: &[&str]) -> String {
        let template = self.dice.pick(templates);
        self.write(template)
    }

    /// What a slot (`kind` or `kind.tag`) stands for, drawn now if need be.
    pub fn word(&mut self, slot: &str) -> String {
        let Some((kind, _)) = slot.split_once('.') else {
            return self.fresh(slot);
        };
        if let Some(word) = self.named.get(slot) {
            return word.clone();
        }
        // Two tags of one kind should be two different things; a few tries are enough for that.
        let mut word = self.fresh(kind);
        for _ in 0..8 {
            if !self.named.values().any(|other| *other == word) {
                break;
            }
            word = self.fresh(kind);
        }
        self.named.insert(slot.to_string(), word.clone());
        word
    }

    fn fresh(&mut self, kind: &str) -> String {
        lexicon::draw(kind, self.dice).unwrap_or_else(|| panic!("no list of words is called {kind:?}"))
    }

    fn write_to(&mut self, template: &str, text: &mut String) {
        let mut rest = template;
        while let Some(at) = rest.find(['{', '[']) {
            text.push_str(&rest[..at]);
            let close = if rest[at..].starts_with('{') { '}' } else { ']' };
            let Some(length) = rest[at..].find(close) else {
                break;
            };
            let inside = &rest[at + 1..at + length];
            if close == '}' {
                let word = self.word(inside);
                text.push_str(&word);
            } else {
                let branches: Vec<&str> = inside.split('|').collect();
                let branch = self.dice.pick(&branches);
                self.write_to(branch, text);
            }
            rest = &rest[at + length + 1..];
        }
        text.push_str(rest);
    }
}

/// Writes "an" for "a" where a vowel follows, since a slot cannot know what will stand in it.
fn with_articles(text: String) -> String {
    let mut corrected = String::with_capacity(text.len() + 4);
    let bytes = text.as_bytes();
    let mut copied = 0;
    for at in 1..bytes.len().saturating_sub(1) {
        let article = bytes[at] == b' ' && matches!(bytes[at - 1], b'a' | b'A') && (at == 1 || !bytes[at - 2].is_ascii_alphanumeric());
        if article && matches!(bytes[at + 1], b'a' | b'e' | b'i' | b'o' | b'u') {
            corrected.push_str(&text[copied..at]);
            corrected.push('n');
            copied = at;
        }
    }
    corrected.push_str(&text[copied..]);
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_agree_with_what_follows() {
        let write = |text: &str| with_articles(text.to_string());
        assert_eq!(write("a apple, a pear and A old coat"), "an apple, a pear and An old coat");
        assert_eq!(write("Alma apple"), "Alma apple");
        assert_eq!(write("sofa and a"), "sofa and a");
    }

    #[test]
    fn tagged_slots_are_remembered_and_differ() {
        let mut dice = Dice::new(3, "grammar");
        for _ in 0..50 {
            let text = Scene::new(&mut dice).write("{colour.a} {colour.b} {colour.a} [x|{day}]");
            let words: Vec<&str> = text.split(' ').collect();
            assert_eq!(words[0], words[2], "{text}");
            assert_ne!(words[0], words[1], "{text}");
            assert!(words[3] == "x" || lexicon::DAYS.contains(&words[3]), "{text}");
        }
    }
}
