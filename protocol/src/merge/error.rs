//! Why a merge is refused.

use thiserror::Error;

use super::TOTAL_WEIGHT_LIMIT;
use crate::adapter::AdapterError;
use crate::identity::MemberKey;

#[derive(Debug, Clone, PartialEq, Error)]
pub enum MergeError {
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("an adapter cannot be merged with weight 0")]
    ZeroWeight,
    #[error("adding weight {adding} to a total of {total} reaches the limit of {TOTAL_WEIGHT_LIMIT}")]
    TotalWeight { total: u64, adding: u64 },
    #[error("an adapter of weight {weight} cannot be retracted from {members} adapters of total weight {total}")]
    NotAdded { weight: u64, members: u64, total: u64 },
    #[error("the adapter was checked against another shape than that of this merge")]
    OtherShape,
    #[error("there is no file {file} in a fold of {begun} files")]
    NoSuchFile { file: usize, begun: usize },
    #[error("there is no adapter to merge")]
    Empty,
    #[error("the rule {rule} needs {needs} adapters, but only {have} are there")]
    TooFew { rule: &'static str, have: u64, needs: u64 },
    #[error("member {member} is there twice")]
    Twice { member: MemberKey },
    #[error("an adapter can be taken out of a trimmed mean only by making it anew")]
    InsertOnly,
    #[error("an adapter's bytes cannot be read: {0}")]
    Unread(String),
    #[error("an adapter was only half folded in, so this merge must be started anew")]
    Torn,
}
