//! Where the port is opened and which token it asks for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mingle_serve::{Token, TokenError};

/// Where the token is looked for when no file is given.
pub const TOKEN_VARIABLE: &str = "MINGLE_HTTP_TOKEN";
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
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("cannot listen for HTTP on {address}: {why}")]
    Listen { address: SocketAddr, why: std::io::Error },
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
}
