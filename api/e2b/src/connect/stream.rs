//! The response body of a server stream: frames from a bounded channel, keep-alives between them,
//! a deadline over them.

use crate::connect::{ConnectCode, ConnectError, envelope};
use crate::{Body, BodyError};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::{Response, header};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

/// What the producer of a stream sends.
#[derive(Debug)]
pub enum StreamItem {
    /// One sealed envelope.
    Frame(Bytes),
    /// The last sealed envelope of a stream that ends well: both leave in one piece.
    Last(Bytes),
    /// The stream is over; nothing follows.
    End(Result<(), ConnectError>),
    /// Drop the connection without a word: the sandbox is gone (api/PROTOCOL.md §7.6).
    Abort(BodyError),
}

/// How a stream behaves in time.
#[derive(Debug, Default)]
pub struct StreamTiming {
    /// Send this envelope after that much silence.
    pub keepalive: Option<(Duration, Bytes)>,
    /// End with `deadline_exceeded` at that instant.
    pub deadline: Option<Instant>,
}

/// The body, of what its producer sends in whatever form. Dropping it (the client left) closes the
/// channel, which the producer sees.
#[derive(Debug)]
pub struct StreamBody<T> {
    items: mpsc::Receiver<T>,
    encode: fn(T) -> StreamItem,
    keepalive: Option<(Duration, Bytes, Pin<Box<Sleep>>)>,
    deadline: Option<Pin<Box<Sleep>>>,
    done: bool,
}

impl<T> StreamBody<T> {
    /// A body fed by `items`, each turned into an item of the stream by `encode`.
    #[must_use]
    pub fn new(
        items: mpsc::Receiver<T>,
        encode: fn(T) -> StreamItem,
        timing: StreamTiming,
    ) -> Self {
        let keepalive = timing.keepalive.map(|(period, frame)| {
            (
                period,
                frame,
                Box::pin(sleep_until(later(Instant::now(), period))),
            )
        });
        let deadline = timing.deadline.map(|at| Box::pin(sleep_until(at)));
        Self {
            items,
            encode,
            keepalive,
            deadline,
            done: false,
        }
    }

    fn last(&mut self, result: Result<(), &ConnectError>) -> Bytes {
        self.done = true;
        self.items.close();
        envelope::end(result)
    }

    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        // First, so that a process killed at its deadline is reported as late, not as killed.
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            let error =
                ConnectError::new(ConnectCode::DeadlineExceeded, "context deadline exceeded");
            return Poll::Ready(Some(Ok(self.last(Err(&error)))));
        }
        match self
            .items
            .poll_recv(context)
            .map(|item| item.map(self.encode))
        {
            Poll::Ready(Some(StreamItem::Frame(frame))) => {
                self.push_keepalive();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(StreamItem::Last(frame))) => {
                let mut bytes = Vec::from(frame);
                bytes.extend_from_slice(&self.last(Ok(())));
                Poll::Ready(Some(Ok(bytes.into())))
            }
            Poll::Ready(Some(StreamItem::End(result))) => {
                Poll::Ready(Some(Ok(self.last(result.as_ref().map(|&()| ())))))
            }
            Poll::Ready(Some(StreamItem::Abort(why))) => {
                self.done = true;
                Poll::Ready(Some(Err(why)))
            }
            Poll::Ready(None) => {
                self.done = true;
                Poll::Ready(Some(Err("the producer of the stream is gone".into())))
            }
            Poll::Pending => self.poll_keepalive(context),
        }
    }

    fn poll_keepalive(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BodyError>>> {
        let Some((_, frame, sleep)) = &mut self.keepalive else {
            return Poll::Pending;
        };
        if sleep.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let frame = frame.clone();
        self.push_keepalive();
        Poll::Ready(Some(Ok(frame)))
    }

    fn push_keepalive(&mut self) {
        if let Some((period, _, sleep)) = &mut self.keepalive {
            sleep.as_mut().reset(later(Instant::now(), *period));
        }
    }
}

/// `start + by`, or a month later when that is past what a clock can hold.
pub(crate) fn later(start: Instant, by: Duration) -> Instant {
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
    start + by.min(MONTH)
}

impl<T> hyper::body::Body for StreamBody<T> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.get_mut().poll_bytes(context).map_ok(Frame::data)
    }
}

/// The 200 response of a stream with this body.
#[must_use]
pub fn response<T: Send + 'static>(body: StreamBody<T>) -> Response<Body> {
    sealed(body.boxed_unsync())
}

/// The 200 response of a stream that is over before it began. Stream errors are never HTTP errors:
/// the JavaScript SDK would discard their text (api/PROTOCOL.md §7.4).
#[must_use]
pub fn finished(message: Option<Bytes>, result: Result<(), &ConnectError>) -> Response<Body> {
    let mut bytes = message.map(Vec::from).unwrap_or_default();
    bytes.extend_from_slice(&envelope::end(result));
    sealed(crate::body::full(bytes))
}

fn sealed(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(crate::connect::STREAM_TYPE),
    );
    headers.insert(
        header::CACHE_CONTROL,
        header::HeaderValue::from_static("no-store"),
    );
    response
}

#[cfg(test)]
mod test {
    use super::*;

    fn as_is(item: StreamItem) -> StreamItem {
        item
    }

    async fn rest(mut body: StreamBody<StreamItem>) -> (Vec<Bytes>, bool) {
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => frames.push(frame.into_data().unwrap()),
                Err(_) => return (frames, true),
            }
        }
        (frames, false)
    }

    #[tokio::test(start_paused = true)]
    async fn keepalives_fill_silence_and_data_resets_them() {
        let (sender, items) = mpsc::channel(1);
        let ping = Bytes::from_static(b"ping");
        let timing = StreamTiming {
            keepalive: Some((Duration::from_secs(10), ping.clone())),
            deadline: None,
        };
        let body = tokio::spawn(rest(StreamBody::new(items, as_is, timing)));
        tokio::time::sleep(Duration::from_secs(9)).await;
        sender
            .send(StreamItem::Frame(Bytes::from_static(b"data")))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(15)).await;
        sender.send(StreamItem::End(Ok(()))).await.unwrap();
        let (frames, broken) = body.await.unwrap();
        assert_eq!(
            frames,
            [Bytes::from_static(b"data"), ping, envelope::end(Ok(()))]
        );
        assert!(!broken);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_the_stream_with_its_code() {
        let (sender, items) = mpsc::channel(1);
        let timing = StreamTiming {
            keepalive: None,
            deadline: Some(Instant::now() + Duration::from_secs(1)),
        };
        let (frames, broken) = rest(StreamBody::new(items, as_is, timing)).await;
        assert_eq!(frames.len(), 1);
        assert!(
            std::str::from_utf8(&frames[0][5..])
                .unwrap()
                .contains("deadline_exceeded")
        );
        assert!(!broken);
        assert!(sender.is_closed());
    }

    #[tokio::test]
    async fn the_last_message_and_the_end_are_one_piece() {
        let (sender, items) = mpsc::channel(1);
        let frame = Bytes::from_static(b"\0\0\0\0\x02{}");
        sender.send(StreamItem::Last(frame.clone())).await.unwrap();
        let whole = [frame, envelope::end(Ok(()))].concat();
        assert_eq!(
            rest(StreamBody::new(items, as_is, StreamTiming::default())).await,
            (vec![whole.into()], false)
        );
    }

    #[tokio::test]
    async fn an_abort_and_a_vanished_producer_break_the_body() {
        let (sender, items) = mpsc::channel(1);
        sender.send(StreamItem::Abort("gone".into())).await.unwrap();
        assert_eq!(
            rest(StreamBody::new(items, as_is, StreamTiming::default())).await,
            (Vec::new(), true)
        );
        let (sender, items) = mpsc::channel(1);
        drop(sender);
        assert_eq!(
            rest(StreamBody::new(items, as_is, StreamTiming::default())).await,
            (Vec::new(), true)
        );
    }
}
