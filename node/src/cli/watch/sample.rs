//! A round in which everything that can be shown is there at once, for tests.

use mingle_protocol::identity::{MemberKey, SecretKey};
use serde_json::{Value, json};

use super::seen::Seen;
use crate::driver::{History, Status};
use crate::network::peer_of;

pub const NOW: u64 = 1_700_000_000_000;

pub fn member(number: u8) -> MemberKey {
    SecretKey::from_bytes(&[number; 32]).member()
}

fn hash(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

fn slot(number: u8, changes: Value) -> Value {
    let mut slot = json!({
        "member": member(number), "state": "adapter", "sequence": 1, "adapter": hash(number), "weight": 182, "examples": 182, "size": 2048,
        "have": 2048, "merged": false, "refused": null,
    });
    let changes = changes.as_object().expect("an object").clone();
    slot.as_object_mut().expect("an object").extend(changes);
    slot
}

pub fn status() -> Status {
    let peer = |number| peer_of(&member(number)).expect("a key").to_string();
    let verdict = |number, approves| json!({ "judge": member(number), "approves": approves, "base_loss": 4.9, "merged_loss": 1.0, "with_loss": 1.02, "examples": 9 });
    let value = json!({
        "updated_unix_ms": NOW - 100, "process": 1, "role": "member", "member": member(1), "peer": peer(1), "round": hash(0xe8),
        "name": "one \u{1b}[2J round\n", "listening": [], "neighbours": 3, "reachability": "public", "phase": "training",
        "training": {
            "step": 45, "steps": 100, "epoch": 1, "epochs": 3, "loss": 1.25, "tokens_per_second": 1234.5, "seconds_left": 340.0,
            "resident_bytes": 1u64 << 30,
        },
        "slots": [
            slot(1, json!({ "merged": true })),
            slot(2, json!({ "merged": true })),
            slot(3, json!({ "have": 1024 })),
            slot(4, json!({ "refused": "東京: rank 9 \u{1b}]0;title\u{7} is not the round's" })),
            slot(5, json!({ "approvals_needed": 2, "verdicts": [verdict(1, true), verdict(2, false)] })),
            slot(6, json!({ "state": "conflict", "adapter": null, "weight": 0, "examples": 0, "size": 0, "have": 0 })),
            slot(7, json!({ "have": 0 })),
            slot(8, json!({})),
            slot(9, json!({ "state": "withdrawn", "adapter": null, "weight": 0, "examples": 0, "size": 0, "have": 0 })),
        ],
        "roster": (1..=10).map(member).collect::<Vec<_>>(),
        "merged": {
            "adapters": 2, "weight": 364, "merged_hash": hash(0x01), "set_root": hash(0x0c), "folder": "/merged", "clipped": [member(2)],
        },
        "rule": "mean, weighted by examples up to 1000000; with 2 adapters it stands 0 bad adapters", "vouching": 1,
        "faults": [{
            "set_root": hash(0x0c), "members": [member(7), member(8)], "merged": [hash(1), hash(2)], "attestations": ["", ""],
        }],
        "traffic": { "control_in": 26_900, "control_out": 25_900, "blob_in": 1_150_000, "blob_out": 1_570_000 },
        "links": [
            { "peer": peer(2), "address": "/ip4/10.0.0.2", "relayed": false, "relay": null, "round_trip_ms": 1.25 },
            { "peer": peer(3), "address": "/ip4/10.0.0.3", "relayed": true, "relay": peer(2), "round_trip_ms": 48.0 },
            { "peer": "12D3KooWnokey", "address": "/ip4/10.0.0.4", "relayed": false, "relay": null },
        ],
        "transfers": [{
            "adapter": hash(3), "size": 2048, "have": 1024,
            "providers": [{ "peer": peer(3), "bytes": 1024, "bytes_per_second": 512, "state": "sending" }],
        }],
        "uploads": [{ "peer": peer(2), "bytes": 399_360, "bytes_per_second": 0 }],
        "home": "/home",
    });
    serde_json::from_value(value).expect("a status")
}

pub fn history() -> History {
    let loss = |step: u64| 0.6 + 4.0 * (-(step as f64) / 12.0).exp() + if step.is_multiple_of(3) { 0.3 } else { 0.0 };
    let merge = |(number, loss): (usize, Option<f64>)| json!({ "unix_ms": NOW, "adapters": number, "merged_hash": hash(number as u8), "set_root": hash(number as u8), "loss": loss });
    let scores = [Some(1.0228), Some(1.01), None, Some(0.9976)];
    let happening = |(before, warning, times, text): (u64, bool, u32, &str)| json!({ "unix_ms": NOW - before, "warning": warning, "times": times, "text": text });
    let happened = [
        (7_300_000, false, 1, "member 19fb3b80 announced adapter 6c21bc33 (sequence 1, weight 182)"),
        (130_000, false, 1, "fetched and verified adapter 6c21bc33"),
        (90_000, true, 3, "trouble: \u{7}no answer"),
        (
            2_000,
            true,
            1,
            "adapter 74c28cc3 of member cadb8481 is refused: its update is longer than the round allows, and a reason that long needs two lines",
        ),
        (1_000, false, 1, "merged 2 adapters (total weight 364): merged hash 01010101, set root 0c0c0c0c"),
    ];
    let value = json!({
        "training": (1..=44).map(|step| json!({ "step": step, "loss": loss(step) })).collect::<Vec<_>>(),
        "held_out": [{ "step": 20, "loss": 1.6 }, { "step": 40, "loss": 1.1 }],
        "merges": scores.into_iter().enumerate().map(|(index, loss)| merge((index + 1, loss))).collect::<Vec<_>>(),
        "base_loss": 4.9685,
        "happened": happened.into_iter().map(happening).collect::<Vec<_>>(),
    });
    serde_json::from_value(value).expect("a history")
}

pub fn seen() -> Seen {
    Seen::new((status(), history()), NOW.into()).expect("what JSON can hold")
}
