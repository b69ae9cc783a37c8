//! The client side of the wire protocol: one link per sandbox, many streams.
//!
//! ```text
//! Link::start ─┐                    ┌─> writer task ─> socket
//! Link::stat ──┼─> Shared::open ────┤
//! FileWriter ──┘   table of streams └─< reader task <─ socket
//!                       │
//!                       └─ per stream: Queue (≤ one window), windows, end
//! ```
//!
//! Memory per link: at most [`wire::MAX_STREAMS`] windows of [`wire::OUTPUT_WINDOW`] bytes,
//! [`wire::MAX_PORT_STREAMS`] of [`wire::PORT_WINDOW`] bytes, and 1 MiB on its way out. When the
//! connection ends, every pending call fails with [`LinkError::Closed`].
//!
//! ```
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! use link::Link;
//! use tokio::net::UnixStream;
//!
//! // A peer that leaves before it has greeted is no guest agent.
//! let (ours, theirs) = UnixStream::pair()?;
//! drop(theirs);
//! let refused = Link::connect(ours).await.unwrap_err();
//! assert!(refused.is_closed());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod core;
mod error;
mod exit;
mod file;
mod freezer;
mod hello;
mod io;
mod port;
mod process;
mod queue;
mod shared;
mod stream;
#[cfg(test)]
mod test;
mod types;
mod unasked;

use crate::core::StreamNews;
use crate::freezer::Freezer;
use crate::shared::LinkState;
use bytes::BytesMut;
pub use error::{AgentRefusal, LinkError};
pub use exit::{end_status, exit_status};
pub use file::{FileReader, FileWriter};
pub use port::PortStream;
pub use process::{OutputChannel, ProcessCommand, ProcessEvent, ProcessInput, ProcessStream};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
pub use stream::StreamEnded;
use stream::{AgentStream, unasked_data};
use tokio::net::UnixStream;
use types::AgentAnswer;
pub use types::{AgentHello, AgentProcess, FileEntry, GuestUser};
use wire::{
    DataChannel, EntryInfo, MAX_DEFAULT_ENV, MAX_ENV, MAX_FRAME, ProcessInfo, PtySize, Records,
    Request, StartProcess, Stdin, StringList, Sysinfo,
};

/// Most entries of a listing that are held at once.
pub const MAX_ENTRIES: usize = 100_000;
/// Most bytes of them, as the agent sends them: some long names are as much as many short ones.
pub const MAX_LISTING: usize = 16 << 20;

/// Who a fresh guest is to be. Sent once before any tenant code runs.
#[derive(Clone)]
pub struct GuestIdentity {
    /// Nanoseconds since 1970, UTC, taken as late as possible.
    pub unix_ns: u64,
    /// The guest's host name: the sandbox's id.
    pub hostname: String,
    /// Differs from that of every other machine that began at the same snapshot; not 0.
    pub generation: u64,
    /// Fresh random bytes for the guest kernel's pool.
    pub entropy: [u8; 32],
    /// Environment defaults. An environment over the wire's limit is not sent: every process is
    /// started with the whole of it anyway.
    pub env: BTreeMap<String, String>,
}

impl fmt::Debug for GuestIdentity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither entropy nor environment belongs in a log.
        out.debug_struct("Identity")
            .field("hostname", &self.hostname)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct LinkGuard {
    shared: Arc<LinkState>,
    freezer: Freezer,
    /// The agent can connect to ports.
    ports: bool,
}

impl Drop for LinkGuard {
    fn drop(&mut self) {
        self.shared.close("nobody holds the link any more");
    }
}

/// A connection at rest: see [`Link::rest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkRest {
    /// The id of the stream that was opened last; 0 before the first.
    last_stream: u32,
    /// The agent can stop processes.
    can_freeze: bool,
    /// The agent can connect to ports.
    can_connect: bool,
}

/// A cheap handle; clones share the connection, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Link {
    guard: Arc<LinkGuard>,
}

impl Link {
    /// Waits for the agent's Hello, then drives the connection in tasks of its own. The caller
    /// bounds the time.
    ///
    /// # Errors
    /// The stream ended, or the peer speaks something else.
    pub async fn connect(mut stream: UnixStream) -> Result<(Self, AgentHello), LinkError> {
        let mut buffer = BytesMut::with_capacity(MAX_FRAME);
        let hello = hello::exchange(&mut stream, &mut buffer).await?;
        let has = |flag| hello.flags & flag != 0;
        let rest = LinkRest {
            last_stream: 0,
            can_freeze: has(wire::boot_flags::FREEZER),
            can_connect: has(wire::boot_flags::PORTS),
        };
        Ok((Self::drive(stream, buffer, rest), hello))
    }

    /// Goes on with a connection whose greeting is over: the agent on the other side was saved when
    /// nothing was under way, and `rest` is what [`Link::rest`] said then.
    #[must_use]
    pub fn resume(stream: UnixStream, rest: LinkRest) -> Self {
        Self::drive(stream, BytesMut::with_capacity(MAX_FRAME), rest)
    }

    fn drive(stream: UnixStream, buffer: BytesMut, rest: LinkRest) -> Self {
        let (shared, queue) = LinkState::new(rest.last_stream);
        let (read_half, write_half) = stream.into_split();
        tokio::spawn(io::read(shared.clone(), read_half, buffer));
        tokio::spawn(io::write(shared.clone(), queue, write_half));
        Self {
            guard: Arc::new(LinkGuard {
                shared,
                freezer: Freezer::new(rest.can_freeze),
                ports: rest.can_connect,
            }),
        }
    }

    /// What a connection is to know that goes on where this one is now, with nothing under way.
    #[must_use]
    pub fn rest(&self) -> LinkRest {
        LinkRest {
            last_stream: self.guard.shared.last_id(),
            can_freeze: self.guard.freezer.is_usable(),
            can_connect: self.guard.ports,
        }
    }

    /// Completes when the connection has ended for good.
    pub async fn closed(&self) {
        self.guard.shared.closed().await;
    }

    /// Ends the connection: every open stream fails, [`Link::closed`] completes.
    pub fn close(&self) {
        self.guard.shared.close("this server closed it");
    }

    async fn open(&self, request: &Request<'_>) -> Result<AgentStream, LinkError> {
        let shared = &self.guard.shared;
        let (id, core) = shared.open(request, wire::MAX_PORT_STREAMS).await?;
        Ok(AgentStream::new(id, core, shared.clone()))
    }

    async fn ask(
        &self,
        name: &'static str,
        request: &Request<'_>,
    ) -> Result<AgentAnswer, LinkError> {
        self.open(request).await?.answer(name).await
    }

    async fn done(&self, name: &'static str, request: &Request<'_>) -> Result<u64, LinkError> {
        match self.ask(name, request).await? {
            AgentAnswer::Done(number) => Ok(number),
            other => Err(other.unexpected(name)),
        }
    }

    async fn entry(
        &self,
        name: &'static str,
        request: &Request<'_>,
    ) -> Result<FileEntry, LinkError> {
        match self.ask(name, request).await? {
            AgentAnswer::Entry(entry) => Ok(entry),
            other => Err(other.unexpected(name)),
        }
    }

    /// Makes the guest this sandbox; returns once the agent has acknowledged this very identity.
    ///
    /// # Errors
    /// The link closed, the agent refused, or it has acknowledged another generation.
    pub async fn set_identity(&self, identity: GuestIdentity) -> Result<(), LinkError> {
        let env: Vec<String> = identity
            .env
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        let bytes: usize = env.iter().map(|entry| entry.len() + 1).sum();
        let env = if bytes > MAX_DEFAULT_ENV || env.len() > MAX_ENV {
            Vec::new()
        } else {
            env
        };
        let env: Vec<&[u8]> = env.iter().map(String::as_bytes).collect();
        let request = Request::SetIdentity(wire::SetIdentity {
            wall_clock_ns: identity.unix_ns,
            generation: identity.generation,
            hostname: identity.hostname.as_bytes(),
            entropy: &identity.entropy,
            env: StringList::Slices(&env),
        });
        let taken = self.done("a new identity", &request).await?;
        if taken == identity.generation {
            return Ok(());
        }
        Err(LinkError::Unexpected {
            request: "a new identity",
            got: format!("generation {taken}, not {}", identity.generation),
        })
    }

    /// Starts a process; returns once it runs.
    ///
    /// # Errors
    /// The agent refused (unknown user, missing program or directory, …) or the link closed.
    pub async fn start(&self, command: &ProcessCommand) -> Result<ProcessStream, LinkError> {
        let argv: Vec<&[u8]> = command.argv.iter().map(String::as_bytes).collect();
        let env: Vec<&[u8]> = command.env.iter().map(String::as_bytes).collect();
        let request = Request::Start(StartProcess {
            argv: StringList::Slices(&argv),
            env: StringList::Slices(&env),
            cwd: command.cwd.as_bytes(),
            user: command.user.as_bytes(),
            stdin: if command.stdin {
                Stdin::Pipe
            } else {
                Stdin::Null
            },
            pty: command.pty.map(|(cols, rows)| PtySize { cols, rows }),
            tag: command.tag.as_bytes(),
            limits: wire::ProcessLimits::default(),
        });
        let _turn = self.guard.freezer.start().await;
        let mut stream = self.open(&request).await?;
        match stream.news("a process start").await? {
            StreamNews::Started { pid } => Ok(ProcessStream::new(stream, pid)),
            other => Err(other.unexpected("a process start")),
        }
    }

    /// Listens to a process that nobody listens to: after its connection was lost, or its stream
    /// was given up.
    ///
    /// # Errors
    /// No such process, one with a listener, or the link closed.
    pub async fn attach(&self, pid: u32) -> Result<ProcessStream, LinkError> {
        let mut stream = self.open(&Request::Attach { pid }).await?;
        match stream.news("listening to a process").await? {
            StreamNews::Started { pid } => Ok(ProcessStream::new(stream, pid)),
            other => Err(other.unexpected("listening to a process")),
        }
    }

    /// Sends a signal (1 to 64) to a process that was started by [`Link::start`].
    ///
    /// # Errors
    /// No such process, or the link closed.
    pub async fn signal(&self, pid: u32, signal: u8) -> Result<(), LinkError> {
        self.done("a signal", &Request::Signal { pid, signal })
            .await
            .map(drop)
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// No such process, no terminal, or the link closed.
    pub async fn resize(&self, pid: u32, cols: u16, rows: u16) -> Result<(), LinkError> {
        let request = Request::Resize {
            pid,
            size: PtySize { cols, rows },
        };
        self.done("a resize", &request).await.map(drop)
    }

    /// The processes the agent started and that have not ended.
    ///
    /// # Errors
    /// The link closed.
    pub async fn processes(&self) -> Result<Vec<AgentProcess>, LinkError> {
        self.records(&Request::ListProcesses, |bytes, all| {
            for record in Records::<ProcessInfo<'_>>::new(bytes) {
                let info = record?;
                all.push(AgentProcess {
                    pid: info.pid,
                    pty: info.pty,
                    tag: info.tag.to_vec(),
                    program: info.program.to_vec(),
                });
            }
            Ok(())
        })
        .await
    }

    /// What is at `path`.
    ///
    /// # Errors
    /// Nothing is there, or the link closed.
    pub async fn stat(&self, path: &[u8]) -> Result<FileEntry, LinkError> {
        self.entry("a stat", &Request::Stat { path }).await
    }

    /// What is in the directory `path`, `depth` levels deep (1 to [`wire::MAX_DEPTH`]), in no
    /// order.
    ///
    /// # Errors
    /// No such directory, more than [`MAX_ENTRIES`] or [`MAX_LISTING`], or the link closed.
    pub async fn list_dir(&self, path: &[u8], depth: u32) -> Result<Vec<FileEntry>, LinkError> {
        self.records(&Request::ListDir { path, depth }, |bytes, all| {
            for record in Records::<EntryInfo<'_>>::new(bytes) {
                all.push(FileEntry::from(record?));
            }
            Ok(())
        })
        .await
    }

    async fn records<T>(
        &self,
        request: &Request<'_>,
        parse: impl Fn(&[u8], &mut Vec<T>) -> Result<(), wire::DecodeError>,
    ) -> Result<Vec<T>, LinkError> {
        let mut stream = self.open(request).await?;
        let (mut all, mut taken) = (Vec::new(), 0);
        while let Some((channel, bytes)) = stream.data().await {
            if channel != DataChannel::Records {
                return Err(unasked_data("a listing", channel));
            }
            taken += bytes.len();
            if taken > MAX_LISTING {
                return Err(LinkError::TooLarge(MAX_LISTING));
            }
            parse(&bytes, &mut all).map_err(|why| LinkError::Unexpected {
                request: "a listing",
                got: format!("a record that is wrong: {why}"),
            })?;
            if all.len() > MAX_ENTRIES {
                return Err(LinkError::TooMany(MAX_ENTRIES));
            }
        }
        match stream.answer("a listing").await? {
            AgentAnswer::Done(_) => Ok(all),
            other => Err(other.unexpected("a listing")),
        }
    }

    /// Makes a directory and its parents, owned by `user`.
    ///
    /// # Errors
    /// Something is there already, or the link closed.
    pub async fn make_dir(&self, path: &[u8], user: &str) -> Result<FileEntry, LinkError> {
        self.entry(
            "a mkdir",
            &Request::MakeDir {
                path,
                user: user.as_bytes(),
            },
        )
        .await
    }

    /// Renames, making the destination's parents, owned by `user`.
    ///
    /// # Errors
    /// No such source, or the link closed.
    pub async fn rename(&self, from: &[u8], to: &[u8], user: &str) -> Result<FileEntry, LinkError> {
        self.entry(
            "a move",
            &Request::Move {
                from,
                to,
                user: user.as_bytes(),
            },
        )
        .await
    }

    /// Removes a file or a tree; returns how many entries went.
    ///
    /// # Errors
    /// The guest could not remove something, or the link closed.
    pub async fn remove(&self, path: &[u8]) -> Result<u64, LinkError> {
        self.done("a removal", &Request::Remove { path }).await
    }

    /// Opens a file for reading from `offset`, at most `len` bytes.
    ///
    /// # Errors
    /// No such file, a directory, or the link closed.
    pub async fn read_file(
        &self,
        path: &[u8],
        offset: u64,
        len: u64,
    ) -> Result<(FileEntry, FileReader), LinkError> {
        let request = Request::ReadFile(wire::ReadFile { path, offset, len });
        let mut stream = self.open(&request).await?;
        match stream.news("a file read").await? {
            StreamNews::Opened(entry) => Ok((entry, FileReader::new(stream))),
            other => Err(other.unexpected("a file read")),
        }
    }

    /// Begins to write a file: truncated if it exists, else mode 0666 less the umask; parents are
    /// made; everything new belongs to `user`. Errors of the guest come with the first bytes.
    ///
    /// # Errors
    /// The link closed.
    pub async fn write_file(&self, path: &[u8], user: &str) -> Result<FileWriter, LinkError> {
        let request = Request::WriteFile(wire::WriteFile {
            path,
            user: user.as_bytes(),
            mode: 0o666,
            truncate: true,
            parents: true,
        });
        Ok(FileWriter::new(self.open(&request).await?))
    }

    /// Connects to a TCP port of the guest, 1 to 65535, of 127.0.0.1 or else of `::1`, while fewer
    /// than `most` of this link are connected ([`wire::MAX_PORT_STREAMS`] at most). The caller
    /// bounds the time: a program that takes no connections answers nothing.
    ///
    /// # Errors
    /// Nobody listens there ([`LinkError::refusal`], with the kernel's number),
    /// [`LinkError::PortsBusy`], [`LinkError::OldAgent`], or the link closed.
    pub async fn connect_port(&self, port: u16, most: usize) -> Result<PortStream, LinkError> {
        if !self.guard.ports {
            return Err(LinkError::OldAgent("connect to ports"));
        }
        let shared = &self.guard.shared;
        let (id, core) = shared.open(&Request::ConnectPort { port }, most).await?;
        let mut stream = AgentStream::new(id, core, shared.clone());
        match stream.news("a connection to a port").await? {
            StreamNews::Connected => Ok(PortStream::new(stream)),
            other => Err(other.unexpected("a connection to a port")),
        }
    }

    /// Finds a user of the guest by name; the empty name is root's.
    ///
    /// # Errors
    /// No such user, or the link closed.
    pub async fn lookup_user(&self, name: &str) -> Result<GuestUser, LinkError> {
        let request = Request::LookupUser {
            name: name.as_bytes(),
        };
        match self.ask("a user lookup", &request).await? {
            AgentAnswer::User(user) => Ok(user),
            other => Err(other.unexpected("a user lookup")),
        }
    }

    /// Figures of the guest.
    ///
    /// # Errors
    /// The link closed.
    pub async fn sysinfo(&self) -> Result<Sysinfo, LinkError> {
        let name = "a question for figures";
        match self.ask(name, &Request::Sysinfo).await? {
            AgentAnswer::Sysinfo(info) => Ok(info),
            other => Err(other.unexpected(name)),
        }
    }

    /// Writes everything to the guest's disk.
    ///
    /// # Errors
    /// The link closed.
    pub async fn sync(&self) -> Result<(), LinkError> {
        self.done("a sync", &Request::Sync).await.map(drop)
    }

    /// Stops every process of the guest until [`Link::thaw`], which is to be called however this
    /// ends; or until a new identity, in a machine that begins as this one is when it is saved. Of
    /// an agent that cannot do it ([`wire::boot_flags::FREEZER`]) nothing is asked.
    ///
    /// # Errors
    /// The link closed, or the guest's kernel refused.
    pub async fn freeze(&self) -> Result<(), LinkError> {
        if !self.guard.freezer.is_usable() {
            return Ok(());
        }
        self.guard.freezer.hold().await;
        self.done("a freeze", &Request::Freeze).await.map(drop)
    }

    /// Lets the guest's processes go on; nothing if they were not stopped.
    ///
    /// # Errors
    /// The link closed, or the guest's kernel refused.
    pub async fn thaw(&self) -> Result<(), LinkError> {
        let Some(turn) = self.guard.freezer.release() else {
            return Ok(());
        };
        let thawed = self.done("a thaw", &Request::Thaw).await;
        drop(turn);
        thawed.map(drop)
    }

    /// Powers the guest off; the link closes soon after.
    ///
    /// # Errors
    /// The link closed first.
    pub async fn shutdown(&self) -> Result<(), LinkError> {
        self.done("a shutdown", &Request::Shutdown).await.map(drop)
    }
}
