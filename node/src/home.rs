//! Where a peer keeps what it must not lose.
//!
//! ```text
//! HOME/
//!   key                    the ed25519 secret key, hex, readable by the owner alone
//!   bases.json             digests of bases that were computed once
//!   rounds/<round>/        one folder a round, named by the first 16 digits of its identity
//!     round.json           the manifest, with its founders' signatures
//!     inbox/               records that a verb hands to the peer that runs
//!     store/               records and blobs
//!     training/            checkpoints of an unfinished training
//!     adapter/             this member's own adapter, a PEFT directory
//!     merged/current/      the merged adapter with its receipt, a PEFT directory
//!     evidence/            contradictions among members: two signed attestations each
//!     status.json          what `mingle status` shows
//!     history.json         curves and what happened lately, for the dashboard
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mingle_protocol::identity::SecretKey;
use mingle_protocol::round::{Round, RoundFile, RoundId};

use crate::bases::Digests;
use crate::files;

/// A peer's folder.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// The home of who names no other.
pub fn default_folder() -> Option<PathBuf> {
    std::env::home_dir().map(|user| user.join(".mingle"))
}

/// The part of a [`Home`] that belongs to one round.
#[derive(Clone, Debug)]
pub struct RoundHome(PathBuf);

impl Home {
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// What this home remembers of bases.
    pub fn digests(&self) -> Digests {
        Digests::new(self.0.join("bases.json"))
    }

    pub fn key_path(&self) -> PathBuf {
        self.0.join("key")
    }

    /// The key of this home.
    ///
    /// # Errors
    /// No key, or a file that is none.
    pub fn key(&self) -> Result<SecretKey> {
        let path = self.key_path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read the key {}", path.display()))?;
        let seed: mingle_protocol::hash::ContentHash =
            text.trim().parse().map_err(|_| anyhow::anyhow!("{} does not hold a secret key of 64 hex digits", path.display()))?;
        Ok(SecretKey::from_bytes(&seed.0))
    }

    /// A new key from the operating system's random source.
    ///
    /// # Errors
    /// A key is there already: it is never overwritten.
    pub fn create_key(&self) -> Result<SecretKey> {
        let path = self.key_path();
        if path.exists() {
            bail!("{} exists already; a key is never overwritten", path.display());
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random numbers from the operating system: {error}"))?;
        std::fs::create_dir_all(&self.0).with_context(|| format!("cannot create {}", self.0.display()))?;
        let key = SecretKey::from_bytes(&seed);
        files::write_secret(&path, format!("{}\n", mingle_protocol::hash::encode_hex(&seed)).as_bytes())?;
        Ok(key)
    }

    /// The key, created when there is none; whether it was.
    ///
    /// # Errors
    /// A key that cannot be read or written.
    pub fn key_or_create(&self) -> Result<(SecretKey, bool)> {
        if self.key_path().exists() { Ok((self.key()?, false)) } else { Ok((self.create_key()?, true)) }
    }

    pub fn round(&self, round: RoundId) -> RoundHome {
        let name: String = round.to_string().chars().take(16).collect();
        RoundHome(self.0.join("rounds").join(name))
    }

    /// The rounds this home knows, the one that was active last first.
    pub fn rounds(&self) -> Vec<RoundHome> {
        let entries = std::fs::read_dir(self.0.join("rounds")).into_iter().flatten().flatten();
        let mut rounds: Vec<RoundHome> = entries.map(|entry| RoundHome(entry.path())).collect();
        let changed = |home: &RoundHome| std::fs::metadata(home.status_path()).and_then(|data| data.modified()).ok();
        rounds.sort_by_key(|home| std::cmp::Reverse(changed(home)));
        rounds
    }
}

impl RoundHome {
    /// Creates the folder and leaves the manifest in it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn prepare(&self, round: &Round) -> Result<()> {
        std::fs::create_dir_all(&self.0).with_context(|| format!("cannot create {}", self.0.display()))?;
        let path = self.round_file();
        if path.exists() { Ok(()) } else { files::write(&path, round.to_json().as_bytes()) }
    }

    /// Keeps the round file as it was given: signed, so that it can be given on.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, file: &RoundFile) -> Result<()> {
        std::fs::create_dir_all(&self.0).with_context(|| format!("cannot create {}", self.0.display()))?;
        let (path, text) = (self.round_file(), file.to_json());
        if std::fs::read(&path).is_ok_and(|there| there == text.as_bytes()) { Ok(()) } else { files::write(&path, text.as_bytes()) }
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    pub fn inbox(&self) -> PathBuf {
        self.0.join("inbox")
    }

    pub fn round_file(&self) -> PathBuf {
        self.0.join("round.json")
    }

    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    pub fn training(&self) -> PathBuf {
        self.0.join("training")
    }

    pub fn adapter(&self) -> PathBuf {
        self.0.join("adapter")
    }

    /// Where merges are written to be measured, and no longer.
    pub fn judging(&self) -> PathBuf {
        self.0.join("judging")
    }

    pub fn merged(&self) -> PathBuf {
        self.0.join("merged")
    }

    /// The merged adapter, where there is one.
    pub fn merged_current(&self) -> PathBuf {
        self.merged().join("current")
    }

    /// Where layers of a merged adapter are written.
    pub fn layers(&self) -> PathBuf {
        self.0.join("layers")
    }

    /// Contradictions among members, one file each.
    pub fn evidence(&self) -> PathBuf {
        self.0.join("evidence")
    }

    pub fn status_path(&self) -> PathBuf {
        self.0.join("status.json")
    }

    pub fn history_path(&self) -> PathBuf {
        self.0.join("history.json")
    }
}
