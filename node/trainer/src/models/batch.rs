//! What a model is fed.

/// The target of a position that counts for nothing (a prompt's).
pub const IGNORED: i64 = -100;

/// Sequences that lie one after the other, without padding; none sees another.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenBatch {
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    pub tokens: Vec<u32>,
    /// Each token's type (BERT's segments); empty where all are 0.
    pub types: Vec<u32>,
    /// A language model has one for each token, the next token or [`IGNORED`]; a classifier one for each sequence, its
    /// class.
    pub targets: Vec<i64>,
}

impl TokenBatch {
    /// How many targets count.
    pub fn labelled(&self) -> usize {
        self.targets.iter().filter(|target| **target != IGNORED).count()
    }

    /// Each token's place in its sequence.
    pub(crate) fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|length| 0..*length as u32).collect()
    }

    /// The row at which each sequence begins.
    pub(crate) fn starts(&self) -> impl Iterator<Item = usize> {
        self.lengths.iter().scan(0, |next, length| {
            let start = *next;
            *next += length;
            Some(start)
        })
    }
}
