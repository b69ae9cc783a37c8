//! One process: its input and its listeners.

use crate::process::ProcessRecord;
use crate::process::listener::ProcessListener;
use crate::process::notice::{ProcessError, ProcessNotice};
use crate::process::record::{InputKind, ProcessSpec};
use bytes::Bytes;
use link::{ProcessInput, ProcessStream, StreamEnded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use wire::ProcessEnd;

/// Most listeners of one process.
const MAX_LISTENERS: usize = 64;

/// A process that a client started.
#[derive(Debug)]
pub struct GuestProcess {
    pid: u32,
    tag: Option<String>,
    kind: InputKind,
    input: ProcessInput,
    /// One writer at a time, so that inputs do not mix; holds whether stdin is closed.
    closed: tokio::sync::Mutex<bool>,
    listeners: Mutex<ProcessListeners>,
}

#[derive(Debug)]
enum ProcessListeners {
    Running {
        spec: ProcessSpec,
        listeners: Vec<Arc<ProcessListener>>,
    },
    /// Only the end is kept: command lines may be long.
    Ended(ProcessEnd),
}

/// Bytes for a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessFeed {
    /// For its standard input.
    Stdin(Bytes),
    /// For its terminal.
    Pty(Bytes),
}

impl GuestProcess {
    /// The process behind `stream`, as `record` describes it.
    pub(super) fn new(stream: &ProcessStream, record: ProcessRecord) -> Self {
        Self {
            pid: record.pid,
            tag: record.tag,
            kind: record.input,
            input: stream.input(),
            closed: tokio::sync::Mutex::new(record.stdin_closed),
            listeners: Mutex::new(ProcessListeners::Running {
                spec: record.spec,
                listeners: Vec::new(),
            }),
        }
    }

    /// Its id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The label that its starter gave it.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What it was started with; `None` once it has ended.
    #[must_use]
    pub fn spec(&self) -> Option<ProcessSpec> {
        match &*self.lock() {
            ProcessListeners::Running { spec, .. } => Some(spec.clone()),
            ProcessListeners::Ended(_) => None,
        }
    }

    /// What is to be known about it beside the guest; `None` once it has ended.
    pub(super) fn record(&self) -> Option<ProcessRecord> {
        Some(ProcessRecord {
            spec: self.spec()?,
            pid: self.pid,
            tag: self.tag.clone(),
            input: self.kind,
            // Held by a writer: then it is open.
            stdin_closed: self.closed.try_lock().is_ok_and(|closed| *closed),
        })
    }

    pub(super) fn runs(&self) -> bool {
        matches!(*self.lock(), ProcessListeners::Running { .. })
    }

    /// Listens to it, from now on; no replay.
    pub(super) fn listen(&self) -> Result<mpsc::Receiver<ProcessNotice>, ProcessError> {
        let (listener, notices) = ProcessListener::new(self.pid);
        match &mut *self.lock() {
            ProcessListeners::Ended(end) => listener.finish(ProcessNotice::Ended(*end)),
            ProcessListeners::Running { listeners, .. } => {
                listeners.retain(|listener| !listener.has_left());
                if listeners.len() >= MAX_LISTENERS {
                    return Err(ProcessError::TooManyListeners {
                        pid: self.pid,
                        max: MAX_LISTENERS,
                    });
                }
                listeners.push(Arc::new(listener));
            }
        }
        Ok(notices)
    }

    /// Those who listen now.
    pub(super) fn listeners(&self) -> Vec<Arc<ProcessListener>> {
        match &mut *self.lock() {
            ProcessListeners::Running { listeners, .. } => {
                listeners.retain(|listener| !listener.has_left());
                listeners.clone()
            }
            ProcessListeners::Ended(_) => Vec::new(),
        }
    }

    /// Ends the process for its listeners, and for those to come.
    pub(super) fn end(&self, end: ProcessEnd) {
        let before = std::mem::replace(&mut *self.lock(), ProcessListeners::Ended(end));
        if let ProcessListeners::Running { listeners, .. } = before {
            for listener in listeners {
                listener.finish(ProcessNotice::Ended(end));
            }
        }
    }

    /// Feeds the process; waits while it does not read.
    ///
    /// # Errors
    /// The process takes no such input, or has ended.
    pub async fn feed(&self, feed: ProcessFeed) -> Result<(), ProcessError> {
        let bytes = match (feed, self.kind) {
            (ProcessFeed::Stdin(bytes), InputKind::Stdin)
            | (ProcessFeed::Pty(bytes), InputKind::Pty) => bytes,
            (ProcessFeed::Stdin(_), InputKind::Pty) => return Err(ProcessError::HasTerminal),
            (ProcessFeed::Stdin(_), InputKind::Nothing) => return Err(ProcessError::NoStdin),
            (ProcessFeed::Pty(_), _) => return Err(ProcessError::NoTerminal),
        };
        let closed = self.closed.lock().await;
        if *closed {
            return Err(ProcessError::StdinClosed);
        }
        let written = self.input.write(bytes).await;
        written.map_err(|StreamEnded| ProcessError::HasEnded(self.pid))
    }

    /// Closes the process's standard input; nothing happens if it has none.
    ///
    /// # Errors
    /// [`ProcessError::TerminalStaysOpen`].
    pub async fn close_stdin(&self) -> Result<(), ProcessError> {
        match self.kind {
            InputKind::Pty => Err(ProcessError::TerminalStaysOpen),
            InputKind::Nothing => Ok(()),
            InputKind::Stdin => {
                let mut closed = self.closed.lock().await;
                if !*closed {
                    self.input.close();
                    *closed = true;
                }
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ProcessListeners> {
        // Nothing panics while it holds the lock.
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
