//! The merger on a thread of its own: it always works towards the newest set and skips those it was too late for.

use std::path::PathBuf;

use anyhow::Result;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::SignedRecord;
use mingle_protocol::round::Round;
use tokio::sync::{mpsc, watch};

use crate::merged;
use crate::merger::{Merger, Unusable};
use crate::store::Store;

/// The set to be merged, with the records that admit it.
#[derive(Clone, Debug, Default)]
pub struct Order {
    pub set: Vec<Admitted>,
    pub records: Vec<SignedRecord>,
}

/// What came of an order.
#[derive(Debug)]
pub struct Report {
    pub unusable: Vec<Unusable>,
    /// The merged adapter and where it is; `None` when nothing is in it.
    pub merged: Option<(Receipt, PathBuf)>,
}

/// Starts the thread; it ends when the order's sender is dropped.
pub fn start(round: Round, store: Store, folder: PathBuf, mut orders: watch::Receiver<Order>, reports: mpsc::Sender<Result<Report>>) {
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let mut merger = match Merger::new(round.clone(), store) {
            Ok(merger) => merger,
            Err(error) => {
                let _ = reports.blocking_send(Err(error));
                return;
            }
        };
        while runtime.block_on(orders.changed()).is_ok() {
            let order = orders.borrow_and_update().clone();
            let report = follow(&mut merger, &round, &folder, &order);
            if reports.blocking_send(report).is_err() {
                return;
            }
        }
    });
}

fn follow(merger: &mut Merger, round: &Round, folder: &std::path::Path, order: &Order) -> Result<Report> {
    let unusable = merger.step(&order.set)?;
    let held: Vec<Admitted> = merger.held().cloned().collect();
    if held.is_empty() {
        merged::unpublish(folder)?;
        return Ok(Report { unusable, merged: None });
    }
    let merged = merged::publish(folder, round, merger.accumulator(), held, &order.records)?;
    Ok(Report { unusable, merged: Some(merged) })
}
