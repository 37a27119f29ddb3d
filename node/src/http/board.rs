//! What is shown: one peer, or many on one machine. Peers put up what they are doing; whoever looks waits for changes.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::driver::{History, Phase, Status};

/// Peers that are shown at most.
const PEERS_MAX: usize = 1024;

/// A peer as a line among others.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct PeerSummary {
    /// Names the peer in a query.
    pub id: String,
    /// What it belongs to, where several rounds are shown.
    pub group: String,
    pub name: String,
    pub role: String,
    #[schema(value_type = String)]
    pub member: String,
    /// Whether it runs.
    pub live: bool,
    pub phase: Phase,
    /// Training steps done and in all, and the loss of the last, while it trains.
    pub step: Option<u64>,
    pub steps: Option<u64>,
    pub loss: Option<f64>,
    /// Adapters that it has heard of, and those in its merge.
    pub adapters: usize,
    pub merged: usize,
    pub merged_hash: Option<String>,
    /// Held-out loss with the newest merge that was scored.
    pub score: Option<f64>,
    pub neighbours: usize,
    /// Conflicts, faults, refused adapters.
    pub warnings: usize,
}

/// A peer on the board.
#[derive(Clone)]
pub struct Row {
    pub id: String,
    pub group: String,
    pub name: String,
    pub status: Arc<Status>,
    pub history: Arc<History>,
    /// Counts what was new in the status, and in the history.
    pub status_version: u64,
    pub history_version: u64,
}

impl Row {
    pub fn summary(&self) -> PeerSummary {
        let status = &self.status;
        let training = status.training.as_ref().filter(|_| status.phase == Phase::Training);
        let warned = |slot: &&crate::driver::SlotStatus| slot.state == "conflict" || slot.refused.is_some();
        PeerSummary {
            id: self.id.clone(),
            group: self.group.clone(),
            name: self.name.clone(),
            role: status.role.clone(),
            member: status.member.to_string(),
            live: status.is_live(),
            phase: status.phase,
            step: training.map(|training| training.step),
            steps: training.map(|training| training.steps),
            loss: training.map(|training| training.loss).filter(|loss| loss.is_finite()),
            adapters: status.slots.iter().filter(|slot| slot.adapter.is_some()).count(),
            merged: status.merged.as_ref().map_or(0, |merged| merged.adapters),
            merged_hash: status.merged.as_ref().map(|merged| merged.merged_hash.to_string()),
            score: self.history.merges.iter().rev().find_map(|merge| merge.loss),
            neighbours: status.neighbours,
            warnings: status.faults.len() + status.slots.iter().filter(warned).count(),
        }
    }
}

/// What is shown now.
pub struct Board {
    rows: RwLock<Vec<Row>>,
    changes: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self { rows: RwLock::default(), changes: watch::channel(0).0 }
    }
}

impl Board {
    /// Puts up what the peer `id` is doing. A status that says nothing new but the time wakes nobody.
    pub fn show(&self, [id, group, name]: [&str; 3], status: &Status, history: &Arc<History>) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let place = match rows.iter().position(|row| row.id == id) {
            Some(place) => place,
            None if rows.len() >= PEERS_MAX => return,
            None => {
                rows.push(Row {
                    id: id.into(),
                    group: group.into(),
                    name: name.into(),
                    status: Arc::new(Status { updated_unix_ms: 0, ..status.clone() }),
                    history: Arc::default(),
                    status_version: 1,
                    history_version: 1,
                });
                self.changes.send_modify(|version| *version += 1);
                rows.len() - 1
            }
        };
        let Some(row) = rows.get_mut(place) else { return };
        let before = row.status.updated_unix_ms;
        let news = !same(&row.status, status) as u64;
        row.status_version += news;
        if status.updated_unix_ms != before {
            row.status = Arc::new(status.clone());
        }
        let told = !Arc::ptr_eq(&row.history, history) && row.history != *history;
        if told {
            row.history = history.clone();
            row.history_version += 1;
        }
        if news > 0 || told {
            self.changes.send_modify(|version| *version += 1);
        }
    }

    pub fn rows(&self) -> RwLockReadGuard<'_, Vec<Row>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer with this id; without one, the first.
    pub fn row(&self, id: Option<&str>) -> Option<Row> {
        let rows = self.rows();
        rows.iter().find(|row| id.is_none_or(|id| row.id == id)).cloned()
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Whether two statuses say the same but for the time.
fn same(one: &Status, other: &Status) -> bool {
    // The parts that change most first.
    let quick = (one.phase, one.neighbours, &one.traffic) == (other.phase, other.neighbours, &other.traffic);
    quick && one.training == other.training && Status { updated_unix_ms: one.updated_unix_ms, ..other.clone() } == *one
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(updated_unix_ms: u64, neighbours: usize) -> Status {
        let key = "11".repeat(32);
        let member = mingle_protocol::identity::SecretKey::from_bytes(&[1; 32]).member();
        let told = json!({
            "updated_unix_ms": updated_unix_ms, "process": 1, "role": "member", "member": member, "peer": "12D3", "round": key,
            "name": "a round", "listening": [], "neighbours": neighbours, "phase": "following", "training": null, "slots": [],
            "merged": null, "home": "/home",
        });
        serde_json::from_value(told).expect("a status")
    }

    #[test]
    fn only_news_wake_who_waits() {
        let board = Board::default();
        let mut changes = board.changes();
        let mut woken = || std::mem::replace(&mut changes, board.changes()).has_changed().expect("a board");
        let history = Arc::new(History::default());
        let show = |status: &Status, history: &Arc<History>| board.show(["one", "", "member"], status, history);
        show(&status(1, 0), &history);
        assert!(woken());
        show(&status(2, 0), &history);
        assert!(!woken(), "the time is no news");
        assert_eq!(board.row(None).map(|row| row.status.updated_unix_ms), Some(2), "but it is kept");
        show(&status(3, 1), &history);
        assert!(woken());
        let other: Arc<History> = Arc::new(serde_json::from_value(json!({ "base_loss": 1.0 })).expect("a history"));
        show(&status(3, 1), &other);
        assert!(woken());
        show(&status(3, 1), &Arc::new((*other).clone()));
        assert!(!woken());
        board.show(["two", "", "reader"], &status(1, 0), &history);
        assert!(woken() && board.rows().len() == 2);
        assert!(board.row(Some("three")).is_none() && board.row(Some("two")).is_some_and(|row| row.name == "reader"));
    }
}
