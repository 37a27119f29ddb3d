//! Why what a peer sent could not be taken in.

use std::io;

use bao_tree::io::DecodeError;

use super::StoreError;

/// Why a stream could not be absorbed. What was verified before the failure is kept.
#[derive(Debug, thiserror::Error)]
pub enum AbsorbError {
    /// The sender is at fault: bytes that do not belong to this hash.
    #[error("bytes near offset {offset} do not belong to the blob")]
    Mismatch { offset: u64 },
    /// The stream ended before the ranges were complete.
    #[error("the stream ended early near offset {offset}")]
    Truncated { offset: u64 },
    /// The connection is at fault.
    #[error("the stream failed: {source}")]
    Stream { source: io::Error },
    /// Our disk is at fault.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DecodeError> for AbsorbError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::ParentNotFound(node) => Self::Truncated { offset: node.mid().to_bytes() },
            DecodeError::LeafNotFound(chunk) => Self::Truncated { offset: chunk.to_bytes() },
            DecodeError::ParentHashMismatch(node) => Self::Mismatch { offset: node.mid().to_bytes() },
            DecodeError::LeafHashMismatch(chunk) => Self::Mismatch { offset: chunk.to_bytes() },
            DecodeError::Io(source) => Self::Stream { source },
        }
    }
}
