//! What the agent reports, owned. Names and paths are the guest's bytes: any but NUL.

use crate::{AgentRefusal, LinkError};
use wire::{EntryInfo, ErrorCode, FileKind, ProcessEnd, Reply, Sysinfo};

/// What the guest agent says first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentHello {
    /// The agent's version of the wire protocol.
    pub version: u16,
    /// The agent's build.
    pub agent: String,
    /// The identity the guest last took; 0 before the first.
    pub generation: u64,
    /// See [`wire::boot_flags`].
    pub flags: u32,
    /// The guest's monotonic clock when the agent's first instruction ran, nanoseconds.
    pub agent_start_ns: u64,
    /// The same when the agent was ready.
    pub ready_ns: u64,
}

impl From<wire::Hello<'_>> for AgentHello {
    fn from(hello: wire::Hello<'_>) -> Self {
        Self {
            version: hello.version,
            agent: hello.agent.to_owned(),
            generation: hello.generation,
            flags: hello.flags,
            agent_start_ns: hello.agent_start_ns,
            ready_ns: hello.ready_ns,
        }
    }
}

/// Something in the guest's file system; see [`wire::EntryInfo`] for each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Absolute path, as asked for.
    pub path: Vec<u8>,
    /// What is there, links not followed.
    pub kind: FileKind,
    /// What is there, links followed.
    pub target_kind: FileKind,
    /// Bytes, links not followed.
    pub size: u64,
    /// `st_mode`, links not followed.
    pub mode: u32,
    /// `st_mode`, links followed; 0 for a broken link.
    pub target_mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The owner's name, or empty.
    pub owner: Vec<u8>,
    /// The group's name, or empty.
    pub group: Vec<u8>,
    /// Last change, nanoseconds since 1970.
    pub modified_ns: i64,
    /// For a link: where it leads. Otherwise empty.
    pub symlink_target: Vec<u8>,
}

impl From<EntryInfo<'_>> for FileEntry {
    fn from(info: EntryInfo<'_>) -> Self {
        Self {
            path: info.path.to_vec(),
            kind: info.kind,
            target_kind: info.target_kind,
            size: info.size,
            mode: info.mode,
            target_mode: info.target_mode,
            uid: info.uid,
            gid: info.gid,
            owner: info.owner.to_vec(),
            group: info.group.to_vec(),
            modified_ns: info.modified_ns,
            symlink_target: info.symlink_target.to_vec(),
        }
    }
}

/// A user of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Name.
    pub name: Vec<u8>,
    /// Home directory.
    pub home: Vec<u8>,
    /// Login shell.
    pub shell: Vec<u8>,
}

/// A process that the agent started and that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentProcess {
    /// Its id.
    pub pid: u32,
    /// It has a terminal.
    pub pty: bool,
    /// The caller's label.
    pub tag: Vec<u8>,
    /// The program's name.
    pub program: Vec<u8>,
}

/// An owned [`Reply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AgentAnswer {
    Done(u64),
    Error(AgentRefusal),
    Exited(ProcessEnd),
    Entry(FileEntry),
    User(GuestUser),
    Sysinfo(Sysinfo),
}

impl From<Reply<'_>> for AgentAnswer {
    fn from(reply: Reply<'_>) -> Self {
        match reply {
            Reply::Done(number) => Self::Done(number),
            Reply::Error(error) => Self::Error(AgentRefusal {
                code: error.code,
                errno: error.errno,
                message: error.message.to_owned(),
            }),
            Reply::Exited(exit) => Self::Exited(exit),
            Reply::Entry(entry) => Self::Entry(entry.into()),
            Reply::User(user) => Self::User(GuestUser {
                uid: user.uid,
                gid: user.gid,
                name: user.name.to_vec(),
                home: user.home.to_vec(),
                shell: user.shell.to_vec(),
            }),
            Reply::Sysinfo(info) => Self::Sysinfo(info),
        }
    }
}

impl AgentAnswer {
    /// The error for an answer that does not belong to `request`; a refusal is passed on.
    pub(crate) fn unexpected(self, request: &'static str) -> LinkError {
        match self {
            Self::Error(refusal) if refusal.code == ErrorCode::Busy => LinkError::Busy,
            Self::Error(refusal) => refusal.into(),
            other => LinkError::Unexpected {
                request,
                got: format!("{other:?}"),
            },
        }
    }
}
