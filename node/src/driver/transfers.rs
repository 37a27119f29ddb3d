//! The part of the status that tells what is being fetched and served, and how fast.

use mingle_protocol::hash::ContentHash;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::network::{ProviderState, ProviderStatus, Transfer, Upload};

/// One file on its way here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferStatus {
    #[schema(value_type = String)]
    pub adapter: ContentHash,
    pub size: u64,
    /// Verified bytes at hand.
    pub have: u64,
    pub providers: Vec<ProviderRow>,
}

/// What one peer brings of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProviderRow {
    pub peer: String,
    pub bytes: u64,
    pub bytes_per_second: u64,
    /// `sending`, `idle`, `waiting` or `out`.
    pub state: String,
}

/// What one peer was sent of all files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadStatus {
    pub peer: String,
    pub bytes: u64,
    pub bytes_per_second: u64,
}

impl From<Transfer> for TransferStatus {
    fn from(transfer: Transfer) -> Self {
        let Transfer { hash, size, have, providers } = transfer;
        Self { adapter: hash, size, have, providers: providers.into_iter().map(Into::into).collect() }
    }
}

impl From<ProviderStatus> for ProviderRow {
    fn from(provider: ProviderStatus) -> Self {
        let state = match provider.state {
            ProviderState::Sending => "sending",
            ProviderState::Idle => "idle",
            ProviderState::Waiting => "waiting",
            ProviderState::Out => "out",
        };
        let ProviderStatus { peer, bytes, bytes_per_second, .. } = provider;
        Self { peer: peer.to_string(), bytes, bytes_per_second, state: state.into() }
    }
}

impl From<Upload> for UploadStatus {
    fn from(upload: Upload) -> Self {
        let Upload { peer, bytes, bytes_per_second } = upload;
        Self { peer: peer.to_string(), bytes, bytes_per_second }
    }
}

impl TransferStatus {
    pub fn bytes_per_second(&self) -> u64 {
        self.providers.iter().map(|provider| provider.bytes_per_second).sum()
    }
}
