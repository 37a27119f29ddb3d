//! Connections with bounds: so many at once, and none that stays silent.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Accepts so many connections at once; more wait in the system's queue.
pub struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    silence: Duration,
}

impl Bounded {
    /// A connection over which nothing went in either direction for as long as `silence` is closed.
    pub fn new(listener: TcpListener, connections_max: usize, silence: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections_max)), silence }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // It is never closed; without a place nothing would be accepted any more.
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let _ = stream.set_nodelay(true);
        (Connection { stream, _place: place, silence: self.silence, ends: Box::pin(sleep(self.silence)) }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection, which fails when it was silent for too long.
pub struct Connection {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
    silence: Duration,
    ends: Pin<Box<Sleep>>,
}

impl Connection {
    /// Counts the silence from now on if something went through, and otherwise says when there was too much of it.
    fn watch<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.ends.as_mut().reset(Instant::now() + self.silence);
            return polled;
        }
        self.ends.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.watch(context, polled)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, polled)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn bounded(places: usize, silence: Duration) -> Bounded {
        Bounded::new(TcpListener::bind("127.0.0.1:0").await.expect("a port"), places, silence)
    }

    #[tokio::test]
    async fn who_says_nothing_loses_its_place() {
        let mut listener = bounded(1, Duration::from_millis(200)).await;
        let address = listener.local_addr().expect("an address");
        let mut talks = TcpStream::connect(address).await.expect("connected");
        let (mut first, _) = listener.accept().await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(120)).await;
            talks.write_all(b"x").await.expect("sent");
            assert_eq!(first.read_u8().await.expect("read"), b'x');
        }
        let _waits = TcpStream::connect(address).await.expect("connected");
        assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err(), "there is one place");
        assert_eq!(first.read_u8().await.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        drop(first);
        listener.accept().await;
    }

    #[tokio::test]
    async fn who_takes_nothing_is_cut_too() {
        let mut listener = bounded(1, Duration::from_millis(200)).await;
        let _deaf = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let (mut connection, _) = listener.accept().await;
        let piece = vec![0; 1 << 20];
        let failed = loop {
            if let Err(error) = connection.write_all(&piece).await {
                break error;
            }
        };
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
    }
}
