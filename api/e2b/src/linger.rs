//! Requests that are answered before they were read to their end.
//!
//! A client that is still sending when the connection is closed under it sees a broken pipe instead
//! of the answer; the JavaScript SDK sends every body in pieces, so this happens to it often. So a
//! body that is dropped unread is read on in the background, for a while: the connection stays open
//! and the answer arrives. What does not end within the bounds is cut off after all.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long an answered request is read on.
const TIME: Duration = Duration::from_secs(2);
/// How many bytes of an answered request are read on.
const BYTES: usize = 1 << 20;

/// A request body.
#[derive(Debug)]
pub struct LingeringBody(Option<Incoming>);

impl From<Incoming> for LingeringBody {
    fn from(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl Body for LingeringBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.0 = None; // nothing to read on
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        let Some(body) = self.0.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        // Longer than what would be read on: it is cut off anyway, so do it now.
        let announced = body.size_hint().exact().unwrap_or(0);
        if announced > BYTES as u64 {
            return;
        }
        // Without a runtime the connection is gone already.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(TIME, read_on(body)));
        }
    }
}

async fn read_on(mut body: Incoming) {
    let mut left = BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else {
            return;
        };
        left = rest;
    }
}
