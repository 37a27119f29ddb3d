//! The round: one communication round, and everything its members must agree on before they train.
//!
//! A round is shared as a readable JSON file. Its identity is a hash over its fields as [`Round::new`] spells them
//! out, so the layout of the file does not matter, and any change of meaning is another round.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::adapter::{LoraShape, ShapeError, TensorList};
use crate::hash::{ContentHash, DomainHasher, HexError};
use crate::identity::{MemberKey, Roster};

/// The only version of the manifest there is.
pub const VERSION: u32 = 1;
/// A manifest that lists more text than this is not one of ours.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Slots a peer is willing to keep.
pub const MEMBERS_MAX: u32 = 16_384;
/// Longest name of a round or a base.
pub const NAME_BYTES_MAX: usize = 256;

/// Names a round: the hash of its manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
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

/// What a member trains and sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdapterKind {
    /// A and B of every module, from the common start drawn from the seed.
    Lora(LoraShape),
}

/// How the admitted adapters become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MergeRule {
    /// The weighted mean of each tensor (FedAvg), exact.
    Mean,
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
    #[error("weights up to {weight_max} for {member_max} members could overflow the exact sum (the product must stay below 2^31)")]
    Overflow { weight_max: u64, member_max: u32 },
}

/// A manifest that was checked, with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    manifest: Manifest,
    tensors: TensorList,
    id: RoundId,
}

impl Round {
    /// Checks every field and computes the identity.
    ///
    /// # Errors
    /// The first field that breaks its bound.
    pub fn new(manifest: Manifest) -> Result<Self, RoundError> {
        check(&manifest)?;
        let AdapterKind::Lora(shape) = &manifest.kind;
        let tensors = TensorList::of(shape)?;
        let id = RoundId(identity(&manifest));
        Ok(Self { manifest, tensors, id })
    }

    /// Reads a round file.
    ///
    /// # Errors
    /// Text that is not a manifest, or a manifest that [`Round::new`] refuses.
    pub fn from_json(text: &[u8]) -> Result<Self, RoundError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(RoundError::TooLarge { found: text.len(), max: MANIFEST_BYTES_MAX });
        }
        let manifest = serde_json::from_slice(text).map_err(|error| RoundError::Syntax(error.to_string()))?;
        Self::new(manifest)
    }

    /// The round file's text.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(&self.manifest).unwrap_or_default();
        text + "\n"
    }

    pub fn id(&self) -> RoundId {
        self.id
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shape every adapter of this round has.
    pub fn shape(&self) -> &LoraShape {
        match &self.manifest.kind {
            AdapterKind::Lora(shape) => shape,
        }
    }

    /// The tensors of every adapter of this round, in the order of a file.
    pub fn tensors(&self) -> &TensorList {
        &self.tensors
    }

    /// Largest adapter file a member of this round can have.
    pub fn adapter_bytes_max(&self) -> u64 {
        self.shape().file_bytes_max()
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
    Ok(())
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Field order is the protocol (docs/protocol.md, section "Round").
fn identity(manifest: &Manifest) -> ContentHash {
    let mut hasher = DomainHasher::new("round/1");
    hasher.u64(u64::from(manifest.version)).string(&manifest.name);
    hasher.string(&manifest.base.name).hash(&manifest.base.digest.0);
    let AdapterKind::Lora(shape) = &manifest.kind;
    hasher.string("lora").u64(u64::from(shape.rank)).u64(u64::from(shape.alpha)).hash(&shape.seed);
    hasher.count(shape.modules.len());
    for module in &shape.modules {
        hasher.string(&module.name).u64(module.inputs).u64(module.outputs);
    }
    match manifest.rule {
        MergeRule::Mean => hasher.string("mean"),
    };
    match manifest.weight {
        WeightRule::Equal => hasher.string("equal").u64(1),
        WeightRule::Examples { cap } => hasher.string("examples").u64(cap),
    };
    hasher.u64(u64::from(manifest.member_max));
    match &manifest.roster {
        Roster::Open => hasher.string("open").count(0),
        Roster::Members(members) => {
            hasher.string("members").count(members.len());
            members.iter().fold(&mut hasher, |hasher, MemberKey(key)| hasher.hash(key))
        }
    };
    match &manifest.parent {
        None => hasher.u64(0),
        Some(parent) => hasher.u64(1).hash(&parent.round.0.0).hash(&parent.merged.0),
    };
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::adapter::Module;

    pub(crate) fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            name: "ward notes".into(),
            base: BaseModel { name: "tiny".into(), digest: ContentHash::of(b"weights") },
            kind: AdapterKind::Lora(LoraShape {
                rank: 2,
                alpha: 4,
                seed: [9; 32],
                modules: vec![Module { name: "model.layers.0.self_attn.q_proj".into(), inputs: 4, outputs: 6 }],
            }),
            rule: MergeRule::Mean,
            weight: WeightRule::Examples { cap: 1_000 },
            member_max: 4,
            roster: Roster::Open,
            parent: None,
        }
    }

    #[test]
    fn a_round_file_comes_back_with_the_same_identity() {
        let round = Round::new(manifest()).unwrap();
        let again = Round::from_json(round.to_json().as_bytes()).unwrap();
        assert_eq!(again, round);
    }

    #[test]
    fn every_field_is_part_of_the_identity() {
        let changes: [fn(&mut Manifest); 14] = [
            |m| m.name.push('x'),
            |m| m.base.name.push('x'),
            |m| m.base.digest = ContentHash::of(b"other"),
            |m| lora(m).rank = 3,
            |m| lora(m).alpha = 5,
            |m| lora(m).seed[0] = 0,
            |m| lora(m).modules[0].name.push('x'),
            |m| lora(m).modules[0].inputs = 5,
            |m| lora(m).modules[0].outputs = 5,
            |m| m.weight = WeightRule::Examples { cap: 999 },
            |m| m.weight = WeightRule::Equal,
            |m| m.member_max = 5,
            |m| m.roster = Roster::Members(BTreeSet::from([MemberKey([1; 32])])),
            |m| m.parent = Some(Parent { round: RoundId(ContentHash::of(b"r")), merged: ContentHash::of(b"m") }),
        ];
        let mut ids = BTreeSet::from([Round::new(manifest()).unwrap().id()]);
        for change in changes {
            let mut changed = manifest();
            change(&mut changed);
            assert!(ids.insert(Round::new(changed).unwrap().id()));
        }
    }

    fn lora(manifest: &mut Manifest) -> &mut LoraShape {
        let AdapterKind::Lora(shape) = &mut manifest.kind;
        shape
    }

    #[test]
    fn a_manifest_outside_its_bounds_is_refused() {
        let changes: [fn(&mut Manifest); 13] = [
            |m| m.version = 2,
            |m| m.name.clear(),
            |m| m.name = "line\nbreak".into(),
            |m| m.base.name = "x".repeat(NAME_BYTES_MAX + 1),
            |m| m.member_max = 0,
            |m| m.weight = WeightRule::Examples { cap: 0 },
            |m| m.weight = WeightRule::Examples { cap: 1 << 30 },
            |m| m.roster = Roster::Members(BTreeSet::new()),
            |m| lora(m).rank = 0,
            |m| lora(m).rank = 1_025,
            |m| lora(m).alpha = 0,
            |m| lora(m).modules.clear(),
            |m| lora(m).modules[0].inputs = 0,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut changed = manifest();
            change(&mut changed);
            assert!(Round::new(changed).is_err(), "change {index} was accepted");
        }
        assert!(matches!(Round::from_json(b"{\"version\":1}"), Err(RoundError::Syntax(_))));
    }
}
