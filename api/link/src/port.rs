//! A TCP connection to a port of the guest, as a stream of bytes both ways.

use crate::LinkError;
use crate::shared::OutgoingFrames;
use crate::stream::{AgentStream, unasked_data};
use crate::types::AgentAnswer;
use bytes::Bytes;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use wire::{DataChannel, MAX_PAYLOAD, Message};

/// The kernel's numbers for what ends a connection (`errno(3)`).
const BROKEN_PIPE: i32 = 32;
const CONNECTION_RESET: i32 = 104;

/// Room on the connection to the agent, waited for.
type RoomWait = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send + Sync>>;

/// A connection to a port of the guest. What is not read holds the program in the guest back after
/// [`wire::PORT_WINDOW`] bytes; what the program does not read holds the writer back. Shutting it
/// down ends the half that is written; dropping it before resets the connection in the guest.
pub struct PortStream {
    stream: AgentStream,
    /// What came and did not fit the reader's buffer.
    rest: Bytes,
    room: Option<RoomWait>,
    /// This side has ended its half.
    ended: bool,
}

impl fmt::Debug for PortStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PortStream")
            .field("stream", &self.stream)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl PortStream {
    pub(crate) fn new(stream: AgentStream) -> Self {
        Self {
            stream,
            rest: Bytes::new(),
            room: None,
            ended: false,
        }
    }

    /// Why nothing more can be read or written; `None` while it can, and after an end in order.
    fn failure(&self) -> Option<io::Error> {
        let error = match self.stream.ended()? {
            Ok(AgentAnswer::Done(_)) => return None,
            Ok(answer) => answer.unexpected("a connection to a port"),
            Err(error) => error,
        };
        Some(io_error(error))
    }

    /// Waits until `bytes` may be queued; an error once the link has ended.
    fn poll_room(
        &mut self,
        context: &mut Context<'_>,
        bytes: usize,
    ) -> Poll<io::Result<OwnedSemaphorePermit>> {
        let shared = self.stream.shared();
        let wait = match self.room.as_mut() {
            Some(wait) => wait,
            None => {
                if let Some(permit) = shared.room_now(bytes) {
                    return Poll::Ready(Ok(permit));
                }
                let shared = shared.clone();
                let wait = async move { shared.room(bytes).await };
                self.room.insert(Box::pin(wait))
            }
        };
        let permit = ready!(wait.as_mut().poll(context));
        self.room = None;
        Poll::Ready(permit.ok_or_else(|| self.failure().unwrap_or_else(broken_pipe)))
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(this.stream.poll_data(context)) {
                Some((DataChannel::Port, bytes)) => this.rest = bytes,
                Some((other, _)) => {
                    let error = unasked_data("a connection to a port", other);
                    return Poll::Ready(Err(io_error(error)));
                }
                None if this.stream.is_data_over() => return Poll::Ready(Ok(())),
                None => return Poll::Ready(this.failure().map_or(Ok(()), Err)),
            }
        }
        let length = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.ended {
            return Poll::Ready(Err(broken_pipe()));
        }
        let Some(credit) = ready!(this.stream.poll_credit(context)) else {
            return Poll::Ready(Err(this.failure().unwrap_or_else(broken_pipe)));
        };
        let want = bytes.len().min(MAX_PAYLOAD).min(credit);
        // Room on the connection first, credit second: whoever gives up in between loses neither.
        let permit = ready!(this.poll_room(context, want))?;
        // The room may have been asked for by an earlier call, for another piece.
        let length = want.min(permit.num_permits());
        if !this.stream.spend_credit(length) {
            return Poll::Ready(Err(this.failure().unwrap_or_else(broken_pipe)));
        }
        let message = Message::Data {
            channel: DataChannel::Port,
            bytes: &bytes[..length],
        };
        let frames = OutgoingFrames::message(this.stream.id(), &message, Some(permit));
        this.stream.shared().queue(frames);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            this.ended = true;
            this.stream.sender(DataChannel::Port).end();
        }
        Poll::Ready(Ok(()))
    }
}

fn broken_pipe() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

fn io_error(error: LinkError) -> io::Error {
    let kind = match error.refusal().map(|refusal| refusal.errno) {
        Some(CONNECTION_RESET) => io::ErrorKind::ConnectionReset,
        Some(BROKEN_PIPE) => io::ErrorKind::BrokenPipe,
        Some(_) => io::ErrorKind::Other,
        None => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, error)
}
