//! Adapters that were fetched and found not to fit the round, remembered over restarts so that they are not fetched again.

use std::collections::BTreeMap;

use anyhow::Result;
use mingle_protocol::hash::ContentHash;

use crate::store::Store;

/// Where the store remembers them.
const KEY: &str = "refused";

/// Adapters and why each does not fit. What cannot be read was written by another version, and is found out again.
pub fn remembered(store: &Store) -> Result<BTreeMap<ContentHash, String>> {
    let text = store.meta_get(KEY)?.unwrap_or_default();
    Ok(serde_json::from_slice(&text).unwrap_or_default())
}

/// Remembers these and no others.
pub fn remember<'a>(store: &Store, refused: impl Iterator<Item = (&'a ContentHash, &'a String)>) -> Result<()> {
    let refused: BTreeMap<&ContentHash, &String> = refused.collect();
    Ok(store.meta_put(KEY, &serde_json::to_vec(&refused)?)?)
}
