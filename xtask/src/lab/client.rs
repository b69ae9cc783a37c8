//! The host's end of a command in the lab.

use super::awake::AwakeLab;
use super::frame::{self, CommandRequest, FrameKind, INPUT_WINDOW, MAX_PAYLOAD};
use super::ping::AgentAddress;
use super::watch::LabWatch;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the emulator gets to take a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// A frame that has begun comes to its end within this.
const WITHIN_FRAME: Duration = Duration::from_secs(120);
/// How often a lab that says nothing is looked at.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Which of a command's streams a chunk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputStream {
    /// Standard output; everything, for a command on a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A command that runs in the lab. Dropping it ends the command.
pub(crate) struct LabCommand {
    connection: TcpStream,
    control: CommandControl,
    watch: LabWatch,
    /// The longest time without a word of the command.
    silence: Option<Duration>,
    /// Given back when the command has ended.
    _awake: Option<AwakeLab>,
}

/// Sends input and signals to a command; clones may live in other threads.
#[derive(Clone)]
pub(crate) struct CommandControl {
    shared: Arc<SharedControl>,
}

struct SharedControl {
    to_agent: Mutex<TcpStream>,
    /// Input bytes that may still be sent; `None` once the command has ended.
    window: Mutex<Option<usize>>,
    widened: Condvar,
}

impl LabCommand {
    /// Connects to the agent and hands it the request.
    pub(super) fn start(
        agent: &AgentAddress,
        request: &CommandRequest,
        watch: LabWatch,
        awake: Option<AwakeLab>,
    ) -> Result<Self> {
        let connection = agent.connect(CONNECT)?;
        connection.set_read_timeout(Some(WITHIN_FRAME))?;
        let body = serde_json::to_vec(request)?;
        if body.len() > MAX_PAYLOAD {
            bail!(
                "A command line of {} bytes; the lab takes {MAX_PAYLOAD}",
                body.len()
            );
        }
        frame::write(&mut &connection, FrameKind::CommandRequest, &body)?;
        let shared = SharedControl {
            to_agent: Mutex::new(connection.try_clone()?),
            window: Mutex::new(Some(INPUT_WINDOW)),
            widened: Condvar::new(),
        };
        let control = CommandControl {
            shared: Arc::new(shared),
        };
        Ok(Self {
            connection,
            control,
            watch,
            silence: None,
            _awake: awake,
        })
    }

    /// A way to send input and signals while [`LabCommand::wait`] waits.
    pub(crate) fn control(&self) -> CommandControl {
        self.control.clone()
    }

    /// [`LabCommand::wait`] ends with an error if the command says nothing for this long, without
    /// the time in which the lab had no processor of this machine.
    pub(crate) fn limit_silence(&mut self, limit: Duration) {
        self.silence = Some(limit);
    }

    /// Waits for the next frame to begin.
    fn readable(&self) -> Result<()> {
        let mut silence = self.watch.silence();
        loop {
            let mut poll = [PollFd::new(&self.connection, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&LOOK)) {
                Ok(0) => silence.check(self.silence)?,
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("Waiting for the lab"),
            }
        }
    }

    /// An error of reading: a lab that has died, if it has.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        match self.watch.is_there() {
            Ok(()) => error.context("The lab's agent broke off: see `lab logs`"),
            Err(dead) => dead,
        }
    }

    /// Hands output to `sink` as it comes, until the command and all its output have ended.
    ///
    /// # Errors
    /// If the command could not be started, or the lab ended first, or `sink` fails.
    pub(crate) fn wait(
        self,
        mut sink: impl FnMut(OutputStream, &[u8]) -> Result<()>,
    ) -> Result<ExitStatus> {
        let mut payload = Vec::new();
        loop {
            self.readable()?;
            let read = frame::read(&mut &self.connection, &mut payload)
                .and_then(|kind| kind.context("The lab closed the connection"));
            match read.map_err(|error| self.explained(error))? {
                FrameKind::Stdout => sink(OutputStream::Stdout, &payload)?,
                FrameKind::Stderr => sink(OutputStream::Stderr, &payload)?,
                FrameKind::InputTaken => self
                    .control
                    .widen(usize::try_from(frame::number(&payload)?)?),
                FrameKind::Exited => {
                    let raw = frame::number(&payload)?;
                    return Ok(ExitStatus::from_raw(raw.cast_signed()));
                }
                FrameKind::Refused => bail!("The lab: {}", String::from_utf8_lossy(&payload)),
                other => bail!("The lab's agent sent a frame of kind {other:?}"),
            }
        }
    }
}

impl Drop for LabCommand {
    fn drop(&mut self) {
        self.control.close();
        let _ = self.connection.shutdown(Shutdown::Both);
    }
}

impl CommandControl {
    /// Sends a signal to the command's process group.
    pub(crate) fn signal(&self, number: u8) -> Result<()> {
        self.send(FrameKind::Signal, &[number])
    }

    /// Tells the size of the terminal.
    pub(super) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        self.send(
            FrameKind::Resize,
            &(u32::from(rows) | u32::from(columns) << 16).to_le_bytes(),
        )
    }

    /// Sends all of `source` as the command's input, then its end; returns early when the
    /// command has ended.
    ///
    /// # Errors
    /// The source's, or a closed connection.
    pub(crate) fn feed(&self, mut source: impl Read) -> Result<()> {
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            let length = match source.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.context("Reading input for the lab")?,
            };
            if length == 0 {
                return self.send(FrameKind::InputEnd, &[]);
            }
            if !self.reserve(length) {
                return Ok(());
            }
            self.send(FrameKind::Input, &buffer[..length])?;
        }
    }

    fn send(&self, kind: FrameKind, payload: &[u8]) -> Result<()> {
        frame::write(&mut *lock(&self.shared.to_agent), kind, payload)
    }

    /// Waits until `length` bytes fit the window; false if the command has ended.
    fn reserve(&self, length: usize) -> bool {
        let window = lock(&self.shared.window);
        let waited = self
            .shared
            .widened
            .wait_while(window, |w| w.is_some_and(|w| w < length));
        match &mut *waited.unwrap_or_else(PoisonError::into_inner) {
            Some(window) => {
                *window -= length;
                true
            }
            None => false,
        }
    }

    fn widen(&self, length: usize) {
        if let Some(window) = &mut *lock(&self.shared.window) {
            *window = (*window + length).min(INPUT_WINDOW);
        }
        self.shared.widened.notify_all();
    }

    fn close(&self) {
        *lock(&self.shared.window) = None;
        self.shared.widened.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
