//! What the host can ask for. Paths are absolute; the agent acts as root and gives what it creates
//! to the named user. An empty user name means root.

use crate::codec::{DecodeError, EncodeError, FieldReader, FieldWriter, code};
use crate::error::codes;
use crate::identity::SetIdentity;
use crate::limits::{
    MAX_ARGS, MAX_DEPTH, MAX_ENV, MAX_NAME, MAX_PATH, MAX_PAYLOAD, MAX_REQUEST, MAX_TAG,
    OUTPUT_WINDOW, PORT_WINDOW,
};
use crate::strings::StringList;

/// An `Open` frame: a part of an encoded [`Request`].
///
/// A request over one payload is cut into several `Open` frames of the same stream that follow each
/// other directly; all but the last have `more` set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestPart<'a> {
    /// Another part follows in the next frame.
    pub more: bool,
    /// The part.
    pub part: &'a [u8],
}

const FLAG_MORE: u8 = 1;

impl<'a> RequestPart<'a> {
    pub(crate) fn decode(flags: u8, part: &'a [u8]) -> Result<Self, DecodeError> {
        match flags {
            0 => Ok(Self { more: false, part }),
            FLAG_MORE if !part.is_empty() => Ok(Self { more: true, part }),
            _ => Err(DecodeError::Invalid {
                field: "open flags",
                value: u32::from(flags),
            }),
        }
    }

    pub(crate) fn encode(&self, w: &mut FieldWriter<'_>) -> Result<u8, EncodeError> {
        w.raw(self.part)?;
        Ok(if self.more { FLAG_MORE } else { 0 })
    }

    /// The `Open` frames for an encoded request.
    pub fn parts(request: &'a [u8]) -> impl Iterator<Item = Self> {
        let mut chunks = request.chunks(MAX_PAYLOAD).peekable();
        core::iter::from_fn(move || {
            let part = chunks.next()?;
            Some(Self {
                more: chunks.peek().is_some(),
                part,
            })
        })
    }
}

codes! {
    /// What a process finds as its standard input.
    Stdin {
        /// `/dev/null`.
        Null = 0,
        /// A pipe, fed by `Data` on the stream and closed by `End`.
        Pipe = 1,
    }
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtySize {
    /// Width.
    pub cols: u16,
    /// Height.
    pub rows: u16,
}

/// Resource limits of a process (`setrlimit`, soft and hard). 0 keeps the agent's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessLimits {
    /// Open files.
    pub open_files: u32,
    /// CPU time in seconds.
    pub cpu_seconds: u32,
    /// Bytes of a file it writes.
    pub file_size: u64,
}

/// Starts a process. Replies `Event(Started)`, data, and at its end `Reply(Exited)`.
///
/// The environment is built in this order, later wins: `PATH`, `HOME`, `USER`, `LOGNAME`; the
/// defaults of [`SetIdentity`]; `env`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartProcess<'a> {
    /// The program (looked up in the `PATH` of its environment if it has no slash) and arguments.
    pub argv: StringList<'a>,
    /// `NAME=value` entries.
    pub env: StringList<'a>,
    /// Working directory; empty means the user's home, a relative one starts there.
    pub cwd: &'a [u8],
    /// Whose rights it gets; empty means root.
    pub user: &'a [u8],
    /// Its standard input, when there is no terminal.
    pub stdin: Stdin,
    /// A terminal for input, output and errors together.
    pub pty: Option<PtySize>,
    /// The caller's label, shown by [`Request::ListProcesses`].
    pub tag: &'a [u8],
    /// Resource limits.
    pub limits: ProcessLimits,
}

/// Reads a regular file. `Event(Opened)`, `Data(File)`, then `Reply(Done(bytes))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadFile<'a> {
    /// The file; symbolic links are followed.
    pub path: &'a [u8],
    /// First byte.
    pub offset: u64,
    /// Most bytes; `u64::MAX` for all.
    pub len: u64,
}

/// Writes a regular file from the `Data(File)` that follows until `End`, then `Reply(Entry)`.
///
/// A new file gets `mode & !umask` and the user as owner before its first byte; an existing one is
/// given to the user and keeps its mode. A `Reset` before `End` leaves what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteFile<'a> {
    /// The file; symbolic links are followed.
    pub path: &'a [u8],
    /// The owner to be; empty means root.
    pub user: &'a [u8],
    /// Permission bits of a new file; `0o666` is usual. The umask is `0o022`.
    pub mode: u32,
    /// Cut an existing file to nothing first; otherwise append to it.
    pub truncate: bool,
    /// Create missing parent directories, `0o755` and owned by the user.
    pub parents: bool,
}

/// Something the host asks of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Starts a process.
    Start(StartProcess<'a>),
    /// Sends a signal to a process the agent started. `Reply(Done(0))`.
    Signal {
        /// Its id.
        pid: u32,
        /// 1 to 64.
        signal: u8,
    },
    /// The processes the agent started and that have not ended: `Data(Records)` of
    /// [`crate::ProcessInfo`], then `Reply(Done(count))`.
    ListProcesses,
    /// Sets the size of a process's terminal. `Reply(Done(0))`.
    Resize {
        /// Its id.
        pid: u32,
        /// The new size.
        size: PtySize,
    },
    /// Listens to a process that no stream belongs to, which is so when its stream was reset or its
    /// connection was lost. `Event(Started)`, then as [`StartProcess`]; its input is as that was
    /// left. `NoSuchProcess`, or `Busy` if it has a stream.
    Attach {
        /// Its id.
        pid: u32,
    },
    /// What is at a path. `Reply(Entry)`. Both of [`crate::EntryInfo`]'s views of a link are given.
    Stat {
        /// The path.
        path: &'a [u8],
    },
    /// Reads a file.
    ReadFile(ReadFile<'a>),
    /// Writes a file.
    WriteFile(WriteFile<'a>),
    /// What is in a directory: `Data(Records)` of [`crate::EntryInfo`], then `Reply(Done(count))`.
    /// A link at `path` is followed, links below are not. Order is the directory's own.
    ListDir {
        /// The directory.
        path: &'a [u8],
        /// Levels, 1 to [`MAX_DEPTH`]: 1 is the directory's own entries.
        depth: u32,
    },
    /// Makes a directory with its parents, `0o755`, owned by the user. `Reply(Entry)`, or
    /// `AlreadyExists` for a directory and `NotADirectory` for anything else that is there.
    MakeDir {
        /// The directory.
        path: &'a [u8],
        /// The owner to be; empty means root.
        user: &'a [u8],
    },
    /// Renames; makes the parents of the destination. `Reply(Entry)` of the destination.
    Move {
        /// From.
        from: &'a [u8],
        /// To.
        to: &'a [u8],
        /// The owner of parents to be made; empty means root.
        user: &'a [u8],
    },
    /// Removes a file or a tree. Links are removed, never followed. `Reply(Done(count))`; a missing
    /// path is `Done(0)`.
    Remove {
        /// The path.
        path: &'a [u8],
    },
    /// A user of the guest. `Reply(User)` or `UnknownUser`.
    LookupUser {
        /// The name; empty means root.
        name: &'a [u8],
    },
    /// Takes a new identity.
    SetIdentity(SetIdentity<'a>),
    /// Figures of the guest. `Reply(Sysinfo)`.
    Sysinfo,
    /// Writes everything to the disk. `Reply(Done(0))`.
    Sync,
    /// Powers the guest off. `Reply(Done(0))`, then the connection ends.
    Shutdown,
    /// Stops every process but the agent's own until [`Request::Thaw`], or until a new identity is
    /// taken: before a machine is saved, so that in machines that begin as it was then no process
    /// goes on before they have an identity. Meanwhile no process can be started (`Busy`).
    /// `Reply(Done(0))`. Of agents with [`crate::boot_flags::FREEZER`].
    Freeze,
    /// Lets processes go on. `Reply(Done(0))`, also when they were not stopped.
    Thaw,
    /// Connects to a TCP port of the guest: of 127.0.0.1, else of `::1`, and of nothing else.
    /// `Event(Connected)`, then `Data(Port)` both ways, each until its sender's `End`; when both
    /// halves are over, `Reply(Done(0))`. An error with the kernel's number ends both: before the
    /// event nobody listens (of 127.0.0.1), after it the connection was reset. A `Reset` of the
    /// host after its `End` closes the connection, before it resets it. Of agents with
    /// [`crate::boot_flags::PORTS`].
    ConnectPort {
        /// 1 to 65535.
        port: u16,
    },
}

impl<'a> Request<'a> {
    /// Writes the request to the front of `out` and returns its length; [`MAX_REQUEST`] bytes
    /// always suffice. Send it by [`RequestPart::parts`].
    ///
    /// # Errors
    /// [`EncodeError`]: a field is over its limit, holds a NUL byte, or `out` is too small.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let room = out.len().min(MAX_REQUEST);
        let mut w = FieldWriter::new(&mut out[..room]);
        w.u8(self.tag())?;
        match self {
            Self::Start(s) => encode_start(s, &mut w)?,
            Self::Signal { pid, signal } => {
                w.u32(*pid)?;
                w.u8(*signal)?;
            }
            Self::ListProcesses
            | Self::Sysinfo
            | Self::Sync
            | Self::Shutdown
            | Self::Freeze
            | Self::Thaw => {}
            Self::Attach { pid } => w.u32(*pid)?,
            Self::Resize { pid, size } => {
                w.u32(*pid)?;
                w.u16(size.cols)?;
                w.u16(size.rows)?;
            }
            Self::Stat { path } | Self::Remove { path } => w.cbytes("path", path, MAX_PATH)?,
            Self::ReadFile(f) => {
                w.cbytes("path", f.path, MAX_PATH)?;
                w.u64(f.offset)?;
                w.u64(f.len)?;
            }
            Self::WriteFile(f) => {
                w.cbytes("path", f.path, MAX_PATH)?;
                w.cbytes("user", f.user, MAX_NAME)?;
                w.u32(f.mode)?;
                w.bool(f.truncate)?;
                w.bool(f.parents)?;
            }
            Self::ListDir { path, depth } => {
                w.cbytes("path", path, MAX_PATH)?;
                w.u32(*depth)?;
            }
            Self::MakeDir { path, user } => {
                w.cbytes("path", path, MAX_PATH)?;
                w.cbytes("user", user, MAX_NAME)?;
            }
            Self::Move { from, to, user } => {
                w.cbytes("source", from, MAX_PATH)?;
                w.cbytes("destination", to, MAX_PATH)?;
                w.cbytes("user", user, MAX_NAME)?;
            }
            Self::LookupUser { name } => w.cbytes("user", name, MAX_NAME)?,
            Self::SetIdentity(i) => i.encode(&mut w)?,
            Self::ConnectPort { port } => w.u16(*port)?,
        }
        Ok(w.written())
    }

    /// Reads a whole request, as joined from its `Open` frames.
    ///
    /// # Errors
    /// [`DecodeError`]: answer the stream with `InvalidArgument`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = FieldReader::new(bytes);
        let r = &mut r;
        let request = match r.u8()? {
            1 => Self::Start(decode_start(r)?),
            2 => Self::Signal {
                pid: r.u32()?,
                signal: signal(r)?,
            },
            3 => Self::ListProcesses,
            4 => Self::Resize {
                pid: r.u32()?,
                size: pty_size(r)?,
            },
            5 => Self::Stat { path: path(r)? },
            6 => Self::ReadFile(ReadFile {
                path: path(r)?,
                offset: r.u64()?,
                len: r.u64()?,
            }),
            7 => Self::WriteFile(WriteFile {
                path: path(r)?,
                user: name(r)?,
                mode: mode(r)?,
                truncate: r.bool("truncate")?,
                parents: r.bool("parents")?,
            }),
            8 => Self::ListDir {
                path: path(r)?,
                depth: depth(r)?,
            },
            9 => Self::MakeDir {
                path: path(r)?,
                user: name(r)?,
            },
            10 => Self::Move {
                from: path(r)?,
                to: path(r)?,
                user: name(r)?,
            },
            11 => Self::Remove { path: path(r)? },
            12 => Self::LookupUser { name: name(r)? },
            13 => Self::SetIdentity(SetIdentity::decode(r)?),
            14 => Self::Sysinfo,
            15 => Self::Sync,
            16 => Self::Shutdown,
            17 => Self::Attach { pid: r.u32()? },
            18 => Self::Freeze,
            19 => Self::Thaw,
            20 => Self::ConnectPort { port: port(r)? },
            v => {
                return Err(DecodeError::Invalid {
                    field: "request",
                    value: u32::from(v),
                });
            }
        };
        r.finish()?;
        Ok(request)
    }

    const fn tag(&self) -> u8 {
        match self {
            Self::Start(_) => 1,
            Self::Signal { .. } => 2,
            Self::ListProcesses => 3,
            Self::Resize { .. } => 4,
            Self::Stat { .. } => 5,
            Self::ReadFile(_) => 6,
            Self::WriteFile(_) => 7,
            Self::ListDir { .. } => 8,
            Self::MakeDir { .. } => 9,
            Self::Move { .. } => 10,
            Self::Remove { .. } => 11,
            Self::LookupUser { .. } => 12,
            Self::SetIdentity(_) => 13,
            Self::Sysinfo => 14,
            Self::Sync => 15,
            Self::Shutdown => 16,
            Self::Attach { .. } => 17,
            Self::Freeze => 18,
            Self::Thaw => 19,
            Self::ConnectPort { .. } => 20,
        }
    }

    /// Whether it is one of those of which there may be [`crate::MAX_PORT_STREAMS`] at once, beside
    /// [`crate::MAX_STREAMS`] others.
    #[must_use]
    pub const fn is_port(&self) -> bool {
        matches!(self, Self::ConnectPort { .. })
    }

    /// `Data` bytes the agent may send on its stream before the host grants more.
    #[must_use]
    pub const fn output_window(&self) -> u32 {
        if self.is_port() {
            PORT_WINDOW
        } else {
            OUTPUT_WINDOW
        }
    }
}

/// An absolute path.
fn path<'a>(r: &mut FieldReader<'a>) -> Result<&'a [u8], DecodeError> {
    let path = r.cbytes("path", MAX_PATH)?;
    match path.first() {
        Some(b'/') => Ok(path),
        first => {
            let value = first.copied().map_or(0, u32::from);
            Err(DecodeError::Invalid {
                field: "first byte of an absolute path",
                value,
            })
        }
    }
}

fn name<'a>(r: &mut FieldReader<'a>) -> Result<&'a [u8], DecodeError> {
    r.cbytes("user", MAX_NAME)
}

fn mode(r: &mut FieldReader<'_>) -> Result<u32, DecodeError> {
    match r.u32()? {
        mode if mode <= 0o7777 => Ok(mode),
        value => Err(DecodeError::Invalid {
            field: "mode",
            value,
        }),
    }
}

fn depth(r: &mut FieldReader<'_>) -> Result<u32, DecodeError> {
    match r.u32()? {
        depth @ 1..=MAX_DEPTH => Ok(depth),
        value => Err(DecodeError::Invalid {
            field: "depth",
            value,
        }),
    }
}

fn port(r: &mut FieldReader<'_>) -> Result<u16, DecodeError> {
    match r.u16()? {
        0 => Err(DecodeError::Invalid {
            field: "port",
            value: 0,
        }),
        port => Ok(port),
    }
}

fn signal(r: &mut FieldReader<'_>) -> Result<u8, DecodeError> {
    match r.u8()? {
        signal @ 1..=64 => Ok(signal),
        v => Err(DecodeError::Invalid {
            field: "signal",
            value: u32::from(v),
        }),
    }
}

fn pty_size(r: &mut FieldReader<'_>) -> Result<PtySize, DecodeError> {
    Ok(PtySize {
        cols: r.u16()?,
        rows: r.u16()?,
    })
}

fn encode_start(s: &StartProcess<'_>, w: &mut FieldWriter<'_>) -> Result<(), EncodeError> {
    s.argv.encode(w, "argv", MAX_ARGS)?;
    s.env.encode(w, "env", MAX_ENV)?;
    w.cbytes("cwd", s.cwd, MAX_PATH)?;
    w.cbytes("user", s.user, MAX_NAME)?;
    w.u8(s.stdin.to_u8())?;
    w.bool(s.pty.is_some())?;
    if let Some(size) = s.pty {
        w.u16(size.cols)?;
        w.u16(size.rows)?;
    }
    w.bytes("tag", s.tag, MAX_TAG)?;
    w.u32(s.limits.open_files)?;
    w.u32(s.limits.cpu_seconds)?;
    w.u64(s.limits.file_size)
}

fn decode_start<'a>(r: &mut FieldReader<'a>) -> Result<StartProcess<'a>, DecodeError> {
    let argv = StringList::decode(r, "argv", MAX_ARGS)?;
    if argv.iter().next().is_none_or(<[u8]>::is_empty) {
        return Err(DecodeError::Invalid {
            field: "length of the program's name",
            value: 0,
        });
    }
    Ok(StartProcess {
        argv,
        env: StringList::decode(r, "env", MAX_ENV)?,
        cwd: r.cbytes("cwd", MAX_PATH)?,
        user: name(r)?,
        stdin: code(r.u8()?, Stdin::from_u8, "stdin")?,
        pty: if r.bool("pty")? {
            Some(pty_size(r)?)
        } else {
            None
        },
        tag: r.bytes("tag", MAX_TAG)?,
        limits: ProcessLimits {
            open_files: r.u32()?,
            cpu_seconds: r.u32()?,
            file_size: r.u64()?,
        },
    })
}
