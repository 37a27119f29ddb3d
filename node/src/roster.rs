//! Changes of who belongs to a round, on their way: from founder to founder as a file that gathers approvals, and from a
//! verb to the peer that runs in the same home through a folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use mingle_protocol::identity::SecretKey;
use mingle_protocol::record::{RECORD_BYTES_MAX, Record, SignedRecord};
use mingle_protocol::round::{Round, RoundId};
use mingle_protocol::standing::{Approval, StandingChange, Statement};
use serde::{Deserialize, Serialize};

use crate::files;

/// Keys that one file may speak of.
pub const CHANGES_MAX: usize = 64;
/// A file of as many changes with all approvals stays below this.
const PROPOSAL_BYTES_MAX: u64 = 1 << 20;
/// Records that the inbox hands over at a time.
const INBOX_MAX: usize = CHANGES_MAX;
const RECORD_ENDING: &str = "record";

/// Changes that founders are asked to approve, with the approvals so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    pub round: RoundId,
    pub changes: Vec<Proposed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposed {
    pub statement: Statement,
    pub approvals: Vec<Approval>,
}

impl Proposed {
    /// Adds a founder's approval, in place of one it may have made before.
    pub fn approve(&mut self, founder: &SecretKey) {
        self.approvals.retain(|approval| approval.founder != founder.member());
        self.approvals.push(self.statement.approve(founder));
        self.approvals.sort_by_key(|approval| approval.founder);
    }
}

impl Proposal {
    /// Reads a proposal; whether its approvals are valid is for [`Proposal::records`] to say.
    ///
    /// # Errors
    /// No such file, or one that is no proposal.
    pub fn read(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        ensure!(size <= PROPOSAL_BYTES_MAX, "{} is {size} bytes long, but at most {PROPOSAL_BYTES_MAX} are allowed", path.display());
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let read = || format!("{} does not hold changes of a roster", path.display());
        let proposal: Self = serde_json::from_slice(&text).with_context(read)?;
        ensure!(
            (1..=CHANGES_MAX).contains(&proposal.changes.len()),
            "{} holds {} changes, but must hold 1 to {CHANGES_MAX}",
            path.display(),
            proposal.changes.len()
        );
        let strange = proposal.changes.iter().find(|change| change.statement.round != proposal.round);
        if let Some(change) = strange {
            anyhow::bail!("{} is for round {}, but holds a change for {}", path.display(), proposal.round, change.statement.round);
        }
        Ok(proposal)
    }

    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write(path, &[serde_json::to_vec_pretty(self)?, b"\n".to_vec()].concat())
    }

    /// The records to send, signed by a founder who has approved them all.
    ///
    /// # Errors
    /// The first change that other peers would refuse.
    pub fn records(&self, round: &Round, founder: &SecretKey) -> Result<Vec<SignedRecord>> {
        ensure!(self.round == round.id(), "the changes are for round {}, not for {}", self.round, round.id());
        let sign = |change: &Proposed| {
            let said = StandingChange::new(&change.statement, founder.member(), change.approvals.iter().cloned());
            SignedRecord::sign(&Record::Standing(said), founder, round)
                .with_context(|| format!("the change for {} is refused", change.statement.subject))
        };
        self.changes.iter().map(sign).collect()
    }
}

/// Leaves a record for the peer that runs; returns the file, which is gone when the peer has taken it.
///
/// # Errors
/// What the file system says.
pub fn hand_over(inbox: &Path, record: &SignedRecord) -> Result<PathBuf> {
    std::fs::create_dir_all(inbox).with_context(|| format!("cannot create {}", inbox.display()))?;
    let path = inbox.join(format!("{}.{RECORD_ENDING}", record.id()));
    files::write(&path, record.bytes())?;
    Ok(path)
}

/// What was left in the inbox: files and their bytes, as far as a record may be long. None where there is no inbox.
pub fn handed_over(inbox: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(inbox).into_iter().flatten().flatten().map(|entry| entry.path());
    let records = entries.filter(|path| path.extension().is_some_and(|ending| ending == RECORD_ENDING)).take(INBOX_MAX);
    records.filter_map(|path| Some((read_bounded(&path)?, path))).map(|(bytes, path)| (path, bytes)).collect()
}

/// One byte more than a record may have tells that a file is none.
fn read_bounded(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(RECORD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
