//! Connections to ports of the guest: bytes between a stream and a TCP socket, both ways.
//!
//! ```text
//! connecting --(taken)--> open --(both halves over)--> Done, gone
//!      |                    `--(reset by the program)--> error, gone
//!      `--(refused by 127.0.0.1 and by ::1)--> error, gone
//! ```
//!
//! A socket is read only into credit and room, so a reader who stops stops the program that writes;
//! what the program does not take waits here, a window of it at most. Only the connections that may
//! have something to do are looked at: a thousand idle ones cost a turn sixteen words.

use crate::failure::code;
use crate::sys::event::{Epoll, socket_error};
use crate::sys::tcp::{LoopbackAddress, connect_loopback, end_writing, reset};
use crate::sys::{Errno, Fd, read, write};
use crate::tokens::of_port;
use crate::waiting::WaitingBytes;
use agent_core::Session;
use core::mem;
use wire::{DataChannel, MAX_PORT_STREAMS, MAX_STREAMS, Reply, ResetCode, StreamEvent};

const BITS: usize = 64;
const WORDS: usize = MAX_PORT_STREAMS / BITS;

/// One connection; without a socket a free place, which is all zeros, so that the table costs no
/// bytes in the program.
struct PortConnection {
    fd: Option<Fd>,
    port: u16,
    connecting: bool,
    /// What 127.0.0.1 said; 0 as long as it is that one which is tried.
    refused: i32,
    readable: bool,
    writable: bool,
    /// The program sends no more: read on until the end, of which no other event reports.
    peer_ended: bool,
    /// The end was read, and told.
    read_over: bool,
    /// The host sends no more.
    host_ended: bool,
    /// The program was told so.
    write_over: bool,
    /// Why the program takes no more; 0 as long as it does.
    broken: i32,
    waiting: WaitingBytes,
}

/// What a step comes to.
#[derive(PartialEq, Eq)]
enum PortStep {
    /// There may be more to do at once.
    More,
    /// There is more to do, with credit or room.
    Blocked,
    /// Nothing before an event or bytes of the host.
    Idle,
}

impl PortConnection {
    const FREE: Self = Self {
        fd: None,
        port: 0,
        connecting: false,
        refused: 0,
        readable: false,
        writable: false,
        peer_ended: false,
        read_over: false,
        host_ended: false,
        write_over: false,
        broken: 0,
        waiting: WaitingBytes::NONE,
    };
}

/// All connections to ports. Their place is their slot less [`MAX_STREAMS`].
pub(crate) struct PortTable {
    table: [PortConnection; MAX_PORT_STREAMS],
    /// A bit for each place that may have something to do.
    busy: [u64; WORDS],
}

impl PortTable {
    pub(crate) const fn new() -> Self {
        Self {
            table: [const { PortConnection::FREE }; MAX_PORT_STREAMS],
            busy: [0; WORDS],
        }
    }

    /// The place of a slot, if it is one of a connection to a port.
    pub(crate) const fn place(slot: usize) -> Option<usize> {
        slot.checked_sub(MAX_STREAMS)
    }

    fn mark(&mut self, i: usize) {
        self.busy[i / BITS] |= 1 << (i % BITS);
    }

    /// Begins to connect.
    pub(crate) fn open(&mut self, slot: usize, port: u16, session: &mut Session, epoll: &Epoll) {
        let Some(i) = Self::place(slot) else {
            return session.reset(slot, ResetCode::Internal, "no place for a connection");
        };
        let connection = &mut self.table[i];
        *connection = PortConnection::FREE;
        connection.port = port;
        connection.connect(LoopbackAddress::V4, i, session, epoll);
        self.mark(i);
    }

    /// An event of a socket.
    pub(crate) fn on_event(&mut self, i: usize, readable: bool, writable: bool, ended: bool) {
        if let Some(connection) = self.table.get_mut(i) {
            connection.readable |= readable;
            connection.writable |= writable;
            connection.peer_ended |= ended;
            self.mark(i);
        }
    }

    /// The host's bytes. Bytes for a program that takes none are dropped. False without memory.
    pub(crate) fn feed(&mut self, i: usize, bytes: &[u8], session: &mut Session) -> bool {
        let connection = &mut self.table[i];
        if connection.fd.is_none() {
            return true;
        }
        let mut rest = bytes;
        if !connection.connecting && connection.waiting.is_empty() {
            rest = &rest[connection.put(rest)..];
        }
        session.consumed(MAX_STREAMS + i, bytes.len() - rest.len());
        let kept = rest.is_empty() || connection.waiting.keep(rest);
        self.mark(i);
        kept
    }

    /// The host has no more bytes.
    pub(crate) fn end_input(&mut self, i: usize) {
        self.table[i].host_ended = true;
        self.mark(i);
    }

    /// The stream is gone.
    pub(crate) fn abandon(&mut self, i: usize) {
        mem::replace(&mut self.table[i], PortConnection::FREE).give_up();
    }

    /// The host's connection is gone, and every stream with it.
    pub(crate) fn abandon_all(&mut self) {
        for i in 0..MAX_PORT_STREAMS {
            if self.table[i].fd.is_some() {
                self.abandon(i);
            }
        }
    }

    /// Moves bytes of every connection that may have some, one frame each and way, beginning at
    /// another one each time. Says whether there may be more to do at once.
    pub(crate) fn pump(&mut self, turn: usize, session: &mut Session, epoll: &Epoll) -> bool {
        let mut more = false;
        for k in 0..WORDS {
            let word = (k + turn) % WORDS;
            let turned = turn % BITS;
            let mut bits = self.busy[word].rotate_right(u32::try_from(turned).unwrap_or(0));
            while bits != 0 {
                let first = usize::try_from(bits.trailing_zeros()).unwrap_or(0);
                bits &= bits - 1;
                let bit = (first + turned) % BITS;
                let i = word * BITS + bit;
                match self.table[i].step(i, session, epoll) {
                    PortStep::More => more = true,
                    PortStep::Blocked => {}
                    PortStep::Idle => self.busy[word] &= !(1 << bit),
                }
            }
        }
        more
    }
}

impl PortConnection {
    /// Begins to connect to one of the two addresses, to the other when that is refused at once.
    fn connect(&mut self, to: LoopbackAddress, i: usize, session: &mut Session, epoll: &Epoll) {
        let made = connect_loopback(to, self.port).and_then(|(fd, done)| {
            epoll.add(&fd, of_port(i), true, true)?;
            Ok((fd, done))
        });
        match made {
            Ok((fd, done)) => {
                self.fd = Some(fd);
                self.connecting = true;
                self.writable = done;
                self.readable = false;
                self.peer_ended = false;
            }
            Err(e) => self.refused(e, i, session, epoll),
        }
    }

    /// One of the two addresses has refused: the other one is tried, or the stream ends with what
    /// the first one said.
    fn refused(&mut self, e: Errno, i: usize, session: &mut Session, epoll: &Epoll) {
        self.fd = None;
        if self.refused == 0 {
            self.refused = e.0;
            return self.connect(LoopbackAddress::V6, i, session, epoll);
        }
        let first = self.refused;
        let text = format_args!(
            "connect to port {}: 127.0.0.1: errno {first}; ::1: errno {}",
            self.port, e.0
        );
        session.fail(MAX_STREAMS + i, code(Errno(first)), first, text);
        *self = Self::FREE;
    }

    fn step(&mut self, i: usize, session: &mut Session, epoll: &Epoll) -> PortStep {
        let Some(fd) = &self.fd else {
            return PortStep::Idle;
        };
        if !session.has_room() {
            return PortStep::Blocked;
        }
        if self.connecting {
            if !self.writable {
                return PortStep::Idle;
            }
            if let Err(e) = socket_error(fd) {
                self.refused(e, i, session, epoll);
                return PortStep::More;
            }
            self.connecting = false;
            session.event(MAX_STREAMS + i, &StreamEvent::Connected);
        }
        self.drain(i, session);
        let step = self.take(i, session);
        if self.fd.is_some() && self.read_over && (self.write_over || self.broken != 0) {
            if !session.has_room() {
                return PortStep::Blocked;
            }
            match self.broken {
                0 => session.reply(MAX_STREAMS + i, &Reply::Done(0)),
                errno => self.tell_broken(Errno(errno), i, session),
            }
            *self = Self::FREE;
            return PortStep::Idle;
        }
        step
    }

    /// Gives the program what waits for it, then the end.
    fn drain(&mut self, i: usize, session: &mut Session) {
        if !self.waiting.is_empty() {
            let mut waiting = mem::replace(&mut self.waiting, WaitingBytes::NONE);
            let taken = self.put(waiting.bytes());
            waiting.taken(taken);
            self.waiting = waiting;
            session.consumed(MAX_STREAMS + i, taken);
            if !self.waiting.is_empty() {
                return;
            }
        }
        if self.host_ended && !self.write_over && self.broken == 0 {
            self.write_over = true;
            if let Some(Err(e)) = self.fd.as_ref().map(end_writing) {
                self.broken = e.0;
            }
        }
    }

    /// Reads once.
    fn take(&mut self, i: usize, session: &mut Session) -> PortStep {
        let slot = MAX_STREAMS + i;
        let Some(fd) = self.fd.as_ref().filter(|_| self.readable) else {
            return PortStep::Idle;
        };
        if self.read_over {
            return PortStep::Idle;
        }
        let Some(space) = session.data_space(slot) else {
            return PortStep::Blocked;
        };
        let room = space.len();
        match read(fd, space) {
            Ok(0) => {
                self.read_over = true;
                session.end_data(slot);
                PortStep::Idle
            }
            Ok(n) => {
                session.data_commit(slot, DataChannel::Port, n);
                // A stream socket that gives less than asked for is empty: no need to ask again.
                self.readable = self.peer_ended || n == room;
                PortStep::More
            }
            Err(Errno::INTR) => PortStep::More,
            Err(Errno::AGAIN) => {
                self.readable = false;
                PortStep::Idle
            }
            Err(e) => {
                self.tell_broken(e, i, session);
                *self = Self::FREE;
                PortStep::Idle
            }
        }
    }

    /// Ends the stream: the connection was reset.
    fn tell_broken(&self, e: Errno, i: usize, session: &mut Session) {
        let text = format_args!("the connection to port {} broke: errno {}", self.port, e.0);
        session.fail(MAX_STREAMS + i, code(e), e.0, text);
    }

    /// Writes what the program takes now; says how much of it needs no more care. All of it once
    /// the program takes no more.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(fd) = self.fd.as_ref().filter(|_| self.broken == 0) {
            if done == bytes.len() || !self.writable {
                return done;
            }
            match write(fd, &bytes[done..]) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(e) => self.broken = e.0,
            }
        }
        bytes.len()
    }

    /// The stream is gone: a connection that the host had ended in order is closed, any other is
    /// reset.
    fn give_up(self) {
        let in_order = self.host_ended && self.waiting.is_empty() && self.broken == 0;
        if let Some(fd) = self.fd.filter(|_| !in_order) {
            reset(fd);
        }
    }
}

const _: () = assert!(MAX_PORT_STREAMS.is_multiple_of(BITS));
