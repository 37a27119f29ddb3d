//! The HTTP side: routes, who is let in, and what goes back. OpenAI's API as its clients use it, and nothing beside it.

mod answer;
mod request;
mod shapes;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::{Future, IntoFuture};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, body::Bytes};
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::Server;
use crate::access::Access;
use crate::connections::Bounded;
use crate::engine::Engine;
use crate::refusal::Refusal;
use crate::shelf::Shelf;
use crate::speech::Speech;
use answer::{Answer, Ending, Piece};
use request::Asked;
use shapes::{Form, Frame, Whole};

/// Longest request: a conversation that fills a long context several times over.
const BODY_BYTES_MAX: usize = 8 << 20;
/// How long answers that are being made have after the server was told to stop.
const FAREWELL: Duration = Duration::from_secs(3);

/// What all requests share.
pub(crate) struct Desk {
    pub shelf: Arc<Shelf>,
    pub speech: Speech,
    pub engine: Engine,
    access: Access,
}

impl Desk {
    pub fn new(server: Server) -> std::io::Result<Arc<Self>> {
        let Server { shelf, speech, access, limits } = server;
        Ok(Arc::new(Self { shelf, speech, access, engine: Engine::start(limits)? }))
    }
}

/// Open at once: far more than there are places for answers, for clients keep theirs open.
const CONNECTIONS_MAX: usize = 512;
/// An answer that is not streamed is silent until it is whole.
const SILENCE_MAX: Duration = Duration::from_secs(900);

pub(crate) async fn run(server: Server, listener: TcpListener, stopped: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
    let desk = Desk::new(server)?;
    let listener = Bounded::new(tokio::net::TcpListener::from_std(listener)?, CONNECTIONS_MAX, SILENCE_MAX);
    let (stopping, told) = oneshot::channel();
    let stopped = async move {
        stopped.await;
        let _ = stopping.send(());
    };
    let serving = axum::serve(listener, routes(desk)).with_graceful_shutdown(stopped).into_future();
    let farewell = async move {
        let _ = told.await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        done = serving => done,
        () = farewell => Ok(()),
    }
}

pub(crate) fn routes(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(desk.clone(), gate))
        .with_state(desk)
}

async fn gate(State(desk): State<Arc<Desk>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    match desk.access.check(&parts) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn no_route(method: Method, uri: Uri) -> Refusal {
    Refusal::no_route(method.as_str(), uri.path())
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    Refusal::no_method(method.as_str(), uri.path())
}

async fn health(State(desk): State<Arc<Desk>>) -> Response {
    match desk.engine.runs() {
        true => Json(json!({ "status": "ok" })).into_response(),
        false => Refusal::stopped().into_response(),
    }
}

async fn models(State(desk): State<Arc<Desk>>) -> Json<Value> {
    let all: Vec<Value> = desk.shelf.all().iter().map(|model| model.to_json()).collect();
    Json(json!({ "object": "list", "data": all }))
}

async fn model(State(desk): State<Arc<Desk>>, Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    match desk.shelf.find(Some(&id)) {
        Some(model) => Ok(Json(model.to_json())),
        None => Err(request::unknown_model(&desk.shelf, &id)),
    }
}

async fn completions(State(desk): State<Arc<Desk>>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    answer(desk, Form::Text, body).await
}

async fn chat(State(desk): State<Arc<Desk>>, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    answer(desk, Form::Chat, body).await
}

async fn answer(desk: Arc<Desk>, form: Form, body: Result<Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::too_large(BODY_BYTES_MAX),
        _ => Refusal::malformed(rejection.body_text()),
    })?;
    if !desk.engine.runs() {
        return Err(Refusal::stopped());
    }
    // A long text takes its time to become tokens.
    let prepare = move || {
        let asked = Asked::read(&desk, form, &body)?;
        let answers = asked.order(&desk)?;
        Ok::<_, Refusal>((asked, answers))
    };
    let prepared = tokio::task::spawn_blocking(prepare).await;
    let (asked, answers) = prepared.map_err(|_| Refusal::failed("the request could not be prepared"))??;
    let frame = Frame::new(form, &asked);
    let headers = fingerprint(&asked);
    match asked.stream {
        Some(with_usage) => Ok((headers, streamed(frame, answers, with_usage)).into_response()),
        None => Ok((headers, Json(collected(frame, answers).await?)).into_response()),
    }
}

/// Which weights answer, also for clients that drop `system_fingerprint`.
fn fingerprint(asked: &Asked) -> HeaderMap {
    let named = [("x-mingle-model", asked.model.kind.name()), ("x-mingle-fingerprint", &asked.model.fingerprint)];
    let header = |(name, value): (&'static str, &str)| Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?));
    named.into_iter().filter_map(header).collect()
}

/// All answers, once they are whole.
async fn collected(frame: Frame, answers: Vec<Answer>) -> Result<Value, Refusal> {
    let one = |mut answer: Answer| async move {
        let mut whole = Whole::default();
        while let Some(piece) = answer.next().await {
            whole.add(piece)?;
        }
        Ok::<_, Refusal>(whole)
    };
    let wholes = futures::future::try_join_all(answers.into_iter().map(one)).await?;
    Ok(frame.whole(wholes))
}

/// Pieces as server-sent events, in the order in which they come.
fn streamed(frame: Frame, answers: Vec<Answer>, with_usage: bool) -> Response {
    let count = answers.len();
    let one = |answer: Answer| {
        stream::unfold(answer, |mut answer| async move {
            let piece = answer.next().await?;
            Some((piece, answer))
        })
        .boxed()
    };
    let pieces = stream::select_all(answers.into_iter().map(one));
    let first: Vec<Value> = (0..count).filter_map(|index| frame.begin(index, with_usage)).collect();
    let state = (frame, 0usize);
    let chunks = pieces.map(Some).chain(stream::iter([None])).scan(state, move |(frame, said), piece: Option<Piece>| {
        let chunks = match piece {
            Some(Piece { end: Some(Ending::Failed(why)), .. }) => vec![Refusal::failed(why).to_json()],
            Some(piece) => {
                if let Some(Ending::Done { tokens, .. }) = piece.end {
                    *said += tokens;
                }
                vec![frame.piece(piece, with_usage)]
            }
            None if with_usage => vec![frame.usage(*said)],
            None => Vec::new(),
        };
        futures::future::ready(Some(stream::iter(chunks)))
    });
    let data = stream::iter(first).chain(chunks.flatten()).map(|chunk| chunk.to_string()).chain(stream::iter(["[DONE]".to_owned()]));
    let events = data.map(|data| Ok::<_, Infallible>(Event::default().data(data)));
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
