//! Bytes on the wire: everything, and of it what blobs are. The rest is the price of talking.
//!
//! The transport counts what goes through its streams: protocol negotiation and frames of every protocol, but neither the
//! headers of the multiplexer, of encryption and of TCP or QUIC, nor handshakes; measured from outside, a small message
//! costs about a tenth more.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// What libp2p calls its counter of stream bytes.
const BANDWIDTH: &str = "libp2p_bandwidth_bytes_total{";

/// Bytes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Gossip, reconciliation, discovery and all else that is not a blob.
    pub control_in: u64,
    pub control_out: u64,
    /// Streams of the blob protocol: payload, proofs and questions.
    pub blob_in: u64,
    pub blob_out: u64,
}

/// Counts for one network. Clones share it.
#[derive(Clone, Default)]
pub struct Meter {
    transport: Arc<Mutex<Registry>>,
    blobs: Arc<Blobs>,
}

#[derive(Default)]
struct Blobs {
    read: AtomicU64,
    written: AtomicU64,
}

/// What all streams of blobs on one connection have moved.
#[derive(Debug, Default)]
pub struct Line {
    read: AtomicU64,
    written: AtomicU64,
}

impl Line {
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn reads(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Meter {
    /// Where the transport registers its counters.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn traffic(&self) -> Traffic {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry());
        let total = |direction: &str| text.lines().filter_map(|line| value_of(line, direction)).sum::<u64>();
        let (read, written) = (self.blobs.read.load(Ordering::Relaxed), self.blobs.written.load(Ordering::Relaxed));
        Traffic {
            control_in: total("Inbound").saturating_sub(read),
            control_out: total("Outbound").saturating_sub(written),
            blob_in: read,
            blob_out: written,
        }
    }

    /// The stream, with its bytes counted as a blob's, and as those of the connection that it shares with others.
    pub fn counted<S>(&self, stream: S, line: &Arc<Line>) -> Counted<S> {
        Counted { stream, blobs: self.blobs.clone(), line: line.clone() }
    }
}

/// The value of one line of the transport's counters, when it is for this direction; there is a line for each kind of
/// transport.
fn value_of(line: &str, direction: &str) -> Option<u64> {
    let (labels, value) = line.strip_prefix(BANDWIDTH)?.split_once('}')?;
    labels.contains(&format!("direction=\"{direction}\"")).then(|| value.trim().parse().ok())?
}

/// A stream whose bytes are counted.
pub struct Counted<S> {
    stream: S,
    blobs: Arc<Blobs>,
    line: Arc<Line>,
}

impl<S> Counted<S> {
    pub fn line(&self) -> Arc<Line> {
        self.line.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(read)) = &outcome {
            self.blobs.read.fetch_add(*read as u64, Ordering::Relaxed);
            self.line.read.fetch_add(*read as u64, Ordering::Relaxed);
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &outcome {
            self.blobs.written.fetch_add(*written as u64, Ordering::Relaxed);
            self.line.written.fetch_add(*written as u64, Ordering::Relaxed);
        }
        outcome
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}
