//! One range from one provider: open a stream, ask, verify as it arrives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::io::BufReader;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use super::blob_frames::{Answer, Request};
use super::blob_streams::Stream;
use super::download::Context;
use super::limits::{BLOB_BUFFER_BYTES, BLOB_OPEN_TIMEOUT};
use super::service::Report;
use super::watched::Watched;
use crate::store::{AbsorbError, PartialBlob, StoreError};

/// The open itself, and then its answer, each have `BLOB_OPEN_TIMEOUT`; this is for a service that is late to ask.
const OPEN_GRACE: Duration = Duration::from_secs(5);

/// Why a range did not arrive. Every case but the last names the provider.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    #[error("peer {peer} does not have it")]
    NotFound { peer: PeerId },
    #[error("peer {peer} is busy")]
    Busy { peer: PeerId },
    #[error("peer {peer} has no such ranges of it")]
    OutOfRange { peer: PeerId },
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

/// Asks `peer` for the request's ranges and absorbs the answer into `partial`.
pub async fn fetch_range(
    context: &Context,
    partial: &Arc<PartialBlob>,
    peer: PeerId,
    request: Request,
    stop: &CancellationToken,
) -> Result<(), RangeError> {
    let (connection, stream) = {
        let opening = std::pin::pin!(open(context, peer));
        let stopped = std::pin::pin!(stop.cancelled());
        match select(opening, stopped).await {
            Either::Left((opened, _)) => opened?,
            Either::Right(_) => return Err(RangeError::Connection { peer, what: "we stopped".to_owned() }),
        }
    };
    let failed = |error: io::Error| stream_error(peer, connection, error);

    // Reads and writes of the frames go through the watchdog as well; the reader is buffered once and for all.
    let watched = Watched::new(stream.compat(), context.limits.stall_window, stop);
    let mut stream = BufReader::with_capacity(BLOB_BUFFER_BYTES, watched).compat();
    request.write(&mut stream).await.map_err(failed)?;
    let announced = partial.size();
    match Answer::read(&mut stream).await.map_err(failed)? {
        Answer::Ranges { size } if size == announced => {}
        Answer::Ranges { size: found } => return Err(RangeError::SizeMismatch { peer, announced, found }),
        Answer::NotFound => return Err(RangeError::NotFound { peer }),
        Answer::Busy => return Err(RangeError::Busy { peer }),
        Answer::OutOfRange => return Err(RangeError::OutOfRange { peer }),
    }

    let partial = partial.clone();
    let reader = SyncIoBridge::new(stream.into_inner());
    let absorbed = tokio::task::spawn_blocking(move || partial.absorb(reader, &request.ranges, |_| ())).await;
    match absorbed {
        Ok(Ok(())) => Ok(()),
        Ok(Err(AbsorbError::Store(error))) => Err(RangeError::Store(error)),
        Ok(Err(AbsorbError::Stream { source })) => Err(failed(source)),
        Ok(Err(error @ AbsorbError::Truncated { .. })) => Err(RangeError::Truncated { peer, what: error.to_string() }),
        Ok(Err(error @ AbsorbError::Mismatch { .. })) => Err(RangeError::Mismatch { peer, what: error.to_string() }),
        Err(error) => Err(RangeError::Connection { peer, what: error.to_string() }),
    }
}

async fn open(context: &Context, peer: PeerId) -> Result<(ConnectionId, Stream), RangeError> {
    let failed = |what: String| RangeError::Connection { peer, what };
    let (reply, answer) = oneshot::channel();
    let asked = context.reports.send(Report::Open { peer, reply }).await;
    asked.map_err(|_| failed("the network has stopped".to_owned()))?;
    match timeout(BLOB_OPEN_TIMEOUT + OPEN_GRACE, answer).await {
        Ok(Ok(opened)) => opened.map_err(|error| failed(error.to_string())),
        Ok(Err(_)) => Err(failed("the connection closed".to_owned())),
        Err(_) => Err(failed("no stream was opened in time".to_owned())),
    }
}

fn stream_error(peer: PeerId, connection: ConnectionId, error: io::Error) -> RangeError {
    let what = error.to_string();
    match error.kind() {
        io::ErrorKind::TimedOut => RangeError::Stalled { peer, connection, what },
        io::ErrorKind::UnexpectedEof => RangeError::Truncated { peer, what },
        io::ErrorKind::InvalidData => RangeError::Mismatch { peer, what },
        _ => RangeError::Connection { peer, what },
    }
}
