//! The stream of what changes. Nothing is queued: a client that is slow to take gets, when it is ready, what holds then.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::api::PeerStatus;
use super::board::{Board, PeerSummary};

/// Between two rounds of news.
const PAUSE: Duration = Duration::from_millis(400);
/// Between two histories, which are larger.
const HISTORY_PAUSE: Duration = Duration::from_secs(2);
/// Without news the peers are looked at nevertheless: one that ended says nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A comment is sent when nothing else is, so that both ends notice a broken connection.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A stream ends after this; clients come again.
const LIFE: Duration = Duration::from_secs(3600);

struct Follower {
    board: Arc<Board>,
    /// Whose status is followed; the first peer's without one.
    peer: Option<String>,
    changes: watch::Receiver<u64>,
    ready: VecDeque<Event>,
    peers: Vec<PeerSummary>,
    status: Option<(u64, bool)>,
    history: Option<u64>,
    history_from: Instant,
    from: Instant,
    ends: Instant,
}

/// Follows the board: `peers` with all of them, `status` and `history` of one.
pub fn follow(board: Arc<Board>, peer: Option<String>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let now = Instant::now();
    let follower = Follower {
        changes: board.changes(),
        board,
        peer,
        ready: VecDeque::new(),
        peers: Vec::new(),
        status: None,
        history: None,
        history_from: now,
        from: now,
        ends: now + LIFE,
    };
    let stream = futures::stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive"))
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if Instant::now() >= self.ends {
                return None;
            }
            sleep_until(self.from).await;
            self.look();
            self.from = Instant::now() + PAUSE;
            if self.ready.is_empty() {
                let _ = timeout(LOOK_EVERY, self.changes.changed()).await;
            }
        }
    }

    /// Makes ready what is new.
    fn look(&mut self) {
        self.changes.mark_unchanged();
        let peers: Vec<PeerSummary> = self.board.rows().iter().map(super::board::Row::summary).collect();
        if peers != self.peers {
            self.ready.extend(told("peers", &peers));
            self.peers = peers;
        }
        let Some(row) = self.board.row(self.peer.as_deref()) else { return };
        let status = Some((row.status_version, row.status.is_live()));
        if status != self.status {
            self.status = status;
            self.ready.extend(told("status", &PeerStatus::from(&row)));
        }
        if self.history != Some(row.history_version) && Instant::now() >= self.history_from {
            self.history = Some(row.history_version);
            self.history_from = Instant::now() + HISTORY_PAUSE;
            self.ready.extend(told("history", &*row.history));
        }
    }
}

fn told(name: &str, value: &impl Serialize) -> Option<Event> {
    // Numbers and texts can always be written.
    Event::default().event(name).json_data(value).ok()
}
