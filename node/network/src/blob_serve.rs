//! The holder's side of a conversation about a blob: says what is there, and sends what is asked for, block by block.
//!
//! Not one byte that fails its proof leaves the peer: a block is read and proved on a blocking thread before it is sent,
//! and a damaged blob ends the conversation and leaves the store. Conversations take turns block by block, so that
//! memory is bounded and nobody is kept waiting by one who asks much.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use tokio_util::sync::CancellationToken;

use crate::blob_frames::{Ask, BLOCK_HEAD_BYTES, BLOCK_WIRE_BYTES_MAX, Tell, first_chunk, read_hash};
use crate::blob_streams::{Inbound, Stream};
use crate::guard::{Guard, Offence};
use crate::limits::{BLOB_BUFFER_BYTES, BLOB_OPEN_TIMEOUT, CONVERSATION_IDLE, Limits, WAIT_INTERVAL, WANTS_MAX};
use crate::pieces::{Holds, Pieces};
use crate::quotas::Quota;
use crate::service::Report;
use crate::store::{ChunkRanges, ServeError, Shared, Store, StoreError, all_chunks, byte_count};
use crate::transfers::Board;
use crate::turns::{Bucket, Turn, Turns};
use crate::watched::Watched;

/// A want of less than this counts as a question of its own.
const SMALL_WANT_KIB: u32 = 256;

/// What every conversation shares.
#[derive(Clone)]
pub struct Server {
    store: Store,
    turns: Turns,
    bucket: Arc<Bucket>,
    limits: Limits,
    stop: CancellationToken,
    reports: mpsc::Sender<Report>,
    guard: Arc<Guard>,
    board: Board,
}

impl Server {
    pub fn new(
        store: Store,
        limits: Limits,
        stop: CancellationToken,
        reports: mpsc::Sender<Report>,
        guard: Arc<Guard>,
        board: Board,
    ) -> Self {
        let bucket = Arc::new(Bucket::new(limits.upload_bytes_per_second));
        Self { store, turns: Turns::default(), bucket, limits, stop, reports, guard, board }
    }

    /// Holds one conversation; what goes wrong is the other side's to notice, ours to log.
    pub async fn serve(self, inbound: Inbound) {
        let peer = inbound.peer;
        let guard = self.guard.clone();
        if let Err(error) = self.answer(inbound).await {
            if error.kind() == io::ErrorKind::InvalidData {
                guard.offence(&peer, Offence::Malformed);
            }
            tracing::debug!(%peer, %error, "a conversation about a blob ended early");
        }
    }

    async fn answer(self, inbound: Inbound) -> io::Result<()> {
        let Inbound { peer, stream, places } = inbound;
        let line = stream.line();
        let mut stream = Watched::new(stream.compat(), self.limits.stall_window, &self.stop).on(line);
        let hash = timeout(BLOB_OPEN_TIMEOUT, read_hash(&mut stream)).await??;
        self.guard.count(&peer, |counts| counts.blob_requests += 1);
        if !self.guard.spend(&peer, Quota::BlobRequests, 1) {
            stream.write_all(&Tell::Busy.to_bytes()).await?;
            return stream.shutdown().await;
        }
        if self.store.is_downloading(hash) {
            // Who wants it too may come to hold what we lack.
            let _ = self.reports.try_send(Report::Interest { hash, peer });
        }
        let store = self.store.clone();
        let shared = match tokio::task::spawn_blocking(move || store.share(hash)).await? {
            Ok(shared) => shared,
            Err(StoreError::NotFound { .. }) => {
                stream.write_all(&Tell::NotFound.to_bytes()).await?;
                return stream.shutdown().await;
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let size = shared.blob.size;
        let mut conversation = Conversation {
            server: self,
            peer,
            pieces: Pieces::of(size),
            stream,
            told: Holds::All,
            shared,
            wants: VecDeque::new(),
            ready: None,
            spare: Vec::new(),
        };
        let outcome = conversation.run().await;
        drop(places);
        outcome
    }
}

/// What is asked for and not sent yet.
struct Want {
    first: u64,
    blocks: VecDeque<ChunkRanges>,
}

/// A block that is being read and proved, with its place in memory.
struct Encoding {
    /// The first chunk of the want that it answers.
    want: u64,
    task: JoinHandle<(Vec<u8>, Result<(), ServeError>)>,
    turn: Turn,
}

struct Conversation {
    server: Server,
    peer: PeerId,
    pieces: Pieces,
    stream: Watched<Compat<Stream>>,
    shared: Shared,
    /// What the asker knows that we hold.
    told: Holds,
    wants: VecDeque<Want>,
    /// What is sent next. It may still be dropped: on a slow line the block before it is long on its way.
    ready: Option<Encoding>,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

impl Conversation {
    async fn run(&mut self) -> io::Result<()> {
        self.told = self.shared.holds.borrow_and_update().clone();
        let opening = Tell::Holds { size: self.shared.blob.size, holds: self.told.clone() };
        self.write(&opening.to_bytes()).await?;
        loop {
            if self.wants.is_empty() && self.ready.is_none() {
                self.stream.rest(true);
                let mut kind = [0; 1];
                tokio::select! {
                    read = timeout(CONVERSATION_IDLE, self.stream.read(&mut kind)) => match read {
                        // Whoever wants more of it begins anew.
                        Err(_) => return self.stream.shutdown().await,
                        Ok(read) => if read? == 0 { return self.stream.shutdown().await } else { self.heed(kind[0]).await? },
                    },
                    changed = self.shared.holds.changed(), if self.told != Holds::All => self.changed(changed.is_ok()).await?,
                }
                self.stream.rest(false);
                continue;
            }
            self.listen().await?;
            if self.told != Holds::All && self.shared.holds.has_changed().unwrap_or(false) {
                self.changed(true).await?;
            }
            let encoding = match self.ready.take() {
                Some(encoding) => Some(encoding),
                None => self.begin(true).await?,
            };
            let Some(encoding) = encoding else { continue };
            let Encoding { task, turn, .. } = encoding;
            let (buffer, proved) = task.await?;
            if let Err(error) = proved {
                return self.damaged(error).await;
            }
            // The next block is read while this one is on its way, if there is a place for it.
            self.ready = self.begin(false).await?;
            let began = Instant::now();
            self.send(&buffer).await?;
            self.server.board.served(self.peer, (buffer.len() - BLOCK_HEAD_BYTES) as u64, began.elapsed());
            drop(turn);
            self.spare.push(buffer);
        }
    }

    /// Takes what the asker has said meanwhile, without waiting for more.
    async fn listen(&mut self) -> io::Result<()> {
        loop {
            let mut kind = [0; 1];
            tokio::select! {
                biased;
                read = self.stream.read(&mut kind) => match read? {
                    0 => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the asker has left")),
                    _ => self.heed(kind[0]).await?,
                },
                () = std::future::ready(()) => return Ok(()),
            }
        }
    }

    async fn heed(&mut self, kind: u8) -> io::Result<()> {
        let ask = timeout(BLOB_OPEN_TIMEOUT, Ask::read(kind, &mut self.stream)).await??;
        match ask {
            Ask::Drop(first) => {
                self.wants.retain(|want| want.first != first);
                self.ready = self.ready.take().filter(|ready| ready.want != first);
                Ok(())
            }
            Ask::Want(_) if self.wants.len() >= WANTS_MAX => Err(io::Error::new(io::ErrorKind::InvalidData, "too many wants at once")),
            Ask::Want(ranges) => {
                let first = first_chunk(&ranges);
                let inside = (&ranges - &all_chunks(self.shared.blob.size)).is_empty();
                let here = inside && {
                    let holds = self.shared.holds.borrow();
                    self.pieces.touched(&ranges).into_iter().all(|piece| holds.has(piece))
                };
                if !here {
                    return self.write(&Tell::Cannot(first).to_bytes()).await;
                }
                if !self.within_quota(byte_count(&ranges, self.shared.blob.size)) {
                    self.write(&Tell::Busy.to_bytes()).await?;
                    return Err(io::Error::other("the asker is beyond its quota"));
                }
                self.wants.push_back(Want { first, blocks: Pieces::blocks(&ranges).into() });
                Ok(())
            }
        }
    }

    /// Whether the peer may have so much, as far as its quotas go. Small wants count, or they would be free.
    fn within_quota(&self, bytes: u64) -> bool {
        let guard = &self.server.guard;
        guard.count(&self.peer, |counts| counts.blob_bytes += bytes);
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1);
        (kib >= SMALL_WANT_KIB || guard.spend(&self.peer, Quota::BlobRequests, 1)) && guard.spend(&self.peer, Quota::BlobServedKib, kib)
    }

    /// Tells what has come since.
    async fn changed(&mut self, lives: bool) -> io::Result<()> {
        if !lives {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download was given up here"));
        }
        let holds = self.shared.holds.borrow_and_update().clone();
        let news: Vec<u32> = (0..self.pieces.count()).filter(|piece| holds.has(*piece) && !self.told.has(*piece)).collect();
        self.told = holds;
        if news.is_empty() {
            return Ok(());
        }
        let frames = news.chunks(usize::from(u16::MAX)).flat_map(|part| Tell::Have(part.to_vec()).to_bytes());
        let frames: Vec<u8> = frames.collect();
        self.write(&frames).await
    }

    /// Begins to read and prove the next block. Without `patient`, only when it is our turn now.
    async fn begin(&mut self, patient: bool) -> io::Result<Option<Encoding>> {
        if self.wants.is_empty() {
            return Ok(None);
        }
        let turn = match self.server.turns.try_take(self.peer) {
            Some(turn) => turn,
            None if !patient => return Ok(None),
            None => self.turn().await?,
        };
        let Some(want) = self.wants.front_mut() else { return Ok(None) };
        let Some(ranges) = want.blocks.pop_front() else { return Ok(None) };
        let asked = want.first;
        if want.blocks.is_empty() {
            self.wants.pop_front();
        }
        let first = first_chunk(&ranges);
        let mut buffer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK_HEAD_BYTES + BLOCK_WIRE_BYTES_MAX));
        let blob = self.shared.blob.clone();
        let task = tokio::task::spawn_blocking(move || {
            buffer.clear();
            buffer.extend_from_slice(&Tell::Block(first).to_bytes());
            let proved = blob.encode(&ranges, &mut buffer);
            (buffer, proved)
        });
        Ok(Some(Encoding { want: asked, task, turn }))
    }

    /// Waits for our turn, and lets the asker know that we are alive.
    async fn turn(&mut self) -> io::Result<Turn> {
        let turns = self.server.turns.clone();
        let mut waiting = std::pin::pin!(turns.take(self.peer));
        loop {
            tokio::select! {
                turn = &mut waiting => return Ok(turn),
                () = self.server.stop.cancelled() => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "we stopped")),
                () = sleep(WAIT_INTERVAL) => {
                    self.stream.write_all(&Tell::Wait.to_bytes()).await?;
                    self.stream.flush().await?;
                }
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.server.bucket.is_bounded() {
            for part in bytes.chunks(BLOB_BUFFER_BYTES) {
                let pause: Duration = self.server.bucket.reserve(part.len());
                tokio::select! {
                    () = sleep(pause) => {}
                    () = self.server.stop.cancelled() => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "we stopped")),
                }
                self.write(part).await?;
            }
            return Ok(());
        }
        self.write(bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The asker sees the conversation end early and turns to somebody else; the driver is told to fetch the blob again.
    async fn damaged(&mut self, error: ServeError) -> io::Result<()> {
        let hash = self.shared.blob.hash;
        tracing::warn!(%hash, peer = %self.peer, %error, "a blob is damaged on disk and is not served");
        let store = self.server.store.clone();
        let demoted = tokio::task::spawn_blocking(move || store.demote_blob(hash)).await?;
        if demoted.map_err(io::Error::other)? {
            let _ = self.server.reports.send(Report::Damaged(hash)).await;
        }
        Err(io::Error::other(error))
    }
}
