//! What lies below and above a TCP connection's encryption: large reads of the socket, and frames gathered into whole records.
//!
//! TLS asks its socket for 4 KiB at a time, and the multiplexer hands over a header of twelve bytes, then a frame, and flushes
//! after each: a record and a system call for every one of them. Here the socket is read as far as it will give, and a flush
//! lets whatever is written in the same breath go along. Nothing waits for a timer: the breath ends when the task that
//! writes has nothing more to write.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite, FutureExt, TryFutureExt};
use libp2p::PeerId;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};

/// The first read of a connection; while what comes fills them, they double.
const READ_BYTES_MIN: usize = 8 << 10;
const READ_BYTES_MAX: usize = 64 << 10;
/// What is gathered before it is encrypted: four whole records, as much as TLS takes at once.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// An encryption with buffers on both sides of it.
#[derive(Clone)]
pub struct Buffered<U>(pub U);

impl<U: UpgradeInfo> UpgradeInfo for Buffered<U> {
    type Info = U::Info;
    type InfoIter = U::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

type Upgrading<S, E> = futures::future::BoxFuture<'static, Result<(PeerId, Gathered<S>), E>>;

impl<C, S, U> InboundConnectionUpgrade<C> for Buffered<U>
where
    U: InboundConnectionUpgrade<ReadAhead<C>, Output = (PeerId, S), Future: Send + 'static>,
    U::Error: 'static,
    S: 'static,
{
    type Output = (PeerId, Gathered<S>);
    type Error = U::Error;
    type Future = Upgrading<S, U::Error>;

    fn upgrade_inbound(self, socket: C, info: U::Info) -> Self::Future {
        self.0.upgrade_inbound(ReadAhead::new(socket), info).map_ok(|(peer, stream)| (peer, Gathered::new(stream))).boxed()
    }
}

impl<C, S, U> OutboundConnectionUpgrade<C> for Buffered<U>
where
    U: OutboundConnectionUpgrade<ReadAhead<C>, Output = (PeerId, S), Future: Send + 'static>,
    U::Error: 'static,
    S: 'static,
{
    type Output = (PeerId, Gathered<S>);
    type Error = U::Error;
    type Future = Upgrading<S, U::Error>;

    fn upgrade_outbound(self, socket: C, info: U::Info) -> Self::Future {
        self.0.upgrade_outbound(ReadAhead::new(socket), info).map_ok(|(peer, stream)| (peer, Gathered::new(stream))).boxed()
    }
}

/// Reads the socket in large pieces, larger ones while it fills them.
pub struct ReadAhead<C> {
    inner: C,
    buffer: Vec<u8>,
    from: usize,
    to: usize,
}

impl<C> ReadAhead<C> {
    fn new(inner: C) -> Self {
        Self { inner, buffer: Vec::new(), from: 0, to: 0 }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for ReadAhead<C> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.from == this.to {
            if this.to == this.buffer.len() {
                let size = (this.buffer.len() * 2).clamp(READ_BYTES_MIN, READ_BYTES_MAX);
                this.buffer.resize(size, 0);
            }
            (this.from, this.to) = (0, 0);
            this.to = ready!(Pin::new(&mut this.inner).poll_read(context, &mut this.buffer))?;
        }
        let read = into.len().min(this.to - this.from);
        into[..read].copy_from_slice(&this.buffer[this.from..this.from + read]);
        this.from += read;
        Poll::Ready(Ok(read))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for ReadAhead<C> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

/// Gathers what is written until a flush that follows no further write.
pub struct Gathered<S> {
    inner: S,
    buffer: Vec<u8>,
    /// How much of the buffer the encryption has taken.
    taken: usize,
    /// Whether something was written since the last flush was asked for.
    written: bool,
}

impl<S> Gathered<S> {
    fn new(inner: S) -> Self {
        Self { inner, buffer: Vec::new(), taken: 0, written: false }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.buffer.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(context, &self.buffer[self.taken..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                taken => self.taken += taken,
            }
        }
        self.taken = 0;
        self.buffer.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_drain_and_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        // A silent connection keeps nothing.
        self.buffer = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.buffer.len() == WRITE_BYTES_MAX {
            ready!(this.poll_drain(context))?;
        }
        let length = bytes.len().min(WRITE_BYTES_MAX - this.buffer.len());
        this.buffer.extend_from_slice(&bytes[..length]);
        this.written = true;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.written) && this.buffer.len() < WRITE_BYTES_MAX {
            // Asked again at once, and flushed then if nothing more was written meanwhile.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.poll_drain_and_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain_and_flush(context))?;
        Pin::new(&mut this.inner).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::task::{ArcWake, waker};
    use futures::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A socket that gives and takes at most `step` bytes at a time, and nothing at all while it is `blocked`.
    #[derive(Default)]
    struct Socket {
        brings: Vec<u8>,
        took: Vec<u8>,
        calls: usize,
        flushes: usize,
        step: usize,
        blocked: bool,
    }

    impl AsyncRead for Socket {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
            self.calls += 1;
            let read = into.len().min(self.step).min(self.brings.len());
            into[..read].copy_from_slice(&self.brings[..read]);
            self.brings.drain(..read);
            Poll::Ready(Ok(read))
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            if self.blocked {
                return Poll::Pending;
            }
            self.calls += 1;
            let taken = bytes.len().min(self.step);
            self.took.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl ArcWake for Woken {
        fn wake_by_ref(woken: &Arc<Self>) {
            woken.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|place| (place * 7 % 251) as u8).collect()
    }

    #[test]
    fn what_the_socket_brings_is_read_in_few_large_pieces() {
        let sent = bytes(1 << 20);
        let mut ahead = ReadAhead::new(Socket { brings: sent.clone(), step: usize::MAX, ..Socket::default() });
        let mut read = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match futures::executor::block_on(ahead.read(&mut piece)).unwrap() {
                0 => break,
                count => read.extend_from_slice(&piece[..count]),
            }
        }
        assert!(read == sent);
        // 16 of 64 KiB, the few smaller ones at first, and the end.
        assert!(ahead.inner.calls <= 21, "{} reads", ahead.inner.calls);
        assert_eq!(ahead.buffer.len(), READ_BYTES_MAX);
    }

    #[test]
    fn frames_of_one_breath_go_together_and_the_last_flush_sends_them() {
        let woken = Arc::new(Woken::default());
        let waker = waker(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut gathered = Gathered::new(Socket { step: usize::MAX, ..Socket::default() });
        let mut sent = Vec::new();
        // As yamux does: a header, a frame, a flush it does not wait for, and on with the next.
        for frame in 1..=3 {
            for part in [bytes(12), bytes(frame * 1000)] {
                assert!(matches!(Pin::new(&mut gathered).poll_write(&mut context, &part), Poll::Ready(Ok(taken)) if taken == part.len()));
                sent.extend(part);
            }
            assert!(Pin::new(&mut gathered).poll_flush(&mut context).is_pending());
        }
        assert_eq!(gathered.inner.calls, 0);
        // Whoever was told to wait is woken, so nothing stays behind.
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
        assert!(Pin::new(&mut gathered).poll_flush(&mut context).is_ready());
        assert!(gathered.inner.took == sent);
        assert_eq!((gathered.inner.calls, gathered.inner.flushes, gathered.buffer.capacity()), (1, 1, 0));
    }

    #[test]
    fn a_socket_that_takes_little_gets_everything_in_order_and_no_more_is_held_than_the_bound() {
        let sent = bytes(300_000);
        let mut gathered = Gathered::new(Socket { step: 777, ..Socket::default() });
        futures::executor::block_on(gathered.write_all(&sent[..200_000])).unwrap();
        assert!(gathered.buffer.len() <= WRITE_BYTES_MAX && gathered.inner.took.len() >= 200_000 - WRITE_BYTES_MAX);
        gathered.inner.blocked = true;
        let waker = futures::task::noop_waker();
        let mut context = Context::from_waker(&waker);
        let mut held = 200_000;
        while let Poll::Ready(taken) = Pin::new(&mut gathered).poll_write(&mut context, &sent[held..]) {
            held += taken.unwrap();
        }
        assert_eq!(gathered.buffer.len(), WRITE_BYTES_MAX);
        gathered.inner.blocked = false;
        futures::executor::block_on(gathered.write_all(&sent[held..])).unwrap();
        futures::executor::block_on(gathered.close()).unwrap();
        assert!(gathered.inner.took == sent);
    }
}
