//! The merger on a thread of its own: it always works towards the newest set and skips those it was too late for.

use std::path::PathBuf;

use anyhow::Result;
use mingle_protocol::ledger::Admitted;
use mingle_protocol::merge::{Account, MergeError, MergeRule};
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
    /// The merged adapter and where it is, or why there is none.
    pub merged: Result<(Receipt, PathBuf), MergeError>,
    /// What the rule did to single members.
    pub account: Account,
}

/// Starts the thread; it ends when the order's sender is dropped.
pub fn start(round: Round, store: Store, folder: PathBuf, mut orders: watch::Receiver<Order>, reports: mpsc::Sender<Result<Report>>) {
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let mut merger = Merger::new(round.clone(), store);
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
    if let Err(lacking) = merger.check_enough() {
        merged::unpublish(folder)?;
        return Ok(Report { unusable, merged: Err(lacking), account: Account::default() });
    }
    let merged = merged::publish(folder, round, merger, &order.records)?;
    // The receipt says it, of which only a rule that treats members unlike has any.
    let manifest = round.manifest();
    let unlike = manifest.clip_millionths.is_some() || matches!(manifest.rule, MergeRule::MultiKrum { .. });
    let account = if unlike { merged::Proof::read(&merged.1)?.account } else { Account::default() };
    Ok(Report { unusable, merged: Ok(merged), account })
}
