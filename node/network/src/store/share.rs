//! What others are served from: a complete blob, or the complete pieces of a download under way.

use std::sync::Arc;

use mingle_protocol::hash::ContentHash;
use tokio::sync::watch;

use super::{Result, Store, StoreError, StoredBlob};
use crate::pieces::Holds;

/// A blob that may be served, whole or in part.
#[derive(Clone)]
pub struct Shared {
    pub blob: Arc<StoredBlob>,
    /// Which pieces are there. Closed without `Holds::All` when the download was given up.
    pub holds: watch::Receiver<Holds>,
}

impl Store {
    /// # Errors
    /// `NotFound` when the blob is neither here nor on its way; `Io` when its files cannot be opened.
    pub fn share(&self, hash: ContentHash) -> Result<Shared> {
        match self.open_blob(hash) {
            Ok(blob) => Ok(Shared { blob: Arc::new(blob), holds: watch::Sender::new(Holds::All).subscribe() }),
            Err(error @ StoreError::NotFound { .. }) => self.0.sharing().get(&hash).cloned().ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Whether the blob is being downloaded here.
    pub(crate) fn is_downloading(&self, hash: ContentHash) -> bool {
        self.0.sharing().contains_key(&hash)
    }
}
