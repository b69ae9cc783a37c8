//! The processes of one sandbox: started, found, listed, attached again.

use crate::process::guest_process::GuestProcess;
use crate::process::notice::{ProcessError, ProcessNotice};
use crate::process::pump::pump;
use crate::process::record::{InputKind, ProcessSpec};
use crate::process::{GuestContext, ProcessRecord};
use futures_util::future::join_all;
use link::{LinkError, ProcessCommand, ProcessStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Ended processes remembered per sandbox; the oldest are forgotten first.
const MAX_ENDED: usize = 1024;
/// How long the agent may take to connect one process again.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// The processes of one sandbox. Clones are the same table.
#[derive(Clone, Debug)]
pub struct ProcessTable {
    context: GuestContext,
    processes: Arc<Mutex<Vec<Arc<GuestProcess>>>>,
}

/// Which process is meant: by its id, or else by its tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSelector {
    /// Its id in the guest.
    pub pid: Option<u32>,
    /// The label that its starter gave it.
    pub tag: Option<String>,
}

/// A running process in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSummary {
    /// Its id in the guest.
    pub pid: u32,
    /// The label that its starter gave it.
    pub tag: Option<String>,
    /// What it was started with.
    pub spec: ProcessSpec,
}

impl ProcessTable {
    /// An empty table of this sandbox.
    #[must_use]
    pub fn new(context: GuestContext) -> Self {
        let processes = Arc::default();
        Self { context, processes }
    }

    /// Starts a process and listens to it. With a deadline it is killed then, whoever listens.
    ///
    /// # Errors
    /// The agent refused, or the link closed.
    pub async fn start(
        &self,
        command: ProcessCommand,
        spec: ProcessSpec,
        tag: Option<String>,
        deadline: Option<Instant>,
    ) -> Result<mpsc::Receiver<ProcessNotice>, LinkError> {
        let stream = self.context.link.start(&command).await?;
        let record = ProcessRecord {
            pid: stream.pid(),
            tag,
            input: match (command.pty, command.stdin) {
                (Some(_), _) => InputKind::Pty,
                (None, true) => InputKind::Stdin,
                (None, false) => InputKind::Nothing,
            },
            stdin_closed: false,
            spec,
        };
        let process = Arc::new(GuestProcess::new(&stream, record));
        // A new process has room for its first listener.
        let notices = process
            .listen()
            .map_err(|error| LinkError::Closed(error.to_string()))?;
        self.pump(process, stream, deadline);
        // What has come of it already, as of a short command its end, leaves in one piece with the
        // beginning.
        tokio::task::yield_now().await;
        Ok(notices)
    }

    /// The running process that is meant.
    ///
    /// # Errors
    /// [`ProcessError::NoPid`], [`ProcessError::NoTag`], [`ProcessError::NoSelector`].
    pub fn running(&self, selector: &ProcessSelector) -> Result<Arc<GuestProcess>, ProcessError> {
        self.find(selector, false)
    }

    /// Listens to the process that is meant, also one that has just ended, from now on; no replay.
    ///
    /// # Errors
    /// As [`ProcessTable::running`]; [`ProcessError::TooManyListeners`].
    pub fn listen(
        &self,
        selector: &ProcessSelector,
    ) -> Result<mpsc::Receiver<ProcessNotice>, ProcessError> {
        self.find(selector, true)?.listen()
    }

    /// The running processes.
    #[must_use]
    pub fn list(&self) -> Vec<ProcessSummary> {
        let summary = |process: &Arc<GuestProcess>| {
            Some(ProcessSummary {
                spec: process.spec()?,
                pid: process.pid(),
                tag: process.tag().map(str::to_owned),
            })
        };
        self.lock().iter().filter_map(summary).collect()
    }

    /// The running processes, to be written down.
    #[must_use]
    pub fn records(&self) -> Vec<ProcessRecord> {
        self.lock()
            .iter()
            .filter_map(|process| process.record())
            .collect()
    }

    /// Listens again to processes of a machine that goes on. Those that the guest does not have any
    /// more are left out.
    pub async fn attach_all(&self, records: &[ProcessRecord]) {
        join_all(records.iter().map(|record| self.attach(record))).await;
    }

    async fn attach(&self, record: &ProcessRecord) {
        let (id, pid) = (&self.context.sandbox_id, record.pid);
        match timeout(ATTACH_TIMEOUT, self.context.link.attach(pid)).await {
            Ok(Ok(stream)) => {
                let process = Arc::new(GuestProcess::new(&stream, record.clone()));
                self.pump(process, stream, None);
            }
            Ok(Err(error)) => {
                tracing::debug!(sandbox_id = id, pid, %error, "a process has not lived on");
            }
            Err(_) => {
                tracing::warn!(sandbox_id = id, pid, "the agent does not attach a process");
            }
        }
    }

    fn find(
        &self,
        selector: &ProcessSelector,
        ended_too: bool,
    ) -> Result<Arc<GuestProcess>, ProcessError> {
        let matches = |process: &&Arc<GuestProcess>| {
            let named = match (selector.pid, &selector.tag) {
                (Some(pid), _) => process.pid() == pid,
                (None, Some(tag)) => process.tag() == Some(tag),
                (None, None) => false,
            };
            named && (ended_too || process.runs())
        };
        // The newest first: the guest may have given an id of an ended process to another one.
        let found = self.lock().iter().rev().find(matches).cloned();
        found.ok_or_else(|| match (selector.pid, &selector.tag) {
            (Some(pid), _) => ProcessError::NoPid(pid),
            (None, Some(tag)) => ProcessError::NoTag(tag.clone()),
            (None, None) => ProcessError::NoSelector,
        })
    }

    /// Has a process followed until it is forgotten.
    fn pump(&self, process: Arc<GuestProcess>, stream: ProcessStream, deadline: Option<Instant>) {
        self.add(&process);
        let table = self.clone();
        tokio::spawn(async move {
            pump(&table.context, &process, stream, deadline).await;
            table.lock().retain(|other| !Arc::ptr_eq(other, &process));
        });
    }

    fn add(&self, process: &Arc<GuestProcess>) {
        let mut processes = self.lock();
        let ended = processes.iter().filter(|process| !process.runs()).count();
        if ended >= MAX_ENDED
            && let Some(oldest) = processes.iter().position(|process| !process.runs())
        {
            processes.remove(oldest);
        }
        processes.push(Arc::clone(process));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<GuestProcess>>> {
        // Nothing panics while it holds the lock.
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
