//! Who is answered, and what every answer carries.
//!
//! A page of another site can make a browser ask this port, and by its own name server even under that site's name. So
//! without a token only requests to a name of this machine are answered (the `Host`), and none that another origin made.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use mingle_serve::{Token, is_this_machine};

use super::options::HttpError;

/// What a page from here may do: nothing but with what comes from here.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// On every answer.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Decides who is answered.
pub struct Gate {
    token: Option<Token>,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Method,
    Body,
    Host,
    Origin,
    Token,
}

impl Gate {
    /// # Errors
    /// Other machines can reach the address, and there is no token.
    pub fn new(address: SocketAddr, token: Option<Token>) -> Result<Self, HttpError> {
        match token {
            None if !address.ip().is_loopback() => Err(HttpError::NoToken { address }),
            token => Ok(Self { token }),
        }
    }

    pub fn guarded(&self) -> bool {
        self.token.is_some()
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::Method);
        }
        let headers = request.headers();
        let empty = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
        if !empty || headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(Refusal::Body);
        }
        let authority = authority(request).ok_or(Refusal::Host)?;
        // Who knows the token was not led here by a name server.
        if self.token.is_none() && !is_this_machine(authority.host()) {
            return Err(Refusal::Host);
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let of = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            if of.is_none_or(|(_, of)| !of.eq_ignore_ascii_case(authority.as_str())) {
                return Err(Refusal::Origin);
            }
        }
        // The page itself says nothing, and asks for the token.
        let path = request.uri().path();
        let tells = path == "/metrics" || path.starts_with("/api/");
        match &self.token {
            Some(token) if tells && !bearer(headers).is_some_and(|given| token.is(given)) => Err(Refusal::Token),
            _ => Ok(()),
        }
    }
}

/// Whom the request is for: what its `Host` says, which must be there once.
fn authority(request: &Request) -> Option<Authority> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next()?.to_str().ok()?.parse().ok()?;
    let absolute = request.uri().authority().is_none_or(|asked| *asked == host);
    (hosts.next().is_none() && absolute).then_some(host)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, why) = match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "this port only shows: GET"),
            Self::Body => (StatusCode::PAYLOAD_TOO_LARGE, "a question here has no body"),
            Self::Host => (StatusCode::MISDIRECTED_REQUEST, "this port answers to names of this machine, such as localhost"),
            Self::Origin => (StatusCode::FORBIDDEN, "another site may not ask"),
            Self::Token => (StatusCode::UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN"),
        };
        let mut response = super::api::failure(code, why);
        let extra = match self {
            Self::Method => Some((header::ALLOW, "GET, HEAD")),
            Self::Token => Some((header::WWW_AUTHENTICATE, "Bearer realm=\"mingle\"")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// Answers, or says why not; with the headers of every answer.
pub async fn guard(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let mut response = match gate.check(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn check(token: bool, path: &str, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let token = token.then(|| Token::new("0123456789abcdef", "a test").expect("a token"));
        let gate = Gate::new(([127, 0, 0, 1], 1).into(), token).expect("a gate");
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        gate.check(&request.body(Body::empty()).expect("a request"))
    }

    #[test]
    fn only_names_of_this_machine_are_answered_without_a_token() {
        for host in ["localhost", "LocalHost:7700", "127.0.0.1:80", "127.1.2.3", "[::1]:7700"] {
            assert_eq!(check(false, "/api/status", &[("host", host)]), Ok(()), "{host}");
        }
        let foreign = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:7700", "10.0.0.1", "", "[::2]", "0.0.0.0"];
        for host in foreign {
            assert_eq!(check(false, "/", &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(check(false, "/", &[]), Err(Refusal::Host));
        assert_eq!(check(false, "/", &[("host", "localhost"), ("host", "evil.example")]), Err(Refusal::Host));
        assert_eq!(check(false, "http://evil.example/", &[("host", "localhost")]), Err(Refusal::Host));
        assert_eq!(check(true, "/", &[("host", "peer.example")]), Ok(()));
    }

    #[test]
    fn another_origin_is_refused() {
        for (origin, expected) in [
            ("http://localhost:7700", Ok(())),
            ("https://localhost:7700", Ok(())),
            ("http://localhost:8000", Err(Refusal::Origin)),
            ("http://evil.example", Err(Refusal::Origin)),
            ("null", Err(Refusal::Origin)),
        ] {
            assert_eq!(check(false, "/api/status", &[("host", "localhost:7700"), ("origin", origin)]), expected, "{origin}");
        }
    }

    #[test]
    fn a_token_opens_what_tells_something() {
        let host = ("host", "peer.example");
        for path in ["/api/status", "/api/events", "/api/unknown", "/metrics"] {
            assert_eq!(check(true, path, &[host]), Err(Refusal::Token));
            for wrong in ["Bearer 0123456789abcdeF", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef"] {
                assert_eq!(check(true, path, &[host, ("authorization", wrong)]), Err(Refusal::Token), "{wrong}");
            }
            assert_eq!(check(true, path, &[host, ("authorization", "bearer 0123456789abcdef")]), Ok(()));
        }
        assert_eq!(check(true, "/", &[host]), Ok(()));
    }

    #[test]
    fn a_question_has_no_body() {
        assert_eq!(check(false, "/", &[("host", "localhost"), ("content-length", "1")]), Err(Refusal::Body));
        assert_eq!(check(false, "/", &[("host", "localhost"), ("transfer-encoding", "chunked")]), Err(Refusal::Body));
    }

    #[test]
    fn other_machines_need_a_token() {
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"] {
            assert!(Gate::new(address.parse().expect("an address"), None).is_err(), "{address}");
        }
    }
}
