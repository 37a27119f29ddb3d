//! Who may ask: on this machine's own address anybody here, and no page of another site in a browser here; from elsewhere
//! whoever has the token.

use std::net::{IpAddr, SocketAddr};

use axum::http::header;
use axum::http::request::Parts;

use crate::refusal::Refusal;
use crate::token::Token;

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("other machines can reach {address}, so a token is needed there")]
    Open { address: SocketAddr },
}

/// The rule of one server.
#[derive(Debug, Clone)]
pub struct Access(Option<Token>);

impl Access {
    /// For a server at `address`.
    ///
    /// # Errors
    /// An address that other machines reach, and no token.
    pub fn new(address: SocketAddr, token: Option<Token>) -> Result<Self, AccessError> {
        match token.is_none() && !address.ip().is_loopback() {
            true => Err(AccessError::Open { address }),
            false => Ok(Self(token)),
        }
    }

    /// Whether requests must carry a token.
    pub fn needs_token(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a request is answered. `/health` tells nothing and asks for no token.
    pub(crate) fn check(&self, request: &Parts) -> Result<(), Refusal> {
        let text = |name: header::HeaderName| request.headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let Some(token) = &self.0 else {
            let host = text(header::HOST).map_or("localhost", name_of);
            let origin =
                text(header::ORIGIN).map_or("localhost", |origin| name_of(origin.split_once("://").map_or(origin, |(_, rest)| rest)));
            return if is_this_machine(host) && is_this_machine(origin) { Ok(()) } else { Err(Refusal::foreign()) };
        };
        let given = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
        let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
        match request.uri.path() == "/health" || given.is_some_and(|given| token.is(given)) {
            true => Ok(()),
            false => Err(Refusal::unauthorised()),
        }
    }
}

/// The host of `host:port`.
fn name_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

/// Names of this machine that no name server can lead elsewhere.
pub fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn check(token: bool, path: &str, headers: &[(&str, &str)]) -> u16 {
        let token = token.then(|| Token::new(SECRET, "a test").unwrap());
        let access = Access::new(([127, 0, 0, 1], 1).into(), token).unwrap();
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        access.check(&request.body(()).unwrap().into_parts().0).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn without_a_token_this_machine_is_answered_and_no_others_page() {
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.0.0.1", "LOCALHOST"] {
            assert_eq!(check(false, "/v1/models", &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example:8080", "10.0.0.7:8080", "localhost.evil.example", "[::2]:1", ""] {
            assert_eq!(check(false, "/v1/models", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(check(false, "/v1/models", &[("host", "localhost"), ("origin", "https://evil.example")]), 403);
        assert_eq!(check(false, "/v1/models", &[("host", "localhost"), ("origin", "null")]), 403);
        assert_eq!(check(false, "/v1/models", &[("host", "localhost"), ("origin", "http://localhost:3000")]), 200);
    }

    #[test]
    fn a_token_lets_in_from_everywhere_and_nothing_else_does() {
        let bearer = |token: &str| check(true, "/v1/models", &[("host", "models.example"), ("authorization", token)]);
        assert_eq!(bearer("Bearer 0123456789abcdef"), 200);
        assert_eq!(bearer("bearer 0123456789abcdef"), 200);
        for wrong in ["0123456789abcdef", "Bearer 0123456789abcdeg", "Bearer 0123456789abcde", "Basic 0123456789abcdef", "Bearer "] {
            assert_eq!(bearer(wrong), 401, "{wrong}");
        }
        assert_eq!(check(true, "/v1/models", &[]), 401);
        assert_eq!(check(true, "/health", &[]), 200);
    }

    #[test]
    fn addresses_for_others_need_a_token() {
        let everywhere = ([0, 0, 0, 0], 80).into();
        assert!(matches!(Access::new(everywhere, None), Err(AccessError::Open { .. })));
        assert!(Access::new(everywhere, Some(Token::new(SECRET, "x").unwrap())).unwrap().needs_token());
        assert!(Access::new("[::1]:80".parse().unwrap(), None).is_ok());
    }
}
