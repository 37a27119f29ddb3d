//! The merged adapter as people use it: a PEFT directory with a receipt that anyone can check offline.
//!
//! `receipt.json` holds the round's manifest, the receipt and the members' signed records, so that `mingle verify` needs
//! nothing but the directory (and, to recompute the merge, the adapters).

mod approvals;
mod card;
mod directory;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mingle_protocol::adapter::{Layers, Scaling, Slice, TensorList};
use mingle_protocol::attestation::{RawAttestation, SignedAttestation};
use mingle_protocol::hash::{ContentHash, decode_hex, encode_hex};
use mingle_protocol::identity::{MemberKey, Roster};
use mingle_protocol::ledger::{Admitted, Ledger};
use mingle_protocol::merge::{Account, Made, MergeError, MergeRule};
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{RecordId, SignedRecord, UnverifiedRecord};
use mingle_protocol::round::{Manifest, Round};
use mingle_protocol::standing::Standing;
use serde::{Deserialize, Serialize};

use crate::merger::Merger;
use crate::peft::{self, AdapterConfig};
use crate::sent::merged_file;
use crate::{files, train};
use card::card;
pub(crate) use card::{facts, promised, promises};

pub const RECEIPT_FILE: &str = "receipt.json";
/// A receipt of 16,384 members with their records stays below this.
pub const PROOF_BYTES_MAX: u64 = 128 << 20;

/// What `receipt.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    pub round: Manifest,
    pub receipt: Receipt,
    /// The admitted members' signed announcements as they travelled, in hex, in the receipt's order.
    pub records: Vec<String>,
    /// The founders' records that made some of them, or of those who approve or vouch, members, in hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standings: Vec<String>,
    /// Where the round asks for approvals, as many for each of them as it asks for, in the receipt's order, in hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
    /// What members signed who vouch for these bytes, in hex; where the merge was not made here but believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attestations: Vec<String>,
    /// Which layers the directory holds, where it does not hold the whole merge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Whose update was clipped or left out; where the merge was made here.
    #[serde(default, skip_serializing_if = "Account::is_empty")]
    pub account: Account,
}

/// A proof whose every signature was checked.
pub struct CheckedProof {
    pub round: Round,
    pub receipt: Receipt,
    /// Members that vouch for the merged bytes.
    pub vouching: Vec<MemberKey>,
    /// The layers that are here, where these are not all.
    pub slice: Option<Slice>,
}

impl CheckedProof {
    /// The proof of a whole merge.
    ///
    /// # Errors
    /// It speaks of some layers only.
    pub fn whole(self) -> Result<Self> {
        match &self.slice {
            Some(slice) => anyhow::bail!("it holds layers {} of merge {} only", slice.layers(), self.receipt.merged),
            None => Ok(self),
        }
    }
}

impl Proof {
    /// A receipt with the records that admit its set, which are among `records`, and the words of those who vouch for it.
    ///
    /// # Errors
    /// A record that is not among them.
    pub fn new(round: &Round, receipt: Receipt, records: &[SignedRecord], vouching: &[SignedAttestation]) -> Result<Self> {
        let by_id: BTreeMap<RecordId, &SignedRecord> = records.iter().map(|record| (record.id(), record)).collect();
        let record = |entry: &Admitted| by_id.get(&entry.record).map(|record| encode_hex(record.bytes()));
        let announced = receipt.admitted.iter().map(|entry| record(entry).context("an admitted adapter has no record"));
        let announced = announced.collect::<Result<_>>()?;
        let approvals = approvals::of(round, &receipt, records)?;
        let attesters = vouching.iter().map(|signed| signed.attestation().member);
        let judges = approvals.iter().map(|record| record.record().author());
        let members: BTreeSet<MemberKey> = receipt.admitted.iter().map(|entry| entry.member).chain(attesters).chain(judges).collect();
        let admits = |record: &&SignedRecord| record.standing().is_some_and(|change| members.contains(&change.subject));
        let standings = records.iter().filter(admits).map(|record| encode_hex(record.bytes())).collect();
        let attestations = vouching.iter().map(|signed| encode_hex(&signed.raw().0)).collect();
        let approvals = approvals.iter().map(|record| encode_hex(record.bytes())).collect();
        Ok(Self {
            round: round.manifest().clone(),
            receipt,
            records: announced,
            standings,
            approvals,
            attestations,
            layers: None,
            account: Account::default(),
        })
    }

    /// Who vouches for the receipt's merge of the receipt's set: members, and where anybody may join, of the set itself.
    fn check_attestations(&self, round: &Round, ledger: &Ledger) -> Result<Vec<MemberKey>> {
        let open = round.manifest().roster == Roster::Open;
        let mut members = BTreeSet::new();
        for text in &self.attestations {
            let bytes = decode_hex(text).context("an attestation in the receipt is not hex")?;
            let signed = RawAttestation(bytes).verify(round)?;
            let said = signed.attestation();
            let member = said.member;
            let in_set = self.receipt.admitted.iter().any(|entry| entry.member == member);
            let counts = ledger.standing(&member) == Some(Standing::Member) && (!open || in_set);
            anyhow::ensure!(counts, "{member} vouches for the merge, but is no member whose word counts");
            anyhow::ensure!(
                (said.set_root, said.merged) == (self.receipt.set_root, self.receipt.merged),
                "member {member} vouches for another merge than the receipt's"
            );
            anyhow::ensure!(members.insert(member), "member {member} vouches twice");
        }
        Ok(members.into_iter().collect())
    }

    /// Checks the proof against itself: manifest, receipt, and for each entry one valid announcement of who is a member by the
    /// roster or by a founders' record that is there, with its approvals where the round asks for them.
    ///
    /// # Errors
    /// The first contradiction, in one sentence.
    pub fn check(&self) -> Result<CheckedProof> {
        let round = Round::new(self.round.clone())?;
        self.receipt.check(round.id())?;
        anyhow::ensure!(
            self.records.len() == self.receipt.admitted.len(),
            "receipt lists {} adapters, but {} signed records are with it",
            self.receipt.admitted.len(),
            self.records.len()
        );
        anyhow::ensure!(
            self.standings.len() <= self.records.len().saturating_add(self.approvals.len()).saturating_add(self.attestations.len()),
            "{} changes of the roster are with a receipt of {} adapters",
            self.standings.len(),
            self.records.len()
        );
        let read = |text: &String| {
            let bytes = decode_hex(text).context("a signed record in the receipt is not hex")?;
            Ok::<_, anyhow::Error>(UnverifiedRecord(&bytes).verify(&round)?)
        };
        let mut ledger = Ledger::new(&round);
        for text in &self.standings {
            let record = read(text).context("a change of the roster is refused")?;
            anyhow::ensure!(
                record.standing().is_some(),
                "a record of member {} is listed as a change of the roster",
                record.record().member()
            );
            ledger.insert(record);
        }
        for (entry, text) in self.receipt.admitted.iter().zip(&self.records) {
            let record = read(text).with_context(|| format!("the record of member {} is refused", entry.member))?;
            anyhow::ensure!(
                ledger.standing(&entry.member) == Some(Standing::Member),
                "member {} is not in the roster, and no change of it with the receipt admits it",
                entry.member
            );
            let said = record.announcement().map(|said| (said.member, record.id(), said.adapter, said.size, said.weight));
            anyhow::ensure!(
                said == Some((entry.member, entry.record, entry.adapter, entry.size, entry.weight)),
                "member {} did not announce what the receipt lists for it",
                entry.member
            );
        }
        approvals::check(&self.approvals, &self.receipt, &round, &mut ledger)?;
        let vouching = self.check_attestations(&round, &ledger)?;
        let slice = self.layers.as_ref().map(|layers| round.slice(layers)).transpose()?;
        Ok(CheckedProof { round, receipt: self.receipt.clone(), vouching, slice })
    }

    /// Reads `receipt.json` of a merged directory.
    ///
    /// # Errors
    /// No such file, or one that is no proof.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(RECEIPT_FILE);
        let size = std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
        anyhow::ensure!(size <= PROOF_BYTES_MAX, "{} is {size} bytes long, but at most {PROOF_BYTES_MAX} are allowed", path.display());
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a receipt", path.display()))
    }
}

/// Writes the merge as `target`, a PEFT directory with its receipt: whole or not at all.
///
/// # Errors
/// Too few adapters, or what the file system says.
pub fn write(
    target: &Path,
    round: &Round,
    held: Vec<Admitted>,
    records: &[SignedRecord],
    make: impl FnOnce(Sink<'_>) -> Result<Made, Unwritten>,
) -> Result<Receipt> {
    let folder = files::unfinished_folder(target)?;
    let (merged, account) = write_adapter(&folder, round, make)?;
    let receipt = Receipt::new(round.id(), held, merged);
    let proof = Proof { account, ..Proof::new(round, receipt, records, &[])? };
    write_beside(&folder, round, &proof)?;
    files::replace_folder(&folder, target)?;
    Ok(proof.receipt)
}

/// Writes `merged`, a merged adapter that was made elsewhere, as `target` with its checked proof: whole or not at all.
///
/// # Errors
/// Bytes that are not the ones the receipt speaks of, or what the file system says.
pub fn write_given(target: &Path, round: &Round, proof: &Proof, mut merged: impl std::io::Read) -> Result<()> {
    let folder = files::unfinished_folder(target)?;
    let path = merged_file(&folder, round.kind());
    let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    std::io::copy(&mut merged, &mut file).with_context(|| format!("cannot write {}", path.display()))?;
    file.sync_all()?;
    let found = crate::merger::hash_of(&path)?;
    if found != proof.receipt.merged {
        std::fs::remove_dir_all(&folder)?;
        anyhow::bail!("the merged adapter has hash {found}, but its receipt says {}", proof.receipt.merged);
    }
    let size = std::fs::metadata(&path)?.len();
    let tensors = round.merged_of_size(size).with_context(|| format!("no merge of this round has {size} bytes"))?;
    write_config(&folder, round, tensors.tensors())?;
    write_beside(&folder, round, proof)?;
    files::replace_folder(&folder, target)
}

/// The receipt, and the text for people.
pub(crate) fn write_beside(folder: &Path, round: &Round, proof: &Proof) -> Result<()> {
    files::write(&folder.join(RECEIPT_FILE), &serde_json::to_vec_pretty(proof)?)?;
    files::write(&folder.join("README.md"), card(round, proof).as_bytes())
}

/// Takes a merged file in pieces.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Unwritten>;

/// Writes a round's merged adapter into `folder`, without a receipt; its hash, and what the rule did to single members.
///
/// # Errors
/// Too few adapters, or what the file system says.
pub fn write_adapter(
    folder: &Path,
    round: &Round,
    make: impl FnOnce(Sink<'_>) -> Result<Made, Unwritten>,
) -> Result<(ContentHash, Account)> {
    let (merged, Made { tensors, account }) = write_tensors(&merged_file(folder, round.kind()), make)?;
    write_config(folder, round, &tensors)?;
    Ok((merged, account))
}

fn write_config(folder: &Path, round: &Round, merged: &TensorList) -> Result<()> {
    let Some(mut config) = config_of(round) else { return Ok(()) };
    // A stack has the members' scales in its B, so its own is 1.
    if round.manifest().rule == MergeRule::Stack {
        let rank = merged.rank();
        config = AdapterConfig { rank: rank as usize, alpha: rank as f64, rslora: false, ..config };
    }
    files::write(&folder.join(peft::CONFIG), format!("{:#}\n", config.to_json()).as_bytes())
}

/// Writes a merge's safetensors file, synced, and returns its hash.
///
/// # Errors
/// Too few adapters, or what the file system says.
pub fn write_tensors(path: &Path, make: impl FnOnce(Sink<'_>) -> Result<Made, Unwritten>) -> Result<(ContentHash, Made)> {
    let mut hasher = blake3::Hasher::new();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(|| format!("cannot write {}", path.display()))?);
    let made = make(&mut |piece| {
        hasher.update(piece);
        file.write_all(piece).map_err(Unwritten::from)
    })?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok((ContentHash(*hasher.finalize().as_bytes()), made))
}

/// Why a merge's file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Unwritten {
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error("cannot write the merged adapter: {0}")]
    Io(#[from] std::io::Error),
}

/// The adapters of a round as PEFT reads them; none where whole weights are trained. Every member has the round's rank and
/// alpha, so has the mean. The subspaces together are one LoRA of their ranks' sum, with the scale that each of them has.
pub fn config_of(round: &Round) -> Option<AdapterConfig> {
    let kind = round.kind();
    let shape = kind.low_rank()?;
    let (rank, alpha) = (kind.rank_in_all(), f64::from(shape.alpha));
    let names: Vec<String> = shape.modules.iter().map(|module| module.name.clone()).collect();
    let saved: BTreeSet<String> = shape.saved.iter().map(|tensor| module_of(&tensor.name).to_owned()).collect();
    Some(AdapterConfig {
        rslora: shape.scaling == Scaling::Rslora,
        base: Some(round.manifest().base.name.clone()),
        ..train::config_of(rank as usize, alpha * rank as f64 / f64::from(shape.rank), &names, &Vec::from_iter(saved))
    })
}

/// The module that a tensor of the base belongs to.
pub fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

/// Writes the merge under `merged/`, makes it `current`, and removes what was current before.
///
/// # Errors
/// What the file system says.
pub fn publish(merged: &Path, round: &Round, merger: &Merger, records: &[SignedRecord]) -> Result<(Receipt, PathBuf)> {
    std::fs::create_dir_all(merged).with_context(|| format!("cannot create {}", merged.display()))?;
    let building = merged.join("next");
    let receipt = write(&building, round, merger.held().cloned().collect(), records, |sink| merger.write(sink))?;
    let folder = make_current(merged, &building, &name_of(&receipt))?;
    Ok((receipt, folder))
}

/// As [`publish`], for a merged file that members vouch for.
///
/// # Errors
/// Bytes that are not the ones the receipt speaks of, or what the file system says.
pub fn publish_given(merged: &Path, round: &Round, proof: &Proof, file: impl std::io::Read) -> Result<PathBuf> {
    std::fs::create_dir_all(merged).with_context(|| format!("cannot create {}", merged.display()))?;
    let building = merged.join("next");
    write_given(&building, round, proof, file)?;
    make_current(merged, &building, &name_of(&proof.receipt))
}

/// By set as well as bytes: two sets may have the same mean.
fn name_of(receipt: &Receipt) -> String {
    [receipt.merged.short(), receipt.set_root.short()].join("-")
}

/// Moves `building` to its name, which says what is in it, beside the link to what is current.
pub(crate) fn make_current(merged: &Path, building: &Path, name: &str) -> Result<PathBuf> {
    let folder = merged.join(name);
    if folder.exists() {
        // The same set gave the same bytes, as it must; what is there already stays.
        std::fs::remove_dir_all(building)?;
    } else {
        files::replace_folder(building, &folder)?;
    }
    files::point(&merged.join("current"), name)?;
    for entry in std::fs::read_dir(merged)?.flatten() {
        if entry.file_name() != name && entry.file_name() != "current" {
            // Readers that hold the old one open keep it; a leftover of a crash goes with it.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(folder)
}

/// Takes the merged adapter away: nobody's is left in it.
///
/// # Errors
/// What the file system says.
pub fn unpublish(merged: &Path) -> Result<()> {
    match std::fs::remove_dir_all(merged) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", merged.display()))
        }
        _ => Ok(()),
    }
}
