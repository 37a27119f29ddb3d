//! Every bound of the room, each with its reason.

use std::time::Duration;

/// 16 KiB: a signed record is at most 4 KiB, with room for the kinds of record to come.
pub const GOSSIP_BYTES_MAX: usize = 16 * 1024;
/// What the protocol's largest request needs.
pub const SYNC_REQUEST_BYTES_MAX: usize = mingle_protocol::sync::REQUEST_BYTES_MAX;
/// What the protocol's largest answer needs.
pub const SYNC_RESPONSE_BYTES_MAX: usize = mingle_protocol::sync::RESPONSE_BYTES_MAX;
/// Requests in flight per connection, both ways together: memory stays below 64 MiB a connection.
pub const SYNC_STREAMS_MAX: usize = 4;
/// Sync requests that wait for the driver's answer; beyond it, requests are dropped and the peer asks again.
pub const SYNC_WAITING_MAX: usize = 128;
/// Of those, from one peer: honest ones ask one thing at a time.
pub const SYNC_WAITING_PER_PEER_MAX: usize = 4;
/// Bytes of all requests that wait for an answer.
pub const SYNC_WAITING_BYTES_MAX: usize = 8 << 20;
/// KiB of requests being read from all peers together; beyond it, further ones fail. Many strangers can each have four
/// requests under way, and what they promise must not become our memory.
pub const SYNC_READING_KIB_MAX: usize = 8 << 10;
/// The next 64 KiB of a message must arrive within so long, or a trickle would keep its place.
pub const SYNC_STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// The driver answers from memory; a peer that hears nothing for so long asks someone else.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(30);

/// Gossip streams a peer may open on one connection, one after the other. Gossip gives up a connection after five; one
/// that is given up hears nothing more, so the whole connection is closed before.
pub const GOSSIP_STREAMS_MAX: usize = 3;

/// Commands of the driver that may wait: a burst of verdicts after a partition heals.
pub const COMMANDS_MAX: usize = 1024;
/// Events that may wait for the driver before sockets are no longer read.
pub const EVENTS_MAX: usize = 256;
/// Messages of downloads and servers to the service.
pub const REPORTS_MAX: usize = 256;
/// Own messages that wait until somebody subscribes; the oldest is dropped, and sync carries it.
pub const OUTBOX_MAX: usize = 256;

/// Half-open connections, each way: a flood of dials must not hold more.
pub const PENDING_CONNECTIONS_MAX: u32 = 64;
/// Connections that others opened.
pub const INBOUND_CONNECTIONS_MAX: u32 = 300;
/// Connections that we opened.
pub const OUTBOUND_CONNECTIONS_MAX: u32 = 100;
/// Never 1: two peers that dial each other at once would both be refused.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Connections are let in beyond `INBOUND_CONNECTIONS_MAX` while the one that makes room is being closed.
pub const INBOUND_CONNECTIONS_SLACK: u32 = 64;
/// Of the inbound ones, from one address: an institution shares one, but it must not be all there is.
pub const INBOUND_PER_ADDRESS_MAX: usize = 200;
/// Handshakes under way with one address, so that silence from one place does not take every half-open place.
pub const PENDING_PER_ADDRESS_MAX: usize = 24;
/// Eight seconds: identify takes two round trips (2 s on a line of 1 Mbit/s with 600 ms of them), and who says nothing is
/// gone within ten on a busy machine too.
pub const SILENT_PATIENCE: Duration = Duration::from_secs(8);
/// How often silent connections are looked for, and what is shown of peers is renewed.
pub const WATCH_TICK: Duration = Duration::from_millis(500);
/// A connection without a stream for so long is closed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// QUIC's own keep-alive notices a dead peer before the idle timeout does harm.
pub const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(5);
pub const QUIC_IDLE_MS_MAX: u32 = 15_000;
/// What one WebSocket frame that others send may hold: records of TLS and frames of noise, which are 64 KiB at most.
pub const WEB_FRAME_BYTES_MAX: usize = 1 << 20;
/// yamux streams per connection: gossip 2, sync 16, blobs 16, and the small protocols.
pub const YAMUX_STREAMS_MAX: usize = 256;

/// Connections that others opened to a seed, which a whole round may know.
pub const SEED_CONNECTIONS_MAX: u32 = 2_000;
/// A reservation with a second relay, so that one relay may go.
pub const RELAYS_AT_ONCE: usize = 2;
/// Neighbours remembered as relays.
pub const RELAYS_KNOWN_MAX: usize = 32;
/// The first pause before a relay that let go of us is asked again; it doubles up to the longest.
pub const RELAY_BACKOFF_FIRST: Duration = Duration::from_secs(2);
/// The longest pause between two questions to one relay.
pub const RELAY_BACKOFF_LONGEST: Duration = Duration::from_secs(256);
/// Peers that may hold a reservation with one seed.
pub const RESERVATIONS_MAX: usize = 1_024;
/// Circuits through one seed, and of one peer through it: they live for minutes, until the two meet directly.
pub const CIRCUITS_MAX: usize = 256;
pub const CIRCUITS_PER_PEER_MAX: usize = 16;
/// 1 MiB, both ways together: signalling and a comparison of records fit, a blob does not (nor is it ever asked for).
pub const CIRCUIT_BYTES_MAX: u64 = 1 << 20;
/// Two peers that have not met directly by then are unlikely to; the round's other peers carry between them.
pub const CIRCUIT_DURATION: Duration = Duration::from_secs(120);
/// A dial ends before the ten seconds that AutoNAT gives a dial-back, or a router that swallows packets would leave it
/// without any verdict.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(8);

/// Known peers with their addresses; the oldest is forgotten.
pub const ADDRESS_BOOK_MAX: usize = 512;
/// Addresses believed per peer; identify may list any number.
pub const ADDRESSES_PER_PEER_MAX: usize = 16;
/// Dials of known peers begun at once when neighbours are missing.
pub const DIALS_AT_ONCE_MAX: usize = 8;
/// A peer that could not be dialled is left alone for so long.
pub const REDIAL_PAUSE: Duration = Duration::from_secs(15);
/// The first pause before a bootstrap peer is dialled again; it doubles up to the longest.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between two dials of a bootstrap peer.
pub const BACKOFF_LONGEST: Duration = Duration::from_secs(30);
/// How often known peers are dialled while neighbours are missing.
pub const DISCOVERY_INTERVAL: Duration = Duration::from_secs(2);
/// Peers named in one answer to who misses neighbours: three answers name enough.
pub const REFERRALS_MAX: usize = 8;
/// Addresses named for each: one of each transport, and a relay's.
pub const REFERRAL_ADDRESSES_MAX: usize = 4;
/// The first pause before a neighbour is asked again for others; it doubles up to the longest.
pub const REFERRAL_AGAIN: Duration = Duration::from_secs(15);
/// The longest such pause: a network smaller than the target always misses neighbours.
pub const REFERRAL_AGAIN_LONGEST: Duration = Duration::from_secs(600);
/// How often the dialler looks whether a bootstrap peer is due.
pub const DIAL_TICK: Duration = Duration::from_millis(250);

/// Blobs fetched at the same time; further ones wait their turn. Several, so that one slow provider holds up little.
pub const DOWNLOADS_MAX: usize = 8;
/// Blobs that wait for their turn; beyond it, `BlobFailed` comes at once.
pub const DOWNLOADS_WAITING_MAX: usize = 4096;
/// Providers remembered per blob.
pub const PROVIDERS_MAX: usize = 64;
/// Conversations about one blob at the same time.
pub const LINKS_MAX: usize = 16;
/// Blocks in memory on their way to the disk, over all downloads: 38 MiB.
pub const BUFFERS_MAX: usize = 64;
/// 16 MiB in chunks of 1 KiB: what one want may ask for, and the largest piece.
pub const REQUEST_CHUNKS_MAX: u64 = 16 * 1024;
/// Separate ranges in one want.
pub const REQUEST_RANGES_MAX: usize = 64;
/// Blob streams that one connection may have open towards us; further ones are dropped.
pub const BLOB_STREAMS_PER_CONNECTION_MAX: usize = 16;
/// Blob streams open towards us in all, besides the free ones; further ones are dropped.
pub const BLOB_STREAMS_MAX: usize = 256;
/// The first ones of a connection need no place among all: who holds places and asks nothing keeps nobody from asking.
pub const BLOB_STREAMS_FREE: usize = 2;
/// Wants of one conversation that may wait; whoever asks for more is no honest peer.
pub const WANTS_MAX: usize = 16;
/// Blocks read from disk and on their way to peers at the same time: 29 MiB. Further conversations wait for their turn.
pub const SERVED_AT_ONCE_MAX: usize = 48;
/// Of those, at most so many to one peer, so that nobody can keep the others from being served.
pub const SERVED_PER_PEER_MAX: usize = 6;
/// Of those, kept for peers that have none on its way: who takes what it asked for slowly, or not at all, holds its blocks until
/// the watchdog ends it.
pub const SERVED_RESERVED: usize = 16;
/// How often a conversation that waits for its turn hears that it does.
pub const WAIT_INTERVAL: Duration = Duration::from_secs(2);
/// A minute of nothing but "wait" is as good as "busy".
pub const WAITS_MAX: u32 = 30;
/// A conversation in which nothing is asked and nothing is news for so long is ended by who holds.
pub const CONVERSATION_IDLE: Duration = Duration::from_secs(30);
/// A blob stream must be negotiated, and its request frame read, within so long.
pub const BLOB_OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// 256 KiB: large writes, or the multiplexer's overhead dominates (a tenth of the speed at 4 KiB).
pub const BLOB_BUFFER_BYTES: usize = 256 * 1024;
/// The open itself, and then its answer, each have `BLOB_OPEN_TIMEOUT`; this is for a service that is late to ask.
pub const OPEN_GRACE: Duration = Duration::from_secs(5);
/// One group must move within `Limits::stall_window`: slower than 2 KiB/s is as good as dead, or meant to be. An honest
/// peer on a line of 1 Mbit/s that serves sixteen at once is four times as fast.
pub const STALL_BYTES_MIN: u64 = 16 * 1024;
/// The pause before a busy provider is asked again; it doubles `BUSY_DOUBLINGS` times.
pub const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// Up to 3.2 s between two questions.
pub const BUSY_DOUBLINGS: u32 = 4;
/// How often in a row one provider may be busy before it counts as failed: about a minute in all, after which another
/// blob may have the download's place.
pub const BUSY_MAX: u32 = 20;
/// The least time between two `BlobProgress` of one blob.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// The bounds that tests and operators may move.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Neighbours that are looked for actively.
    pub peers_target: usize,
    /// Waiting for the other side for so long without `STALL_BYTES_MIN` moving closes a blob stream's connection.
    pub stall_window: Duration,
    /// What is sent of blobs, to all peers together.
    pub upload_bytes_per_second: Option<u64>,
    /// A connection whose other end has not introduced itself as a mingle peer for so long is closed.
    pub silent_patience: Duration,
    /// Whether the mesh acts on the scores of peers, or only shows them.
    pub scoring: Scoring,
    /// How often addresses that may lead here are given to a public peer to dial.
    pub probe_interval: Duration,
    /// How long after a failed dial-back another one may still succeed before relays are reserved.
    pub settle: Duration,
}

/// What becomes of a peer's score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Scoring {
    /// It is computed and shown, and nothing is done because of it.
    Observe,
    /// Peers below zero leave the mesh, and those far below are not heard.
    #[default]
    On,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers_target: 12,
            stall_window: Duration::from_secs(8),
            upload_bytes_per_second: None,
            silent_patience: SILENT_PATIENCE,
            scoring: Scoring::default(),
            probe_interval: Duration::from_secs(5),
            settle: Duration::from_secs(5),
        }
    }
}
