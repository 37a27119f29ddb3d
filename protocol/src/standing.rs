//! Who belongs to a round: what its founders may say, and how they say it.
//!
//! The manifest fixes the founders and how many of them must agree. While the round runs they change a key's standing by
//! a record: a statement that enough of them have approved, each with a signature of its own over the statement, so that
//! approvals can be gathered in any order and anywhere before the record is sent.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::hash::{ContentHash, DomainHasher};
use crate::identity::{MemberKey, SecretKey, Signature};
use crate::round::RoundId;

/// Most founders: their approvals must fit into one record.
pub const FOUNDERS_MAX: usize = 16;
/// Most keys that a manifest may list as readers.
pub const READERS_MAX: usize = 16_384;
/// Keys whose standing a peer keeps changes of.
pub const STANDINGS_MAX: usize = 4_096;
const DOMAIN: &str = "standing/1";

/// Who may change who belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founders {
    pub keys: BTreeSet<MemberKey>,
    /// How many of them must agree.
    pub threshold: u32,
}

/// Who may follow a round without being a member of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Readers {
    Open,
    Listed(BTreeSet<MemberKey>),
}

/// What a key is to a round. The most restrictive comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Standing {
    /// Neither announces nor, where the round is private, connects.
    Out,
    /// Connects and fetches.
    Reader,
    /// Announces as well.
    Member,
}

impl Standing {
    pub fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Reader => "reader",
            Self::Member => "member",
        }
    }
}

/// What founders approve: that a key has this standing from now on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    pub round: RoundId,
    pub subject: MemberKey,
    /// Starts at 1; a higher sequence supersedes.
    pub sequence: u64,
    pub becomes: Standing,
}

impl Statement {
    /// What an approval signs (docs/protocol.md, section "Standing").
    pub fn digest(&self) -> ContentHash {
        let mut hasher = DomainHasher::new(DOMAIN);
        hasher.hash(&self.round.0.0).hash(&self.subject.0).u64(self.sequence).string(self.becomes.name());
        hasher.finish()
    }

    /// One founder's approval.
    pub fn approve(&self, founder: &SecretKey) -> Approval {
        Approval { founder: founder.member(), signature: Signature(founder.sign(DOMAIN, &self.digest().0)) }
    }
}

/// A founder's signature over a [`Statement`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    pub founder: MemberKey,
    pub signature: Signature,
}

impl Approval {
    pub fn is_of(&self, statement: &Statement) -> bool {
        self.founder.verifies(DOMAIN, &statement.digest().0, &self.signature.0)
    }
}

/// "This key has this standing, as enough founders agree": what a record of a change says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandingChange {
    pub round: RoundId,
    /// The founder who sends it and signs the record; one of those who approve.
    pub by: MemberKey,
    pub subject: MemberKey,
    pub sequence: u64,
    pub becomes: Standing,
    /// In ascending order of the founders' keys.
    pub approvals: Vec<Approval>,
}

/// Why a change of standing is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StandingError {
    #[error("standing cannot change: the round has no founders")]
    NoFounders,
    #[error("{key} is not a founder of the round")]
    NotFounder { key: MemberKey },
    #[error("change of standing is sent by founder {by}, who did not approve it")]
    SenderDoesNotApprove { by: MemberKey },
    #[error("change of standing has {found} of the {threshold} approvals that the round asks for")]
    TooFew { found: usize, threshold: u32 },
    #[error("change of standing has {found} approvals, but at most {FOUNDERS_MAX} are allowed")]
    TooMany { found: usize },
    #[error("approvals are not in ascending order of the founders' keys, once each")]
    Order,
    #[error("approval of founder {founder} is not a signature over this change")]
    Approval { founder: MemberKey },
}

impl StandingChange {
    /// A record's content from a statement and its approvals, in any order.
    pub fn new(statement: &Statement, by: MemberKey, approvals: impl IntoIterator<Item = Approval>) -> Self {
        let mut approvals: Vec<Approval> = approvals.into_iter().collect();
        approvals.sort_by_key(|approval| approval.founder);
        approvals.dedup_by_key(|approval| approval.founder);
        let Statement { round, subject, sequence, becomes } = statement.clone();
        Self { round, by, subject, sequence, becomes, approvals }
    }

    pub fn statement(&self) -> Statement {
        Statement { round: self.round, subject: self.subject, sequence: self.sequence, becomes: self.becomes }
    }

    /// What can be refused before any signature is verified.
    pub(crate) fn check_form(&self, founders: Option<&Founders>) -> Result<(), StandingError> {
        let founders = founders.ok_or(StandingError::NoFounders)?;
        let found = self.approvals.len();
        if found > FOUNDERS_MAX {
            return Err(StandingError::TooMany { found });
        }
        let strangers = self.approvals.iter().map(|approval| approval.founder).chain([self.by]).find(|key| !founders.keys.contains(key));
        if let Some(key) = strangers {
            return Err(StandingError::NotFounder { key });
        }
        if !self.approvals.is_sorted_by(|left, right| left.founder < right.founder) {
            return Err(StandingError::Order);
        }
        if !self.approvals.iter().any(|approval| approval.founder == self.by) {
            return Err(StandingError::SenderDoesNotApprove { by: self.by });
        }
        if (found as u64) < u64::from(founders.threshold) {
            return Err(StandingError::TooFew { found, threshold: founders.threshold });
        }
        Ok(())
    }

    /// Verifies every approval: a change with one forged approval is refused, however many others it has.
    pub(crate) fn check_approvals(&self) -> Result<(), StandingError> {
        let statement = self.statement();
        match self.approvals.iter().find(|approval| !approval.is_of(&statement)) {
            None => Ok(()),
            Some(approval) => Err(StandingError::Approval { founder: approval.founder }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
