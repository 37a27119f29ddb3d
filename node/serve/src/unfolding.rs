//! Tokens become text as they come: a character whose bytes lie in several tokens is shown when it is whole.

use mingle_trainer::data::{DataError, Tokens};

/// Tokens before the answer that are looked at: some tokenizers write a word at the beginning of a text otherwise than behind
/// others.
const CONTEXT: usize = 6;
/// So many tokens without a whole character are no character: they are shown as they are.
const PENDING_MAX: usize = 12;

/// The text of one answer.
pub struct Unfolding {
    ids: Vec<u32>,
    /// Text of what lies before is known not to change any more.
    from: usize,
    /// What has been shown.
    shown: usize,
}

impl Unfolding {
    /// An answer that goes on where `before` ends; or a text of its own, behind nothing.
    pub fn behind(before: &[u32]) -> Self {
        let ids = before[before.len().saturating_sub(CONTEXT)..].to_vec();
        Self { from: 0, shown: ids.len(), ids }
    }

    /// What this token lets be shown.
    ///
    /// # Errors
    /// A tokenizer that cannot decode.
    pub fn push(&mut self, token: u32, tokens: &Tokens) -> Result<String, DataError> {
        self.ids.push(token);
        self.show(tokens, self.ids.len() - self.shown >= PENDING_MAX)
    }

    /// What is left, once nothing follows.
    ///
    /// # Errors
    /// A tokenizer that cannot decode.
    pub fn rest(&mut self, tokens: &Tokens) -> Result<String, DataError> {
        self.show(tokens, true)
    }

    fn show(&mut self, tokens: &Tokens, all: bool) -> Result<String, DataError> {
        if self.shown == self.ids.len() {
            return Ok(String::new());
        }
        let before = tokens.decode(&self.ids[self.from..self.shown])?;
        let now = tokens.decode(&self.ids[self.from..])?;
        let new = now.strip_prefix(&before).unwrap_or_default();
        if new.ends_with('\u{fffd}') && !all {
            return Ok(String::new());
        }
        (self.from, self.shown) = (self.shown, self.ids.len());
        Ok(new.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speech::testing::byte_tokens;

    #[test]
    fn characters_are_shown_whole_and_once() {
        let (_folder, tokens) = byte_tokens();
        let text = "naïve 漢字 €\n🦀 end";
        let ids = tokens.encode(text).unwrap();
        assert!(ids.len() >= text.len(), "a token a byte");
        let mut unfolding = Unfolding::behind(&tokens.encode("before").unwrap());
        let (mut all, mut longest) = (String::new(), 0);
        for id in ids {
            let shown = unfolding.push(id, &tokens).unwrap();
            assert!(!shown.contains('\u{fffd}'), "{shown:?}");
            longest = longest.max(shown.chars().count());
            all += &shown;
        }
        all += &unfolding.rest(&tokens).unwrap();
        assert_eq!(all, text);
        assert_eq!(longest, 1);
    }

    #[test]
    fn bytes_that_are_no_character_are_not_held_for_ever() {
        let (_folder, tokens) = byte_tokens();
        let broken = tokens.encode("é").unwrap()[0];
        let mut unfolding = Unfolding::behind(&[]);
        let shown: Vec<String> = (0..PENDING_MAX).map(|_| unfolding.push(broken, &tokens).unwrap()).collect();
        assert!(shown[..PENDING_MAX - 1].iter().all(String::is_empty) && shown[PENDING_MAX - 1].contains('\u{fffd}'), "{shown:?}");
        assert_eq!(unfolding.push(broken, &tokens).unwrap(), "");
        assert!(!unfolding.rest(&tokens).unwrap().is_empty());
        let a = tokens.encode("a").unwrap()[0];
        assert_eq!(unfolding.push(a, &tokens).unwrap(), "a");
    }
}
