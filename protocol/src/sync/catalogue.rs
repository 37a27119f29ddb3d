//! What a peer holds, in the forms in which it is compared. Built when first asked for and thrown away when the ledger
//! changes, so that a quiet peer answers from memory.

use std::sync::OnceLock;

use negentropy::{Id, Negentropy, NegentropyStorageVector};

use super::messages::{FRAME_BYTES, IDS_MAX};
use super::{Answer, RangeMessage, ShortId, ShortIds, SyncError, short};
use crate::hash::ContentHash;
use crate::ledger::Ledger;
use crate::record::RecordId;

/// A ledger's records by name.
pub struct Catalogue {
    fingerprint: ContentHash,
    /// In ascending order.
    ids: Vec<RecordId>,
    /// In the ledger's order, with the records' ranks: what others need comes first.
    order: Vec<(u8, RecordId)>,
    ranges: OnceLock<NegentropyStorageVector>,
}

impl Catalogue {
    pub fn of(ledger: &Ledger) -> Self {
        let order: Vec<(u8, RecordId)> = ledger.records().map(|record| (record.record().rank(), record.id())).collect();
        let mut ids: Vec<RecordId> = order.iter().map(|(_, id)| *id).collect();
        ids.sort_unstable();
        Self { fingerprint: ledger.fingerprint(), ids, order, ranges: OnceLock::new() }
    }

    pub fn count(&self) -> u64 {
        self.ids.len() as u64
    }

    pub fn fingerprint(&self) -> ContentHash {
        self.fingerprint
    }

    pub fn contains(&self, name: &ShortId) -> bool {
        self.ids.binary_search_by(|id| short(*id).cmp(name)).is_ok()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = ShortId> + '_ {
        self.order.iter().map(|(_, id)| short(*id))
    }

    /// The answer to a comparison.
    pub fn compare(&self, count: u64, fingerprint: ContentHash) -> Answer {
        if (count, fingerprint) == (self.count(), self.fingerprint) {
            Answer::Same
        } else if self.ids.len() <= IDS_MAX {
            Answer::Ids(self.names().collect::<ShortIds>())
        } else {
            Answer::Differs
        }
    }

    /// The answer to a message about ranges.
    ///
    /// # Errors
    /// Bytes that are no such message.
    pub fn answer(&self, message: &RangeMessage) -> Result<Answer, SyncError> {
        Ok(Answer::Range(RangeMessage(self.negentropy()?.reconcile(&message.0).map_err(|error| refused(&error))?)))
    }

    /// The first message about ranges.
    pub(super) fn ask(&self) -> Result<RangeMessage, SyncError> {
        Ok(RangeMessage(self.negentropy()?.initiate().map_err(|error| refused(&error))?))
    }

    /// The next message about ranges, unless that was the last; and what was found out: what is here alone, what is there.
    pub(super) fn ask_on(&self, message: &RangeMessage) -> Result<(Option<RangeMessage>, [Vec<ShortId>; 2]), SyncError> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let mut negentropy = self.negentropy()?;
        negentropy.set_initiator();
        let next = negentropy.reconcile_with_ids(&message.0, &mut here, &mut there).map_err(|error| refused(&error))?;
        let names = |ids: Vec<Id>| ids.into_iter().map(|id| short(RecordId(ContentHash(id.to_bytes())))).collect();
        Ok((next.map(RangeMessage), [names(here), names(there)]))
    }

    fn negentropy(&self) -> Result<Negentropy<'_, NegentropyStorageVector>, SyncError> {
        Negentropy::borrowed(self.ranges.get_or_init(|| storage(&self.order)), FRAME_BYTES as u64).map_err(|error| refused(&error))
    }
}

/// The library orders by time. All that peers agree on is the order of the ranks.
fn storage(order: &[(u8, RecordId)]) -> NegentropyStorageVector {
    let mut storage = NegentropyStorageVector::with_capacity(order.len());
    // Neither fails on a storage that was not sealed before.
    for (rank, id) in order {
        let _ = storage.insert(u64::from(*rank), Id::from_byte_array(id.0.0));
    }
    let _ = storage.seal();
    storage
}

fn refused(error: &negentropy::Error) -> SyncError {
    SyncError::Range { why: error.to_string() }
}
