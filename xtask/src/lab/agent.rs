//! Runs commands inside the lab (`xtask lab agent`, started by the lab's init).
//!
//! One thread per connection reads the host's frames; beside it one thread feeds the command's
//! input, one or two carry its output, and one waits for its end. When the host closes the
//! connection before the end, the command's process group is ended: `SIGTERM`, then `SIGKILL`.

use super::frame::{self, CommandRequest, FrameKind, INPUT_WINDOW, MAX_PAYLOAD};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// Where the first root says which port and token to use.
const SETTINGS: &str = "/etc/lab-agent";
/// Commands at a time; one more is refused.
const MAX_COMMANDS: usize = 256;
/// From `SIGTERM` to `SIGKILL` for a command that nobody listens to any more.
const GRACE: Duration = Duration::from_secs(3);
/// Bytes read from a command at a time.
const CHUNK: usize = 32 << 10;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Serves for ever.
///
/// # Errors
/// If this is not a lab.
pub(super) fn serve() -> Result<()> {
    let settings = std::fs::read_to_string(SETTINGS)
        .with_context(|| format!("Reading {SETTINGS}: is this the inside of a lab?"))?;
    let (port, token) = settings
        .split_once(' ')
        .context("A lab without port and token")?;
    let listener =
        TcpListener::bind(("0.0.0.0", port.parse()?)).context("Listening for commands")?;
    let token: Arc<str> = token.trim().into();
    let held = super::hold::machine();
    if let Err(error) = &held {
        eprintln!("lab: no machine is held: {error:#}");
    }
    for connection in listener.incoming() {
        let Ok(connection) = connection else {
            thread::sleep(Duration::from_millis(50)); // out of file descriptors, most likely
            continue;
        };
        let token = Arc::clone(&token);
        let spawned = thread::Builder::new().spawn(move || {
            RUNNING.fetch_add(1, Ordering::Relaxed);
            let _ = connection.set_nodelay(true);
            if let Err(error) = session(&connection, &token) {
                let _ = frame::write(
                    &mut &connection,
                    FrameKind::Refused,
                    format!("{error:#}").as_bytes(),
                );
            }
            RUNNING.fetch_sub(1, Ordering::Relaxed);
        });
        drop(spawned); // without a thread the connection closes, which the host reports
    }
    Ok(())
}

/// Handles one connection; an error before the command runs is the host's to see.
fn session(connection: &TcpStream, token: &str) -> Result<()> {
    let mut payload = Vec::new();
    connection.set_read_timeout(Some(Duration::from_secs(10)))?;
    if frame::read(&mut &*connection, &mut payload)? != Some(FrameKind::CommandRequest) {
        bail!("A connection must open with a request");
    }
    connection.set_read_timeout(None)?;
    let request: CommandRequest =
        serde_json::from_slice(&payload).context("The request is not valid")?;
    if request.token != token {
        bail!("The token is not this lab's");
    }
    if RUNNING.load(Ordering::Relaxed) > MAX_COMMANDS {
        bail!("{MAX_COMMANDS} commands are running already");
    }
    if let Some(step_ns) = request.step_clock_ns {
        step_clock(step_ns)?;
    }
    if request.argv.is_empty() {
        let now = u64::try_from(clock_ns())?.to_le_bytes();
        return frame::write(&mut &*connection, FrameKind::Stdout, &now);
    }
    let to_host = Arc::new(Mutex::new(connection.try_clone()?));
    let command = ServedCommand::start(&request, &to_host)?;
    command.follow(connection, payload);
    Ok(())
}

/// A command that runs, as the connection's own thread sees it.
struct ServedCommand {
    group: Pid,
    input: Option<mpsc::Sender<Vec<u8>>>,
    input_under_way: Arc<AtomicUsize>,
    terminal: Option<File>,
    ended: Arc<CommandEnd>,
}

/// Whether the command has ended and all its output is on its way.
#[derive(Default)]
struct CommandEnd {
    done: AtomicBool,
    lock: Mutex<()>,
    signal: Condvar,
}

impl ServedCommand {
    fn start(request: &CommandRequest, to_host: &Arc<Mutex<TcpStream>>) -> Result<Self> {
        let mut pipes = match request.terminal {
            Some(size) => CommandPipes::terminal(request, size)?,
            None => CommandPipes::plain(request)?,
        };
        let group = Pid::from_child(&pipes.child);
        let under_way = Arc::new(AtomicUsize::new(0));
        let (input, queue) = mpsc::channel();
        {
            let (to_host, under_way) = (Arc::clone(to_host), Arc::clone(&under_way));
            let sink = pipes.input;
            thread::Builder::new().spawn(move || feed(&queue, sink, &under_way, &to_host))?;
        }
        let mut outputs = Vec::new();
        for (kind, source) in pipes.outputs {
            let to_host = Arc::clone(to_host);
            outputs.push(thread::Builder::new().spawn(move || carry(kind, source, &to_host))?);
        }
        let ended = Arc::new(CommandEnd::default());
        let (to_host, mark) = (Arc::clone(to_host), Arc::clone(&ended));
        thread::Builder::new().spawn(move || {
            let status = pipes.child.wait();
            for output in outputs {
                let _ = output.join();
            }
            mark.set();
            let stream = &mut *lock(&to_host);
            let _ = match status {
                Ok(status) => {
                    frame::write(stream, FrameKind::Exited, &status.into_raw().to_le_bytes())
                }
                Err(error) => {
                    frame::write(stream, FrameKind::Refused, error.to_string().as_bytes())
                }
            };
        })?;
        let input = Some(input);
        Ok(Self {
            group,
            input,
            input_under_way: under_way,
            terminal: pipes.terminal,
            ended,
        })
    }

    /// Does what the host's frames say until it closes, then ends what is still running.
    fn follow(mut self, connection: &TcpStream, mut payload: Vec<u8>) {
        while let Ok(Some(kind)) = frame::read(&mut &*connection, &mut payload) {
            if self.act(kind, &payload).is_err() {
                break;
            }
        }
        self.input = None;
        if self.ended.is_set() {
            return;
        }
        let _ = kill_process_group(self.group, Signal::TERM);
        if !self.ended.within(GRACE) {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }

    fn act(&mut self, kind: FrameKind, payload: &[u8]) -> Result<()> {
        match kind {
            FrameKind::Input => {
                let under_way = &self.input_under_way;
                if under_way.fetch_add(payload.len(), Ordering::Relaxed) > INPUT_WINDOW {
                    bail!("More input than the window allows");
                }
                if let Some(input) = &self.input {
                    let _ = input.send(payload.to_vec()); // the command may have closed its input
                }
            }
            FrameKind::InputEnd => self.input = None,
            FrameKind::Signal => {
                let [number] = payload else {
                    bail!("A signal frame without a signal")
                };
                let signal =
                    Signal::from_named_raw(i32::from(*number)).context("No such signal")?;
                if !self.ended.is_set() {
                    let _ = kill_process_group(self.group, signal);
                }
            }
            FrameKind::Resize => {
                let size = frame::number(payload)?;
                let (rows, columns) = ((size & 0xffff) as u16, (size >> 16) as u16);
                if let Some(terminal) = &self.terminal {
                    resize(terminal, rows, columns)?;
                }
            }
            _ => bail!("A frame that only the agent may send"),
        }
        Ok(())
    }
}

impl CommandEnd {
    fn set(&self) {
        let _guard = lock(&self.lock);
        self.done.store(true, Ordering::Release);
        self.signal.notify_all();
    }

    fn is_set(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn within(&self, limit: Duration) -> bool {
        let guard = lock(&self.lock);
        let wait = self
            .signal
            .wait_timeout_while(guard, limit, |()| !self.is_set());
        drop(wait);
        self.is_set()
    }
}

/// A started command and the near ends of its streams.
struct CommandPipes {
    child: Child,
    input: Box<dyn Write + Send>,
    outputs: Vec<(FrameKind, Box<dyn Read + Send>)>,
    terminal: Option<File>,
}

impl CommandPipes {
    fn plain(request: &CommandRequest) -> Result<Self> {
        let mut command = command(request, &request.argv)?;
        command.process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = start(&mut command, request)?;
        let missing = "A pipe of the command is missing";
        Ok(Self {
            input: Box::new(child.stdin.take().context(missing)?),
            outputs: vec![
                (
                    FrameKind::Stdout,
                    Box::new(child.stdout.take().context(missing)?),
                ),
                (
                    FrameKind::Stderr,
                    Box::new(child.stderr.take().context(missing)?),
                ),
            ],
            child,
            terminal: None,
        })
    }

    /// On a new pseudo-terminal; busybox's `setsid -c` makes it the controlling one.
    fn terminal(request: &CommandRequest, (rows, columns): (u16, u16)) -> Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let near: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&near)?;
        unlockpt(&near)?;
        let name = ptsname(&near, Vec::new())?.into_string()?;
        let far = File::options().read(true).write(true).open(&name)?;
        let near = File::from(near);
        resize(&near, rows, columns)?;
        let mut argv = vec!["/bin/setsid".to_owned(), "-c".to_owned()];
        argv.extend(request.argv.iter().cloned());
        let mut command = command(request, &argv)?;
        command
            .stdin(far.try_clone()?)
            .stdout(far.try_clone()?)
            .stderr(far);
        // Not a process group of its own: `setsid` makes one, and would fork if there was one.
        let child = start(&mut command, request)?;
        Ok(Self {
            child,
            input: Box::new(near.try_clone()?),
            outputs: vec![(FrameKind::Stdout, Box::new(near.try_clone()?))],
            terminal: Some(near),
        })
    }
}

fn command(request: &CommandRequest, argv: &[String]) -> Result<Command> {
    let [program, args @ ..] = argv else {
        bail!("A command without a program")
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .envs(request.env.iter().map(|(name, value)| (name, value)));
    command.current_dir(request.cwd.as_deref().unwrap_or("/root"));
    Ok(command)
}

fn start(command: &mut Command, request: &CommandRequest) -> Result<Child> {
    let cwd = request.cwd.as_deref().unwrap_or("/root");
    command
        .spawn()
        .with_context(|| format!("Starting {:?} in {cwd}", request.argv))
}

/// Hands queued input to the command and says so to the host.
fn feed(
    queue: &mpsc::Receiver<Vec<u8>>,
    mut sink: Box<dyn Write + Send>,
    under_way: &AtomicUsize,
    to_host: &Mutex<TcpStream>,
) {
    let mut open = true;
    while let Ok(chunk) = queue.recv() {
        // Once the command has closed its input, the rest is taken from the host and dropped.
        open = open && sink.write_all(&chunk).is_ok();
        under_way.fetch_sub(chunk.len(), Ordering::Relaxed);
        let taken = u32::try_from(chunk.len()).unwrap_or(u32::MAX).to_le_bytes();
        if frame::write(&mut *lock(to_host), FrameKind::InputTaken, &taken).is_err() {
            return;
        }
    }
}

/// Sends a command's output to the host; reads on without sending if the host is gone, so that
/// the command gets to see its `SIGTERM` rather than a full pipe.
fn carry(kind: FrameKind, mut source: Box<dyn Read + Send>, to_host: &Mutex<TcpStream>) {
    const _: () = assert!(CHUNK <= MAX_PAYLOAD, "a chunk fits a frame");
    let mut buffer = vec![0; CHUNK];
    let mut open = true;
    loop {
        match source.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return, // a terminal ends with an error
            Ok(length) => {
                open = open && frame::write(&mut *lock(to_host), kind, &buffer[..length]).is_ok();
            }
        }
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) -> Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size).context("Setting the terminal's size")
}

/// Adds to the clock, whenever this comes to run.
fn step_clock(step_ns: i64) -> Result<()> {
    const SECOND: i128 = 1_000_000_000;
    let now = clock_ns() + i128::from(step_ns);
    let now = Timespec {
        tv_sec: i64::try_from(now.div_euclid(SECOND))?,
        tv_nsec: i64::try_from(now.rem_euclid(SECOND))?,
    };
    clock_settime(ClockId::Realtime, now).context("Setting the lab's clock")
}

/// Nanoseconds since the epoch.
fn clock_ns() -> i128 {
    let now = clock_gettime(ClockId::Realtime);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
