//! The statuses as numbers for Prometheus. A scrape is a sheet made anew: nothing is counted here.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::board::Row;
use crate::driver::{Phase, Status};

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// One scrape: metrics are registered as they come, and each is filled for every peer.
struct Sheet<'a> {
    registry: Registry,
    rows: &'a [Row],
}

impl<'a> Sheet<'a> {
    /// A number of every peer that has it.
    fn gauge(&mut self, name: &str, what: &str, of: impl Fn(&'a Row) -> Option<f64>) {
        self.gauges(name, what, |row| of(row).map(|value| (Labels::new(), value)).into_iter().collect());
    }

    /// Several numbers of every peer, told apart by labels.
    fn gauges(&mut self, name: &str, what: &str, of: impl Fn(&'a Row) -> Vec<(Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        for row in self.rows {
            for (labels, value) in of(row).into_iter().filter(|(_, value)| value.is_finite()) {
                family.get_or_create(&labelled(row, labels)).set(value);
            }
        }
        self.registry.register(name, what, family);
    }

    fn counters(&mut self, name: &str, what: &str, of: impl Fn(&'a Status) -> Vec<(Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for row in self.rows {
            for (labels, value) in of(&row.status) {
                family.get_or_create(&labelled(row, labels)).inc_by(value);
            }
        }
        self.registry.register(name, what, family);
    }
}

fn labelled(row: &Row, extra: Labels) -> Labels {
    let round: String = row.status.round.chars().take(8).collect();
    let mut labels = vec![("round", round), ("member", row.status.member.short())];
    labels.extend(extra);
    labels
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

fn count(number: usize) -> f64 {
    number as f64
}

/// All that is shown, as OpenMetrics text.
pub fn text(rows: &[Row]) -> String {
    let mut sheet = Sheet { registry: Registry::with_prefix("mingle"), rows };
    about(&mut sheet);
    training(&mut sheet);
    merging(&mut sheet);
    network(&mut sheet);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &sheet.registry);
    text
}

fn about(sheet: &mut Sheet<'_>) {
    sheet.gauges("peer", "What the peer is, always 1", |row| {
        let status = &row.status;
        vec![(vec![("role", status.role.clone()), ("name", status.name.clone()), ("peer", status.peer.clone())], 1.0)]
    });
    sheet.gauge("live", "Whether the peer runs", |row| Some(f64::from(u8::from(row.status.is_live()))));
    sheet.gauges("phase", "What the peer is at: 1 at one of the phases", |row| {
        let phases = [
            ("training", Phase::Training),
            ("announced", Phase::Announced),
            ("waiting", Phase::Waiting),
            ("following", Phase::Following),
            ("failed", Phase::Failed),
        ];
        phases.map(|(name, phase)| (label("phase", name), f64::from(u8::from(row.status.phase == phase)))).into()
    });
}

fn training(sheet: &mut Sheet<'_>) {
    let of = |row: &Row| row.status.training.clone();
    sheet.gauge("training_step", "Optimiser steps done", |row| Some(of(row)?.step as f64));
    sheet.gauge("training_steps", "Optimiser steps in all", |row| Some(of(row)?.steps as f64));
    sheet.gauge("training_epoch", "Passes over the data begun", |row| Some(of(row)?.epoch as f64));
    sheet.gauge("training_loss", "Loss of the last step, in nats a labelled token", |row| Some(of(row)?.loss));
    sheet.gauge("training_tokens_per_second", "Tokens trained on a second", |row| Some(of(row)?.tokens_per_second));
    sheet.gauge("training_learning_rate", "Learning rate of the last step", |row| Some(of(row)?.learning_rate));
    sheet.gauge("training_gradient_norm", "Length of the gradient before clipping", |row| Some(of(row)?.gradient_norm));
    sheet.gauge("training_seconds_left", "Seconds of training left", |row| Some(of(row)?.seconds_left));
    sheet.gauge("training_resident_bytes", "Memory of the process at the last step", |row| Some(of(row)?.resident_bytes? as f64));
    sheet.gauges(
        "held_out_loss",
        "Loss on data held out here, in nats a token: of the base, with the own adapter, with the merge",
        |row| {
            let history = &row.history;
            let merged = history.merges.iter().rev().find_map(|merge| merge.loss);
            let own = history.trained.and_then(|trained| trained.loss_after);
            let losses = [("base", history.base_loss), ("own", own), ("merged", merged)];
            losses.into_iter().filter_map(|(with, loss)| Some((label("with", with), loss?))).collect()
        },
    );
}

fn merging(sheet: &mut Sheet<'_>) {
    sheet.gauges("slots", "Members heard of, by what stands in their slot", |row| {
        let of = |state: &str| row.status.slots.iter().filter(|slot| slot.state == state).count();
        ["adapter", "withdrawn", "conflict", "reader", "out"].map(|state| (label("state", state), count(of(state)))).into()
    });
    let refused = |row: &Row| row.status.slots.iter().filter(|slot| slot.refused.is_some()).count();
    sheet.gauge("refused_adapters", "Announced adapters that this peer refuses", |row| Some(count(refused(row))));
    sheet.gauge("merged_adapters", "Adapters in the merge", |row| {
        Some(row.status.merged.as_ref().map_or(0.0, |merged| count(merged.adapters)))
    });
    sheet.gauge("merged_weight", "Total weight in the merge", |row| {
        Some(row.status.merged.as_ref().map_or(0.0, |merged| merged.weight as f64))
    });
    sheet.gauges("merged", "Which merge the peer holds, always 1", |row| {
        let of = |merged: &crate::driver::MergedStatus| {
            vec![("merged_hash", merged.merged_hash.to_string()), ("set_root", merged.set_root.to_string())]
        };
        row.status.merged.iter().map(|merged| (of(merged), 1.0)).collect()
    });
    sheet.gauge("clipped_members", "Members whose update was clipped in the merge", |row| {
        Some(count(row.status.merged.as_ref()?.clipped.len()))
    });
    sheet.gauge("left_out_members", "Members whom the rule left out of the merge", |row| {
        Some(count(row.status.merged.as_ref()?.left_out.len()))
    });
    sheet.gauge("vouching_members", "Members that vouch for the merged bytes", |row| Some(count(row.status.vouching)));
    sheet.gauge("faults", "Contradictions among members: one set, two merges", |row| Some(count(row.status.faults.len())));
}

fn network(sheet: &mut Sheet<'_>) {
    sheet.gauges("neighbours", "Connected peers, directly or through a relay", |row| {
        let relayed = row.status.links.iter().filter(|link| link.relayed).count();
        let direct = row.status.links.len() - relayed;
        vec![(label("path", "direct"), count(direct)), (label("path", "relayed"), count(relayed))]
    });
    sheet.gauge("public", "Whether others can dial this peer, where it is known", |row| match row.status.reachability.as_str() {
        "public" => Some(1.0),
        "private" => Some(0.0),
        _ => None,
    });
    sheet.counters("traffic_bytes", "Bytes since the start: files, and all that is none", |status| {
        let traffic = &status.traffic;
        let rows = [
            ("control", "in", traffic.control_in),
            ("control", "out", traffic.control_out),
            ("blob", "in", traffic.blob_in),
            ("blob", "out", traffic.blob_out),
        ];
        rows.map(|(kind, direction, bytes)| (vec![("kind", kind.to_owned()), ("direction", direction.to_owned())], bytes)).into()
    });
    sheet.gauge("fetching_files", "Files on their way here", |row| Some(count(row.status.transfers.len())));
    sheet.gauge("fetching_bytes_missing", "Bytes of them that are not here yet", |row| {
        Some(row.status.transfers.iter().map(|transfer| transfer.size.saturating_sub(transfer.have)).sum::<u64>() as f64)
    });
    sheet.gauge("fetching_bytes_per_second", "Bytes of files that come a second", |row| {
        Some(row.status.transfers.iter().map(|transfer| transfer.bytes_per_second()).sum::<u64>() as f64)
    });
    sheet.gauge("serving_bytes_per_second", "Bytes of files that are sent a second", |row| {
        Some(row.status.uploads.iter().map(|upload| upload.bytes_per_second).sum::<u64>() as f64)
    });
    sheet.gauge("offences", "What connected peers did wrong since they connected", |row| {
        Some(row.status.conduct.iter().map(|peer| peer.offences + peer.over_quota).sum::<u64>() as f64)
    });
}
