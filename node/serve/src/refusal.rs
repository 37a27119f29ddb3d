//! Errors in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`, with the status that its clients
//! expect.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::speech::SpeechError;

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub status: StatusCode,
    message: String,
    /// The field of the request that is at fault.
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// A request that is no request.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// A field with a value that cannot be.
    pub fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, Some("invalid_value"), message) }
    }

    /// A field that this server knows and does not do.
    pub fn unsupported(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, Some("unsupported_parameter"), message) }
    }

    pub fn too_long(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message) }
    }

    pub fn too_large(bytes_max: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, None, format!("the request is longer than {bytes_max} bytes"))
    }

    /// A model that is not there; `known` are.
    pub fn no_model(name: &str, known: &[&str]) -> Self {
        let message = match known {
            [] => format!("there is no model {name:?}; none is there yet"),
            known => format!("there is no model {name:?}; there is {}", known.join(", ")),
        };
        Self { param: Some("model"), ..Self::new(StatusCode::NOT_FOUND, Some("model_not_found"), message) }
    }

    pub fn no_route(method: &str, path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("unknown_url"), format!("there is no {method} {path} here"))
    }

    pub fn no_method(method: &str, path: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, None, format!("{path} is not to be asked by {method}"))
    }

    pub fn unauthorised() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), "a token is needed: Authorization: Bearer TOKEN")
    }

    /// A request that a web page of somebody else may have sent.
    pub fn foreign() -> Self {
        let message = "without a token only requests to a name of this machine are answered, and none from other sites' pages";
        Self::new(StatusCode::FORBIDDEN, None, message)
    }

    /// All places are taken.
    pub fn busy() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"), "all places are taken, those to wait as well; try again")
    }

    /// Not this request's fault.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, None, message)
    }

    pub fn stopped() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, None, "the engine has stopped")
    }

    pub fn to_json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<SpeechError> for Refusal {
    fn from(error: SpeechError) -> Self {
        let param = match error {
            SpeechError::Template { .. } | SpeechError::Role { .. } => "messages",
            _ => "prompt",
        };
        Self::field(param, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
