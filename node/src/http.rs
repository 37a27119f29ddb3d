//! The node's HTTP port: what a peer is doing, for browsers, scripts and Prometheus. It shows and never changes anything.
//!
//! On the loopback interface anybody of this machine may look, at pages that were asked for by a name of this machine; on any
//! other address a token is asked for, or the port is not opened. There is one thread with its own runtime, so that no
//! browser can hold up the peer; connections, their silence and what is kept for slow ones have bounds. Nothing is loaded
//! from elsewhere: the page, its style and its scripts are in this program.

mod api;
mod assets;
mod board;
mod events;
mod gate;
mod metrics;
mod options;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use mingle_serve::Bounded;
use tokio::sync::oneshot;

pub use board::{Board, PeerSummary};
use gate::Gate;
pub use mingle_serve::Token;
pub use options::{HttpError, Options, TOKEN_VARIABLE, address};

/// Where the port is opened when nothing else is said.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7700";

/// Open at once. A browser opens six.
const CONNECTIONS_MAX: usize = 64;
/// Heartbeats of a stream are more frequent, unless the client takes nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// An open port; dropped, it is closed.
pub struct Server {
    address: SocketAddr,
    /// Whether it asks for a token.
    guarded: bool,
    _stop: oneshot::Sender<()>,
}

impl Server {
    /// Opens the port and shows `board` there from now on.
    ///
    /// # Errors
    /// The address cannot be listened on, or other machines could look without a token.
    pub fn start(options: Options, board: Arc<Board>) -> Result<Self> {
        let Options { address, token } = options;
        let gate = Gate::new(address, token)?;
        let guarded = gate.guarded();
        let listener = std::net::TcpListener::bind(address).map_err(|why| HttpError::Listen { address, why })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let served = axum::serve(Bounded::new(listener, CONNECTIONS_MAX, SILENCE_MAX), router(board, Arc::new(gate))).into_future();
            tokio::select! {
                served = served => served,
                _ = stopped => Ok(()),
            }
        };
        let run = move || {
            if let Err(error) = runtime.block_on(serve) {
                tracing::warn!(%error, "the HTTP port is closed");
            }
        };
        std::thread::Builder::new().name("http".into()).spawn(run).context("cannot start a thread")?;
        Ok(Self { address, guarded, _stop: stop })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What to open in a browser.
    pub fn url(&self) -> String {
        let ip = self.address.ip();
        let shown = if ip.is_unspecified() { SocketAddr::new([127, 0, 0, 1].into(), self.address.port()) } else { self.address };
        let fragment = if self.guarded { "#token=..." } else { "" };
        format!("http://{shown}/{fragment}")
    }

    /// Goes on until somebody presses Ctrl-C.
    ///
    /// # Errors
    /// A system that does not let signals be heard.
    pub fn until_interrupted(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(async {
            crate::driver::Signals::new()?.received().await;
            Ok(())
        })
    }
}

fn router(board: Arc<Board>, gate: Arc<Gate>) -> Router {
    let routes = assets::routes().merge(api::routes()).fallback(api::unknown).with_state(board);
    routes.layer(axum::middleware::from_fn_with_state(gate, gate::guard))
}
