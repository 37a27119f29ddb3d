//! Room `serve`: answers from a base and its adapters behind an OpenAI-compatible API.
//!
//! One thread, the engine ([`engine`]), owns the computation: it carries all sequences on in common passes, which requests join
//! and leave between two passes. Every answer is made from beginning to end by one whole model ([`shelf`]), also when another
//! takes its place meanwhile. What makes tokens of texts and texts of tokens ([`speech`]) and what speaks HTTP ([`api`]) waits
//! for nothing but that thread.
//!
//! It hands out answers and nothing else: no request returns a file, a weight or an adapter. It knows nothing of rounds and
//! peers; whoever holds it puts models on the shelf.

mod access;
mod api;
mod calendar;
mod chat_template;
mod connections;
mod engine;
mod refusal;
mod sampling;
mod shelf;
mod speech;
mod stops;
mod token;
mod unfolding;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

pub use access::{Access, AccessError, is_this_machine};
pub use connections::Bounded;
pub use engine::Limits;
pub use shelf::{Kind, Model, Shelf};
pub use speech::{ChatLayout, Speech, SpeechError};
pub use token::{Token, TokenError};

/// All that a server needs.
pub struct Server {
    pub shelf: Arc<Shelf>,
    pub speech: Speech,
    pub access: Access,
    pub limits: Limits,
}

/// A listener that is bound but answers nothing yet.
///
/// # Errors
/// An address that is in use, or not this machine's.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Server {
    /// Answers until `stopped` is ready; then no connection is taken any more, and answers that are being made have a few
    /// seconds. Must run within a tokio runtime.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub async fn run(self, listener: TcpListener, stopped: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
        api::run(self, listener, stopped).await
    }
}
