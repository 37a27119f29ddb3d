//! What goes into the machine, and what comes out of it.

use crate::attestation::{Fault, SignedAttestation};
use crate::hash::ContentHash;
use crate::ledger::Admitted;
use crate::record::{RecordError, RecordId, SignedRecord};

/// What happened to this peer. `P` names a neighbour.
#[derive(Clone, Debug)]
pub enum Input<P> {
    Connected(P),
    Disconnected(P),
    /// A record by gossip. The first output is its [`Output::Reception`], except for what must be durable before.
    Gossip {
        bytes: Vec<u8>,
    },
    /// Answered by exactly one [`Output::Respond`].
    SyncRequest {
        from: P,
        bytes: Vec<u8>,
    },
    SyncResponse {
        from: P,
        bytes: Vec<u8>,
    },
    /// A question asked of this neighbour will have no answer. Need not be told: the machine waits only so long.
    SyncFailed {
        from: P,
    },
    /// A record of this peer's own.
    Publish(SignedRecord),
    /// This member's own word for the merge that it has published.
    Attest(SignedAttestation),
    /// A blob is on disk, verified against its hash, and durable.
    BlobStored {
        adapter: ContentHash,
        size: u64,
    },
    BlobFailed {
        adapter: ContentHash,
    },
    /// The blob is what its hash says, but not an adapter of this round; every peer that reads it finds the same.
    BlobRefused {
        adapter: ContentHash,
        why: String,
    },
    /// A blob that was stored is gone or damaged.
    BlobLost {
        adapter: ContentHash,
    },
    Tick,
}

/// What gossip should do with the message just handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// New and right: pass it on.
    Accept,
    /// The sender's own fault: drop it and think less of the sender.
    Reject,
    /// Nothing new.
    Ignore,
}

/// What the driver has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<P> {
    /// Make the record durable before the next output.
    Keep(SignedRecord),
    Forget(RecordId),
    Reception(Reception),
    Gossip(Vec<u8>),
    Request {
        to: P,
        bytes: Vec<u8>,
    },
    Respond(Vec<u8>),
    Fetch {
        adapter: ContentHash,
        size: u64,
    },
    CancelFetch(ContentHash),
    /// A neighbour handed over so many records or attestations that break the round's rules whatever a ledger holds. An
    /// honest one passes on only what it verified, so the fault is its own.
    Misled {
        by: P,
        times: u32,
    },
    /// The set to be merged has changed to this, in order of the members' keys.
    Merge(Vec<Admitted>),
    Notice(Notice),
}

/// What people want to hear about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A record entered the ledger.
    Recorded(SignedRecord),
    /// A member said two things at one sequence.
    Conflict(SignedRecord),
    RecordRefused(RecordError),
    /// This peer's own record has no place in the ledger, and was told to nobody.
    NotKept(SignedRecord),
    SyncRefused(String),
    AdapterRefused {
        adapter: ContentHash,
        why: String,
    },
    /// Two members vouch for different merges of one set: one of them is wrong, or lies.
    Fault(Box<Fault>),
}
