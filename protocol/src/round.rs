//! The round: one communication round, and everything its members must agree on before they train.
//!
//! A round is shared as a readable JSON file. Its identity is a hash over its fields as [`Round::new`] spells them
//! out, so the layout of the file does not matter, and any change of meaning is another round. The file may carry more
//! than the manifest ([`RoundFile`]): founders' signatures over the identity, and where to find the first peers.

mod digest;
mod file;
mod rules;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::adapter::AdapterKind;
use crate::adapter::{MergedFile, ShapeError, TensorList};
use crate::hash::{ContentHash, HexError};
use crate::identity::{MemberKey, Roster};
pub use crate::merge::MergeRule;
use crate::standing::{FOUNDERS_MAX, Founders, READERS_MAX, Readers, Standing};
use crate::verdict::VerdictRule;
pub use file::{PEERS_MAX, RoundFile};

/// The only version of the manifest there is.
pub const VERSION: u32 = 1;
/// A manifest that lists more text than this is not one of ours.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Slots a peer is willing to keep.
pub const MEMBERS_MAX: u32 = 16_384;
/// Longest name of a round or a base.
pub const NAME_BYTES_MAX: usize = 256;

/// Names a round: the hash of its manifest.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RoundId(pub ContentHash);

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RoundId {
    type Err = HexError;
    fn from_str(text: &str) -> Result<Self, HexError> {
        text.parse().map(Self)
    }
}

/// The frozen foundation model: a name for people, a digest of its weights for peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    pub name: String,
    pub digest: ContentHash,
}

/// What an adapter counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WeightRule {
    /// Every adapter counts 1.
    Equal,
    /// The number of training examples, at most `cap`, so that no member can claim the whole average.
    Examples { cap: u64 },
}

impl WeightRule {
    /// The weight a member with `examples` training examples has to announce.
    pub fn weight(&self, examples: u64) -> u64 {
        match self {
            Self::Equal => 1,
            Self::Examples { cap } => examples.min(*cap),
        }
    }

    pub fn weight_max(&self) -> u64 {
        match self {
            Self::Equal => 1,
            Self::Examples { cap } => *cap,
        }
    }
}

/// The merged adapter a chained round starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    pub round: RoundId,
    /// BLAKE3 of the parent's merged `adapter_model.safetensors`.
    pub merged: ContentHash,
}

/// Everything that is the same for all members of one round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub version: u32,
    pub name: String,
    pub base: BaseModel,
    pub kind: AdapterKind,
    pub rule: MergeRule,
    pub weight: WeightRule,
    /// Slots of the ledger. `member_max * largest weight < 2^31` keeps the merge's sums exact.
    pub member_max: u32,
    pub roster: Roster,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Who may change who belongs; nobody without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founders: Option<Founders>,
    /// Who may follow without being a member; everybody without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readers: Option<Readers>,
    /// Largest norm of an adapter's update, in millionths; what is larger is scaled down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_millionths: Option<u64>,
    /// How members judge each other's adapters; not at all without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<VerdictRule>,
}

impl Manifest {
    /// Whether peers that neither are members nor admitted as readers are refused at the connection.
    pub fn is_private(&self) -> bool {
        matches!((&self.roster, &self.readers), (Roster::Members(_), Some(Readers::Listed(_))))
    }

    /// What a key is before any change: a member, a reader, or (`None`) a stranger. Founders may read.
    pub fn standing(&self, key: &MemberKey) -> Option<Standing> {
        let reads = matches!(&self.readers, Some(Readers::Listed(keys)) if keys.contains(key));
        let founds = self.founders.as_ref().is_some_and(|founders| founders.keys.contains(key));
        match self.roster.admits(key) {
            true => Some(Standing::Member),
            false => (reads || founds).then_some(Standing::Reader),
        }
    }

    /// Every key that the manifest speaks of.
    pub fn named(&self) -> BTreeSet<MemberKey> {
        let members = if let Roster::Members(members) = &self.roster { Some(members) } else { None };
        let readers = if let Some(Readers::Listed(readers)) = &self.readers { Some(readers) } else { None };
        let founders = self.founders.as_ref().map(|founders| &founders.keys);
        [members, readers, founders].into_iter().flatten().flatten().copied().collect()
    }
}

/// Why a manifest is no round.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoundError {
    #[error("round file is not a manifest: {0}")]
    Syntax(String),
    #[error("round file of {found} bytes is larger than the {max} allowed")]
    TooLarge { found: usize, max: usize },
    #[error("round has version {found}; this program knows version {VERSION}")]
    Version { found: u32 },
    #[error("{what} is {found}, but must be {allowed}")]
    Field { what: &'static str, found: String, allowed: String },
    #[error("the adapter's shape is refused: {0}")]
    Shape(#[from] ShapeError),
    #[error("the rule {rule} {why}")]
    Rule { rule: &'static str, why: String },
    #[error("weights up to {weight_max} for {member_max} members could overflow the exact sum (the product must stay below 2^31)")]
    Overflow { weight_max: u64, member_max: u32 },
}

/// A manifest that was checked, with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    manifest: Arc<Manifest>,
    merged: MergedFile,
    id: RoundId,
}

impl Round {
    /// Checks every field and computes the identity.
    ///
    /// # Errors
    /// The first field that breaks its bound.
    pub fn new(manifest: Manifest) -> Result<Self, RoundError> {
        check(&manifest)?;
        let merged = rules::merged(&manifest)?;
        let id = RoundId(digest::identity(&manifest));
        Ok(Self { manifest: Arc::new(manifest), merged, id })
    }

    /// The round of a round file, whoever signed it.
    ///
    /// # Errors
    /// What [`RoundFile::from_json`] refuses.
    pub fn from_json(text: &[u8]) -> Result<Self, RoundError> {
        RoundFile::from_json(text).map(|file| file.round)
    }

    /// The manifest as a file.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self.manifest()).unwrap_or_default();
        text + "\n"
    }

    pub fn id(&self) -> RoundId {
        self.id
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// For who keeps it beside the round.
    pub(crate) fn shared_manifest(&self) -> Arc<Manifest> {
        self.manifest.clone()
    }

    /// Whether peers that neither are members nor admitted as readers are refused at the connection.
    pub fn is_private(&self) -> bool {
        self.manifest.is_private()
    }

    /// What members train and send.
    pub fn kind(&self) -> &AdapterKind {
        &self.manifest.kind
    }

    /// The tensors of every adapter of this round, in the order of a file.
    pub fn tensors(&self) -> &TensorList {
        self.merged.sent()
    }

    /// The file that the merge becomes. Of a stack, whose rank depends on the merged set, the largest there can be.
    pub fn merged(&self) -> &MergedFile {
        &self.merged
    }

    /// Largest adapter file a member of this round can have.
    pub fn adapter_bytes_max(&self) -> u64 {
        self.tensors().file_bytes_max()
    }
}

fn check(manifest: &Manifest) -> Result<(), RoundError> {
    let field = |what, found: String, allowed: String| Err(RoundError::Field { what, found, allowed });
    if manifest.version != VERSION {
        return Err(RoundError::Version { found: manifest.version });
    }
    for (what, name) in [("the round's name", &manifest.name), ("the base's name", &manifest.base.name)] {
        if !is_name(name) {
            return field(what, format!("{name:?}"), format!("1 to {NAME_BYTES_MAX} bytes without control characters"));
        }
    }
    if !(1..=MEMBERS_MAX).contains(&manifest.member_max) {
        return field("the member cap", manifest.member_max.to_string(), format!("1 to {MEMBERS_MAX}"));
    }
    let weight_max = manifest.weight.weight_max();
    if weight_max == 0 {
        return field("the weight cap", "0".into(), "at least 1".into());
    }
    if !crate::merge::weights_fit(weight_max, u64::from(manifest.member_max)) {
        return Err(RoundError::Overflow { weight_max, member_max: manifest.member_max });
    }
    if let Roster::Members(members) = &manifest.roster
        && (members.is_empty() || members.len() as u64 > u64::from(manifest.member_max))
    {
        return field("the roster's length", members.len().to_string(), format!("1 to the member cap of {}", manifest.member_max));
    }
    if let Some(Founders { keys, threshold }) = &manifest.founders {
        if !(1..=FOUNDERS_MAX).contains(&keys.len()) {
            return field("the number of founders", keys.len().to_string(), format!("1 to {FOUNDERS_MAX}"));
        }
        if !(1..=keys.len() as u64).contains(&u64::from(*threshold)) {
            return field("the founders' threshold", threshold.to_string(), format!("1 to {}, the number of founders", keys.len()));
        }
    }
    if let Some(Readers::Listed(readers)) = &manifest.readers {
        if manifest.roster == Roster::Open {
            return field("the roster", "open".into(), "given where readers are listed: with an open one everybody may join".into());
        }
        if readers.len() > READERS_MAX {
            return field("the number of readers", readers.len().to_string(), format!("at most {READERS_MAX}"));
        }
    }
    if let Some((what, found, allowed)) = manifest.verdicts.and_then(|rule| rule.broken_bound(manifest)) {
        return field(what, found, allowed);
    }
    rules::check(manifest)
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
pub(crate) mod tests;
