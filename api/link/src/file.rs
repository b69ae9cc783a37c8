//! Files of the guest as streams of bytes.

use crate::LinkError;
use crate::stream::{AgentStream, StreamEnded, StreamSender, unasked_data};
use crate::types::{AgentAnswer, FileEntry};
use bytes::Bytes;
use std::task::{Context, Poll, ready};
use wire::DataChannel;

/// A file being read. Memory is bounded by the stream's window.
#[derive(Debug)]
pub struct FileReader {
    stream: AgentStream,
}

impl FileReader {
    pub(crate) fn new(stream: AgentStream) -> Self {
        Self { stream }
    }

    /// The next bytes; `None` at the end of what was asked for.
    ///
    /// # Errors
    /// The guest failed to read on, or the link closed.
    pub fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, LinkError>>> {
        if let Some((channel, bytes)) = ready!(self.stream.poll_data(context)) {
            return Poll::Ready(Some(match channel {
                DataChannel::File => Ok(bytes),
                other => Err(unasked_data("a file read", other)),
            }));
        }
        Poll::Ready(match self.stream.ended() {
            Some(Ok(AgentAnswer::Done(_))) => None,
            Some(Ok(other)) => Some(Err(other.unexpected("a file read"))),
            Some(Err(error)) => Some(Err(error)),
            None => Some(Err(LinkError::Closed("the stream vanished".into()))),
        })
    }

    /// As [`FileReader::poll_next`].
    ///
    /// # Errors
    /// The guest failed to read on, or the link closed.
    pub async fn next(&mut self) -> Option<Result<Bytes, LinkError>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}

/// A file being written. Dropping it unfinished leaves what was written so far.
#[derive(Debug)]
pub struct FileWriter {
    stream: AgentStream,
    sender: StreamSender,
}

impl FileWriter {
    pub(crate) fn new(stream: AgentStream) -> Self {
        let sender = stream.sender(DataChannel::File);
        Self { stream, sender }
    }

    /// Sends `bytes` as fast as the guest takes them.
    ///
    /// # Errors
    /// Why the guest cannot write: no space, a directory in the way, …
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        match self.sender.send(bytes).await {
            Ok(()) => Ok(()),
            Err(StreamEnded) => Err(match self.stream.ended() {
                Some(Ok(answer)) => answer.unexpected("a file write"),
                Some(Err(error)) => error,
                None => LinkError::Closed("the connection ended".into()),
            }),
        }
    }

    /// Completes the file and returns what it is now.
    ///
    /// # Errors
    /// As [`FileWriter::write`].
    pub async fn finish(self) -> Result<FileEntry, LinkError> {
        self.sender.end();
        match self.stream.answer("a file write").await? {
            AgentAnswer::Entry(entry) => Ok(entry),
            other => Err(other.unexpected("a file write")),
        }
    }
}
