//! A secret that requests carry to a port of this process.

use std::path::{Path, PathBuf};

/// Shorter ones can be guessed.
const CHARACTERS_MIN: usize = 16;
/// And longer ones are no token.
const CHARACTERS_MAX: usize = 512;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token in {place} has {found} characters; it must have {CHARACTERS_MIN} to {CHARACTERS_MAX}, all of them visible ASCII")]
    Unfit { place: String, found: usize },
    #[error("cannot read the token in {path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
}

/// What a client has to say to be let in. Only its hash is kept, and compared in constant time.
#[derive(Clone)]
pub struct Token(blake3::Hash);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// # Errors
    /// One that is too easily guessed, or cannot stand in a header. `place` says where it was found.
    pub fn new(text: &str, place: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let fit = (CHARACTERS_MIN..=CHARACTERS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        match fit {
            true => Ok(Self(blake3::hash(text.as_bytes()))),
            false => Err(TokenError::Unfit { place: place.to_owned(), found: text.chars().count() }),
        }
    }

    /// The token in a file, else that of an environment variable, else none.
    ///
    /// # Errors
    /// As [`Token::new`], and a file that cannot be read.
    pub fn find(file: Option<&Path>, variable: &str) -> Result<Option<Self>, TokenError> {
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|error| TokenError::File { path: path.to_owned(), error })?;
            return Self::new(&text, &path.display().to_string()).map(Some);
        }
        match std::env::var(variable) {
            Ok(text) if !text.is_empty() => Self::new(&text, &format!("${variable}")).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether it is what was said.
    pub fn is(&self, given: &str) -> bool {
        blake3::hash(given.as_bytes()) == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef";

    #[test]
    fn a_token_is_long_and_only_its_hash_is_kept() {
        let token = Token::new(&format!(" {SECRET}\n"), "a test").unwrap();
        assert!(token.is(SECRET) && !token.is("0123456789abcdeg") && !token.is("0123456789abcde") && !token.is(""));
        assert_eq!(format!("{token:?}"), "Token(..)");
        for wrong in ["", "short", "with a space inside it", "ä123456789abcdef", &"a".repeat(513)] {
            assert!(Token::new(wrong, "a test").is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_comes_before_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(matches!(Token::find(Some(&path), "MINGLE_NO_SUCH_TOKEN"), Err(TokenError::File { .. })));
        assert!(Token::find(None, "MINGLE_NO_SUCH_TOKEN").unwrap().is_none());
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        assert!(Token::find(Some(&path), "HOME").unwrap().unwrap().is(SECRET));
    }
}
