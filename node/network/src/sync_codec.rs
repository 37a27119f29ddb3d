//! Sync messages on the wire: a length, then that many opaque bytes. The length is refused before it is believed.
//!
//! An answer may instead be the length `BUSY` with nothing behind it: ask again later. Requests that are being read share
//! one bounded memory, and their bytes must keep coming, so that many strangers cannot fill it with promises.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::limits::{SYNC_READING_KIB_MAX, SYNC_REQUEST_BYTES_MAX, SYNC_RESPONSE_BYTES_MAX, SYNC_STEP_TIMEOUT};

pub const SYNC_PROTOCOL: StreamProtocol = StreamProtocol::new("/mingle/sync/2");

/// In place of an answer's length: no answer now.
const BUSY: u32 = u32::MAX;
/// 64 KiB: memory grows with what has arrived, not with what was promised.
const READ_BYTES: usize = 64 * 1024;

/// What is asked. The length that is refused is told like a request, for libp2p keeps to itself that reading one failed,
/// and who sent it is to be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    Bytes(Vec<u8>),
    /// A promise of more bytes than a request may have; none were read.
    TooLong(u32),
}

/// What comes back for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Bytes(Vec<u8>),
    /// Asked too much or too often; nothing was looked up.
    Busy,
}

#[derive(Clone)]
pub struct SyncCodec {
    /// KiB that requests of all connections may still take while they are read.
    reading: Arc<Semaphore>,
    step: Duration,
}

impl SyncCodec {
    pub fn new() -> Self {
        Self { reading: Arc::new(Semaphore::new(SYNC_READING_KIB_MAX)), step: SYNC_STEP_TIMEOUT }
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

async fn read_length(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<u32> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    Ok(u32::from_le_bytes(length))
}

/// Reads `length` bytes; what they take comes out of `budget` while they are read.
async fn read_body(
    io: &mut (impl AsyncRead + Unpin + Send),
    length: u32,
    max: usize,
    step: Duration,
    budget: Option<&Arc<Semaphore>>,
) -> io::Result<Vec<u8>> {
    let length = length as usize;
    if length > max {
        return Err(refused(format!("a sync message of {length} bytes is refused: at most {max} bytes are allowed")));
    }
    let mut bytes = Vec::new();
    let mut held: Vec<OwnedSemaphorePermit> = Vec::new();
    while bytes.len() < length {
        let from = bytes.len();
        let to = (from + READ_BYTES).min(length);
        if let Some(budget) = budget {
            let kib = u32::try_from((to - from).div_ceil(1024)).unwrap_or(u32::MAX);
            let full = |_| io::Error::new(io::ErrorKind::WouldBlock, "too many sync requests are being read at once");
            held.push(budget.clone().try_acquire_many_owned(kib).map_err(full)?);
        }
        bytes.resize(to, 0);
        let part = io.read_exact(bytes.get_mut(from..).unwrap_or_default());
        timeout(step, part).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    Ok(bytes)
}

async fn write(io: &mut (impl AsyncWrite + Unpin + Send), bytes: &[u8], max: usize) -> io::Result<()> {
    // The handle refused larger ones already; a wrong length must not go out.
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= max);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the sync message is too large"))?;
    io.write_all(&length.to_le_bytes()).await?;
    io.write_all(bytes).await?;
    io.flush().await
}

impl request_response::Codec for SyncCodec {
    type Protocol = StreamProtocol;
    type Request = Question;
    type Response = Answer;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Question>
    where
        T: AsyncRead + Unpin + Send,
    {
        match read_length(io).await? {
            length if length as usize > SYNC_REQUEST_BYTES_MAX => Ok(Question::TooLong(length)),
            length => Ok(Question::Bytes(read_body(io, length, SYNC_REQUEST_BYTES_MAX, self.step, Some(&self.reading)).await?)),
        }
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Answer>
    where
        T: AsyncRead + Unpin + Send,
    {
        match read_length(io).await? {
            BUSY => Ok(Answer::Busy),
            // Only what we asked for is read here, so what we ask bounds it.
            length => Ok(Answer::Bytes(read_body(io, length, SYNC_RESPONSE_BYTES_MAX, self.step, None).await?)),
        }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, question: Question) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match question {
            Question::Bytes(bytes) => write(io, &bytes, SYNC_REQUEST_BYTES_MAX).await,
            Question::TooLong(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "a question is sent with its bytes")),
        }
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, answer: Answer) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        match answer {
            Answer::Bytes(bytes) => write(io, &bytes, SYNC_RESPONSE_BYTES_MAX).await,
            Answer::Busy => {
                io.write_all(&BUSY.to_le_bytes()).await?;
                io.flush().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use request_response::Codec;

    use super::*;

    async fn request(codec: &mut SyncCodec, wire: &[u8]) -> io::Result<Vec<u8>> {
        match codec.read_request(&SYNC_PROTOCOL, &mut &*wire).await? {
            Question::Bytes(bytes) => Ok(bytes),
            Question::TooLong(length) => Err(refused(format!("{length} bytes"))),
        }
    }

    #[tokio::test]
    async fn a_message_survives_and_a_promise_beyond_the_bound_is_refused() {
        let mut codec = SyncCodec::new();
        let message = vec![9; SYNC_REQUEST_BYTES_MAX];
        let mut wire = Vec::new();
        codec.write_request(&SYNC_PROTOCOL, &mut wire, Question::Bytes(message.clone())).await.unwrap();
        assert_eq!(request(&mut codec, &wire).await.unwrap(), message);
        let more = u32::try_from(SYNC_REQUEST_BYTES_MAX + 1).unwrap().to_le_bytes();
        // One byte too many, and five bytes that promise 4 GiB.
        for promise in [[more.as_slice(), &message, &[0]].concat(), vec![255; 5]] {
            assert_eq!(request(&mut codec, &promise).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert!(request(&mut codec, &wire[..100]).await.is_err());
        assert_eq!(codec.reading.available_permits(), SYNC_READING_KIB_MAX, "what was read or refused holds nothing");
    }

    #[tokio::test]
    async fn an_answer_may_be_that_there_is_none_now() {
        let mut codec = SyncCodec::new();
        for answer in [Answer::Busy, Answer::Bytes(Vec::new()), Answer::Bytes(vec![7; 100_000])] {
            let mut wire = Vec::new();
            codec.write_response(&SYNC_PROTOCOL, &mut wire, answer.clone()).await.unwrap();
            assert_eq!(codec.read_response(&SYNC_PROTOCOL, &mut wire.as_slice()).await.unwrap(), answer);
        }
        assert!(codec.read_response(&SYNC_PROTOCOL, &mut [254, 255, 255, 255, 1].as_slice()).await.is_err());
    }

    #[tokio::test]
    async fn requests_share_one_memory_and_must_keep_coming() {
        let mut codec = SyncCodec { step: Duration::from_millis(20), ..SyncCodec::new() };
        // A promise whose bytes never come.
        let promise = u32::try_from(SYNC_REQUEST_BYTES_MAX).unwrap().to_le_bytes();
        let (ours, theirs) = tokio::io::duplex(64);
        let mut ours = tokio_util::compat::TokioAsyncReadCompatExt::compat(ours);
        let mut theirs = tokio_util::compat::TokioAsyncReadCompatExt::compat(theirs);
        theirs.write_all(&promise).await.unwrap();
        let late = codec.read_request(&SYNC_PROTOCOL, &mut ours).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        // The memory is taken by others.
        let _others = codec.reading.clone().try_acquire_many_owned(SYNC_READING_KIB_MAX as u32 - 1).unwrap();
        let wire = [2048_u32.to_le_bytes().to_vec(), vec![1; 2048]].concat();
        assert_eq!(request(&mut codec, &wire).await.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let small = [1024_u32.to_le_bytes().to_vec(), vec![1; 1024]].concat();
        assert!(request(&mut codec, &small).await.is_ok());
    }
}
