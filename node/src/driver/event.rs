//! What a running peer tells people, as sentences or as JSON lines.

use std::fmt;
use std::path::PathBuf;

use mingle_protocol::adapter::Layers;
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::MemberKey;
use mingle_protocol::record::{Record, RecordId, SignedRecord};
use mingle_protocol::standing::Standing;
use serde::Serialize;

use crate::network::{Link, Reachability};

/// How far a training is.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct TrainingStatus {
    /// Optimiser steps done, of `steps` in all.
    pub step: u64,
    pub steps: u64,
    /// Passes over the data begun, from 1.
    pub epoch: u64,
    pub epochs: u64,
    /// Mean loss of the last step, in nats a labelled token.
    pub loss: f64,
    pub tokens_per_second: f64,
    pub seconds_left: f64,
    #[serde(default)]
    pub learning_rate: f64,
    /// Before clipping.
    #[serde(default)]
    pub gradient_norm: f64,
    /// Memory of this process, now and at most, where the system tells.
    #[serde(default)]
    pub resident_bytes: Option<u64>,
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// After this step, where it was measured.
    #[serde(default)]
    pub held_out_loss: Option<f64>,
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Started {
        role: &'static str,
        member: MemberKey,
        round: String,
        name: String,
        home: PathBuf,
    },
    Listening {
        address: String,
    },
    /// The HTTP port is open.
    Shown {
        url: String,
    },
    Connected {
        peer: String,
        neighbours: usize,
    },
    Disconnected {
        peer: String,
        neighbours: usize,
    },
    /// A peer that may not connect tried to.
    Refused {
        peer: String,
        why: String,
    },
    /// Whether others can dial this peer: `public`, `private` or `unknown`; and where they reach it.
    Reachability {
        state: &'static str,
        addresses: Vec<String>,
    },
    /// The peer is connected through a relay only.
    Relayed {
        peer: String,
        relay: Option<String>,
    },
    /// The peer is connected without a relay between.
    Direct {
        peer: String,
        address: String,
    },
    Training(TrainingStatus),
    Trained {
        examples: u64,
        loss_before: Option<f64>,
        loss_after: Option<f64>,
        seconds: f64,
    },
    Withdrawn {
        sequence: u64,
    },
    Announced {
        adapter: ContentHash,
        sequence: u64,
        weight: u64,
    },
    Heard {
        member: MemberKey,
        adapter: Option<ContentHash>,
        sequence: u64,
        weight: u64,
        withdrawn: bool,
    },
    Standing {
        member: MemberKey,
        becomes: Standing,
        sequence: u64,
        approved_by: Vec<MemberKey>,
    },
    /// What a member found when it tried another's adapter: its held-out losses, in nats a token.
    Verdict {
        judge: MemberKey,
        member: MemberKey,
        announcement: RecordId,
        approves: bool,
        base_loss: f64,
        merged_loss: Option<f64>,
        /// Absent where it is no number.
        with_loss: Option<f64>,
        examples: u64,
    },
    Conflict {
        member: MemberKey,
        sequence: u64,
    },
    Fetching {
        adapter: ContentHash,
        have: u64,
        size: u64,
    },
    Fetched {
        adapter: ContentHash,
    },
    AdapterRefused {
        adapter: ContentHash,
        why: String,
    },
    RecordRefused {
        why: String,
    },
    Merged {
        adapters: usize,
        weight: u64,
        merged_hash: ContentHash,
        set_root: ContentHash,
        folder: PathBuf,
    },
    /// What the merge does to data held out here: its loss and that of the base alone, in nats a token.
    Scored {
        adapters: usize,
        set_root: ContentHash,
        loss: f64,
        base_loss: f64,
        examples: u64,
    },
    /// Adapters are here, but the round's rule needs more: there is no merge yet.
    TooFew {
        rule: &'static str,
        have: u64,
        needs: u64,
    },
    /// A reader has written what enough members vouch for.
    Believed {
        adapters: usize,
        members: usize,
        merged_hash: ContentHash,
        set_root: ContentHash,
        /// Where it is not the whole merge.
        #[serde(skip_serializing_if = "Option::is_none")]
        layers: Option<Layers>,
    },
    /// Two members signed different merges of one set.
    Fault {
        set_root: ContentHash,
        one: MemberKey,
        other: MemberKey,
        evidence: PathBuf,
    },
    Trouble {
        why: String,
    },
}

impl Event {
    /// What a new path to a peer is.
    pub fn path(link: &Link) -> Self {
        let peer = link.peer.to_string();
        match link.relayed {
            true => Self::Relayed { peer, relay: link.relay.map(|relay| relay.to_string()) },
            false => Self::Direct { peer, address: link.address.to_string() },
        }
    }

    pub fn reachability(reachability: &Reachability) -> Self {
        let addresses = reachability.addresses().iter().map(ToString::to_string).collect();
        Self::Reachability { state: reachability.name(), addresses }
    }

    /// What a record that entered the ledger says.
    pub fn heard(record: &SignedRecord) -> Self {
        if let Some(change) = record.standing() {
            let approved_by = change.approvals.iter().map(|approval| approval.founder).collect();
            return Self::Standing { member: change.subject, becomes: change.becomes, sequence: change.sequence, approved_by };
        }
        if let Some(said) = record.verdict() {
            return Self::Verdict {
                judge: said.member,
                member: said.subject,
                announcement: said.announcement,
                approves: said.approves,
                base_loss: nats(said.losses.base_micronats),
                merged_loss: said.losses.merged_micronats.map(nats),
                with_loss: said.losses.with_micronats.map(nats),
                examples: said.examples,
            };
        }
        let said = record.announcement();
        Self::Heard {
            member: record.record().member(),
            adapter: said.map(|said| said.adapter),
            sequence: record.record().sequence(),
            weight: said.map_or(0, |said| said.weight),
            withdrawn: matches!(record.record(), Record::Withdrawal(_)),
        }
    }
}

/// As the protocol writes losses, to nats.
pub(super) fn nats(micronats: u64) -> f64 {
    micronats as f64 / 1e6
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { role, member, round, name, home } => {
                write!(f, "{role} {} in round \"{name}\" ({}), home {}", member.short(), round.get(..8).unwrap_or(round), home.display())
            }
            Self::Shown { url } => write!(f, "dashboard: {url}"),
            Self::Listening { address } => write!(f, "listening on {address}"),
            Self::Connected { peer, neighbours } => write!(f, "connected to {peer} ({neighbours} neighbours)"),
            Self::Disconnected { peer, neighbours } => write!(f, "lost {peer} ({neighbours} neighbours)"),
            Self::Refused { peer, why } => write!(f, "refused a connection with {peer}: {why}"),
            Self::Reachability { state: "public", addresses } => write!(f, "others can dial this peer at {}", addresses.join(", ")),
            Self::Reachability { state: "private", addresses } if addresses.is_empty() => {
                f.write_str("others cannot dial this peer; looking for a relay")
            }
            Self::Reachability { state: "private", addresses } => {
                write!(f, "others cannot dial this peer; they reach it through relays at {}", addresses.join(", "))
            }
            Self::Reachability { .. } => f.write_str("it is not known whether others can dial this peer"),
            Self::Relayed { peer, relay } => {
                write!(f, "{peer} is reached through the relay {}", relay.as_deref().unwrap_or("that called"))
            }
            Self::Direct { peer, address } => write!(f, "{peer} is reached directly at {address}"),
            Self::Training(status) => {
                write!(
                    f,
                    "training: step {} of {}, loss {:.4}, {:.0} tokens/s",
                    status.step, status.steps, status.loss, status.tokens_per_second
                )
            }
            Self::Trained { examples, loss_before: Some(before), loss_after: Some(after), seconds } => {
                write!(f, "trained on {examples} examples in {seconds:.1} s: held-out loss {before:.4} -> {after:.4}")
            }
            Self::Trained { examples, seconds, .. } => write!(f, "trained on {examples} examples in {seconds:.1} s"),
            Self::Announced { adapter, sequence, weight } => {
                write!(f, "announced adapter {} (sequence {sequence}, weight {weight})", adapter.short())
            }
            Self::Withdrawn { sequence } => write!(f, "withdrew this member's adapter (sequence {sequence})"),
            Self::Heard { member, withdrawn: true, .. } => write!(f, "member {} withdrew its adapter", member.short()),
            Self::Heard { member, adapter, sequence, weight, .. } => {
                let adapter = adapter.map(|adapter| adapter.short()).unwrap_or_default();
                write!(f, "member {} announced adapter {adapter} (sequence {sequence}, weight {weight})", member.short())
            }
            Self::Standing { member, becomes, approved_by, .. } => {
                let by: Vec<String> = approved_by.iter().map(MemberKey::short).collect();
                write!(f, "{} is {} from now on, say founders {}", member.short(), becomes.name(), by.join(", "))
            }
            Self::Verdict { judge, member, approves, base_loss, merged_loss, with_loss, examples, .. } => {
                let does = if *approves { "approves" } else { "does not approve" };
                let (judge, member) = (judge.short(), member.short());
                let merged = merged_loss.map(|loss| format!(", {loss:.4} merged")).unwrap_or_default();
                let with = with_loss.map_or_else(|| "no number".to_owned(), |loss| format!("{loss:.4}"));
                write!(
                    f,
                    "member {judge} {does} the adapter of {member}: held-out loss {with} with it, {base_loss:.4} without any{merged} ({examples} examples)"
                )
            }
            Self::Conflict { member, sequence } => {
                write!(f, "member {} signed two records at sequence {sequence}: its slot counts for nothing", member.short())
            }
            Self::Fetching { adapter, have, size } => write!(f, "fetching {}: {have} of {size} bytes", adapter.short()),
            Self::Fetched { adapter } => write!(f, "fetched and verified adapter {}", adapter.short()),
            Self::AdapterRefused { adapter, why } => write!(f, "adapter {} is refused: {why}", adapter.short()),
            Self::RecordRefused { why } => write!(f, "a record is refused: {why}"),
            Self::Merged { adapters, weight, merged_hash, set_root, .. } => {
                let (hash, root) = (merged_hash.short(), set_root.short());
                write!(f, "merged {adapters} adapters (total weight {weight}): merged hash {hash}, set root {root}")
            }
            Self::Scored { adapters, loss, base_loss, examples, .. } => {
                write!(f, "held-out loss {loss:.4} with the merge of {adapters} adapters, {base_loss:.4} without any ({examples} examples)")
            }
            Self::TooFew { rule, have, needs } => {
                write!(f, "no merge yet: the rule {rule} needs {needs} adapters, and {have} are here")
            }
            Self::Believed { adapters, members, merged_hash, set_root, layers } => {
                let (hash, root) = (merged_hash.short(), set_root.short());
                let what = layers.as_ref().map(|layers| format!("layers {layers} of ")).unwrap_or_default();
                write!(
                    f,
                    "fetched {what}the merge of {adapters} adapters that {members} members vouch for: merged hash {hash}, set root {root}"
                )
            }
            Self::Fault { one, other, evidence, .. } => {
                let (one, other) = (one.short(), other.short());
                write!(f, "FAULT: members {one} and {other} signed different merges of one set; evidence in {}", evidence.display())
            }
            Self::Trouble { why } => write!(f, "trouble: {why}"),
        }
    }
}
