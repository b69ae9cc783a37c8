//! What the agent answers.

use crate::codec::{DecodeError, EncodeError, FieldReader, FieldWriter, code};
use crate::error::{ErrorCode, codes};
use crate::limits::{MAX_GROUPS, MAX_MESSAGE, MAX_NAME, MAX_PATH, MAX_TAG};

codes! {
    /// What an entry is.
    #[derive(Default)]
    FileKind {
        /// None of the others, or the target of a broken link.
        #[default]
        Unspecified = 0,
        /// A regular file.
        File = 1,
        /// A directory.
        Directory = 2,
        /// A symbolic link.
        Symlink = 3,
        /// A device, FIFO or socket.
        Other = 4,
    }
}

/// Something in the file system, seen without (`kind`, `mode`, …) and through (`target_…`) its
/// link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EntryInfo<'a> {
    /// Absolute, as asked for and continued by names.
    pub path: &'a [u8],
    /// What is there, links not followed.
    pub kind: FileKind,
    /// What is there, links followed; `Unspecified` for a broken link.
    pub target_kind: FileKind,
    /// Bytes, links not followed.
    pub size: u64,
    /// `st_mode` with the type bits, links not followed.
    pub mode: u32,
    /// `st_mode` with the type bits, links followed; 0 for a broken link.
    pub target_mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The owner's name; empty when it has none.
    pub owner: &'a [u8],
    /// The group's name; empty when it has none.
    pub group: &'a [u8],
    /// Last change of the contents, nanoseconds since 1970, links not followed.
    pub modified_ns: i64,
    /// For a link: the fully resolved path, or `path` when it is broken. Otherwise empty.
    pub symlink_target: &'a [u8],
}

/// A process the agent started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessInfo<'a> {
    /// Its id.
    pub pid: u32,
    /// It has a terminal.
    pub pty: bool,
    /// When it was started, nanoseconds of the guest's monotonic clock.
    pub started_ns: u64,
    /// The caller's label.
    pub tag: &'a [u8],
    /// The program's name as asked for, cut at [`MAX_NAME`] bytes.
    pub program: &'a [u8],
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessExit {
    /// It returned this status.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEnd {
    /// How its process ended.
    pub exit: ProcessExit,
    /// The guest's kernel killed this process or one that it began, because the memory of all user
    /// processes was used up.
    pub out_of_memory: bool,
}

impl From<ProcessExit> for ProcessEnd {
    /// With enough memory.
    fn from(exit: ProcessExit) -> Self {
        Self {
            exit,
            out_of_memory: false,
        }
    }
}

/// A user of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserInfo<'a> {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Name.
    pub name: &'a [u8],
    /// Home directory.
    pub home: &'a [u8],
    /// Login shell.
    pub shell: &'a [u8],
    /// Supplementary groups, little-endian u32 each; see [`UserInfo::groups`].
    pub group_bytes: &'a [u8],
}

impl UserInfo<'_> {
    /// The supplementary groups.
    pub fn groups(&self) -> impl Iterator<Item = u32> {
        self.group_bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
    }
}

/// Figures of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sysinfo {
    /// Bytes of memory the kernel manages.
    pub memory_total: u64,
    /// Bytes that could be had without swapping.
    pub memory_available: u64,
    /// Bytes of page cache.
    pub memory_cached: u64,
    /// Processors.
    pub cpus: u32,
    /// Nanoseconds all processors together were busy since boot.
    pub cpu_busy_ns: u64,
    /// Nanoseconds since boot.
    pub uptime_ns: u64,
    /// Nanoseconds since 1970.
    pub wall_clock_ns: u64,
    /// Bytes of the root file system.
    pub disk_total: u64,
    /// Bytes of it that a user could still write.
    pub disk_free: u64,
    /// Tasks of the user processes' cgroup, 0 when there is none.
    pub user_tasks: u32,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyError<'a> {
    /// What kind of failure.
    pub code: ErrorCode,
    /// The kernel's number, 0 when the kernel was not involved.
    pub errno: i32,
    /// What was tried, for people; cut at [`MAX_MESSAGE`].
    pub message: &'a str,
}

/// The end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Done; the meaning of the number is with the request.
    Done(u64),
    /// Failed.
    Error(ReplyError<'a>),
    /// The process ended and everything it had written before was sent.
    Exited(ProcessEnd),
    /// What is there now.
    Entry(EntryInfo<'a>),
    /// The user.
    User(UserInfo<'a>),
    /// The figures.
    Sysinfo(Sysinfo),
}

/// News of a stream that stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEvent<'a> {
    /// The process runs.
    Started {
        /// Its id.
        pid: u32,
    },
    /// The file is open; its contents follow.
    Opened(EntryInfo<'a>),
    /// The port has taken the connection.
    Connected,
}

/// A record of a `Data(Records)` frame.
pub trait Record<'a>: Sized {
    #[doc(hidden)]
    fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError>;
    /// Writes the record to the front of `out` and returns its length.
    ///
    /// # Errors
    /// [`EncodeError`]: a field is over its limit or `out` is too small: begin another frame.
    fn write(&self, out: &mut [u8]) -> Result<usize, EncodeError>;
}

/// The records of one `Data(Records)` frame. Records never span frames. Ends after an error.
#[derive(Debug, Clone)]
pub struct Records<'a, T> {
    rest: &'a [u8],
    record: core::marker::PhantomData<T>,
}

impl<'a, T: Record<'a>> Records<'a, T> {
    /// The records in the bytes of a frame.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            record: core::marker::PhantomData,
        }
    }
}

impl<'a, T: Record<'a>> Iterator for Records<'a, T> {
    type Item = Result<T, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match T::read(self.rest) {
            Ok((record, rest)) => {
                self.rest = rest;
                Some(Ok(record))
            }
            Err(e) => {
                self.rest = &[];
                Some(Err(e))
            }
        }
    }
}

impl<'a> Record<'a> for EntryInfo<'a> {
    fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let mut r = FieldReader::new(bytes);
        let entry = Self::decode(&mut r)?;
        Ok((entry, r.rest()))
    }

    fn write(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let mut w = FieldWriter::new(out);
        self.encode(&mut w)?;
        Ok(w.written())
    }
}

impl<'a> Record<'a> for ProcessInfo<'a> {
    fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let mut r = FieldReader::new(bytes);
        let process = Self {
            pid: r.u32()?,
            pty: r.bool("pty")?,
            started_ns: r.u64()?,
            tag: r.bytes("tag", MAX_TAG)?,
            program: r.cbytes("program", MAX_NAME)?,
        };
        Ok((process, r.rest()))
    }

    fn write(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let mut w = FieldWriter::new(out);
        w.u32(self.pid)?;
        w.bool(self.pty)?;
        w.u64(self.started_ns)?;
        w.bytes("tag", self.tag, MAX_TAG)?;
        w.cbytes("program", self.program, MAX_NAME)?;
        Ok(w.written())
    }
}

impl<'a> EntryInfo<'a> {
    fn decode(r: &mut FieldReader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            path: r.cbytes("path", MAX_PATH)?,
            kind: code(r.u8()?, FileKind::from_u8, "kind")?,
            target_kind: code(r.u8()?, FileKind::from_u8, "target kind")?,
            size: r.u64()?,
            mode: r.u32()?,
            target_mode: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            owner: r.cbytes("owner", MAX_NAME)?,
            group: r.cbytes("group", MAX_NAME)?,
            modified_ns: r.i64()?,
            symlink_target: r.cbytes("symlink target", MAX_PATH)?,
        })
    }

    fn encode(&self, w: &mut FieldWriter<'_>) -> Result<(), EncodeError> {
        w.cbytes("path", self.path, MAX_PATH)?;
        w.u8(self.kind.to_u8())?;
        w.u8(self.target_kind.to_u8())?;
        w.u64(self.size)?;
        w.u32(self.mode)?;
        w.u32(self.target_mode)?;
        w.u32(self.uid)?;
        w.u32(self.gid)?;
        w.cbytes("owner", self.owner, MAX_NAME)?;
        w.cbytes("group", self.group, MAX_NAME)?;
        w.i64(self.modified_ns)?;
        w.cbytes("symlink target", self.symlink_target, MAX_PATH)
    }
}

impl<'a> UserInfo<'a> {
    fn decode(r: &mut FieldReader<'a>) -> Result<Self, DecodeError> {
        let mut user = Self {
            uid: r.u32()?,
            gid: r.u32()?,
            name: r.cbytes("user", MAX_NAME)?,
            home: r.cbytes("home", MAX_PATH)?,
            shell: r.cbytes("shell", MAX_PATH)?,
            group_bytes: &[],
        };
        let count = r.len("groups", MAX_GROUPS)?;
        user.group_bytes = r.raw(4 * count)?;
        Ok(user)
    }

    fn encode(&self, w: &mut FieldWriter<'_>) -> Result<(), EncodeError> {
        w.u32(self.uid)?;
        w.u32(self.gid)?;
        w.cbytes("user", self.name, MAX_NAME)?;
        w.cbytes("home", self.home, MAX_PATH)?;
        w.cbytes("shell", self.shell, MAX_PATH)?;
        w.len("groups", self.groups().count(), MAX_GROUPS)?;
        self.groups().try_for_each(|group| w.u32(group))
    }
}

impl Sysinfo {
    fn decode(r: &mut FieldReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            memory_total: r.u64()?,
            memory_available: r.u64()?,
            memory_cached: r.u64()?,
            cpus: r.u32()?,
            cpu_busy_ns: r.u64()?,
            uptime_ns: r.u64()?,
            wall_clock_ns: r.u64()?,
            disk_total: r.u64()?,
            disk_free: r.u64()?,
            user_tasks: r.u32()?,
        })
    }

    fn encode(&self, w: &mut FieldWriter<'_>) -> Result<(), EncodeError> {
        w.u64(self.memory_total)?;
        w.u64(self.memory_available)?;
        w.u64(self.memory_cached)?;
        w.u32(self.cpus)?;
        w.u64(self.cpu_busy_ns)?;
        w.u64(self.uptime_ns)?;
        w.u64(self.wall_clock_ns)?;
        w.u64(self.disk_total)?;
        w.u64(self.disk_free)?;
        w.u32(self.user_tasks)
    }
}

impl<'a> Reply<'a> {
    /// Reads the payload of a `Reply` frame.
    ///
    /// # Errors
    /// [`DecodeError`]: the agent broke the protocol.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = FieldReader::new(bytes);
        let reply = match r.u8()? {
            1 => Self::Done(r.u64()?),
            2 => Self::Error(ReplyError {
                code: code(r.u8()?, ErrorCode::from_u8, "error code")?,
                errno: r.i32()?,
                message: r.text("error message", MAX_MESSAGE)?,
            }),
            3 => Self::Exited(decode_end(r.u8()?, r.u8()?)?),
            4 => Self::Entry(EntryInfo::decode(&mut r)?),
            5 => Self::User(UserInfo::decode(&mut r)?),
            6 => Self::Sysinfo(Sysinfo::decode(&mut r)?),
            v => {
                return Err(DecodeError::Invalid {
                    field: "reply",
                    value: u32::from(v),
                });
            }
        };
        r.finish()?;
        Ok(reply)
    }

    pub(crate) fn encode(&self, w: &mut FieldWriter<'_>) -> Result<(), EncodeError> {
        match self {
            Self::Done(n) => {
                w.u8(1)?;
                w.u64(*n)
            }
            Self::Error(e) => {
                w.u8(2)?;
                w.u8(e.code.to_u8())?;
                w.i32(e.errno)?;
                w.text_cut("error message", e.message, MAX_MESSAGE)
            }
            Self::Exited(end) => {
                let (how, value) = match end.exit {
                    ProcessExit::Code(status) => (0, status),
                    ProcessExit::Signal(signal) => (SIGNALLED, signal),
                };
                let memory = if end.out_of_memory { OUT_OF_MEMORY } else { 0 };
                w.raw(&[3, how | memory, value])
            }
            Self::Entry(entry) => {
                w.u8(4)?;
                entry.encode(w)
            }
            Self::User(user) => {
                w.u8(5)?;
                user.encode(w)
            }
            Self::Sysinfo(info) => {
                w.u8(6)?;
                info.encode(w)
            }
        }
    }
}

/// Bits of the first byte of a [`ProcessEnd`].
const SIGNALLED: u8 = 1;
const OUT_OF_MEMORY: u8 = 2;

fn decode_end(how: u8, value: u8) -> Result<ProcessEnd, DecodeError> {
    if how & !(SIGNALLED | OUT_OF_MEMORY) != 0 {
        return Err(DecodeError::Invalid {
            field: "exit",
            value: u32::from(how),
        });
    }
    let exit = if how & SIGNALLED == 0 {
        ProcessExit::Code(value)
    } else {
        ProcessExit::Signal(value)
    };
    Ok(ProcessEnd {
        exit,
        out_of_memory: how & OUT_OF_MEMORY != 0,
    })
}

impl<'a> StreamEvent<'a> {
    /// Reads the payload of an `Event` frame.
    ///
    /// # Errors
    /// [`DecodeError`]: the agent broke the protocol.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = FieldReader::new(bytes);
        let event = match r.u8()? {
            1 => Self::Started { pid: r.u32()? },
            2 => Self::Opened(EntryInfo::decode(&mut r)?),
            3 => Self::Connected,
            v => {
                return Err(DecodeError::Invalid {
                    field: "event",
                    value: u32::from(v),
                });
            }
        };
        r.finish()?;
        Ok(event)
    }

    pub(crate) fn encode(&self, w: &mut FieldWriter<'_>) -> Result<(), EncodeError> {
        match self {
            Self::Started { pid } => {
                w.u8(1)?;
                w.u32(*pid)
            }
            Self::Opened(entry) => {
                w.u8(2)?;
                entry.encode(w)
            }
            Self::Connected => w.u8(3),
        }
    }
}
