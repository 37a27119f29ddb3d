//! From a bundle into a stopped peer's store: what verifies is kept, what does not is refused with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mingle_protocol::hash::ContentHash;
use mingle_protocol::ledger::{Admitted, Change, Ledger};
use mingle_protocol::receipt::Receipt;
use mingle_protocol::record::{RecordError, RecordId, SignedRecord, UnverifiedRecord};
use mingle_protocol::round::Round;

use super::format::{Bundle, Part};
use super::ledger_of;
use crate::home::RoundHome;
use crate::merged;
use crate::merger::{Merger, Unusable};
use crate::store::{AbsorbError, Store, StoreError, all_chunks};

/// Records that are made durable in one commit.
const COMMIT_RECORDS: usize = 1_024;
/// Reasons that are kept: a hostile bundle could hold a million.
const REASONS_MAX: usize = 32;

/// What was refused: how many, and why the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Refusals {
    pub count: u64,
    pub reasons: Vec<String>,
}

impl Refusals {
    fn add(&mut self, why: impl FnOnce() -> String) {
        self.count += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(why());
        }
    }
}

/// How much of something was taken from a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Taken {
    pub new: u64,
    /// Held already, or superseded by what is held.
    pub known: u64,
    pub refused: Refusals,
}

/// What came of an import.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Imported {
    pub records: Taken,
    pub adapters: Taken,
    /// Adapters that count in this round and are not here.
    pub missing: Vec<ContentHash>,
    /// The merge of all that is here, and where it lies.
    #[serde(skip)]
    pub merged: Option<(Receipt, PathBuf)>,
    /// The ledger's whole set, whether its adapters are here or not.
    #[serde(skip)]
    pub admitted: Vec<Admitted>,
}

impl Imported {
    /// Whether anything in the bundle was not what it claimed to be.
    pub fn is_clean(&self) -> bool {
        self.records.refused.count == 0 && self.adapters.refused.count == 0
    }
}

/// Takes what `bundle` holds into the store of `home`, and brings its merged adapter up to date. `progress` is told the
/// bytes of adapters read so far and in all. Stopped at any point, it can be done again: what was verified is kept.
///
/// # Errors
/// Trouble of this machine, or a list of records that was changed: then nothing is taken.
pub fn import(bundle: &Bundle, round: &Round, home: &RoundHome, mut progress: impl FnMut(u64, u64)) -> Result<Imported> {
    let store = Store::open(home.store())?;
    let mut ledger = ledger_of(&store, round)?;
    let (records, named) = take_records(bundle, round, &store, &mut ledger)?;
    let admitted: Vec<Admitted> = ledger.admitted().collect();
    // What does not count yet may come to, once members have judged it.
    let wanted = ledger.candidates().map(|entry| (entry.adapter, entry.size)).collect();
    let mut adapters = take_adapters(bundle, &store, &wanted, &named, &mut progress)?;
    let merged = merge(round, &store, home, &ledger, &mut adapters)?;
    let mut missing = BTreeSet::new();
    for (adapter, _) in wanted {
        if !store.has_blob(adapter)? {
            missing.insert(adapter);
        }
    }
    Ok(Imported { records, adapters, missing: missing.into_iter().collect(), merged, admitted })
}

/// Adapters by hash and size.
type Adapters = BTreeSet<(ContentHash, u64)>;

/// Also the adapters that the bundle's valid records name, whether or not they still count.
fn take_records(bundle: &Bundle, round: &Round, store: &Store, ledger: &mut Ledger) -> Result<(Taken, Adapters)> {
    let (mut taken, mut named) = (Taken::default(), Adapters::new());
    let mut changed = Unsaved::default();
    bundle.records::<anyhow::Error>(|bytes| {
        let verified = UnverifiedRecord(bytes).verify(round);
        named.extend(verified.iter().filter_map(SignedRecord::announcement).map(|said| (said.adapter, said.size)));
        match verified.map(|record| (ledger.insert(record.clone()), record)) {
            Ok((Change::Kept { displaced } | Change::Conflict { displaced }, record)) => {
                taken.new += 1;
                changed.keep(record, displaced);
            }
            Ok((Change::Known | Change::Stale { .. } | Change::Redundant, _)) => taken.known += 1,
            Ok((Change::Full, record)) => {
                taken.refused.add(|| format!("member {}: the round is full of members with lesser keys", record.record().member()));
            }
            Ok((Change::NotInRoster, record)) => {
                taken.refused.add(|| RecordError::NotInRoster { member: record.record().member() }.to_string());
            }
            Err(error) => taken.refused.add(|| error.to_string()),
        }
        if changed.kept.len() < COMMIT_RECORDS { Ok(()) } else { changed.save(store).map_err(Into::into) }
    })?;
    changed.save(store)?;
    Ok((taken, named))
}

/// What the ledger has taken and the disk has not.
#[derive(Default)]
struct Unsaved {
    kept: Vec<SignedRecord>,
    displaced: Vec<[u8; 32]>,
}

impl Unsaved {
    fn keep(&mut self, record: SignedRecord, displaced: Vec<RecordId>) {
        self.kept.push(record);
        self.displaced.extend(displaced.into_iter().map(|id| id.0.0));
    }

    /// What is kept first, then what it displaced is forgotten.
    fn save(&mut self, store: &Store) -> Result<(), StoreError> {
        let kept: Vec<([u8; 32], &[u8])> = self.kept.iter().map(|record| (record.id().0.0, record.bytes())).collect();
        if !kept.is_empty() {
            store.put_records(&kept)?;
        }
        if !self.displaced.is_empty() {
            store.remove_records(&self.displaced)?;
        }
        *self = Self::default();
        Ok(())
    }
}

fn take_adapters(
    bundle: &Bundle,
    store: &Store,
    wanted: &Adapters,
    named: &Adapters,
    progress: &mut impl FnMut(u64, u64),
) -> Result<Taken> {
    let mut taken = Taken::default();
    let all = bundle.index.adapters.iter().map(|part| part.size).fold(0, u64::saturating_add);
    let mut done: u64 = 0;
    for (number, part) in bundle.index.adapters.iter().enumerate() {
        let adapter = (part.hash, part.size);
        if store.has_blob(part.hash)? {
            taken.known += 1;
        } else if wanted.contains(&adapter) {
            match take_adapter(bundle, number, part, store, |bytes| progress(done.saturating_add(bytes), all)) {
                Ok(()) => taken.new += 1,
                Err(AbsorbError::Store(error)) => return Err(error).with_context(|| format!("cannot store adapter {}", part.hash)),
                Err(error) => taken.refused.add(|| format!("adapter {}: {error}", part.hash)),
            }
        } else if named.contains(&adapter) {
            taken.known += 1;
        } else {
            taken.refused.add(|| format!("adapter {}: no record names it with {} bytes", part.hash, part.size));
        }
        done = done.saturating_add(part.size);
        progress(done, all);
    }
    Ok(taken)
}

/// The same way in as from the network: each group is verified before it is written.
fn take_adapter(bundle: &Bundle, number: usize, part: &Part, store: &Store, mut progress: impl FnMut(u64)) -> Result<(), AbsorbError> {
    let partial = store.begin_download(part.hash, part.size)?;
    if !partial.missing_ranges().is_empty() {
        let encoded = bundle.adapter(number).map_err(|error| AbsorbError::Stream { source: std::io::Error::other(error) })?;
        let mut read = 0;
        let watched = Watched {
            from: encoded,
            each: |bytes| {
                read += bytes;
                progress(read);
            },
        };
        partial.absorb(watched, &all_chunks(part.size))?;
    }
    Ok(partial.finish()?)
}

/// Tells how many bytes each read brings.
struct Watched<R, F> {
    from: R,
    each: F,
}

impl<R: Read, F: FnMut(u64)> Read for Watched<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.from.read(buffer).inspect(|count| (self.each)(*count as u64))
    }
}

/// Folds all that is here and writes the merged adapter where a running peer would.
fn merge(round: &Round, store: &Store, home: &RoundHome, ledger: &Ledger, adapters: &mut Taken) -> Result<Option<(Receipt, PathBuf)>> {
    let mut set = Vec::new();
    for entry in ledger.admitted() {
        if store.blob_size(entry.adapter)? == Some(entry.size) {
            set.push(entry);
        }
    }
    let mut merger = Merger::new(round.clone(), store.clone());
    let mut unusable: BTreeMap<ContentHash, String> = BTreeMap::new();
    for found in merger.step(&set)? {
        match found {
            Unusable::Refused { adapter, why } => {
                store.remove_blob(adapter)?;
                unusable.insert(adapter, why);
            }
            Unusable::Lost { adapter } => _ = unusable.insert(adapter, "its file is gone or damaged".into()),
        }
    }
    for (adapter, why) in unusable {
        adapters.refused.add(|| format!("adapter {adapter}: {why}"));
    }
    if merger.check_enough().is_err() {
        merged::unpublish(&home.merged())?;
        return Ok(None);
    }
    let records: Vec<SignedRecord> = ledger.records().cloned().collect();
    merged::publish(&home.merged(), round, &merger, &records).map(Some)
}
