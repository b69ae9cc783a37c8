//! A process of the guest, as its starter holds it.

use crate::LinkError;
use crate::stream::{AgentStream, StreamEnded, StreamSender, unasked_data};
use crate::types::AgentAnswer;
use bytes::Bytes;
use wire::{DataChannel, ProcessEnd};

/// What a process is started with; see [`wire::StartProcess`] for what each field means to the
/// agent.
#[derive(Clone, Debug, Default)]
pub struct ProcessCommand {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, later wins.
    pub env: Vec<String>,
    /// Working directory; empty means the user's home.
    pub cwd: String,
    /// Whose rights; empty means root.
    pub user: String,
    /// Feed it from [`ProcessInput`] rather than from `/dev/null`.
    pub stdin: bool,
    /// A terminal of this size, columns and rows.
    pub pty: Option<(u16, u16)>,
    /// The caller's label.
    pub tag: String,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It wrote.
    Output(OutputChannel, Bytes),
    /// It ended; nothing follows.
    Exited(ProcessEnd),
}

/// Where a process wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputChannel {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Its terminal.
    Pty,
}

/// A running process. When nobody calls [`ProcessStream::next`], the process blocks as soon as the
/// window is full. Dropping it lets the process run on without anybody to read it.
#[derive(Debug)]
pub struct ProcessStream {
    stream: AgentStream,
    pid: u32,
}

impl ProcessStream {
    pub(crate) fn new(stream: AgentStream, pid: u32) -> Self {
        Self { stream, pid }
    }

    /// The process's id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The way to the process's standard input or terminal.
    #[must_use]
    pub fn input(&self) -> ProcessInput {
        ProcessInput {
            sender: self.stream.sender(DataChannel::Stdin),
        }
    }

    /// What the process does next. Cancel-safe.
    ///
    /// # Errors
    /// The link closed or the agent gave the stream up: the process's fate is unknown.
    pub async fn next(&mut self) -> Result<ProcessEvent, LinkError> {
        if let Some((channel, bytes)) = self.stream.data().await {
            let output = match channel {
                DataChannel::Stdout => OutputChannel::Stdout,
                DataChannel::Stderr => OutputChannel::Stderr,
                DataChannel::Pty => OutputChannel::Pty,
                other @ (DataChannel::Stdin
                | DataChannel::File
                | DataChannel::Records
                | DataChannel::Port) => {
                    return Err(unasked_data("a process", other));
                }
            };
            return Ok(ProcessEvent::Output(output, bytes));
        }
        match self.stream.ended() {
            Some(Ok(AgentAnswer::Exited(exit))) => Ok(ProcessEvent::Exited(exit)),
            Some(Ok(other)) => Err(other.unexpected("a process")),
            Some(Err(error)) => Err(error),
            None => Err(LinkError::Closed("the stream vanished".into())),
        }
    }
}

/// Feeds a process. Clones feed the same one.
#[derive(Clone, Debug)]
pub struct ProcessInput {
    sender: StreamSender,
}

impl ProcessInput {
    /// Sends `bytes`, waiting while the process does not read. Dropping the future sends a part.
    ///
    /// # Errors
    /// The process has ended.
    pub async fn write(&self, bytes: Bytes) -> Result<(), StreamEnded> {
        self.sender.send(bytes).await
    }

    /// Ends the process's input.
    pub fn close(&self) {
        self.sender.end();
    }
}
