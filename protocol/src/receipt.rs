//! The receipt: what a merged adapter was made of, in a form anyone can check.
//!
//! The set root is a hash over the round and the admitted set in order of the members' keys. Equal set roots must go
//! with equal merged hashes; two peers that break this have evidence of a fault.

use serde::{Deserialize, Serialize};

use crate::hash::{ContentHash, DomainHasher};
use crate::ledger::Admitted;
use crate::round::RoundId;

/// What a merged adapter was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub round: RoundId,
    /// The merged set, in order of the members' keys.
    pub admitted: Vec<Admitted>,
    pub set_root: ContentHash,
    /// BLAKE3 of the merged `adapter_model.safetensors`.
    pub merged: ContentHash,
}

/// Why a receipt proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    #[error("receipt does not list its members once each, in the order of their keys")]
    Order,
    #[error("receipt's set root {found} does not follow from its set, which gives {expected}")]
    SetRoot { found: ContentHash, expected: ContentHash },
    #[error("receipt is for round {found}, not for {expected}")]
    WrongRound { found: RoundId, expected: RoundId },
}

impl Receipt {
    /// `admitted` in any order; each member once.
    pub fn new(round: RoundId, mut admitted: Vec<Admitted>, merged: ContentHash) -> Self {
        admitted.sort();
        let set_root = set_root(round, &admitted);
        Self { round, admitted, set_root, merged }
    }

    /// Sum of the weights.
    pub fn weight(&self) -> u64 {
        self.admitted.iter().fold(0, |sum, admitted| sum.saturating_add(admitted.weight))
    }

    /// Whether the receipt agrees with itself.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self, round: RoundId) -> Result<(), ReceiptError> {
        if self.round != round {
            return Err(ReceiptError::WrongRound { found: self.round, expected: round });
        }
        if !self.admitted.is_sorted_by(|left, right| left.member < right.member) {
            return Err(ReceiptError::Order);
        }
        let expected = set_root(self.round, &self.admitted);
        if self.set_root != expected {
            return Err(ReceiptError::SetRoot { found: self.set_root, expected });
        }
        Ok(())
    }
}

/// Field order is the protocol (docs/protocol.md, section "Set root").
pub fn set_root(round: RoundId, admitted: &[Admitted]) -> ContentHash {
    let mut hasher = DomainHasher::new("set-root/1");
    hasher.hash(&round.0.0).count(admitted.len());
    for entry in admitted {
        hasher.hash(&entry.member.0).hash(&entry.record.0.0).hash(&entry.adapter.0);
        hasher.u64(entry.size).u64(entry.weight);
    }
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::record::tests::{announce, round};

    fn receipt() -> Receipt {
        let mut ledger = Ledger::new(&round());
        for member in 1..=3 {
            ledger.insert(announce(member, 1, &[member]));
        }
        Receipt::new(round().id(), ledger.admitted().collect(), ContentHash::of(b"merged"))
    }

    #[test]
    fn a_receipt_does_not_depend_on_the_order_it_was_written_in() {
        let mut shuffled = receipt().admitted;
        shuffled.reverse();
        assert_eq!(Receipt::new(round().id(), shuffled, ContentHash::of(b"merged")), receipt());
        assert_eq!(receipt().check(round().id()), Ok(()));
        assert_eq!(receipt().weight(), 30);
    }

    #[test]
    fn a_changed_receipt_contradicts_itself() {
        let changes: [fn(&mut Receipt); 6] = [
            |r| r.admitted[0].weight = 11,
            |r| r.admitted[0].adapter = ContentHash::of(b"other"),
            |r| r.admitted.truncate(2),
            |r| r.admitted.swap(0, 1),
            |r| r.admitted[1] = r.admitted[0].clone(),
            |r| r.round = RoundId(ContentHash::of(b"other")),
        ];
        for change in changes {
            let mut changed = receipt();
            change(&mut changed);
            assert!(changed.check(round().id()).is_err());
        }
    }
}
