//! What the real node does when, in milliseconds: the imitation's constants, each with the constant it stands for.

/// `driver::TICK`.
pub const TICK: u64 = 250;
/// `limits::DISCOVERY_INTERVAL`.
pub const DIAL_INTERVAL: u64 = 2_000;
/// `limits::BACKOFF_FIRST`, doubled up to `limits::BACKOFF_LONGEST`.
pub const BACKOFF_FIRST: u64 = 1_000;
pub const BACKOFF_LONGEST: u64 = 30_000;
/// `limits::REDIAL_PAUSE`.
pub const REDIAL_PAUSE: u64 = 15_000;
/// `limits::DIALS_AT_ONCE_MAX`.
pub const DIALS_AT_ONCE: usize = 8;
/// `limits::INBOUND_CONNECTIONS_MAX`.
pub const CONNECTIONS_MAX: usize = 300;
/// A connection over which nothing comes is given up after this: QUIC's idle timeout, or an unanswered ping.
pub const SILENCE_MAX: u64 = 15_000;
/// `limits::SYNC_TIMEOUT`.
pub const ANSWER_MAX: u64 = 30_000;
/// `limits::SYNC_WAITING_MAX`.
pub const QUESTIONS_MAX: usize = 128;
/// `limits::EVENTS_MAX`.
pub const INBOX_MAX: usize = 256;
/// `limits::OUTBOX_MAX`.
pub const OUTBOX_MAX: usize = 256;
/// `gossip::MESH`, `MESH_LOW`, `MESH_HIGH`.
pub const MESH: usize = 6;
pub const MESH_LOW: usize = 4;
pub const MESH_HIGH: usize = 12;
/// Invalid messages after which a neighbour's gossip is not heard any more.
pub const INVALID_MAX: u32 = 5;
/// `limits::SERVED_AT_ONCE_MAX`.
pub const SERVED_MAX: u32 = 48;
/// `limits::BUSY_PAUSE`, doubled `BUSY_DOUBLINGS` times; `limits::BUSY_MAX`.
pub const BUSY_PAUSE: u64 = 200;
pub const BUSY_DOUBLINGS: u32 = 4;
pub const BUSY_MAX: u32 = 20;
/// `download::FAILURE_PAUSE`, doubled; `download::FAILURES_MAX`.
pub const FAILURE_PAUSE: u64 = 500;
pub const FAILURES_MAX: u32 = 4;
/// `limits::BLOB_OPEN_TIMEOUT`.
pub const OPEN_MAX: u64 = 10_000;
/// `vouching::STILL`.
pub const STILL: u64 = 3_000;
/// `Limits::stall_window`.
pub const STALL: u64 = 8_000;
/// A download in which nothing moves talks to one more provider for each such while.
pub const PATIENCE: u64 = 1_000;
