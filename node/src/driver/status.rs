//! `status.json`: what a peer is doing, for `mingle status` and the testnet. Written a few times a second, never read
//! back by the peer itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::identity::{MemberKey, Roster};
use mingle_protocol::ledger::{Admitted, Ledger, SlotState};
use mingle_protocol::merge::Account;
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{Privacy, SignedRecord};
use mingle_protocol::round::Manifest;
use mingle_protocol::standing::{Standing, StandingChange};
use mingle_protocol::verdict::Verdict;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::event::{TrainingStatus, nats};
use super::transfers::{TransferStatus, UploadStatus};
use super::vouching::FaultStatus;
use crate::files;
use crate::network::{self, Link, Traffic};

/// A status older than this belongs to a peer that is gone.
pub const STALE_MS: u128 = 5_000;

/// What `status.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Milliseconds since 1970.
    #[schema(value_type = u64)]
    pub updated_unix_ms: u128,
    pub process: u32,
    /// `member`, `reader`, `seed` or `founder`.
    pub role: String,
    #[schema(value_type = String)]
    pub member: MemberKey,
    pub peer: String,
    pub round: String,
    pub name: String,
    pub listening: Vec<String>,
    pub neighbours: usize,
    /// `public`, `private` (only through relays) or `unknown`.
    #[serde(default)]
    pub reachability: String,
    /// Where others reach this peer: its own addresses, or those through relays.
    #[serde(default)]
    pub reached_at: Vec<String>,
    /// How each neighbour is connected.
    #[serde(default)]
    pub links: Vec<LinkStatus>,
    pub phase: Phase,
    pub training: Option<TrainingStatus>,
    pub slots: Vec<SlotStatus>,
    /// What founders have changed about who belongs.
    #[serde(default)]
    pub standings: Vec<StandingStatus>,
    /// Who may announce, where the round says who; heard of or not.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub roster: Vec<MemberKey>,
    pub merged: Option<MergedStatus>,
    /// How adapters become one, and what that stands with those that are merged; in words.
    #[serde(default)]
    pub rule: String,
    /// Members that vouch for these merged bytes, as far as this peer has heard.
    #[serde(default)]
    pub vouching: usize,
    /// Contradictions among members: one set, two merges.
    #[serde(default)]
    pub faults: Vec<FaultStatus>,
    #[serde(default)]
    pub traffic: TrafficStatus,
    /// How each connected peer behaves.
    #[serde(default)]
    pub conduct: Vec<ConductStatus>,
    /// Files on their way here, with what each provider brings.
    #[serde(default)]
    pub transfers: Vec<TransferStatus>,
    /// What was sent of files since the start, by peer.
    #[serde(default)]
    pub uploads: Vec<UploadStatus>,
    #[schema(value_type = String)]
    pub home: PathBuf,
}

/// What a connected peer has done since it connected, and gossip's score of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConductStatus {
    pub peer: String,
    pub score: f64,
    /// Gossiped messages that were new here, and how many of them were valid.
    pub messages: u64,
    pub accepted: u64,
    /// Questions of reconciliation, and bytes of the answers.
    pub questions: u64,
    pub answer_bytes: u64,
    pub blob_requests: u64,
    pub blob_bytes: u64,
    /// How often it was refused for asking too much, and what else it did wrong.
    pub over_quota: u64,
    pub offences: u64,
}

impl From<network::PeerStatus> for ConductStatus {
    fn from(status: network::PeerStatus) -> Self {
        let network::PeerStatus { peer, score, counts, .. } = status;
        let network::Counts { messages, accepted, questions, answer_bytes, blob_requests, blob_bytes, over_quota, offences, .. } = counts;
        Self { peer: peer.to_string(), score, messages, accepted, questions, answer_bytes, blob_requests, blob_bytes, over_quota, offences }
    }
}

/// Bytes since the start, as the network counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrafficStatus {
    /// All that is not a blob.
    pub control_in: u64,
    pub control_out: u64,
    pub blob_in: u64,
    pub blob_out: u64,
}

impl From<Traffic> for TrafficStatus {
    fn from(traffic: Traffic) -> Self {
        let Traffic { control_in, control_out, blob_in, blob_out } = traffic;
        Self { control_in, control_out, blob_in, blob_out }
    }
}

/// How one neighbour is connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LinkStatus {
    pub peer: String,
    pub address: String,
    pub relayed: bool,
    /// The peer that carries the bytes, where it is known.
    pub relay: Option<String>,
    #[serde(default)]
    pub round_trip_ms: Option<f64>,
}

impl From<&Link> for LinkStatus {
    fn from(link: &Link) -> Self {
        let Link { peer, address, relayed, relay, round_trip } = link;
        Self {
            peer: peer.to_string(),
            address: address.to_string(),
            relayed: *relayed,
            relay: relay.map(|relay| relay.to_string()),
            round_trip_ms: round_trip.map(|time| time.as_secs_f64() * 1000.0),
        }
    }
}

/// What the peer itself is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Training,
    /// Trained or given an adapter, and announced it.
    Announced,
    /// Has an adapter that it may not announce before founders admit its key.
    Waiting,
    /// Nothing of its own to announce.
    Following,
    Failed,
}

/// One member as this peer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SlotStatus {
    #[schema(value_type = String)]
    pub member: MemberKey,
    /// `adapter`, `withdrawn` or `conflict`; `reader` or `out` where the key is no member now, and counts for nothing.
    pub state: String,
    pub sequence: u64,
    #[schema(value_type = Option<String>)]
    pub adapter: Option<ContentHash>,
    pub weight: u64,
    pub examples: u64,
    pub size: u64,
    /// Verified bytes of the blob at hand.
    pub have: u64,
    /// Whether it is in the merged adapter.
    pub merged: bool,
    pub refused: Option<String>,
    /// What its member promises of the privacy of its examples.
    #[serde(default)]
    pub privacy: Option<PrivacyStatus>,
    /// Approvals that the adapter needs before it counts, where the round asks for any.
    #[serde(default)]
    pub approvals_needed: usize,
    /// What members say of it whose word counts.
    #[serde(default)]
    pub verdicts: Vec<VerdictStatus>,
}

impl SlotStatus {
    pub fn approvals(&self) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.approves).count()
    }
}

/// What a member promises each of its examples: a word that nobody else can check.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PrivacyStatus {
    pub epsilon: f64,
    pub delta: f64,
    /// Largest length of one example's gradient, and the noise's standard deviation in such lengths.
    pub clip: f64,
    pub noise: f64,
}

impl From<Privacy> for PrivacyStatus {
    fn from(said: Privacy) -> Self {
        let Privacy { epsilon_millionths, delta_trillionths, clip_millionths, noise_millionths } = said;
        let millionths = |number: u64| number as f64 / 1e6;
        Self {
            epsilon: millionths(epsilon_millionths),
            delta: delta_trillionths as f64 / 1e12,
            clip: millionths(clip_millionths),
            noise: millionths(noise_millionths),
        }
    }
}

/// One member's verdict, with its held-out losses in nats a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VerdictStatus {
    #[schema(value_type = String)]
    pub judge: MemberKey,
    pub approves: bool,
    pub base_loss: f64,
    pub merged_loss: Option<f64>,
    /// Absent where it is no number.
    pub with_loss: Option<f64>,
    pub examples: u64,
}

impl From<&Verdict> for VerdictStatus {
    fn from(said: &Verdict) -> Self {
        Self {
            judge: said.member,
            approves: said.approves,
            base_loss: nats(said.losses.base_micronats),
            merged_loss: said.losses.merged_micronats.map(nats),
            with_loss: said.losses.with_micronats.map(nats),
            examples: said.examples,
        }
    }
}

/// A change of who belongs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StandingStatus {
    #[schema(value_type = String)]
    pub key: MemberKey,
    /// `member`, `reader` or `out`.
    #[schema(value_type = String)]
    pub standing: Standing,
    pub sequence: u64,
    #[schema(value_type = Vec<String>)]
    pub approved_by: Vec<MemberKey>,
}

impl From<&StandingChange> for StandingStatus {
    fn from(change: &StandingChange) -> Self {
        let approved_by = change.approvals.iter().map(|approval| approval.founder).collect();
        Self { key: change.subject, standing: change.becomes, sequence: change.sequence, approved_by }
    }
}

/// The merged adapter at hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MergedStatus {
    pub adapters: usize,
    pub weight: u64,
    #[schema(value_type = String)]
    pub merged_hash: ContentHash,
    #[schema(value_type = String)]
    pub set_root: ContentHash,
    #[schema(value_type = String)]
    pub folder: PathBuf,
    /// Members whose update was scaled down to the round's largest norm.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub clipped: Vec<MemberKey>,
    /// Members whom the rule left out.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub left_out: Vec<MemberKey>,
}

impl MergedStatus {
    pub fn new(receipt: &Receipt, folder: PathBuf, account: &Account) -> Self {
        Self {
            adapters: receipt.admitted.len(),
            weight: receipt.weight(),
            merged_hash: receipt.merged,
            set_root: receipt.set_root,
            folder,
            clipped: account.clipped.keys().copied().collect(),
            left_out: account.left_out.iter().copied().collect(),
        }
    }
}

impl Status {
    /// # Errors
    /// No status there, or one of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a status of this version", path.display()))
    }

    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_volatile(path, &serde_json::to_vec_pretty(self)?)
    }

    /// Whether the peer still runs, by the age of its status.
    pub fn is_live(&self) -> bool {
        self.is_live_at(unix_ms())
    }

    /// Whether the peer still ran at a time, in milliseconds since 1970.
    pub fn is_live_at(&self, unix_ms: u128) -> bool {
        unix_ms.saturating_sub(self.updated_unix_ms) < STALE_MS
    }
}

pub fn unix_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_millis())
}

/// Who is a member now, by the round file and by what founders changed; nobody by name where anybody may join.
pub fn roster(manifest: &Manifest, ledger: &Ledger) -> Vec<MemberKey> {
    let Roster::Members(listed) = &manifest.roster else { return Vec::new() };
    let changed = ledger.standing_records().filter_map(|record| Some(record.standing()?.subject));
    let keys: BTreeSet<MemberKey> = listed.iter().copied().chain(changed).collect();
    keys.into_iter().filter(|key| ledger.standing(key) == Some(Standing::Member)).collect()
}

/// The ledger's slots with what this peer has of their adapters.
pub fn slots(
    ledger: &Ledger,
    merged: Option<&Receipt>,
    have: &BTreeMap<ContentHash, u64>,
    refused: &BTreeMap<ContentHash, String>,
) -> Vec<SlotStatus> {
    let candidates: BTreeMap<MemberKey, Admitted> = ledger.candidates().map(|entry| (entry.member, entry)).collect();
    let verdicts = |entry| ledger.verdicts(entry).filter_map(SignedRecord::verdict).map(Into::into).collect();
    let row = |(member, state): (MemberKey, SlotState<'_>)| {
        let vacant = SlotStatus {
            member,
            state: String::new(),
            sequence: ledger.sequence(&member),
            adapter: None,
            weight: 0,
            examples: 0,
            size: 0,
            have: 0,
            merged: false,
            refused: None,
            privacy: None,
            approvals_needed: ledger.approvals_needed(),
            verdicts: Vec::new(),
        };
        let counts = |slot: SlotStatus| match ledger.standing(&member) {
            None | Some(Standing::Member) => slot,
            Some(standing) => SlotStatus { state: standing.name().into(), ..slot },
        };
        counts(match state {
            SlotState::Withdrawn => SlotStatus { state: "withdrawn".into(), ..vacant },
            SlotState::Conflict(..) => SlotStatus { state: "conflict".into(), ..vacant },
            SlotState::Adapter(said) => SlotStatus {
                state: "adapter".into(),
                adapter: Some(said.adapter),
                weight: said.weight,
                examples: said.examples,
                size: said.size,
                have: have.get(&said.adapter).copied().unwrap_or(0),
                merged: merged.is_some_and(|receipt| receipt.admitted.iter().any(|e| e.member == member && e.adapter == said.adapter)),
                refused: refused.get(&said.adapter).cloned(),
                privacy: said.privacy.map(Into::into),
                verdicts: candidates.get(&member).map(&verdicts).unwrap_or_default(),
                ..vacant
            },
        })
    };
    ledger.slots().map(row).collect()
}
