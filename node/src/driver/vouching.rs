//! A member's word for its merge, and what comes of the words of others.
//!
//! Once the merged adapter has been still for a moment, its file is put where readers can fetch it by its hash, and the
//! member signs for it. Contradictions among members are kept as files. A reader that believes a quorum writes the file
//! that it vouches for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mingle_protocol::adapter::{Dtype, Slice, canonical_header};
use mingle_protocol::attestation::{Attestation, Fault, SignedAttestation};
use mingle_protocol::hash::{ContentHash, encode_hex};
use mingle_protocol::identity::MemberKey;
use mingle_protocol::machine::{Input, Vouched};
use mingle_protocol::merge::Account;
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::RecordId;
use mingle_protocol::round::Round;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;

use super::heads::MergedHead;
use super::{Driver, Event, Job, Work};
use crate::files;
use crate::merged::{self, Proof};
use crate::merger::CheckedAdapter;
use crate::sent::merged_file;
use crate::slice::{self, SliceError};
use crate::store::{ServeError, Store, StoreError};

/// A merge that changes again within this is not written for readers: adapters come in bursts.
const STILL: Duration = Duration::from_secs(3);
/// After a merged file could not be stored.
const AGAIN: Duration = Duration::from_secs(30);
/// Merged files kept for readers: the newest, and the one before for those that are fetching it.
const SERVED_MAX: usize = 2;
/// Where the store remembers them.
const SERVED_KEY: &str = "served";
/// Where it remembers what this reader believes.
const BELIEVED_KEY: &str = "believed";

/// What one contradiction was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FaultStatus {
    #[schema(value_type = String)]
    pub set_root: ContentHash,
    #[schema(value_type = Vec<String>)]
    pub members: [MemberKey; 2],
    #[schema(value_type = Vec<String>)]
    pub merged: [ContentHash; 2],
    /// Both signed attestations, in hex.
    #[schema(value_type = Vec<String>)]
    pub attestations: [String; 2],
}

pub(super) struct Vouching {
    jobs: mpsc::Sender<Job>,
    /// When the merge will have been still.
    due: Option<Instant>,
    /// A merged file is being stored.
    busy: bool,
    /// What this process has signed for, and what it named as left out.
    said: Option<(Receipt, Vec<RecordId>)>,
    /// Merged files in the store, the newest last.
    served: Vec<ContentHash>,
    pub faults: Vec<FaultStatus>,
    /// The layers that are wanted, where it believes and does not want all.
    slice: Option<Slice>,
    /// What it believes, or did before a restart: what is there of it is fetched once.
    believed: Option<ContentHash>,
    /// The merge whose layers are all in the store.
    part: Option<ContentHash>,
}

/// A merged file in the store, and what was left out of it.
#[derive(Debug)]
pub(super) struct Stored {
    receipt: Receipt,
    excluded: Vec<RecordId>,
    size: u64,
}

impl Vouching {
    pub fn open(store: &Store, evidence: &Path, jobs: mpsc::Sender<Job>, work: &Work) -> Result<Self> {
        let hashes = |key| {
            let bytes = store.meta_get(key)?.unwrap_or_default();
            Ok::<_, anyhow::Error>(bytes.as_chunks::<32>().0.iter().map(|hash| ContentHash(*hash)).collect::<Vec<_>>())
        };
        let (slice, believed) = match work {
            Work::Believe(_, slice) => (slice.clone(), hashes(BELIEVED_KEY)?.pop()),
            _ => (None, None),
        };
        let (served, faults) = (hashes(SERVED_KEY)?, read_faults(evidence));
        Ok(Self { jobs, due: None, busy: false, said: None, served, faults, slice, believed, part: None })
    }

    /// Believes this merge from now on, over a restart too; what its file is judged by.
    pub fn believe(&mut self, store: &Store, round: &Round, merged: ContentHash, size: u64) -> Result<MergedHead> {
        if self.believed != Some(merged) {
            store.meta_put(BELIEVED_KEY, &merged.0)?;
            self.believed = Some(merged);
        }
        // Where no merge has that size, any refuses it.
        let file = round.merged_of_size(size).unwrap_or_else(|| round.merged().clone());
        let places = self.slice.as_ref().map(|slice| slice.places().to_vec());
        Ok(MergedHead { size: file.bytes(), header: canonical_header(file.tensors(), Dtype::F32), places })
    }

    /// The merge is another one now, or none; or there is a record more that it may leave out.
    pub fn changed(&mut self) {
        self.due = Some(Instant::now() + STILL);
    }

    /// A blob is gone from the disk; a merged file is stored once more.
    pub fn lost(&mut self, blob: ContentHash) {
        if self.served.contains(&blob) {
            self.said = None;
            self.changed();
        }
    }

    /// Merged files that are no garbage, whole or in part.
    pub fn needed(&self) -> impl Iterator<Item = ContentHash> {
        self.served.iter().copied().chain(self.believed)
    }

    fn serve(&mut self, store: &Store, merged: ContentHash) -> Result<()> {
        self.served.retain(|served| *served != merged);
        self.served.push(merged);
        let superseded = self.served.len().saturating_sub(SERVED_MAX);
        self.served.drain(..superseded);
        Ok(store.meta_put(SERVED_KEY, &self.served.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>())?)
    }
}

impl<F: FnMut(&Event)> Driver<F> {
    /// Stores the merged file for readers, when it is time.
    pub(super) fn vouch(&mut self) -> Result<()> {
        if self.vouching.busy || self.vouching.due.is_none_or(|due| Instant::now() < due) {
            return Ok(());
        }
        let member = self.role == "member" && self.machine.has_word(&self.key.member());
        let Some((receipt, folder)) = self.merged.as_ref().filter(|(receipt, _)| member && receipt.admitted == self.machine.merge_set())
        else {
            return Ok(());
        };
        let Some(excluded) = self.machine.attestable() else { return Ok(()) };
        if self.vouching.said.as_ref().is_some_and(|(said, left_out)| (said, left_out) == (receipt, &excluded)) {
            self.vouching.due = None;
            return Ok(());
        }
        let (receipt, path) = (receipt.clone(), merged_file(folder, self.machine.round().kind()));
        let (store, jobs) = (self.store.clone(), self.vouching.jobs.clone());
        self.vouching.due = None;
        self.vouching.busy = true;
        // Before it is there: nobody shall take it for garbage.
        self.vouching.serve(&self.store, receipt.merged)?;
        std::thread::Builder::new().name("vouching".into()).spawn(move || {
            let _ = jobs.blocking_send(Job::Served(put(&store, &path, receipt, excluded)));
        })?;
        Ok(())
    }

    pub(super) fn served(&mut self, stored: Result<Stored>) -> Result<()> {
        self.vouching.busy = false;
        let Stored { receipt, excluded, size } = match stored {
            Ok(stored) => stored,
            Err(error) => {
                // The merge may have moved on and taken its folder away, or the disk is full: readers have other members.
                tracing::warn!(error = format!("{error:#}"), "the merged file could not be stored for readers");
                self.vouching.due.get_or_insert(Instant::now() + AGAIN);
                return Ok(());
            }
        };
        let round = self.machine.round().clone();
        let Receipt { set_root, merged, .. } = receipt;
        self.vouching.said = Some((receipt, excluded.clone()));
        let attestation = Attestation { round: round.id(), member: self.key.member(), set_root, merged, size, excluded };
        let signed = SignedAttestation::sign(&attestation, &self.key, &round).context("cannot vouch for the merged adapter")?;
        self.handle(Input::Attest(signed))?;
        self.collect_garbage()
    }

    /// Keeps a contradiction as a file that anyone can check.
    pub(super) fn fault(&mut self, fault: &Fault) {
        let (one, other) = (fault.one.attestation(), fault.other.attestation());
        let found = FaultStatus {
            set_root: one.set_root,
            members: [one.member, other.member],
            merged: [one.merged, other.merged],
            attestations: [&fault.one, &fault.other].map(|signed| encode_hex(&signed.raw().0)),
        };
        let text = json!({ "round": one.round, "fault": &found });
        let path = self.home.evidence().join(format!("{}-{}.json", fault.one.id().short(), fault.other.id().short()));
        let written = std::fs::create_dir_all(self.home.evidence())
            .map_err(anyhow::Error::from)
            .and_then(|()| files::write(&path, format!("{text:#}\n").as_bytes()));
        if let Err(error) = written {
            tracing::warn!(error = format!("{error:#}"), "evidence could not be written");
        }
        let [one, other] = found.members;
        (self.observe)(&Event::Fault { set_root: found.set_root, one, other, evidence: path });
        if !self.vouching.faults.contains(&found) {
            self.vouching.faults.push(found);
        }
    }

    /// Writes what this reader believes, once its file is there.
    pub(super) fn take_vouched(&mut self) -> Result<()> {
        let Some(vouched) = self.machine.vouched() else { return Ok(()) };
        let here = self.vouching.part == Some(vouched.merged) || self.store.blob_size(vouched.merged)? == Some(vouched.size);
        if self.took_vouched() || !here {
            return Ok(());
        }
        let (vouched, round) = (vouched.clone(), self.machine.round().clone());
        let (store, slice) = (self.store.clone(), self.vouching.slice.clone());
        let written = tokio::task::block_in_place(|| match &slice {
            Some(slice) => write_layers(&store, &round, slice, &vouched, &self.home.layers()),
            None => write_vouched(&store, &round, &vouched, &self.home.merged()),
        });
        match written? {
            Ok((receipt, folder)) => {
                let (adapters, members) = (receipt.admitted.len(), vouched.attestations.len());
                let Receipt { set_root, merged: merged_hash, .. } = receipt;
                (self.merged, self.account) = (Some((receipt, folder)), Account::default());
                let layers = slice.map(|slice| slice.layers().clone());
                (self.observe)(&Event::Believed { adapters, members, merged_hash, set_root, layers });
            }
            Err(untaken) => {
                self.vouching.part = None;
                self.store.remove_blob(vouched.merged)?;
                match untaken {
                    Untaken::Refused(why) => self.handle(Input::BlobRefused { adapter: vouched.merged, why })?,
                    Untaken::Damaged => self.lost(vouched.merged)?,
                }
            }
        }
        self.collect_garbage()?;
        self.write_status();
        Ok(())
    }

    /// All that this reader wants of a merged file is in the store.
    pub(super) fn part_fetched(&mut self, merged: ContentHash) -> Result<()> {
        let Some(size) = self.machine.vouched().filter(|vouched| vouched.merged == merged).map(|vouched| vouched.size) else {
            return self.handle(Input::BlobFailed { adapter: merged });
        };
        self.vouching.part = Some(merged);
        self.handle(Input::BlobStored { adapter: merged, size })?;
        self.take_vouched()
    }

    /// Whether what this reader believes is written.
    pub(super) fn took_vouched(&self) -> bool {
        let taken = self.merged.as_ref().map(|(receipt, _)| (receipt.set_root, receipt.merged));
        self.machine.vouched().is_some_and(|vouched| taken == Some((vouched.set_root, vouched.merged)))
    }
}

fn put(store: &Store, path: &Path, receipt: Receipt, excluded: Vec<RecordId>) -> Result<Stored> {
    if let Some(size) = store.blob_size(receipt.merged)? {
        return Ok(Stored { receipt, excluded, size });
    }
    let (found, size) = store.put_blob_from_file(path)?;
    anyhow::ensure!(found == receipt.merged, "{} changed while it was read", path.display());
    Ok(Stored { receipt, excluded, size })
}

/// Why a file that was fetched is not taken.
enum Untaken {
    /// It is no merge of this round, whoever vouches for it.
    Refused(String),
    /// The disk changed it.
    Damaged,
}

fn write_layers(
    store: &Store,
    round: &Round,
    slice: &Slice,
    vouched: &Vouched,
    target: &Path,
) -> Result<Result<(Receipt, PathBuf), Untaken>> {
    let receipt = Receipt::new(round.id(), vouched.admitted.clone(), vouched.merged);
    let proof = Proof::new(round, receipt, &vouched.records, &vouched.attestations)?;
    // Held while it is read, where it is not whole.
    let _partial = match store.has_blob(vouched.merged)? {
        true => None,
        false => Some(store.begin_download(vouched.merged, vouched.size)?),
    };
    let blob = store.share(vouched.merged)?.blob;
    match slice::publish(target, round, slice, &proof, &blob) {
        Ok(folder) => Ok(Ok((proof.receipt, folder))),
        Err(error @ SliceError::NoMerge(_)) => Ok(Err(Untaken::Refused(error.to_string()))),
        Err(SliceError::Blob(ServeError::Damaged { .. })) => Ok(Err(Untaken::Damaged)),
        Err(error) => Err(error.into()),
    }
}

fn write_vouched(store: &Store, round: &Round, vouched: &Vouched, target: &Path) -> Result<Result<(Receipt, PathBuf), Untaken>> {
    // What has lain on the disk may be wrong by the disk's fault.
    let refused = |why: String| match store.verify_blob(vouched.merged) {
        Ok(()) => Ok(Err(Untaken::Refused(why))),
        Err(StoreError::Damaged { .. }) => Ok(Err(Untaken::Damaged)),
        Err(error) => Err(error.into()),
    };
    let foreign = "the file that members vouch for does not have this round's tensors";
    let Some(merged) = round.merged_of_size(vouched.size) else { return refused(foreign.into()) };
    let header = canonical_header(merged.tensors(), Dtype::F32);
    let mut file = store.open_blob(vouched.merged)?.data;
    let mut head = vec![0; header.len()];
    if std::io::Read::read_exact(&mut file, &mut head).is_err() || head != header {
        return refused(foreign.into());
    }
    match CheckedAdapter::read(file.try_clone()?, merged.tensors()) {
        Ok(checked) if checked.hash == vouched.merged => {}
        Ok(_) => return Ok(Err(Untaken::Damaged)),
        Err(error) => return refused(format!("the file that members vouch for is no merge: {error}")),
    }
    let receipt = Receipt::new(round.id(), vouched.admitted.clone(), vouched.merged);
    let proof = Proof::new(round, receipt, &vouched.records, &vouched.attestations)?;
    std::io::Seek::rewind(&mut file)?;
    let folder = merged::publish_given(target, round, &proof, file)?;
    Ok(Ok((proof.receipt, folder)))
}

/// What earlier runs found.
fn read_faults(evidence: &Path) -> Vec<FaultStatus> {
    #[derive(Deserialize)]
    struct Evidence {
        fault: FaultStatus,
    }
    let files = std::fs::read_dir(evidence).into_iter().flatten().flatten();
    let read = |path: PathBuf| Some(serde_json::from_slice::<Evidence>(&std::fs::read(path).ok()?).ok()?.fault);
    files.filter_map(|entry| read(entry.path())).collect()
}
