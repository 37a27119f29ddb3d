//! The redb index: records, sizes of complete blobs, small values.
//!
//! Every write is one two-phase commit, durable when it returns: redb's single-phase commit trusts a checksum that a
//! peer's bytes could be made to collide with.

use std::path::{Path, PathBuf};

use mingle_protocol::hash::ContentHash;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Result, StoreError};

const RECORDS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("records");
const BLOBS: TableDefinition<&[u8; 32], u64> = TableDefinition::new("blobs");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// 8 MiB: the index holds a few thousand small rows; redb's own default of 1 GiB would not fit many peers on a machine.
const CACHE_BYTES: usize = 8 << 20;

pub(super) struct Index {
    database: Database,
    path: PathBuf,
}

impl Index {
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("index.redb");
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::Held { dir: dir.to_path_buf() },
            other => StoreError::Index { path: path.clone(), source: Box::new(other.into()) },
        })?;
        let index = Self { database, path };
        // Tables exist from here on, so that readers never meet a missing one.
        index.write(|transaction| {
            transaction.open_table(RECORDS)?;
            transaction.open_table(BLOBS)?;
            transaction.open_table(META)?;
            Ok(())
        })?;
        super::durable::sync_folder(dir)?;
        Ok(index)
    }

    fn failed(&self, source: redb::Error) -> StoreError {
        StoreError::Index { path: self.path.clone(), source: Box::new(source) }
    }

    fn write(&self, work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>) -> Result<()> {
        let commit = || {
            let mut transaction = self.database.begin_write()?;
            transaction.set_two_phase_commit(true);
            work(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        commit().map_err(|error| self.failed(error))
    }

    fn read<T>(&self, work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T> {
        let read = || work(&self.database.begin_read()?);
        read().map_err(|error| self.failed(error))
    }

    pub fn put_records(&self, records: &[([u8; 32], &[u8])]) -> Result<()> {
        self.write(|transaction| {
            let mut table = transaction.open_table(RECORDS)?;
            for (id, record) in records {
                table.insert(id, *record)?;
            }
            Ok(())
        })
    }

    pub fn remove_records(&self, ids: &[[u8; 32]]) -> Result<()> {
        self.write(|transaction| {
            let mut records = transaction.open_table(RECORDS)?;
            for id in ids {
                records.remove(id)?;
            }
            Ok(())
        })
    }

    pub fn records(&self) -> Result<Vec<([u8; 32], Vec<u8>)>> {
        self.read(|transaction| {
            let mut records = Vec::new();
            for row in transaction.open_table(RECORDS)?.iter()? {
                let (id, record) = row?;
                records.push((*id.value(), record.value().to_vec()));
            }
            Ok(records)
        })
    }

    pub fn meta_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.read(|transaction| Ok(transaction.open_table(META)?.get(key)?.map(|value| value.value().to_vec())))
    }

    pub fn meta_put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.write(|transaction| {
            transaction.open_table(META)?.insert(key, value)?;
            Ok(())
        })
    }

    pub fn put_blob(&self, hash: &ContentHash, size: u64) -> Result<()> {
        self.write(|transaction| {
            transaction.open_table(BLOBS)?.insert(&hash.0, size)?;
            Ok(())
        })
    }

    pub fn remove_blob(&self, hash: &ContentHash) -> Result<()> {
        self.write(|transaction| {
            transaction.open_table(BLOBS)?.remove(&hash.0)?;
            Ok(())
        })
    }

    pub fn blob_size(&self, hash: &ContentHash) -> Result<Option<u64>> {
        self.read(|transaction| Ok(transaction.open_table(BLOBS)?.get(&hash.0)?.map(|size| size.value())))
    }

    pub fn blobs(&self) -> Result<Vec<(ContentHash, u64)>> {
        self.read(|transaction| {
            let mut blobs = Vec::new();
            for row in transaction.open_table(BLOBS)?.iter()? {
                let (hash, size) = row?;
                blobs.push((ContentHash(*hash.value()), size.value()));
            }
            Ok(blobs)
        })
    }
}
