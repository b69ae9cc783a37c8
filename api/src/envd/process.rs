//! The processes of one sandbox as clients see them: who listens, who feeds, how each ended
//! (e2b.md §3.2).
//!
//! One task per process, the *pump*, owns the process's stream. It hands each event to every
//! listener in turn and waits for the slowest, so that a client that does not read blocks the
//! process rather than filling memory; with no listener it throws the output away. The pump
//! outlives the client that started the process.

mod kept;

pub use kept::KeptProcess;

use super::message::{self, Input, ProcessConfig, Selector};
use crate::{
    connect::{ConnectError, stream::Item},
    link::{Command, LinkError, ProcessEvent, ProcessInput, ProcessStream, StreamEnded},
    sandbox::Sandbox,
};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

/// Frames that wait for one listener, each at most 44 KiB.
const BACKLOG: usize = 4;
/// How long a late listener still learns how a process ended.
const REMEMBER: Duration = Duration::from_secs(30);
/// Ended processes remembered per sandbox; the oldest are forgotten first.
const MAX_ENDED: usize = 1024;
/// Most listeners of one process.
const MAX_LISTENERS: usize = 64;

/// SIGKILL.
const KILL: u8 = 9;

/// The processes of one sandbox. Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    table: Arc<Mutex<Vec<Arc<Process>>>>,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    tag: Option<String>,
    feed: Feed,
    input: ProcessInput,
    /// One writer at a time, so that inputs do not mix; holds whether stdin is closed.
    closed: tokio::sync::Mutex<bool>,
    listeners: Mutex<Listeners>,
}

/// What a process takes as input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    Nothing,
    Stdin,
    Pty,
}

#[derive(Debug)]
enum Listeners {
    Running {
        config: ProcessConfig,
        senders: Vec<mpsc::Sender<Item>>,
    },
    /// Only the end event is kept: command lines may be long.
    Ended(Bytes),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Processes {
    fn find(&self, selector: &Selector, ended_too: bool) -> Result<Arc<Process>, ConnectError> {
        let matches = |process: &&Arc<Process>| {
            let named = match (selector.pid, &selector.tag) {
                (Some(pid), _) => process.pid == pid,
                (None, Some(tag)) => process.tag.as_ref() == Some(tag),
                (None, None) => false,
            };
            named && (ended_too || process.runs())
        };
        // The newest first: the guest may have given an id of an ended process to another one.
        lock(&self.table)
            .iter()
            .rev()
            .find(matches)
            .cloned()
            .ok_or_else(|| match (selector.pid, &selector.tag) {
                (Some(pid), _) => {
                    ConnectError::not_found(format!("process with pid {pid} not found"))
                }
                (None, Some(tag)) => {
                    ConnectError::not_found(format!("process with tag {tag} not found"))
                }
                (None, None) => {
                    ConnectError::invalid("The request selects no process by pid or tag")
                }
            })
    }

    /// The running process that is meant.
    ///
    /// # Errors
    /// `not_found`.
    pub(super) fn running(&self, selector: &Selector) -> Result<Arc<Process>, ConnectError> {
        self.find(selector, false)
    }

    /// Listens to the process that is meant, from now on; no replay.
    ///
    /// # Errors
    /// `not_found`; `resource_exhausted` when it has too many listeners.
    pub(super) fn listen(&self, selector: &Selector) -> Result<mpsc::Receiver<Item>, ConnectError> {
        self.find(selector, true)?.listen()
    }

    /// The running processes, as `ListResponse`.
    pub(super) fn list(&self) -> Value {
        let table = lock(&self.table);
        let info = |process: &Arc<Process>| {
            let Listeners::Running { config, .. } = &*lock(&process.listeners) else {
                return None;
            };
            let mut info = json!({ "config": config, "pid": process.pid });
            if let Some(tag) = &process.tag {
                info["tag"] = json!(tag);
            }
            Some(info)
        };
        let processes: Vec<Value> = table.iter().filter_map(info).collect();
        json!({ "processes": processes })
    }

    fn add(&self, process: &Arc<Process>) {
        let mut table = lock(&self.table);
        let ended = table.iter().filter(|process| !process.runs()).count();
        if ended >= MAX_ENDED
            && let Some(oldest) = table.iter().position(|process| !process.runs())
        {
            table.remove(oldest);
        }
        table.push(process.clone());
    }

    fn remove(&self, process: &Arc<Process>) {
        lock(&self.table).retain(|other| !Arc::ptr_eq(other, process));
    }

    /// Starts a process and listens to it. With a deadline it is killed then, whoever listens.
    ///
    /// # Errors
    /// The agent refused, or the link closed.
    pub(super) async fn start(
        &self,
        sandbox: &Arc<Sandbox>,
        command: Command,
        config: ProcessConfig,
        tag: Option<String>,
        deadline: Option<Instant>,
    ) -> Result<mpsc::Receiver<Item>, LinkError> {
        let stream = sandbox.link.start(&command).await?;
        let feed = match (command.pty, command.stdin) {
            (Some(_), _) => Feed::Pty,
            (None, true) => Feed::Stdin,
            (None, false) => Feed::Nothing,
        };
        let process = Arc::new(Process {
            pid: stream.pid(),
            tag,
            feed,
            input: stream.input(),
            closed: tokio::sync::Mutex::new(false),
            listeners: Mutex::new(Listeners::Running {
                config,
                senders: Vec::new(),
            }),
        });
        self.add(&process);
        // A new process has room for its first listener.
        let items = process
            .listen()
            .map_err(|error| LinkError::Closed(error.message))?;
        tokio::spawn(pump(
            self.clone(),
            sandbox.clone(),
            process,
            stream,
            deadline,
        ));
        // What has come of it already, as of a short command its end, leaves in one piece with the beginning.
        tokio::task::yield_now().await;
        Ok(items)
    }
}

impl Process {
    fn runs(&self) -> bool {
        matches!(*lock(&self.listeners), Listeners::Running { .. })
    }

    fn listen(&self) -> Result<mpsc::Receiver<Item>, ConnectError> {
        let (sender, items) = mpsc::channel(BACKLOG);
        // The channel is empty and has room for these.
        let _ = sender.try_send(Item::Frame(message::start_frame(self.pid)));
        match &mut *lock(&self.listeners) {
            Listeners::Ended(frame) => {
                let _ = sender.try_send(Item::Last(frame.clone()));
            }
            Listeners::Running { senders, .. } => {
                senders.retain(|sender| !sender.is_closed());
                if senders.len() >= MAX_LISTENERS {
                    return Err(ConnectError::new(
                        crate::connect::Code::ResourceExhausted,
                        format!("process {} has {MAX_LISTENERS} listeners already", self.pid),
                    ));
                }
                senders.push(sender);
            }
        }
        Ok(items)
    }

    fn senders(&self) -> Vec<mpsc::Sender<Item>> {
        match &mut *lock(&self.listeners) {
            Listeners::Running { senders, .. } => {
                senders.retain(|sender| !sender.is_closed());
                senders.clone()
            }
            Listeners::Ended(_) => Vec::new(),
        }
    }

    /// Ends the process for listeners to come, and returns those it had.
    fn end(&self, frame: Bytes) -> Vec<mpsc::Sender<Item>> {
        match std::mem::replace(&mut *lock(&self.listeners), Listeners::Ended(frame)) {
            Listeners::Running { senders, .. } => senders,
            Listeners::Ended(_) => Vec::new(),
        }
    }

    /// Feeds the process; waits while it does not read.
    ///
    /// # Errors
    /// The process takes no such input, or has ended.
    pub(super) async fn feed(&self, input: Input) -> Result<(), ConnectError> {
        let bytes = match (input.stdin, input.pty, self.feed) {
            (Some(bytes), None, Feed::Stdin) | (None, Some(bytes), Feed::Pty) => bytes,
            (Some(_), None, Feed::Pty) => {
                return Err(ConnectError::internal(
                    "error writing to stdin: the process has a tty; send the input to its pty",
                ));
            }
            (Some(_), None, Feed::Nothing) => {
                return Err(ConnectError::internal(
                    "error writing to stdin: stdin not enabled or closed; start the process with stdin",
                ));
            }
            (None, Some(_), _) => {
                return Err(ConnectError::internal(
                    "error writing to tty: tty not assigned to process",
                ));
            }
            _ => {
                return Err(ConnectError::invalid(
                    "The input needs one of stdin and pty",
                ));
            }
        };
        let closed = self.closed.lock().await;
        if *closed {
            return Err(ConnectError::internal(
                "error writing to stdin: stdin is closed",
            ));
        }
        self.input.write(bytes).await.map_err(|StreamEnded| {
            ConnectError::not_found(format!("process with pid {} has ended", self.pid))
        })
    }

    /// Closes the process's standard input.
    ///
    /// # Errors
    /// `internal` when it has a terminal.
    pub(super) async fn close_stdin(&self) -> Result<(), ConnectError> {
        match self.feed {
            Feed::Pty => Err(ConnectError::internal(
                "error closing stdin: cannot close stdin of a PTY process, send Ctrl+D (0x04) instead",
            )),
            Feed::Nothing => Ok(()),
            Feed::Stdin => {
                let mut closed = self.closed.lock().await;
                if !*closed {
                    self.input.close();
                    *closed = true;
                }
                Ok(())
            }
        }
    }
}

/// Sends one item to a listener; a listener that has left is none of our business.
async fn deliver(sender: mpsc::Sender<Item>, item: Item) {
    let _ = sender.send(item).await;
}

async fn pump(
    processes: Processes,
    sandbox: Arc<Sandbox>,
    process: Arc<Process>,
    stream: ProcessStream,
    deadline: Option<Instant>,
) {
    tokio::select! {
        // Dropping the listeners breaks their connections, which is what clients are to see.
        () = sandbox.gone() => {}
        () = run(&sandbox, &process, stream, deadline) => {}
    }
    processes.remove(&process);
}

async fn run(
    sandbox: &Sandbox,
    process: &Process,
    mut stream: ProcessStream,
    deadline: Option<Instant>,
) {
    let kill = async {
        match deadline {
            Some(deadline) => {
                sleep_until(deadline).await;
                // Fails when the process has just ended or the link has: then there is nothing to do.
                let _ = sandbox.link.signal(process.pid, KILL).await;
            }
            None => std::future::pending().await,
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = hand_out(process, &mut stream) => outcome,
        () = kill => return,
    };
    match outcome {
        Ok(exit) => {
            let frame = message::end_frame(exit);
            let senders = process.end(frame.clone());
            let last = |sender| deliver(sender, Item::Last(frame.clone()));
            tokio::join!(join_all(senders.into_iter().map(last)), sleep(REMEMBER));
        }
        Err(error) => {
            super::fail::settle(sandbox, &error).await;
            let why = error.to_string();
            tracing::warn!(
                sandbox_id = sandbox.id,
                pid = process.pid,
                why,
                "lost a process"
            );
            let abort = |sender| deliver(sender, Item::Abort(why.clone().into()));
            join_all(process.senders().into_iter().map(abort)).await;
        }
    }
}

/// Hands each event to all listeners until the process ends.
async fn hand_out(
    process: &Process,
    stream: &mut ProcessStream,
) -> Result<wire::ProcessExit, LinkError> {
    loop {
        match stream.next().await? {
            ProcessEvent::Exited(exit) => return Ok(exit),
            ProcessEvent::Output(output, bytes) => {
                let senders = process.senders();
                if senders.is_empty() {
                    continue;
                }
                let frame = message::data_frame(output, &bytes);
                join_all(
                    senders
                        .into_iter()
                        .map(|s| deliver(s, Item::Frame(frame.clone()))),
                )
                .await;
            }
        }
    }
}
