//! Where the port is opened and which token it asks for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the token is looked for when no file is given.
pub const TOKEN_VARIABLE: &str = "MINGLE_HTTP_TOKEN";
/// A token is no shorter than this: it shall not be guessed.
const TOKEN_MIN: usize = 16;
/// And no longer.
const TOKEN_MAX: usize = 512;

/// How the port is opened.
#[derive(Clone, Debug)]
pub struct Options {
    pub address: SocketAddr,
    /// Asked of everybody, where there is one.
    pub token: Option<Token>,
}

/// Why the port is not opened.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{address} can be reached from other machines, and there is no token to ask for")]
    NoToken { address: SocketAddr },
    #[error("the HTTP token {from} has {found} characters; it must have {TOKEN_MIN} to {TOKEN_MAX}, all of them visible ASCII")]
    Token { from: String, found: usize },
    #[error("cannot read the HTTP token in {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: std::io::Error },
    #[error("cannot listen for HTTP on {address}: {why}")]
    Listen { address: SocketAddr, why: std::io::Error },
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
    fn new(text: &str, from: impl FnOnce() -> String) -> Result<Self, HttpError> {
        let text = text.trim();
        let sound = (TOKEN_MIN..=TOKEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !sound {
            return Err(HttpError::Token { from: from(), found: text.chars().count() });
        }
        Ok(Self(blake3::hash(text.as_bytes())))
    }

    /// The token in a file, else that of the environment, else none.
    ///
    /// # Errors
    /// One that cannot be read or is too easily guessed.
    pub fn find(file: Option<&Path>) -> Result<Option<Self>, HttpError> {
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|why| HttpError::Unreadable { path: path.to_owned(), why })?;
            return Self::new(&text, || format!("in {}", path.display())).map(Some);
        }
        match std::env::var(TOKEN_VARIABLE) {
            Ok(text) if !text.is_empty() => Self::new(&text, || format!("in ${TOKEN_VARIABLE}")).map(Some),
            _ => Ok(None),
        }
    }

    #[cfg(test)]
    pub(super) fn find_in(text: &str) -> Result<Self, HttpError> {
        Self::new(text, String::new)
    }

    pub(super) fn is(&self, given: &str) -> bool {
        blake3::hash(given.as_bytes()) == self.0
    }
}

/// An address as people write it: with a host, or the port alone for the loopback interface.
///
/// # Errors
/// No address, in one sentence.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let port = text.strip_prefix("localhost").unwrap_or(text);
    if let Ok(port) = port.strip_prefix(':').unwrap_or(port).parse() {
        return Ok(loopback(port));
    }
    text.parse().map_err(|_| format!("{text:?} is no address such as 127.0.0.1:7700, and no port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        for text in ["7700", ":7700", "localhost:7700", "127.0.0.1:7700"] {
            assert_eq!(address(text).map(|address| address.to_string()), Ok("127.0.0.1:7700".to_owned()), "{text}");
        }
        assert_eq!(address("[::1]:0").map(|address| address.to_string()), Ok("[::1]:0".to_owned()));
        for wrong in ["", "host", "0.0.0.0", "example.org:80", "70000"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_long_and_only_its_hash_is_kept() {
        let token = Token::new(" 0123456789abcdef\n", String::new).expect("a token");
        assert!(token.is("0123456789abcdef") && !token.is("0123456789abcdeg") && !token.is(""));
        assert_eq!(format!("{token:?}"), "Token(..)");
        for wrong in ["", "short", "with a space inside it", "ä123456789abcdef"] {
            assert!(Token::new(wrong, String::new).is_err(), "{wrong}");
        }
    }
}
