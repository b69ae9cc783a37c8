//! The work of the streams: one task per slot, each a bounded step per turn.

use crate::cgroups::CgroupTable;
use crate::entry::describe_path;
use crate::failure::fail;
use crate::files::{make_dir, move_to, open_read, open_write, read_on, send_piece};
use crate::identity::GuestIdentity;
use crate::launch::ProcessLauncher;
use crate::path::PathBuffer;
use crate::ports::PortTable;
use crate::process_list::tell_processes;
use crate::procs::ProcessTable;
use crate::refusals::{tell_failed, tell_not_started, unknown_user};
use crate::sys::event::{Epoll, monotonic_ns};
use crate::sys::file::sync;
use crate::sys::{Errno, Fd, write_all};
use crate::tokens::of_process;
use crate::users::UserFiles;
use crate::walk::{RemovalStart, WalkStep, WalkTable};
use agent_core::Session;
use core::mem;
use wire::{
    DataChannel, ErrorCode, MAX_STREAMS, Reply, Request, ResetCode, StartProcess, StreamEvent,
};

/// What a stream does.
enum StreamTask {
    /// Nothing, or nothing any more.
    Free,
    /// Belongs to the process at this place.
    Process(usize),
    /// Sends a file.
    Read { file: Fd, left: u64, sent: u64 },
    /// Takes a file; its path is in the table of paths.
    Write { file: Fd },
    /// Lists or removes.
    Walk(usize),
    /// Will list, or remove, what the table of paths says, when others are through.
    WaitingWalk(WalkKind),
    /// Lists processes from this place on.
    Processes { next: usize, listed: u64 },
}

/// What a walk is for.
#[derive(Clone, Copy)]
enum WalkKind {
    /// To list so many levels.
    List(u32),
    /// To remove.
    Remove,
}

/// Everything the streams work with.
pub(crate) struct TaskTable {
    table: [StreamTask; MAX_STREAMS],
    paths: [PathBuffer; MAX_STREAMS],
    other_path: PathBuffer,
    walks: WalkTable,
    pub(crate) procs: ProcessTable,
    pub(crate) ports: PortTable,
    pub(crate) cgroups: CgroupTable,
    launcher: ProcessLauncher,
    pub(crate) users: UserFiles,
    pub(crate) identity: GuestIdentity,
    /// The host wants the guest to end.
    pub(crate) shutdown: bool,
}

impl TaskTable {
    pub(crate) const fn new() -> Self {
        Self {
            table: [const { StreamTask::Free }; MAX_STREAMS],
            paths: [const { PathBuffer::new() }; MAX_STREAMS],
            other_path: PathBuffer::new(),
            walks: WalkTable::new(),
            procs: ProcessTable::new(),
            ports: PortTable::new(),
            cgroups: CgroupTable::new(),
            launcher: ProcessLauncher::new(),
            users: UserFiles::new(),
            identity: GuestIdentity::new(),
            shutdown: false,
        }
    }

    /// The connection is gone: stops everything but the processes.
    pub(crate) fn disconnect(&mut self) {
        self.procs.hold_all();
        for slot in 0..MAX_STREAMS {
            self.abandon(slot);
        }
        self.ports.abandon_all();
    }

    /// The stream is gone.
    pub(crate) fn abandon(&mut self, slot: usize) {
        if let Some(place) = PortTable::place(slot) {
            return self.ports.abandon(place);
        }
        match mem::replace(&mut self.table[slot], StreamTask::Free) {
            StreamTask::Process(i) => self.procs.detach(i, slot),
            StreamTask::Walk(w) => self.walks.stop(w),
            _ => {}
        }
    }

    /// Begins a request.
    pub(crate) fn open(
        &mut self,
        slot: usize,
        request: &Request<'_>,
        session: &mut Session,
        epoll: &Epoll,
    ) {
        if let Request::ConnectPort { port } = *request {
            return self.ports.open(slot, port, session, epoll);
        }
        self.table[slot] = StreamTask::Free;
        match *request {
            Request::Start(ref start) => self.start(slot, start, session, epoll),
            Request::Attach { pid } => self.attach(slot, pid, session),
            Request::Signal { pid, signal } => {
                let done = self.procs.signal(pid, signal, &self.cgroups);
                finish(session, slot, done, "signal a process");
            }
            Request::Resize { pid, size } => {
                let done = self.procs.resize(pid, size.cols, size.rows);
                finish(session, slot, done, "resize a terminal");
            }
            Request::ListProcesses => {
                self.table[slot] = StreamTask::Processes { next: 0, listed: 0 }
            }
            Request::LookupUser { name } => self.users.tell(slot, name, session),
            Request::SetIdentity(ref identity) => {
                match self.identity.take(identity, &mut self.cgroups) {
                    Ok(()) => session.reply(slot, &Reply::Done(identity.generation)),
                    Err(failed) => tell_failed(session, slot, &failed),
                }
            }
            Request::Sysinfo => {
                let info = crate::sysinfo::figures(self.cgroups.user());
                session.reply(slot, &Reply::Sysinfo(info));
            }
            Request::Sync => {
                sync();
                session.reply(slot, &Reply::Done(0));
            }
            Request::Freeze => {
                let frozen = self.identity.freeze(&mut self.cgroups);
                finish(session, slot, frozen, "stop processes");
            }
            Request::Thaw => finish(session, slot, self.cgroups.thaw(), "thaw processes"),
            Request::Shutdown => {
                self.shutdown = true;
                session.reply(slot, &Reply::Done(0));
            }
            _ => self.open_path(slot, request, session),
        }
    }

    /// Begins a request about a path.
    fn open_path(&mut self, slot: usize, request: &Request<'_>, session: &mut Session) {
        let (path, other, user): (&[u8], &[u8], &[u8]) = match *request {
            Request::Stat { path } | Request::ListDir { path, .. } | Request::Remove { path } => {
                (path, b"", b"")
            }
            Request::ReadFile(f) => (f.path, b"", b""),
            Request::WriteFile(f) => (f.path, b"", f.user),
            Request::MakeDir { path, user } => (path, b"", user),
            Request::Move { from, to, user } => (to, from, user),
            _ => (b"", b"", b""),
        };
        if !self.paths[slot].set(path) || !self.other_path.set(other) {
            return fail(session, slot, "use a path", Errno::NAMETOOLONG);
        }
        let accounts = self.users.now();
        let Some(user) = accounts.user(user) else {
            return unknown_user(session, slot);
        };
        let path = &self.paths[slot];
        match request {
            Request::Stat { .. } => self.tell_entry(slot, None, session, "look at it"),
            Request::ReadFile(f) => match open_read(f, path) {
                Ok(file) => {
                    let described = describe_path(path, Some(&file), &accounts, |e| {
                        session.event(slot, &StreamEvent::Opened(*e));
                    });
                    match described {
                        Ok(()) => {
                            let (left, sent) = (f.len, 0);
                            self.table[slot] = StreamTask::Read { file, left, sent };
                        }
                        Err(e) => fail(session, slot, "look at a file", e),
                    }
                }
                Err(e) => fail(session, slot, "open a file to read", e),
            },
            Request::WriteFile(f) => match open_write(f, path, &user) {
                Ok(file) => self.table[slot] = StreamTask::Write { file },
                Err(e) => fail(session, slot, "open a file to write", e),
            },
            Request::MakeDir { .. } => match make_dir(path, &user) {
                Ok(()) => self.tell_entry(slot, None, session, "look at a new directory"),
                Err(e) => fail(session, slot, "make a directory", e),
            },
            Request::Move { .. } => match move_to(&self.other_path, path, &user) {
                Ok(()) => self.tell_entry(slot, None, session, "look at what was moved"),
                Err(Errno::XDEV) => {
                    let (from, to) = (self.other_path.text(), path.text());
                    let text = format_args!(
                        "move: {from} is on another file system than {to}: copy it, then remove it"
                    );
                    session.fail(slot, ErrorCode::InvalidArgument, Errno::XDEV.0, text);
                }
                Err(e) => fail(session, slot, "move", e),
            },
            Request::ListDir { depth, .. } => self.walk(slot, WalkKind::List(*depth), session),
            _ => self.walk(slot, WalkKind::Remove, session),
        }
    }

    /// Begins a walk of what the table of paths says, or has it wait.
    fn walk(&mut self, slot: usize, kind: WalkKind, session: &mut Session) {
        if self.walks.is_full() {
            self.table[slot] = StreamTask::WaitingWalk(kind);
            return;
        }
        self.table[slot] = StreamTask::Free;
        let path = &self.paths[slot];
        match kind {
            WalkKind::List(depth) => match self.walks.list(path, depth) {
                Ok(w) => self.table[slot] = StreamTask::Walk(w),
                Err(e) => fail(session, slot, "open a directory", e),
            },
            WalkKind::Remove => match self.walks.remove(path) {
                Ok(RemovalStart::Walk(w)) => self.table[slot] = StreamTask::Walk(w),
                Ok(RemovalStart::Done(count)) => session.reply(slot, &Reply::Done(count)),
                Err(e) => fail(session, slot, "remove", e),
            },
        }
    }

    /// Answers with what is at the slot's path, or was there when `file` was opened.
    fn tell_entry(&mut self, slot: usize, file: Option<&Fd>, session: &mut Session, what: &str) {
        let accounts = self.users.now();
        let path = &self.paths[slot];
        let described = describe_path(path, file, &accounts, |e| {
            session.reply(slot, &Reply::Entry(*e));
        });
        described.unwrap_or_else(|e| fail(session, slot, what, e));
    }

    fn start(
        &mut self,
        slot: usize,
        start: &StartProcess<'_>,
        session: &mut Session,
        epoll: &Epoll,
    ) {
        if self.cgroups.is_frozen() {
            // It would be stopped before it is the program, and this one waits for that.
            let why = format_args!("all processes are stopped: the machine is being saved");
            return session.fail(slot, ErrorCode::Busy, 0, why);
        }
        let Some(i) = self.procs.vacancy() else {
            return session.fail(slot, ErrorCode::Busy, 0, format_args!("too many processes"));
        };
        let cgroup = match self.cgroups.take() {
            Ok(cgroup) => cgroup,
            Err(e) => return fail(session, slot, "make a cgroup for a command", e),
        };
        let accounts = self.users.now();
        let dir = self.cgroups.dir(cgroup);
        let launched = self
            .launcher
            .start(start, &accounts, self.identity.env(), dir);
        match launched {
            Err(failed) => {
                self.cgroups.release(cgroup, false, false);
                tell_not_started(session, slot, &failed, start, self.launcher.cwd());
            }
            Ok(launched) => {
                let pid = launched.pid;
                let now = monotonic_ns();
                self.procs.admit(i, slot, cgroup, launched, start, now);
                self.table[slot] = StreamTask::Process(i);
                session.event(slot, &StreamEvent::Started { pid });
                let watched = self.procs.watch(i, epoll, |port| of_process(i, port));
                if watched.is_err() {
                    session.reset(
                        slot,
                        ResetCode::Internal,
                        "cannot watch the process's output",
                    );
                    self.abandon(slot);
                    let _ = self.procs.signal(pid, 9, &self.cgroups);
                }
            }
        }
    }

    fn attach(&mut self, slot: usize, pid: u32, session: &mut Session) {
        match self.procs.attach(pid, slot) {
            Ok(i) => {
                self.table[slot] = StreamTask::Process(i);
                session.event(slot, &StreamEvent::Started { pid });
            }
            Err(e) => fail(session, slot, "listen to a process", e),
        }
    }

    /// Bytes of the host.
    pub(crate) fn data(
        &mut self,
        slot: usize,
        channel: DataChannel,
        bytes: &[u8],
        session: &mut Session,
    ) {
        if let Some(place) = PortTable::place(slot) {
            let (code, why) = match channel {
                DataChannel::Port if self.ports.feed(place, bytes, session) => return,
                DataChannel::Port => (ResetCode::Internal, "no memory for the input"),
                _ => (ResetCode::Protocol, "this request takes no such data"),
            };
            session.reset(slot, code, why);
            return self.abandon(slot);
        }
        match (&mut self.table[slot], channel) {
            (StreamTask::Process(i), DataChannel::Stdin) => {
                if !self.procs.feed(*i, bytes, session) {
                    session.reset(slot, ResetCode::Internal, "no memory for the input");
                    self.abandon(slot);
                }
            }
            (StreamTask::Write { file }, DataChannel::File) => match write_all(file, bytes) {
                Ok(()) => session.consumed(slot, bytes.len()),
                Err(e) => {
                    fail(session, slot, "write a file", e);
                    self.abandon(slot);
                }
            },
            _ => {
                session.reset(slot, ResetCode::Protocol, "this request takes no such data");
                self.abandon(slot);
            }
        }
    }

    /// The host has no more bytes.
    pub(crate) fn end(&mut self, slot: usize, session: &mut Session) {
        if let Some(place) = PortTable::place(slot) {
            return self.ports.end_input(place);
        }
        match mem::replace(&mut self.table[slot], StreamTask::Free) {
            StreamTask::Write { file } => {
                self.tell_entry(slot, Some(&file), session, "look at what was written");
            }
            other => {
                if let StreamTask::Process(i) = other {
                    self.procs.end_input(i);
                }
                self.table[slot] = other;
            }
        }
    }

    /// One step of every task. Says whether there may be more to do at once.
    pub(crate) fn step(&mut self, turn: usize, session: &mut Session) -> bool {
        let mut more = false;
        for k in 0..MAX_STREAMS {
            let slot = (k + turn) % MAX_STREAMS;
            if !session.has_room() {
                return false;
            }
            if let StreamTask::WaitingWalk(kind) = self.table[slot] {
                self.walk(slot, kind, session);
                more |= !matches!(self.table[slot], StreamTask::WaitingWalk(_));
                continue;
            }
            let (unfinished, again) = match &mut self.table[slot] {
                StreamTask::Free
                | StreamTask::Process(_)
                | StreamTask::Write { .. }
                | StreamTask::WaitingWalk(_) => continue,
                StreamTask::Read { file, left, sent } => {
                    let before = *left;
                    let step = send_piece(file, left, slot, session);
                    *sent += before - *left;
                    read_on(step, *sent, slot, session)
                }
                StreamTask::Walk(w) => {
                    let accounts = self.users.now();
                    match self.walks.step(*w, slot, &accounts, session) {
                        WalkStep::More => (true, true),
                        WalkStep::Wait => (true, false),
                        WalkStep::End(count) => {
                            self.walks.stop(*w);
                            session.reply(slot, &Reply::Done(count));
                            (false, true)
                        }
                        WalkStep::Failed(e) => {
                            self.walks.stop(*w);
                            fail(session, slot, "walk a directory", e);
                            (false, true)
                        }
                    }
                }
                StreamTask::Processes { next, listed } => {
                    let done = tell_processes(&self.procs, next, listed, slot, session);
                    if done {
                        session.reply(slot, &Reply::Done(*listed));
                    }
                    (!done, false)
                }
            };
            more |= again;
            if !unfinished {
                self.table[slot] = StreamTask::Free;
            }
        }
        more
    }
}

fn finish(session: &mut Session, slot: usize, done: Result<(), Errno>, what: &str) {
    match done {
        Ok(()) => session.reply(slot, &Reply::Done(0)),
        Err(e) => fail(session, slot, what, e),
    }
}
