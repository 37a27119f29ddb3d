//! One conversation with a provider of a blob: orders in, what it says and brings out, every block verified on its way
//! to the disk.
//!
//! While one block is hashed and written on a blocking thread, the next is read. A provider that sends what was not asked
//! for, or what does not verify, is a liar, and the conversation is over.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;

use crate::blob_frames::{Ask, BLOCK_WIRE_BYTES_MAX, Tell, encoded_length, first_chunk};
use crate::blob_streams::Stream;
use crate::downloads::Context;
use crate::limits::{BLOB_OPEN_TIMEOUT, OPEN_GRACE, WAITS_MAX};
use crate::pieces::{Holds, Pieces};
use crate::service::Report;
use crate::store::{AbsorbError, ChunkRanges, PartialBlob, StoreError, byte_count};
use crate::watched::Watched;

/// Blocks of one conversation that are being hashed and written while the next is read.
const ABSORBING_MAX: usize = 2;
/// How often the download hears of a provider whose block is long on its way: well within what counts as silence.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// From the download.
pub enum Order {
    Want { piece: u32, ranges: ChunkRanges },
    Drop { piece: u32 },
}

/// To the download.
#[derive(Debug)]
pub enum Heard {
    Holds(Holds),
    Have(Vec<u32>),
    /// It is at work: so many bytes of a block came, or none and it said that others are served first.
    Alive {
        bytes: u64,
    },
    /// Verified bytes of a piece came, of which `new` were missing; of so many it was told already that they come.
    Moved {
        piece: u32,
        bytes: u64,
        new: u64,
        told: u64,
    },
    /// All that was wanted of the piece came.
    Answered {
        piece: u32,
    },
    /// It cannot serve this piece after all.
    Cannot {
        piece: u32,
    },
}

/// Why a conversation ended. Every case but the last names the provider.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("peer {peer} does not have it")]
    NotFound { peer: PeerId },
    #[error("peer {peer} is busy")]
    Busy { peer: PeerId },
    #[error("peer {peer} says it has {found} bytes, but {announced} were announced")]
    SizeMismatch { peer: PeerId, announced: u64, found: u64 },
    #[error("peer {peer} sent wrong bytes: {what}")]
    Mismatch { peer: PeerId, what: String },
    #[error("peer {peer} stopped early: {what}")]
    Truncated { peer: PeerId, what: String },
    #[error("peer {peer} stalled: {what}")]
    Stalled { peer: PeerId, connection: ConnectionId, what: String },
    #[error("peer {peer} could not be asked: {what}")]
    Connection { peer: PeerId, what: String },
    #[error(transparent)]
    Store(StoreError),
}

/// Talks to `peer` about the blob until the orders end, the provider ends it, or `stop`.
pub async fn converse(
    context: Context,
    partial: Arc<PartialBlob>,
    peer: PeerId,
    orders: mpsc::UnboundedReceiver<Order>,
    heard: mpsc::Sender<(PeerId, Heard)>,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let (connection, stream) = tokio::select! {
        opened = open(&context, peer) => opened?,
        () = stop.cancelled() => return Err(LinkError::Connection { peer, what: "we stopped".to_owned() }),
    };
    let line = stream.line();
    let stream = Watched::new(stream.compat(), context.limits.stall_window, &stop).on(line);
    let mut link = Link {
        pieces: Pieces::of(partial.size()),
        context,
        partial,
        peer,
        connection,
        stream,
        wants: VecDeque::new(),
        disk: Disk { peer, heard, absorbing: VecDeque::new(), spare: Vec::new() },
        waits: 0,
    };
    let ended = link.run(orders).await;
    // What is being written belongs to the download until it is written.
    while let Some(absorbed) = link.disk.finished().await {
        let _ = link.disk.settle(absorbed).await;
    }
    ended
}

/// What was asked for and has not come yet.
struct Want {
    piece: u32,
    first: u64,
    blocks: VecDeque<ChunkRanges>,
    dropped: bool,
}

/// A block on its way to the disk.
struct Absorbing {
    piece: u32,
    bytes: u64,
    told: u64,
    /// Whether it is the last block of what was wanted.
    last: bool,
    task: JoinHandle<(Vec<u8>, Result<u64, AbsorbError>)>,
}

/// A block that has come to its end.
struct Absorbed {
    piece: u32,
    bytes: u64,
    told: u64,
    last: bool,
    outcome: Result<u64, AbsorbError>,
    buffer: Option<Vec<u8>>,
}

/// What is between the stream and the disk.
struct Disk {
    peer: PeerId,
    heard: mpsc::Sender<(PeerId, Heard)>,
    absorbing: VecDeque<Absorbing>,
    /// Buffers to be used again: filling fresh ones with zeros costs as much as hashing them.
    spare: Vec<Vec<u8>>,
}

impl Disk {
    /// The end of the block that has been at the disk for longest. Nothing is lost when it is not waited for.
    async fn finished(&mut self) -> Option<Absorbed> {
        let first = self.absorbing.front_mut()?;
        let ended = (&mut first.task).await;
        let Absorbing { piece, bytes, told, last, .. } = self.absorbing.pop_front()?;
        let (outcome, buffer) = match ended {
            Ok((buffer, outcome)) => (outcome, Some(buffer)),
            Err(error) => (Err(AbsorbError::Stream { source: io::Error::other(error) }), None),
        };
        Some(Absorbed { piece, bytes, told, last, outcome, buffer })
    }

    async fn settle(&mut self, absorbed: Absorbed) -> Result<(), LinkError> {
        let Absorbed { piece, bytes, told, last, outcome, buffer } = absorbed;
        self.spare.extend(buffer);
        match outcome {
            Ok(new) => self.tell(Heard::Moved { piece, bytes, new, told }).await?,
            Err(AbsorbError::Store(error)) => return Err(LinkError::Store(error)),
            Err(AbsorbError::Stream { source }) => return Err(LinkError::Connection { peer: self.peer, what: source.to_string() }),
            Err(error) => return Err(LinkError::Mismatch { peer: self.peer, what: error.to_string() }),
        }
        if last { self.tell(Heard::Answered { piece }).await } else { Ok(()) }
    }

    async fn tell(&mut self, heard: Heard) -> Result<(), LinkError> {
        let told = self.heard.send((self.peer, heard)).await;
        told.map_err(|_| LinkError::Connection { peer: self.peer, what: "the download has ended".to_owned() })
    }
}

struct Link {
    context: Context,
    partial: Arc<PartialBlob>,
    pieces: Pieces,
    peer: PeerId,
    connection: ConnectionId,
    stream: Watched<Compat<Stream>>,
    wants: VecDeque<Want>,
    disk: Disk,
    waits: u32,
}

impl Link {
    async fn run(&mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> Result<(), LinkError> {
        let hash = self.partial.hash();
        self.write(&hash.0).await?;
        let kind = self.kind().await?.ok_or_else(|| self.truncated("it said nothing"))?;
        match self.frame(kind).await? {
            Tell::Holds { size, holds } if size == self.partial.size() => self.disk.tell(Heard::Holds(holds)).await?,
            Tell::Holds { size: found, .. } => {
                return Err(LinkError::SizeMismatch { peer: self.peer, announced: self.partial.size(), found });
            }
            Tell::NotFound => return Err(LinkError::NotFound { peer: self.peer }),
            Tell::Busy => return Err(LinkError::Busy { peer: self.peer }),
            _ => return Err(self.lie("it did not say what it holds")),
        }
        loop {
            // With nothing asked for it may be silent as long as it likes.
            self.stream.rest(self.wants.iter().all(|want| want.dropped) && self.disk.absorbing.is_empty());
            let may_read = self.disk.absorbing.len() < ABSORBING_MAX;
            let mut kind = [0; 1];
            tokio::select! {
                biased;
                Some(absorbed) = self.disk.finished() => self.disk.settle(absorbed).await?,
                order = orders.recv() => match order {
                    Some(order) => self.order(order).await?,
                    None => return Ok(()),
                },
                read = self.stream.read(&mut kind), if may_read => match read.map_err(|error| self.failed(error))? {
                    0 if self.wants.iter().all(|want| want.dropped) => return Ok(()),
                    0 => return Err(self.truncated("it ended the conversation")),
                    _ => self.heed(kind[0]).await?,
                },
            }
        }
    }

    async fn order(&mut self, order: Order) -> Result<(), LinkError> {
        match order {
            Order::Want { piece, ranges } => {
                self.write(&Ask::Want(ranges.clone()).to_bytes()).await?;
                let want = Want { piece, first: first_chunk(&ranges), blocks: Pieces::blocks(&ranges).into(), dropped: false };
                self.wants.push_back(want);
                Ok(())
            }
            Order::Drop { piece } => {
                let Some(want) = self.wants.iter_mut().find(|want| want.piece == piece && !want.dropped) else { return Ok(()) };
                want.dropped = true;
                let first = want.first;
                self.write(&Ask::Drop(first).to_bytes()).await
            }
        }
    }

    async fn heed(&mut self, kind: u8) -> Result<(), LinkError> {
        match self.frame(kind).await? {
            Tell::Block(start) => self.block(start).await,
            Tell::Have(pieces) => {
                let count = self.pieces.count();
                match pieces.iter().all(|piece| *piece < count) {
                    true => self.disk.tell(Heard::Have(pieces)).await,
                    false => Err(self.lie("it speaks of pieces that do not exist")),
                }
            }
            Tell::Wait => {
                self.waits += 1;
                self.stream.pardon();
                if self.waits > WAITS_MAX {
                    Err(LinkError::Busy { peer: self.peer })
                } else {
                    self.disk.tell(Heard::Alive { bytes: 0 }).await
                }
            }
            Tell::Cannot(first) => {
                let place =
                    self.wants.iter().position(|want| want.first == first).ok_or_else(|| self.lie("it refuses what nobody asked"))?;
                let want = self.wants.remove(place);
                match want {
                    Some(want) if !want.dropped => self.disk.tell(Heard::Cannot { piece: want.piece }).await,
                    _ => Ok(()),
                }
            }
            Tell::Busy => Err(LinkError::Busy { peer: self.peer }),
            Tell::Holds { .. } | Tell::NotFound => Err(self.lie("it says twice what it holds")),
        }
    }

    /// Reads a block that was asked for and hands it to the disk.
    async fn block(&mut self, start: u64) -> Result<(), LinkError> {
        let begins = |want: &Want| want.blocks.front().is_some_and(|block| first_chunk(block) == start);
        while self.wants.front().is_some_and(|want| want.dropped && !begins(want)) {
            self.wants.pop_front();
        }
        let block =
            self.wants.front_mut().filter(|want| begins(want)).and_then(|want| want.blocks.pop_front().map(|block| (want.piece, block)));
        let Some((piece, ranges)) = block else { return Err(self.lie("a block that nobody asked for")) };
        let last = self.wants.front().is_some_and(|want| want.blocks.is_empty());
        let dropped = last && self.wants.pop_front().is_some_and(|want| want.dropped);
        self.waits = 0;

        let length = encoded_length(self.partial.size(), &ranges);
        // Bounds what all downloads together hold in memory.
        let place: OwnedSemaphorePermit = match self.context.buffers.clone().acquire_owned().await {
            Ok(place) => place,
            Err(_) => return Err(LinkError::Connection { peer: self.peer, what: "the network has stopped".to_owned() }),
        };
        let mut buffer = self.disk.spare.pop().unwrap_or_else(|| vec![0; BLOCK_WIRE_BYTES_MAX]);
        let into = buffer.get_mut(..length).unwrap_or_default();
        let (mut filled, mut told, mut since) = (0, 0, Instant::now());
        while filled < length {
            tokio::select! {
                biased;
                // What came before is told of at once, however slowly this one comes.
                Some(absorbed) = self.disk.finished() => self.disk.settle(absorbed).await?,
                read = self.stream.read(into.get_mut(filled..).unwrap_or_default()) => match read.map_err(|error| self.failed(error))? {
                    0 => return Err(self.truncated("it ended in the middle of a block")),
                    read => filled += read,
                },
            }
            if since.elapsed() > ALIVE_INTERVAL {
                self.disk.tell(Heard::Alive { bytes: (filled - told) as u64 }).await?;
                (told, since) = (filled, Instant::now());
            }
        }

        let bytes = byte_count(&ranges, self.partial.size());
        let partial = self.partial.clone();
        let task = tokio::task::spawn_blocking(move || {
            let absorbed = partial.absorb(buffer.get(..length).unwrap_or_default(), &ranges);
            drop(place);
            (buffer, absorbed)
        });
        self.disk.absorbing.push_back(Absorbing { piece, bytes, told: told as u64, last: last && !dropped, task });
        Ok(())
    }

    async fn kind(&mut self) -> Result<Option<u8>, LinkError> {
        let mut kind = [0; 1];
        let read = self.stream.read(&mut kind).await.map_err(|error| self.failed(error))?;
        Ok((read > 0).then_some(kind[0]))
    }

    async fn frame(&mut self, kind: u8) -> Result<Tell, LinkError> {
        let frame = Tell::read(kind, self.partial.size(), &mut self.stream).await;
        frame.map_err(|error| self.failed(error))
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let written = match self.stream.write_all(bytes).await {
            Ok(()) => self.stream.flush().await,
            failed => failed,
        };
        written.map_err(|error| self.failed(error))
    }

    fn lie(&self, what: &str) -> LinkError {
        LinkError::Mismatch { peer: self.peer, what: what.to_owned() }
    }

    fn truncated(&self, what: &str) -> LinkError {
        LinkError::Truncated { peer: self.peer, what: what.to_owned() }
    }

    fn failed(&self, error: io::Error) -> LinkError {
        let (peer, connection, what) = (self.peer, self.connection, error.to_string());
        match error.kind() {
            io::ErrorKind::TimedOut => LinkError::Stalled { peer, connection, what },
            io::ErrorKind::UnexpectedEof => LinkError::Truncated { peer, what },
            io::ErrorKind::InvalidData => LinkError::Mismatch { peer, what },
            _ => LinkError::Connection { peer, what },
        }
    }
}

async fn open(context: &Context, peer: PeerId) -> Result<(ConnectionId, Stream), LinkError> {
    let failed = |what: String| LinkError::Connection { peer, what };
    let (reply, answer) = oneshot::channel();
    let asked = context.reports.send(Report::Open { peer, reply }).await;
    asked.map_err(|_| failed("the network has stopped".to_owned()))?;
    match timeout(BLOB_OPEN_TIMEOUT + OPEN_GRACE, answer).await {
        Ok(Ok(opened)) => opened.map_err(|error| failed(error.to_string())),
        Ok(Err(_)) => Err(failed("the connection closed".to_owned())),
        Err(_) => Err(failed("no stream was opened in time".to_owned())),
    }
}
