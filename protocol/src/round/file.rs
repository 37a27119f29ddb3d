//! The round file: one JSON object that holds a manifest and, beside it, what is not part of the round's identity:
//! founders' signatures over that identity, and addresses of peers to begin with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{AdapterKind, BaseModel, MANIFEST_BYTES_MAX, Manifest, MergeRule, Parent, Round, RoundError, WeightRule};
use crate::identity::{MemberKey, Roster, SecretKey, Signature};
use crate::standing::{FOUNDERS_MAX, Founders, Readers};
use crate::verdict::VerdictRule;

/// Most addresses a round file may carry, and the longest of them.
pub const PEERS_MAX: usize = 16;
const PEER_BYTES_MAX: usize = 512;
const DOMAIN: &str = "round/1";

/// A round with what its file says beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundFile {
    pub round: Round,
    /// Founders' signatures over the round's identity; whether they are valid is for [`RoundFile::is_signed`] to say.
    pub signatures: BTreeMap<MemberKey, Signature>,
    /// Multiaddresses of peers to dial first, as text.
    pub peers: Vec<String>,
}

/// The file as it is written. The manifest's fields are spelled out once more, since only so are unknown and repeated ones
/// refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    name: String,
    base: BaseModel,
    kind: AdapterKind,
    rule: MergeRule,
    weight: WeightRule,
    member_max: u32,
    roster: Roster,
    #[serde(default)]
    parent: Option<Parent>,
    #[serde(default)]
    founders: Option<Founders>,
    #[serde(default)]
    readers: Option<Readers>,
    #[serde(default)]
    clip_millionths: Option<u64>,
    verdicts: Option<VerdictRule>,
    #[serde(default)]
    signatures: BTreeMap<MemberKey, Signature>,
    #[serde(default)]
    peers: Vec<String>,
}

#[derive(Serialize)]
struct Writing<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    signatures: &'a BTreeMap<MemberKey, Signature>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    peers: &'a [String],
}

impl From<Round> for RoundFile {
    fn from(round: Round) -> Self {
        Self { round, signatures: BTreeMap::new(), peers: Vec::new() }
    }
}

impl RoundFile {
    /// Reads a round file, or a bare manifest.
    ///
    /// # Errors
    /// Text that is neither, a manifest that [`Round::new`] refuses, or more signatures or addresses than are allowed.
    pub fn from_json(text: &[u8]) -> Result<Self, RoundError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(RoundError::TooLarge { found: text.len(), max: MANIFEST_BYTES_MAX });
        }
        let written: Written = serde_json::from_slice(text).map_err(|error| RoundError::Syntax(error.to_string()))?;
        let Written { version, name, base, kind, rule, weight, member_max, roster, parent, founders, readers, .. } = written;
        let Written { clip_millionths, verdicts, signatures, peers, .. } = written;
        let manifest =
            Manifest { version, name, base, kind, rule, weight, member_max, roster, parent, founders, readers, clip_millionths, verdicts };
        let file = Self { round: Round::new(manifest)?, signatures, peers };
        file.check()?;
        Ok(file)
    }

    /// Whether its lists are within their bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), RoundError> {
        let field = |what, found: String, allowed: String| Err(RoundError::Field { what, found, allowed });
        if self.signatures.len() > FOUNDERS_MAX {
            return field("the number of signatures", self.signatures.len().to_string(), format!("at most {FOUNDERS_MAX}"));
        }
        if self.peers.len() > PEERS_MAX {
            return field("the number of peers", self.peers.len().to_string(), format!("at most {PEERS_MAX}"));
        }
        match self.peers.iter().find(|peer| !(1..=PEER_BYTES_MAX).contains(&peer.len()) || peer.chars().any(char::is_control)) {
            None => Ok(()),
            Some(peer) => {
                let found: String = peer.chars().take(80).collect();
                field("a peer", format!("{found:?}"), format!("a multiaddress of 1 to {PEER_BYTES_MAX} bytes"))
            }
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let writing = Writing { manifest: self.round.manifest(), signatures: &self.signatures, peers: &self.peers };
        serde_json::to_string_pretty(&writing).unwrap_or_default() + "\n"
    }

    /// Adds a founder's signature, in place of one it may have made before.
    pub fn sign(&mut self, founder: &SecretKey) {
        let signature = Signature(founder.sign(DOMAIN, &self.round.id().0.0));
        self.signatures.insert(founder.member(), signature);
    }

    /// Founders whose signature is there and valid.
    pub fn signers(&self) -> impl Iterator<Item = MemberKey> + '_ {
        let id = self.round.id().0.0;
        let founders = self.round.manifest().founders.iter().flat_map(|founders| &founders.keys);
        let signs = move |key: &MemberKey| self.signatures.get(key).is_some_and(|signature| key.verifies(DOMAIN, &id, &signature.0));
        founders.copied().filter(signs)
    }

    /// Whether as many founders signed as the manifest asks for; without founders there is nothing to sign.
    pub fn is_signed(&self) -> bool {
        let threshold = self.round.manifest().founders.as_ref().map_or(0, |founders| founders.threshold);
        self.signers().count() as u64 >= u64::from(threshold)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::record::tests::key;
    use crate::round::tests::manifest;

    fn file(threshold: u32) -> RoundFile {
        let keys = [1, 2, 3].map(|number| key(number).member()).into();
        let founders = Some(Founders { keys, threshold });
        RoundFile::from(Round::new(Manifest { founders, ..manifest() }).unwrap())
    }

    #[test]
    fn a_round_file_comes_back_as_it_went_and_a_bare_manifest_reads() {
        let mut file = file(1);
        file.sign(&key(1));
        file.peers = vec!["/dns4/peer.example/tcp/4001".into()];
        assert_eq!(RoundFile::from_json(file.to_json().as_bytes()).unwrap(), file);
        assert_eq!(Round::from_json(file.to_json().as_bytes()).unwrap(), file.round);
        let bare = RoundFile::from_json(file.round.to_json().as_bytes()).unwrap();
        assert_eq!(bare, RoundFile::from(file.round.clone()));
        assert!(!bare.to_json().contains("signatures") && !bare.to_json().contains("peers"));
    }

    #[test]
    fn it_is_signed_when_enough_founders_did() {
        let mut file = file(2);
        assert!(!file.is_signed());
        file.sign(&key(1));
        file.sign(&key(1));
        file.sign(&key(9));
        assert!(!file.is_signed(), "one founder twice and a stranger are not two founders");
        file.sign(&key(3));
        assert!(file.is_signed());
        // A signature is over one round.
        let other = Manifest { name: "other".into(), ..file.round.manifest().clone() };
        let moved = RoundFile { round: Round::new(other).unwrap(), ..file };
        assert_eq!(moved.signers().count(), 0);
        assert!(RoundFile::from(Round::new(manifest()).unwrap()).is_signed(), "without founders");
    }

    #[test]
    fn unknown_repeated_and_unbounded_fields_are_refused() {
        let text = file(1).to_json();
        let with = |more: &str| RoundFile::from_json(text.replacen('{', &format!("{{{more},"), 1).as_bytes());
        assert!(matches!(with("\"color\": 1"), Err(RoundError::Syntax(_))));
        assert!(matches!(with("\"version\": 1"), Err(RoundError::Syntax(_))));
        assert!(matches!(with("\"signatures\": {\"aa\": \"bb\"}"), Err(RoundError::Syntax(_))));
        let peers = |peers: Vec<String>| with(&format!("\"peers\": {}", serde_json::to_string(&peers).unwrap()));
        assert!(peers(vec!["/ip4/10.0.0.7/tcp/1".into(); PEERS_MAX]).is_ok());
        assert!(matches!(peers(vec!["/ip4/10.0.0.7/tcp/1".into(); PEERS_MAX + 1]), Err(RoundError::Field { .. })));
        assert!(matches!(peers(vec!["x".repeat(PEER_BYTES_MAX + 1)]), Err(RoundError::Field { .. })));
        assert!(matches!(peers(vec![String::new()]), Err(RoundError::Field { .. })));
        let signatures: BTreeMap<_, _> = (0..17).map(|number| (key(number).member(), Signature([0; 64]))).collect();
        let many = RoundFile { signatures, ..file(1) };
        assert!(matches!(RoundFile::from_json(many.to_json().as_bytes()), Err(RoundError::Field { .. })));
    }
}
