//! A stream that ends when no byte has gone either way for too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A stream with a limit to its rest; there is none to its whole time.
#[derive(Debug)]
pub(super) struct IdleStream<T> {
    inner: T,
    limit: Duration,
    /// When the last byte went either way.
    last: Instant,
    rest: Pin<Box<Sleep>>,
}

impl<T> IdleStream<T> {
    pub(super) fn new(inner: T, limit: Duration) -> Self {
        let (last, rest) = (Instant::now(), Box::pin(sleep(limit)));
        Self {
            inner,
            limit,
            last,
            rest,
        }
    }

    /// Of a read or write that has to wait: an error once all has rested for too long. Whoever
    /// waits is woken then.
    fn waited<U>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<U>> {
        while self.rest.as_mut().poll(context).is_ready() {
            let until = self.last + self.limit;
            if Instant::now() >= until {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.rest.as_mut().reset(until);
        }
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for IdleStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if read.is_pending() {
            return self.waited(context);
        }
        self.last = Instant::now();
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for IdleStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        if written.is_pending() {
            return self.waited(context);
        }
        self.last = Instant::now();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const LIMIT: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn bytes_now_and_then_keep_a_stream_for_ever_and_silence_ends_it() {
        let (mut program, stream) = duplex(64);
        let mut stream = IdleStream::new(stream, LIMIT);
        for _ in 0..100 {
            tokio::time::advance(LIMIT - Duration::from_secs(1)).await;
            program.write_u8(7).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), 7);
            // What is written counts as well.
            tokio::time::advance(LIMIT - Duration::from_secs(1)).await;
            stream.write_u8(8).await.unwrap();
            assert_eq!(program.read_u8().await.unwrap(), 8);
        }
        let begin = Instant::now();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= LIMIT && begin.elapsed() < LIMIT * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_takes_nothing_is_given_up() {
        let (_program, stream) = duplex(64);
        let mut stream = IdleStream::new(stream, LIMIT);
        let error = stream.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
