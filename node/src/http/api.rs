//! The questions that are answered in JSON, and their description.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::board::{Board, PeerSummary, Row};
use super::{events, metrics};
use crate::driver::{History, Status};

/// Which peer is meant.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Which {
    /// The `id` of a peer, where several are shown; the first without it
    peer: Option<String>,
}

/// What a peer is doing, as `mingle status --json` tells it.
#[derive(Serialize, ToSchema)]
pub struct PeerStatus {
    #[serde(flatten)]
    status: Status,
    /// Whether it runs.
    live: bool,
}

impl From<&Row> for PeerStatus {
    fn from(row: &Row) -> Self {
        Self { status: (*row.status).clone(), live: row.status.is_live() }
    }
}

/// Why there is no answer.
#[derive(Serialize, ToSchema)]
struct Failure {
    error: String,
}

pub fn failure(code: StatusCode, why: &str) -> Response {
    (code, Json(Failure { error: why.to_owned() })).into_response()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "mingle peer",
        description = "What a peer of a round is doing. It shows and never changes anything. Where the port is not opened on the \
                       loopback interface, and wherever a token was given, /api and /metrics ask for it as a bearer token."
    ),
    paths(status, peers, history, changes, metrics, description),
    components(schemas(PeerStatus, PeerSummary, History))
)]
struct Description;

pub fn routes() -> Router<Arc<Board>> {
    Router::new()
        .route("/api/status", get(status))
        .route("/api/peers", get(peers))
        .route("/api/history", get(history))
        .route("/api/events", get(changes))
        .route("/api/openapi.json", get(description))
        .route("/metrics", get(metrics))
}

pub async fn unknown() -> Response {
    failure(StatusCode::NOT_FOUND, "there is no such page; /api/openapi.json lists what there is")
}

fn answer(board: &Board, which: &Which, of: impl FnOnce(Row) -> Response) -> Response {
    match (board.row(which.peer.as_deref()), &which.peer) {
        (Some(row), _) => of(row),
        (None, Some(_)) => failure(StatusCode::NOT_FOUND, "no such peer is shown here"),
        (None, None) => failure(StatusCode::SERVICE_UNAVAILABLE, "no peer has said anything yet"),
    }
}

/// What a peer is doing
#[utoipa::path(
    get,
    path = "/api/status",
    params(Which),
    responses(
        (status = 200, description = "As `mingle status --json`", body = PeerStatus),
        (status = 404, description = "No such peer", body = Failure),
        (status = 503, description = "No peer has said anything yet", body = Failure),
    )
)]
async fn status(State(board): State<Arc<Board>>, Query(which): Query<Which>) -> Response {
    answer(&board, &which, |row| Json(PeerStatus::from(&row)).into_response())
}

/// The peers that are shown
#[utoipa::path(get, path = "/api/peers", responses((status = 200, description = "In the order in which they came", body = Vec<PeerSummary>)))]
async fn peers(State(board): State<Arc<Board>>) -> Response {
    Json(board.rows().iter().map(Row::summary).collect::<Vec<_>>()).into_response()
}

/// Curves, merges and what happened lately
#[utoipa::path(
    get,
    path = "/api/history",
    params(Which),
    responses(
        (status = 200, description = "Bounded series, the oldest first", body = History),
        (status = 404, description = "No such peer", body = Failure),
        (status = 503, description = "No peer has said anything yet", body = Failure),
    )
)]
async fn history(State(board): State<Arc<Board>>, Query(which): Query<Which>) -> Response {
    answer(&board, &which, |row| Json(&*row.history).into_response())
}

/// What changes, as it changes
#[utoipa::path(
    get,
    path = "/api/events",
    params(Which),
    responses((
        status = 200,
        description = "Server-sent events: `peers` (an array of PeerSummary), `status` (PeerStatus) and `history` (History) of the peer \
                       that is meant, each when it changes; comments as heartbeats. The stream ends after an hour, to be asked for again",
        body = String,
        content_type = "text/event-stream",
    ))
)]
async fn changes(State(board): State<Arc<Board>>, Query(which): Query<Which>) -> Response {
    events::follow(board, which.peer).into_response()
}

/// Numbers for Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "OpenMetrics text, labelled by round and member", body = String, content_type = "application/openmetrics-text"))
)]
async fn metrics(State(board): State<Arc<Board>>) -> Response {
    let rows = board.rows().clone();
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::text(&rows)).into_response()
}

/// This description
#[utoipa::path(get, path = "/api/openapi.json", responses((status = 200, description = "OpenAPI", body = Object)))]
async fn description() -> Response {
    match Description::openapi().to_pretty_json() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(_) => failure(StatusCode::INTERNAL_SERVER_ERROR, "the description cannot be written"),
    }
}
