//! A round's file on the wire: who asks names the round by its identity, and gets the file or nothing.
//!
//! Both lengths are refused before they are believed, and memory grows with what has arrived.

use std::io;
use std::sync::Arc;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{StreamProtocol, request_response};
use mingle_protocol::round::{MANIFEST_BYTES_MAX, RoundId};

pub const ROUND_PROTOCOL: StreamProtocol = StreamProtocol::new("/mingle/round/1");

/// Where the answerer does not know the round.
const UNKNOWN: u32 = 0;
const READ_BYTES: usize = 64 * 1024;

#[derive(Clone, Default)]
pub struct RoundCodec;

impl request_response::Codec for RoundCodec {
    type Protocol = StreamProtocol;
    type Request = RoundId;
    /// The round file, where it is known.
    type Response = Option<Arc<[u8]>>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<RoundId>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut round = RoundId::default();
        io.read_exact(&mut round.0.0).await?;
        Ok(round)
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Self::Response>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut length = [0; 4];
        io.read_exact(&mut length).await?;
        let length = match u32::from_le_bytes(length) {
            UNKNOWN => return Ok(None),
            length => length as usize,
        };
        if length > MANIFEST_BYTES_MAX {
            let why = format!("a round file of {length} bytes is refused: at most {MANIFEST_BYTES_MAX} bytes are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let from = bytes.len();
            bytes.resize((from + READ_BYTES).min(length), 0);
            io.read_exact(bytes.get_mut(from..).unwrap_or_default()).await?;
        }
        Ok(Some(bytes.into()))
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, round: RoundId) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&round.0.0).await?;
        io.flush().await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, file: Self::Response) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let file = file.unwrap_or_default();
        // Larger ones were never offered.
        let length = u32::try_from(file.len()).unwrap_or(UNKNOWN);
        io.write_all(&length.to_le_bytes()).await?;
        io.write_all(&file).await?;
        io.flush().await
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use libp2p::request_response::Codec;

    use super::*;

    fn read(wire: &[u8]) -> io::Result<Option<Arc<[u8]>>> {
        block_on(RoundCodec.read_response(&ROUND_PROTOCOL, &mut &*wire))
    }

    #[test]
    fn a_file_survives_and_a_promise_beyond_the_bound_is_refused() {
        for file in [None, Some(vec![7; 1]), Some(vec![9; MANIFEST_BYTES_MAX])] {
            let file: Option<Arc<[u8]>> = file.map(Into::into);
            let mut wire = Vec::new();
            block_on(RoundCodec.write_response(&ROUND_PROTOCOL, &mut wire, file.clone())).unwrap();
            assert!(read(&wire).unwrap() == file);
            assert!(read(&wire[..wire.len() - 1]).is_err());
        }
        let promised = u32::try_from(MANIFEST_BYTES_MAX + 1).unwrap().to_le_bytes();
        assert_eq!(read(&promised).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
