//! A stream with a watchdog: it fails when the other side does not move, or when we stop.
//!
//! Only time spent waiting for the other side counts, so a slow disk or a busy processor of our own is nobody's fault. Nor
//! is a stream to blame that waits while others of its connection move the same way: they share a slow line, and to give
//! it up would lose what is on its way and load the line with it once more.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::limits::STALL_BYTES_MIN;
use super::traffic::Line;

pub struct Watched<S> {
    stream: S,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    alarm: Pin<Box<Sleep>>,
    window: Duration,
    /// Since the window began: bytes moved, time waited, and when the wait under way began.
    moved: u64,
    waited: Duration,
    waiting_since: Option<Instant>,
    /// Nothing is expected of the other side.
    resting: bool,
    line: Option<Arc<Line>>,
    /// What the connection had moved when the window began.
    line_moved: u64,
}

impl<S> Watched<S> {
    /// Allows `window` of waiting for every `STALL_BYTES_MIN` bytes; `stop` ends it at once.
    pub fn new(stream: S, window: Duration, stop: &CancellationToken) -> Self {
        Self {
            stream,
            stopped: Box::pin(stop.clone().cancelled_owned()),
            alarm: Box::pin(sleep(window)),
            window,
            moved: 0,
            waited: Duration::ZERO,
            waiting_since: None,
            resting: false,
            line: None,
            line_moved: 0,
        }
    }

    /// The connection that it shares with other streams.
    pub fn on(self, line: Arc<Line>) -> Self {
        Self { line: Some(line), ..self }
    }

    /// While nothing is expected of the other side, it may be silent as long as it likes.
    pub fn rest(&mut self, resting: bool) {
        if self.resting != resting {
            self.resting = resting;
            self.pardon();
        }
    }

    /// The window begins anew.
    pub fn pardon(&mut self) {
        (self.moved, self.waited, self.waiting_since) = (0, Duration::ZERO, None);
    }

    fn begin_waiting(&mut self, line_moves: u64) {
        let now = Instant::now();
        if self.waited.is_zero() {
            self.line_moved = line_moves;
        }
        self.waiting_since = Some(now);
        self.alarm.as_mut().reset(now + self.window.saturating_sub(self.waited));
    }

    /// `way` says what of the line counts.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
        way: fn(&Line) -> u64,
        count: impl Fn(&T) -> u64,
    ) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(outcome) => {
                if let Some(since) = self.waiting_since.take() {
                    self.waited += since.elapsed();
                }
                self.moved += outcome.as_ref().map_or(0, count);
                if self.moved >= STALL_BYTES_MIN {
                    (self.moved, self.waited) = (0, Duration::ZERO);
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => {
                if self.stopped.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "we stopped")));
                }
                if self.resting {
                    return Poll::Pending;
                }
                let line_moves = self.line.as_deref().map_or(0, way);
                if self.waiting_since.is_none() {
                    self.begin_waiting(line_moves);
                }
                ready!(self.alarm.as_mut().poll(cx));
                if line_moves.saturating_sub(self.line_moved) >= STALL_BYTES_MIN {
                    self.pardon();
                    self.begin_waiting(line_moves);
                    // Not due yet: it will wake us.
                    ready!(self.alarm.as_mut().poll(cx));
                }
                let what = format!("fewer than {STALL_BYTES_MIN} bytes moved in {:?}", self.window);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let read = (buffer.filled().len() - before) as u64;
        this.watch(cx, outcome, Line::read, |()| read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let outcome = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch(cx, outcome, Line::written, |written| *written as u64)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch(cx, outcome, Line::written, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let outcome = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.watch(cx, outcome, Line::written, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const WINDOW: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_silent_or_trickling_sender_is_given_up() {
        for trickle in [false, true] {
            let (mut far, near) = duplex(1024);
            let sender = tokio::spawn(async move {
                while trickle && far.write_all(&[0]).await.is_ok() {
                    sleep(WINDOW / 10).await;
                }
                sleep(WINDOW * 10).await;
            });
            let mut near = Watched::new(near, WINDOW, &CancellationToken::new());
            let began = Instant::now();
            let error = near.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(began.elapsed() < WINDOW * 4);
            sender.abort();
        }
    }

    #[tokio::test]
    async fn who_shares_a_line_that_moves_is_given_up_only_when_the_line_stops() {
        let line = Arc::new(Line::default());
        let (_far, near) = duplex(1024);
        let mut near = Watched::new(near, WINDOW, &CancellationToken::new()).on(line.clone());
        let began = Instant::now();
        let moving = tokio::spawn(async move {
            for _ in 0..20 {
                sleep(WINDOW / 4).await;
                line.reads(STALL_BYTES_MIN);
            }
        });
        let error = near.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(moving.is_finished() && began.elapsed() < WINDOW * 20, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn our_own_pauses_do_not_count() {
        let (mut far, near) = duplex(1024);
        let mut near = Watched::new(near, WINDOW, &CancellationToken::new());
        for _ in 0..3 {
            far.write_all(&[1; 100]).await.unwrap();
            sleep(WINDOW / 2).await; // Ours: the bytes were there all the time.
            near.read_exact(&mut [0; 100]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_rest_is_not_a_stall_and_its_end_begins_a_new_window() {
        let (_far, near) = duplex(1024);
        let mut near = Watched::new(near, WINDOW, &CancellationToken::new());
        near.rest(true);
        assert!(tokio::time::timeout(WINDOW * 3, near.read_u8()).await.is_err());
        near.rest(false);
        let began = Instant::now();
        assert_eq!(near.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= WINDOW * 9 / 10);
    }

    #[tokio::test]
    async fn stopping_ends_a_wait_at_once() {
        let (_far, near) = duplex(1024);
        let stop = CancellationToken::new();
        let mut near = Watched::new(near, Duration::from_secs(60), &stop);
        tokio::spawn(async move { stop.cancel() });
        let error = near.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
