//! All peers of a testnet on one page: the dashboard of a peer, fed from the files that each of them leaves in its home.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use mingle::driver::{History, Status};
use mingle::http::{Board, Options, Server, TOKEN_VARIABLE, Token};

use crate::peer::Peer;

/// Histories are read no more often.
const READ_EVERY: Duration = Duration::from_secs(1);

/// An open page.
pub struct Page {
    server: Server,
    board: Arc<Board>,
    title: String,
    peers: Vec<Followed>,
    last_read: Option<Instant>,
}

struct Followed {
    name: String,
    history_path: PathBuf,
    history: Arc<History>,
}

impl Page {
    /// # Errors
    /// The port cannot be opened, or other machines could look without a token.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let board = Arc::new(Board::default());
        let server = Server::start(Options { address, token: Token::find(None, TOKEN_VARIABLE)? }, board.clone())?;
        Ok(Self { server, board, title: String::new(), peers: Vec::new(), last_read: None })
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Shows these peers from now on, beside those of earlier rounds.
    pub fn begin(&mut self, title: &str, peers: &[Peer]) {
        self.title = title.into();
        let follow = |peer: &Peer| Followed { name: peer.name.clone(), history_path: peer.history_path(), history: Arc::default() };
        self.peers = peers.iter().map(follow).collect();
    }

    /// What the peers that were begun with are doing, in their order.
    pub fn show(&mut self, statuses: &[Option<Status>]) {
        let due = self.last_read.is_none_or(|last| last.elapsed() >= READ_EVERY);
        if due {
            self.last_read = Some(Instant::now());
        }
        for (peer, status) in self.peers.iter_mut().zip(statuses) {
            // Peers are shown in their order: who comes later waits for the first word of who comes before.
            let Some(status) = status else { return };
            if due && let Some(history) = read(&peer.history_path) {
                peer.history = Arc::new(history);
            }
            let id = format!("{}.{}", self.title, peer.name.replace(' ', "-"));
            self.board.show([&id, &self.title, &peer.name], status, &peer.history);
        }
    }

    /// Whether every member that has trained knows what each of its merges scores.
    pub fn is_scored(&self) -> bool {
        let scored = |peer: &Followed| peer.history.merges.iter().all(|merge| merge.loss.is_some());
        self.peers.iter().filter(|peer| peer.history.trained.is_some()).all(scored)
    }

    /// Stays until somebody presses Ctrl-C.
    ///
    /// # Errors
    /// A system that does not let signals be heard.
    pub fn stay(&self) -> Result<()> {
        eprintln!("the page stays at {} until Ctrl-C", self.url());
        self.server.until_interrupted()
    }
}

fn read(path: &PathBuf) -> Option<History> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
