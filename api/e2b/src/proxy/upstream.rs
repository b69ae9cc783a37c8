//! One request over one connection to a program in the guest.

use crate::error::ProxyError;
use crate::linger::LingeringBody;
use crate::options::ServerOptions;
use crate::proxy::headers;
use crate::{Body, BodyError};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// Most bytes of a head, and of a body that is read ahead.
const BUFFER: usize = 64 << 10;
/// The same of a body over HTTP/2.
const WINDOW: u32 = 64 << 10;
/// How long a connection may take to end after its response has.
const ENDING: Duration = Duration::from_secs(5);

/// What the program did in place of an answer.
#[derive(Debug)]
pub(super) struct UpstreamError(hyper::Error);

impl UpstreamError {
    /// For the client.
    pub(super) fn told(&self, id: &str, port: u16, options: &ServerOptions) -> ProxyError {
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let found = error.downcast_ref::<io::Error>();
            if found.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                let (id, seconds) = (id.to_owned(), options.idle_timeout.as_secs());
                return ProxyError::PortSilent { id, port, seconds };
            }
            cause = error.source();
        }
        ProxyError::broken(id, port, &format!("no answer came: {}", chain(&self.0)))
    }
}

/// An error with its causes, as far as they are worth repeating.
fn chain(error: &dyn Error) -> String {
    engine::error::chain(error).chars().take(256).collect()
}

/// The task that drives a connection. Cut off, which resets the connection, when this is dropped
/// before its end.
#[derive(Debug)]
pub(super) struct DrivenConnection {
    over: Option<oneshot::Sender<()>>,
}

impl DrivenConnection {
    fn drive(connection: impl Future + Send + 'static) -> Self {
        let (over, told) = oneshot::channel();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            let told = tokio::select! {
                _ = &mut connection => return,
                told = told => told,
            };
            if told.is_ok() {
                let _ = tokio::time::timeout(ENDING, connection).await;
            }
        });
        Self { over: Some(over) }
    }

    /// The response has been read to its end: the connection may end in order.
    fn finish(&mut self) {
        if let Some(over) = self.over.take() {
            let _ = over.send(());
        }
    }
}

/// Sends a request by HTTP/1.1.
pub(super) async fn http1<T>(
    stream: T,
    request: Request<LingeringBody>,
) -> Result<(Response<Incoming>, DrivenConnection), UpstreamError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let made = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = made.map_err(UpstreamError)?;
    let driven = DrivenConnection::drive(connection.with_upgrades());
    let response = sender.send_request(request).await.map_err(UpstreamError)?;
    Ok((response, driven))
}

/// The same by HTTP/2, which the program has to know of beforehand, to its answer.
pub(super) async fn http2<T>(
    stream: T,
    request: Request<LingeringBody>,
) -> Result<Response<Body>, UpstreamError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let is_head = request.method() == Method::HEAD;
    let made = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = made.map_err(UpstreamError)?;
    let driven = DrivenConnection::drive(connection);
    let response = sender.send_request(request).await.map_err(UpstreamError)?;
    Ok(answer(response, driven, is_head))
}

/// The program's response, for the client.
pub(super) fn answer(
    mut response: Response<Incoming>,
    driven: DrivenConnection,
    is_head: bool,
) -> Response<Body> {
    headers::for_client(&mut response, is_head);
    response.map(|inner| ProgramBody::new(inner, driven).boxed_unsync())
}

/// A response's body, with the connection that it comes over.
struct ProgramBody {
    inner: Incoming,
    driven: DrivenConnection,
}

impl ProgramBody {
    fn new(inner: Incoming, driven: DrivenConnection) -> Self {
        let mut body = Self { inner, driven };
        if body.inner.is_end_stream() {
            body.driven.finish();
        }
        body
    }
}

impl hyper::body::Body for ProgramBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        let ended = matches!(polled, Poll::Ready(None)) || self.inner.is_end_stream();
        if ended {
            self.driven.finish();
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
