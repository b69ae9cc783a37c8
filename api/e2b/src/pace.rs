//! A connection that must not dawdle: once a request's first byte is there, its whole head must
//! follow in time. How long an HTTP/1 connection may rest between requests is hyper's own limit. An
//! HTTP/2 connection that rests is ended here: a client that only answers pings would keep its
//! place for ever. A connection that no key or token has made known rests no longer than a head may
//! take.

use crate::{Body, BodyError};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use hyper::{Response, Version};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// What a connection's reader and its requests tell each other.
#[derive(Debug, Default)]
pub(crate) struct ConnectionPace {
    requests: AtomicUsize,
    http2: AtomicBool,
    known: AtomicBool,
}

impl ConnectionPace {
    /// A key or token was accepted; whether it was known before.
    pub(crate) fn make_known(&self) -> bool {
        self.known.swap(true, Ordering::Relaxed)
    }

    /// Whether a request is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }
}

/// One request being answered, until its response is written or given up.
#[derive(Debug)]
pub(crate) struct BusyConnection(Arc<ConnectionPace>);

impl BusyConnection {
    pub(crate) fn begin(pace: &Arc<ConnectionPace>, version: Version) -> Self {
        if version == Version::HTTP_2 {
            // Its frames mix heads with everything else, and it has limits of its own.
            pace.http2.store(true, Ordering::Relaxed);
        }
        pace.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(pace))
    }

    /// Ends with the response's body.
    pub(crate) fn until_written(self, response: Response<Body>) -> Response<Body> {
        response.map(|inner| HeldConnection { inner, _busy: self }.boxed_unsync())
    }
}

impl Drop for BusyConnection {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

struct HeldConnection {
    inner: Body,
    _busy: BusyConnection,
}

impl hyper::body::Body for HeldConnection {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PaceLimits {
    /// For a head, and between requests that show no key or token.
    pub(crate) head: Duration,
    /// Between requests over HTTP/2.
    pub(crate) rest: Duration,
}

/// A stream that fails when it is over its limits.
#[derive(Debug)]
pub(crate) struct PacedStream<T> {
    inner: T,
    pace: Arc<ConnectionPace>,
    limits: PaceLimits,
    head: Option<Pin<Box<Sleep>>>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl<T> PacedStream<T> {
    pub(crate) fn new(inner: T, pace: Arc<ConnectionPace>, limits: PaceLimits) -> Self {
        // The first request must begin soon, too.
        Self {
            inner,
            pace,
            limits,
            head: Some(Box::pin(sleep(limits.head))),
            rest: None,
        }
    }

    /// Whether it has rested for too long. Whoever polls is woken when it has.
    fn has_rested(&mut self, known: bool, context: &mut Context<'_>) -> bool {
        let limit = if known {
            self.limits.rest
        } else {
            self.limits.head
        };
        let rest = self.rest.get_or_insert_with(|| Box::pin(sleep(limit)));
        rest.as_mut().poll(context).is_ready()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for PacedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let http2 = self.pace.http2.load(Ordering::Relaxed);
        let known = self.pace.known.load(Ordering::Relaxed);
        let busy = self.pace.is_busy();
        if busy {
            self.rest = None;
        } else if (http2 || !known) && self.has_rested(known, context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if http2 || busy {
            self.head = None;
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if read.is_ready() && buffer.filled().len() > before && self.head.is_none() {
            self.head = Some(Box::pin(sleep(self.limits.head)));
        }
        let late = self
            .head
            .as_mut()
            .is_some_and(|head| head.as_mut().poll(context).is_ready());
        if late {
            Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
        } else {
            read
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for PacedStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const BOUND: Duration = Duration::from_secs(10);
    const LIMITS: PaceLimits = PaceLimits {
        head: BOUND,
        rest: Duration::from_secs(100),
    };

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_that_only_answers_pings_is_cut_off() {
        let (mut client, server) = duplex(64);
        let pace = Arc::<ConnectionPace>::default();
        assert!(!pace.make_known());
        let mut server = PacedStream::new(server, Arc::clone(&pace), LIMITS);
        tokio::spawn(async move {
            loop {
                sleep(BOUND).await;
                if client.write_all(b"p").await.is_err() {
                    return;
                }
            }
        });
        let busy = BusyConnection::begin(&pace, Version::HTTP_2);
        let begin = tokio::time::Instant::now();
        while begin.elapsed() < LIMITS.rest * 3 {
            assert_eq!(server.read_u8().await.unwrap(), b'p');
        }
        drop(busy);
        let rested = tokio::time::Instant::now();
        let error = loop {
            match server.read_u8().await {
                Ok(byte) => assert_eq!(byte, b'p'),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(rested.elapsed() <= LIMITS.rest + BOUND);
        assert!(rested.elapsed() >= LIMITS.rest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_dribbles_is_cut_off() {
        let (mut client, server) = duplex(64);
        let mut server = PacedStream::new(server, Arc::default(), LIMITS);
        client.write_all(b"G").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'G');
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_shown_nothing_rests_no_longer_than_a_head_takes() {
        for known in [false, true] {
            let (client, server) = duplex(64);
            let pace = Arc::<ConnectionPace>::default();
            let mut server = PacedStream::new(server, Arc::clone(&pace), LIMITS);
            drop(BusyConnection::begin(&pace, Version::HTTP_2));
            if known {
                pace.make_known();
            }
            let begin = tokio::time::Instant::now();
            server.read_u8().await.unwrap_err();
            let limit = if known { LIMITS.rest } else { LIMITS.head };
            assert!(begin.elapsed() >= limit && begin.elapsed() < limit + BOUND);
            drop(client);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_its_time_and_the_next_head_may_not() {
        let (mut client, server) = duplex(64);
        let pace = Arc::<ConnectionPace>::default();
        pace.make_known();
        let mut server = PacedStream::new(server, Arc::clone(&pace), LIMITS);
        let busy = BusyConnection::begin(&pace, Version::HTTP_11);
        let writer = tokio::spawn(async move {
            sleep(BOUND * 10).await;
            client.write_all(b"a").await.unwrap();
            sleep(BOUND * 10).await;
            client.write_all(b"b").await.unwrap();
            client
        });
        assert_eq!(server.read_u8().await.unwrap(), b'a');
        drop(busy);
        // Rest between requests is not this type's business; from the first byte on it is.
        assert_eq!(server.read_u8().await.unwrap(), b'b');
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(writer.await.unwrap());
    }
}
