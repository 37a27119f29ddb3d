//! Sync messages on the wire: a length, then that many opaque bytes. The length is refused before it is believed.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};

use super::limits::{SYNC_REQUEST_BYTES_MAX, SYNC_RESPONSE_BYTES_MAX};

pub const SYNC_PROTOCOL: StreamProtocol = StreamProtocol::new("/mingle/sync/2");

/// 64 KiB: memory grows with what has arrived, not with what was promised.
const READ_BYTES: usize = 64 * 1024;

#[derive(Clone, Default)]
pub struct SyncCodec;

async fn read(io: &mut (impl AsyncRead + Unpin + Send), max: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    io.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > max {
        let what = format!("a sync message of {length} bytes is refused: at most {max} bytes are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let from = bytes.len();
        bytes.resize((from + READ_BYTES).min(length), 0);
        io.read_exact(bytes.get_mut(from..).unwrap_or_default()).await?;
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
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, SYNC_REQUEST_BYTES_MAX).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, SYNC_RESPONSE_BYTES_MAX).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &bytes, SYNC_REQUEST_BYTES_MAX).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &bytes, SYNC_RESPONSE_BYTES_MAX).await
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    #[test]
    fn a_message_survives_and_a_promise_beyond_the_bound_is_refused() {
        let message = vec![9; SYNC_REQUEST_BYTES_MAX];
        let mut wire = Vec::new();
        block_on(write(&mut wire, &message, SYNC_REQUEST_BYTES_MAX)).unwrap();
        assert_eq!(block_on(read(&mut wire.as_slice(), SYNC_REQUEST_BYTES_MAX)).unwrap(), message);
        assert!(block_on(read(&mut wire.as_slice(), SYNC_REQUEST_BYTES_MAX - 1)).is_err());
        // Five bytes that promise 4 GiB.
        let error = block_on(read(&mut [255; 5].as_slice(), SYNC_RESPONSE_BYTES_MAX)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(block_on(read(&mut wire[..100].as_ref(), SYNC_REQUEST_BYTES_MAX)).is_err());
    }
}
