//! The service's side.

use super::message::{Event, Request, ZYGOTE_ARGUMENT};
use crate::walls::{JailMode, MissingWall};
use crate::{ChannelError, pair, recv, send};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStderr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a zygote may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes of a zygote's last words.
const MAX_WORDS: u64 = 2048;

/// Why there is no zygote, or no VM process from it.
#[derive(Debug, thiserror::Error)]
pub enum ZygoteError {
    /// It could not be started.
    #[error("The zygote could not be started")]
    Start(#[source] std::io::Error),
    /// Sockets or pipes are used up.
    #[error("No descriptors for a VM process")]
    Descriptors(#[source] std::io::Error),
    /// The zygote is gone, or is not one.
    #[error("The zygote has ended")]
    Gone,
    /// It ended before it was ready, and said why.
    #[error("The zygote has ended: {0}")]
    Ended(String),
    /// What it said is not an answer, or it is silent.
    #[error("The zygote does not answer")]
    Channel(#[from] ChannelError),
    /// It could not fork.
    #[error("The zygote could not fork: {0}")]
    Fork(String),
}

impl ZygoteError {
    /// Whether another zygote may do better.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Gone | Self::Ended(_) | Self::Channel(_))
    }
}

/// A VM process, forked from a zygote.
#[derive(Debug)]
pub struct Spawned {
    /// Its number. It is a child of the calling process, which must reap it.
    pub pid: Pid,
    /// The service's end of its control socket.
    pub control: OwnedFd,
    /// Where its log lines come out.
    pub stderr: OwnedFd,
}

/// A running zygote; killed and reaped when dropped, with what it has made and nobody took. VM
/// processes that came from it live on.
#[derive(Debug)]
pub struct Zygote {
    line: Mutex<Line>,
    child: Child,
    missing: Vec<MissingWall>,
}

/// The socket to a zygote.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    /// A request was not answered in time: what comes now is not the answer to the next one.
    late: bool,
}

impl Zygote {
    /// Starts `program` as a zygote and waits until it is ready. Where walls are missing and `mode`
    /// requires them, it is there to say so, and makes no VM process.
    ///
    /// # Errors
    /// [`ZygoteError`]; a program that is no zygote is [`ZygoteError::Gone`], or
    /// [`ZygoteError::Ended`] with what it wrote to its standard error.
    pub fn start(program: impl AsRef<OsStr>, mode: JailMode) -> Result<Self, ZygoteError> {
        let (child, socket) =
            crate::spawn(program, &[ZYGOTE_ARGUMENT, mode.name()]).map_err(ZygoteError::Start)?;
        let mut zygote = Self {
            line: Mutex::new(Line {
                socket,
                late: false,
            }),
            child,
            missing: Vec::new(),
        };
        let ready = {
            let line = zygote.lock();
            for way in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&line.socket, way, Some(PATIENCE))
                    .map_err(|e| ZygoteError::Start(e.into()))?;
            }
            recv::<Event>(&line.socket)?
        };
        match ready {
            Some((Event::Ready { missing }, _)) => zygote.missing = missing,
            Some((other, _)) => return Err(ZygoteError::Fork(format!("it said {other:?}"))),
            None => return Err(zygote.last_words()),
        }
        Ok(zygote)
    }

    /// Why it has closed its socket, as far as it says.
    fn last_words(&mut self) -> ZygoteError {
        // It may not have ended, and hold its standard error open.
        let _ = self.child.kill();
        let mut text = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(MAX_WORDS).read_to_end(&mut text);
        }
        match String::from_utf8_lossy(&text).trim() {
            "" => ZygoteError::Gone,
            words => ZygoteError::Ended(words.to_owned()),
        }
    }

    /// The walls that cannot be had on this host.
    #[must_use]
    pub fn missing(&self) -> &[MissingWall] {
        &self.missing
    }

    /// Where its own log lines come out, once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// The zygote's number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes a VM process, which is born in `group`, the folder of a control group (version 2), if
    /// there is one. Blocks for the time of a fork; callers take turns.
    ///
    /// # Errors
    /// [`ZygoteError`]; nothing is left of the attempt.
    pub fn spawn(&self, group: Option<BorrowedFd<'_>>) -> Result<Spawned, ZygoteError> {
        let descriptors = |e: std::io::Error| ZygoteError::Descriptors(e);
        let (control, theirs) = pair().map_err(descriptors)?;
        let (stderr, log) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| descriptors(e.into()))?;
        let mut line = self.lock();
        if line.late {
            return Err(ZygoteError::Gone);
        }
        let files = [Some(theirs.as_fd()), Some(log.as_fd()), group];
        let files: Vec<_> = files.into_iter().flatten().collect();
        let group = group.is_some();
        send(&line.socket, &Request::Spawn { group }, &files).map_err(lost)?;
        let answer = recv::<Event>(&line.socket).inspect_err(|_| line.late = true);
        match answer? {
            Some((Event::Spawned { pid }, _)) => Ok(Spawned {
                pid: Pid::from_raw(pid).ok_or(ZygoteError::Gone)?,
                control,
                stderr,
            }),
            Some((Event::Failed { message }, _)) => Err(ZygoteError::Fork(message)),
            Some((Event::Ready { .. }, _)) | None => Err(ZygoteError::Gone),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Line> {
        // Nothing panics while it holds the lock.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A closed socket says that the zygote is gone.
fn lost(error: ChannelError) -> ZygoteError {
    match error {
        ChannelError::Io(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ZygoteError::Gone,
        other => ZygoteError::Channel(other),
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its end of the socket is closed, so this ends. What answered late has no other parent
        // than us.
        let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some((event, _))) = recv::<Event>(&line.socket) {
            if let Event::Spawned { pid } = event
                && let Some(pid) = Pid::from_raw(pid)
            {
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
            }
        }
    }
}
