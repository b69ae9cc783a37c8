//! The host's end of a command in the lab.

use super::awake::AwakeLab;
use super::frame::{self, CommandRequest, FrameKind, INPUT_WINDOW, MAX_PAYLOAD};
use anyhow::{Context, Result, bail};
use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    /// Connects to the agent at this port of loopback and hands it the request.
    pub(super) fn start(
        port: u16,
        request: &CommandRequest,
        awake: Option<AwakeLab>,
    ) -> Result<Self> {
        let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("Connecting to the lab's agent at 127.0.0.1:{port}"))?;
        connection.set_nodelay(true)?;
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
            _awake: awake,
        })
    }

    /// A way to send input and signals while [`LabCommand::wait`] waits.
    pub(crate) fn control(&self) -> CommandControl {
        self.control.clone()
    }

    /// Ends with an error if the agent sends nothing for this long.
    pub(crate) fn limit_silence(&self, limit: Duration) -> Result<()> {
        self.connection
            .set_read_timeout(Some(limit))
            .context("Setting a time limit")
    }

    /// An error of reading, in words if it is that nothing came in time.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let io = error.downcast_ref::<std::io::Error>();
        let silent = io.is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        match self.connection.read_timeout() {
            Ok(Some(limit)) if silent => error.context(format!("The lab was silent for {limit:?}")),
            _ => error,
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
            let read = frame::read(&mut &self.connection, &mut payload);
            let kind = read.map_err(|error| self.explained(error))?;
            match kind.context("The lab closed the connection: did it stop? See `lab logs`")? {
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
