//! The processes the agent started: their pipes, their input, their end.
//!
//! ```text
//! start --> running --(reaped)--> draining --(pipes read as far as filled)--> exit sent, gone
//! ```
//!
//! A process ends for the host when the process itself ends: what it and its children had written
//! by then is sent, then its exit. A descendant that keeps the pipe open does not hold it up; what
//! that one writes later is thrown away ([`DrainTable`]).

use crate::cgroups::{CgroupEnd, CgroupPlace, CgroupTable};
use crate::drains::{DISCARD, DrainTable};
use crate::launch::LaunchedProcess;
use crate::sys::event::Epoll;
use crate::sys::file::readable;
use crate::sys::spawn::{kill, kill_group};
use crate::sys::{Errno, Fd, read, write};
use crate::tokens::ProcessPort;
use crate::waiting::WaitingBytes;
use agent_core::Session;
use core::mem;
use wire::{
    DataChannel, MAX_NAME, MAX_TAG, ProcessEnd, ProcessExit, ProcessInfo, Reply, StartProcess,
};

/// Processes at once, those whose stream is gone included.
pub(crate) const MAX_PROCESSES: usize = 256;
/// SIGKILL, which ends all that a command began.
const KILL: u8 = 9;
/// What a terminal may still deliver after its process has ended.
const PTY_REST: u32 = 64 * 1024;

/// A pipe or terminal the process writes to.
struct OutputSource {
    fd: Option<Fd>,
    ready: bool,
    /// After the process has ended: bytes that are still to be read.
    left: u32,
}

impl OutputSource {
    const NONE: Self = Self {
        fd: None,
        ready: false,
        left: 0,
    };
}

/// What the process is still to get as its input.
struct StdinQueue {
    fd: Option<Fd>,
    watched: bool,
    ready: bool,
    /// The host sends no more.
    ended: bool,
    waiting: WaitingBytes,
}

impl StdinQueue {
    const NONE: Self = Self {
        fd: None,
        watched: false,
        ready: false,
        ended: false,
        waiting: WaitingBytes::NONE,
    };
}

struct FixedLabel<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> FixedLabel<N> {
    const EMPTY: Self = Self {
        bytes: [0; N],
        len: 0,
    };

    fn set(&mut self, label: &[u8]) {
        let n = label.len().min(N);
        self.bytes[..n].copy_from_slice(&label[..n]);
        self.len = u8::try_from(n).unwrap_or(0);
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// One process; `pid` 0 is a free place.
struct Process {
    pid: u32,
    slot: Option<usize>,
    /// Its stream went with the connection: output and end wait until the host asks for them.
    held: bool,
    pty: bool,
    /// It was reaped; `exit` says how it ended. (Not an `Option`: a free place is all zeros, so
    /// that the table costs no bytes in the program.)
    ended: bool,
    /// Its cgroup was looked at after that.
    released: bool,
    exit: ProcessExit,
    out_of_memory: bool,
    /// Processes that it began go on without it.
    outlived: bool,
    cgroup: CgroupPlace,
    stdin: StdinQueue,
    out: OutputSource,
    err: OutputSource,
    started_ns: u64,
    tag: FixedLabel<MAX_TAG>,
    program: FixedLabel<MAX_NAME>,
}

impl Process {
    const FREE: Self = Self {
        pid: 0,
        slot: None,
        held: false,
        pty: false,
        ended: false,
        released: false,
        exit: ProcessExit::Code(0),
        out_of_memory: false,
        outlived: false,
        cgroup: CgroupPlace::NONE,
        stdin: StdinQueue::NONE,
        out: OutputSource::NONE,
        err: OutputSource::NONE,
        started_ns: 0,
        tag: FixedLabel::EMPTY,
        program: FixedLabel::EMPTY,
    };
}

/// All processes.
pub(crate) struct ProcessTable {
    table: [Process; MAX_PROCESSES],
    drains: DrainTable,
    /// No place at or beyond is in use.
    high: usize,
}

impl ProcessTable {
    pub(crate) const fn new() -> Self {
        Self {
            table: [const { Process::FREE }; MAX_PROCESSES],
            drains: DrainTable::new(),
            high: 0,
        }
    }

    /// A free place.
    pub(crate) fn vacancy(&self) -> Option<usize> {
        self.table.iter().position(|p| p.pid == 0)
    }

    /// Takes a started process in.
    pub(crate) fn admit(
        &mut self,
        i: usize,
        slot: usize,
        cgroup: CgroupPlace,
        launched: LaunchedProcess,
        start: &StartProcess<'_>,
        now_ns: u64,
    ) {
        let p = &mut self.table[i];
        p.pid = launched.pid;
        p.slot = Some(slot);
        p.cgroup = cgroup;
        p.pty = start.pty.is_some();
        p.ended = false;
        p.released = false;
        p.stdin = StdinQueue {
            fd: launched.stdin,
            ready: true,
            ..StdinQueue::NONE
        };
        p.out = OutputSource {
            fd: Some(launched.out),
            ..OutputSource::NONE
        };
        p.err = OutputSource {
            fd: launched.err,
            ..OutputSource::NONE
        };
        p.started_ns = now_ns;
        p.tag.set(start.tag);
        p.program.set(start.argv.iter().next().unwrap_or(b""));
        self.high = self.high.max(i + 1);
    }

    /// A pipe of background processes has bytes, or an end.
    pub(crate) fn on_drain_event(&mut self, place: usize) {
        self.drains.on_event(place);
    }

    /// Begins to watch a process's descriptors under the tokens `token(port)`.
    pub(crate) fn watch(
        &self,
        i: usize,
        epoll: &Epoll,
        token: impl Fn(ProcessPort) -> u64,
    ) -> Result<(), Errno> {
        let p = &self.table[i];
        if let Some(fd) = &p.out.fd {
            epoll.add(fd, token(ProcessPort::Out), p.pty, true)?;
        }
        if let Some(fd) = &p.err.fd {
            epoll.add(fd, token(ProcessPort::Err), false, true)?;
        }
        Ok(())
    }

    /// An event of a descriptor.
    pub(crate) fn on_event(&mut self, i: usize, port: ProcessPort, readable: bool, writable: bool) {
        let Some(p) = self.table.get_mut(i) else {
            return;
        };
        match port {
            ProcessPort::Out => p.out.ready |= readable,
            ProcessPort::Err => p.err.ready |= readable,
            ProcessPort::Stdin => {}
        }
        if writable && (port == ProcessPort::Stdin || p.pty) {
            p.stdin.ready = true;
        }
    }

    /// A child was reaped; it may be an orphan the agent never started. Its
    /// [`release`](Self::release) follows.
    pub(crate) fn on_exit(&mut self, pid: u32, exit: ProcessExit) {
        let Some(p) = self.table[..self.high].iter_mut().find(|p| p.pid == pid) else {
            return;
        };
        if p.ended {
            return;
        }
        p.ended = true;
        p.exit = exit;
        p.stdin = StdinQueue::NONE;
        let pty = p.pty;
        for source in [&mut p.out, &mut p.err] {
            source.ready = true;
            source.left = match &source.fd {
                Some(_) if pty => PTY_REST,
                Some(fd) => readable(fd).unwrap_or(0),
                None => 0,
            };
        }
    }

    /// Lets go of the cgroups of those that were reaped; `alone` if the agent has no child left.
    pub(crate) fn release(&mut self, cgroups: &mut CgroupTable, alone: bool) {
        let reaped = |p: &&mut Process| p.ended && !p.released;
        for p in self.table[..self.high].iter_mut().filter(reaped) {
            let CgroupEnd {
                outlived,
                out_of_memory,
            } = cgroups.release(p.cgroup, p.exit != ProcessExit::Code(0), alone);
            p.released = true;
            (p.outlived, p.out_of_memory) = (outlived && !p.pty, out_of_memory);
        }
    }

    /// The host's bytes for a process. Bytes for one that takes none are dropped.
    pub(crate) fn feed(&mut self, i: usize, bytes: &[u8], session: &mut Session) -> bool {
        let p = &mut self.table[i];
        let Some(slot) = p.slot else { return true };
        let StdinQueue {
            fd, ready, waiting, ..
        } = &mut p.stdin;
        let target = if p.pty {
            p.out.fd.as_ref()
        } else {
            fd.as_ref()
        };
        let mut rest = bytes;
        match target {
            None => rest = &[],
            Some(fd) if waiting.is_empty() && *ready => rest = &rest[put(fd, rest, ready)..],
            Some(_) => {}
        }
        session.consumed(slot, bytes.len() - rest.len());
        rest.is_empty() || p.stdin.waiting.keep(rest)
    }

    /// The host has no more input for it. A terminal has no such end.
    pub(crate) fn end_input(&mut self, i: usize) {
        let p = &mut self.table[i];
        if p.pty {
            return;
        }
        p.stdin.ended = true;
        if p.stdin.waiting.is_empty() {
            p.stdin = StdinQueue::NONE;
        }
    }

    /// Nobody listens to the process any more; it keeps running.
    pub(crate) fn detach(&mut self, i: usize, slot: usize) {
        let p = &mut self.table[i];
        if p.slot != Some(slot) {
            return; // it is held
        }
        p.slot = None;
        if !p.pty {
            p.stdin = StdinQueue::NONE;
        }
    }

    /// The connection is gone. Who had a listener keeps what it says for the next one.
    pub(crate) fn hold_all(&mut self) {
        for p in &mut self.table[..self.high] {
            p.held |= p.slot.take().is_some();
        }
    }

    /// Gives a process without a stream to one; says its place.
    pub(crate) fn attach(&mut self, pid: u32, slot: usize) -> Result<usize, Errno> {
        let at = self.table[..self.high]
            .iter()
            .position(|p| p.pid == pid && pid != 0 && p.is_there());
        let i = at.ok_or(Errno::SRCH)?;
        let p = &mut self.table[i];
        if p.slot.is_some() {
            return Err(Errno::BUSY);
        }
        p.slot = Some(slot);
        p.held = false;
        Ok(i)
    }

    /// Moves bytes of every process, one frame each and way, beginning at another one each time.
    /// Says whether there may be more to do at once.
    pub(crate) fn pump(
        &mut self,
        turn: usize,
        session: &mut Session,
        epoll: &Epoll,
        token: impl Fn(usize, ProcessPort) -> u64,
    ) -> bool {
        let mut more = self.drains.pump();
        let high = self.high;
        for k in 0..high {
            let i = (k + turn) % high;
            let p = &mut self.table[i];
            if p.pid == 0 {
                continue;
            }
            more |= p.drain_input(session, epoll, token(i, ProcessPort::Stdin));
            let (out, slot) = (
                if p.pty {
                    DataChannel::Pty
                } else {
                    DataChannel::Stdout
                },
                p.slot,
            );
            let exited = p.ended;
            if !p.held {
                more |= p.out.pump(out, slot, exited, session);
                more |= p.err.pump(DataChannel::Stderr, slot, exited, session);
                more |= p.conclude(session, &mut self.drains, epoll);
            }
        }
        while self.high > 0 && self.table[self.high - 1].pid == 0 {
            self.high -= 1;
        }
        more
    }

    /// Signals a process that has not been reaped, so its id is still its own. SIGKILL goes to all
    /// that it began: to its cgroup, or where it has none to its process group.
    pub(crate) fn signal(&self, pid: u32, signal: u8, cgroups: &CgroupTable) -> Result<(), Errno> {
        let p = self.running(pid).ok_or(Errno::SRCH)?;
        if signal == KILL && !cgroups.kill(p.cgroup) {
            let _ = kill_group(pid, KILL);
        }
        kill(pid, signal)
    }

    /// Sets the size of a process's terminal.
    pub(crate) fn resize(&self, pid: u32, cols: u16, rows: u16) -> Result<(), Errno> {
        let p = self.running(pid).ok_or(Errno::SRCH)?;
        match &p.out.fd {
            Some(fd) if p.pty => crate::sys::file::set_window(fd, cols, rows),
            _ => Err(Errno::INVAL),
        }
    }

    fn running(&self, pid: u32) -> Option<&Process> {
        self.table[..self.high]
            .iter()
            .find(|p| p.pid == pid && pid != 0 && !p.ended)
    }

    /// Ends all of them: for the end of a test.
    pub(crate) fn kill_all(&self) {
        for p in self.table[..self.high]
            .iter()
            .filter(|p| p.pid != 0 && !p.ended)
        {
            let _ = kill_group(p.pid, KILL);
        }
    }

    /// The process at a place, if one runs there; `None` beyond the last.
    pub(crate) fn info(&self, i: usize) -> Option<Option<ProcessInfo<'_>>> {
        let p = self.table[..self.high].get(i)?;
        if !p.is_there() {
            return Some(None);
        }
        Some(Some(ProcessInfo {
            pid: p.pid,
            pty: p.pty,
            started_ns: p.started_ns,
            tag: p.tag.bytes(),
            program: p.program.bytes(),
        }))
    }
}

impl Process {
    /// It runs, or its end waits to be sent.
    const fn is_there(&self) -> bool {
        self.pid != 0 && (!self.ended || self.held)
    }

    /// Gives the process what waits for it.
    fn drain_input(&mut self, session: &mut Session, epoll: &Epoll, token: u64) -> bool {
        let feed = &mut self.stdin;
        if feed.waiting.is_empty() {
            return false;
        }
        let target = if self.pty {
            self.out.fd.as_ref()
        } else {
            feed.fd.as_ref()
        };
        let taken = match target {
            Some(fd) => {
                if !feed.watched && !self.pty {
                    feed.watched = epoll.add(fd, token, true, false).is_ok();
                }
                if !feed.ready {
                    return false;
                }
                put(fd, feed.waiting.bytes(), &mut feed.ready)
            }
            None => feed.waiting.bytes().len(),
        };
        feed.waiting.taken(taken);
        let (empty, ended) = (feed.waiting.is_empty(), feed.ended);
        if let Some(slot) = self.slot {
            session.consumed(slot, taken);
        }
        if empty && ended {
            self.stdin = StdinQueue::NONE;
        }
        !empty && self.stdin.ready
    }

    /// Sends the end once everything was read, and frees the place. What others may still write to
    /// is emptied from now on, of which it says whether that is to be done at once.
    fn conclude(&mut self, session: &mut Session, drains: &mut DrainTable, epoll: &Epoll) -> bool {
        if !self.ended {
            return false;
        }
        if let Some(slot) = self.slot {
            if self.out.has_rest() || self.err.has_rest() || !session.has_room() {
                return false;
            }
            let (exit, out_of_memory) = (self.exit, self.out_of_memory);
            session.reply(
                slot,
                &Reply::Exited(ProcessEnd {
                    exit,
                    out_of_memory,
                }),
            );
        }
        let ended = mem::replace(self, Self::FREE);
        let open = ended.out.fd.into_iter().chain(ended.err.fd);
        let mut emptied = false;
        for pipe in open.filter(|_| ended.outlived) {
            drains.take(pipe, epoll);
            emptied = true;
        }
        emptied
    }
}

impl OutputSource {
    /// Of an ended process: there is something that it wrote and that is not read.
    const fn has_rest(&self) -> bool {
        self.fd.is_some() && self.left > 0
    }

    /// Reads once. Says whether there may be more at once.
    fn pump(
        &mut self,
        channel: DataChannel,
        slot: Option<usize>,
        exited: bool,
        session: &mut Session,
    ) -> bool {
        let Some(fd) = self.fd.as_ref().filter(|_| self.ready) else {
            return false;
        };
        if exited && self.left == 0 {
            return false;
        }
        let most = if exited {
            usize::try_from(self.left).unwrap_or(0)
        } else {
            usize::MAX
        };
        let got = match slot {
            Some(slot) => {
                let Some(space) = session.data_space(slot) else {
                    return false;
                };
                let most = most.min(space.len());
                let got = read(fd, &mut space[..most]);
                if let Ok(n) = got {
                    session.data_commit(slot, channel, n);
                }
                got
            }
            None => read(fd, &mut [0; DISCARD]),
        };
        match got {
            Ok(n) if n > 0 => {
                let read = u32::try_from(n).unwrap_or(u32::MAX);
                self.left = self.left.saturating_sub(read);
                !exited || self.left > 0
            }
            Err(Errno::AGAIN) if !exited => {
                self.ready = false;
                false
            }
            Err(Errno::INTR) => true,
            _ => {
                self.fd = None;
                false
            }
        }
    }
}

/// Writes what the process takes now. A process that closed its input takes everything.
fn put(fd: &Fd, bytes: &[u8], ready: &mut bool) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        match write(fd, &bytes[done..]) {
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                *ready = false;
                break;
            }
            Err(_) => return bytes.len(),
        }
    }
    done
}
