//! The connection to the host: the one it was given, or one over vsock that is made again whenever
//! it is lost.

use crate::identity::GuestIdentity;
use crate::sys::event::{Epoll, connect_host, monotonic_ns, socket_error};
use crate::sys::{Errno, Fd, read, system, write};
use crate::tokens::LINK;
use agent_core::Session;
use wire::{AGENT_PORT, Hello, Message, PROTOCOL_VERSION, boot_flags};

const FIRST_RETRY_MS: u32 = 10;
const LAST_RETRY_MS: u32 = 1000;

enum LinkState {
    /// There is no connection; the next try is after the wait.
    Down,
    /// It is being made.
    Connecting(Fd),
    Up(Fd),
    /// It was lost in this turn.
    Lost,
    /// It was lost and is not to be made again.
    Over,
}

/// The connection.
pub(crate) struct HostLink {
    state: LinkState,
    /// Make it again over vsock.
    vsock: bool,
    readable: bool,
    writable: bool,
    /// The host sends no more: read on until the end, of which no other event reports.
    ended: bool,
    /// Epoll is to tell when it becomes writable: only while it is not, since every byte the host
    /// reads would wake us otherwise.
    watching: bool,
    wait_ms: u32,
    /// No try before this time of the monotonic clock.
    next_try_ns: u64,
    flags: u32,
    start_ns: u64,
}

/// What reading came to.
pub(crate) enum LinkRead {
    Bytes(usize),
    Nothing,
    End,
}

impl HostLink {
    /// Over a stream socket the program was started with.
    pub(crate) fn given(socket: Fd, start_ns: u64) -> Self {
        let state = LinkState::Connecting(socket);
        Self {
            state,
            vsock: false,
            ..Self::vsock(0, start_ns)
        }
    }

    /// Over vsock, to be made.
    pub(crate) fn vsock(flags: u32, start_ns: u64) -> Self {
        Self {
            state: LinkState::Down,
            vsock: true,
            readable: false,
            writable: false,
            ended: false,
            watching: false,
            wait_ms: 0,
            next_try_ns: 0,
            flags: flags | boot_flags::PORTS,
            start_ns,
        }
    }

    /// Takes the next step towards a connection, if there is none.
    pub(crate) fn begin(&mut self, epoll: &Epoll, identity: &GuestIdentity, session: &mut Session) {
        let connecting = matches!(self.state, LinkState::Connecting(_));
        match core::mem::replace(&mut self.state, LinkState::Down) {
            LinkState::Down if self.wait_ms != 0 && monotonic_ns() < self.next_try_ns => {}
            LinkState::Down | LinkState::Lost => self.try_vsock(epoll),
            LinkState::Connecting(fd) if !self.vsock => match epoll.add(&fd, LINK, false, true) {
                Ok(()) => self.state = LinkState::Up(fd),
                Err(_) => self.state = LinkState::Over,
            },
            LinkState::Connecting(fd) if !self.writable => self.state = LinkState::Connecting(fd),
            LinkState::Connecting(fd) => match socket_error(&fd) {
                Ok(()) => self.state = LinkState::Up(fd),
                Err(e) => self.back_off(e),
            },
            other => self.state = other,
        }
        if connecting && let LinkState::Up(_) = self.state {
            self.wait_ms = 0;
            self.writable = true;
            self.readable = true;
            self.watching = self.vsock;
            session.connection(&Message::Hello(Hello {
                version: PROTOCOL_VERSION,
                agent: concat!("hatchery-agent ", env!("CARGO_PKG_VERSION")),
                generation: identity.generation(),
                flags: self.flags,
                agent_start_ns: self.start_ns,
                ready_ns: monotonic_ns(),
            }));
            self.flags |= boot_flags::RECONNECT;
            self.send(session, epoll);
        }
    }

    fn try_vsock(&mut self, epoll: &Epoll) {
        self.writable = false;
        self.readable = false;
        self.ended = false;
        let made = connect_host(AGENT_PORT).and_then(|fd| {
            epoll.add(&fd, LINK, true, true)?;
            Ok(fd)
        });
        match made {
            Ok(fd) => self.state = LinkState::Connecting(fd),
            Err(e) => self.back_off(e),
        }
    }

    fn back_off(&mut self, e: Errno) {
        if self.wait_ms == 0 {
            system::log(format_args!(
                "no link to the host: errno {}; trying again",
                e.0
            ));
        }
        self.state = LinkState::Down;
        self.wait_ms = (2 * self.wait_ms).clamp(FIRST_RETRY_MS, LAST_RETRY_MS);
        self.next_try_ns = monotonic_ns() + u64::from(self.wait_ms) * 1_000_000;
    }

    /// How long to wait for events at most.
    pub(crate) fn retry_in_ms(&self) -> Option<u32> {
        match self.state {
            LinkState::Down => Some(self.wait_ms),
            _ => None,
        }
    }

    pub(crate) fn on_event(&mut self, readable: bool, writable: bool, ended: bool) {
        self.readable |= readable;
        self.ended |= ended;
        self.writable |= writable;
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up(_))
    }

    /// It was lost since the last [`begin`](Self::begin).
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.state, LinkState::Lost | LinkState::Over)
    }

    /// It will not come again.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.state, LinkState::Over)
    }

    /// Gives the connection up.
    pub(crate) fn lose(&mut self) {
        self.state = if self.vsock {
            LinkState::Lost
        } else {
            LinkState::Over
        };
    }

    pub(crate) fn receive(&mut self, into: &mut [u8]) -> LinkRead {
        let LinkState::Up(fd) = &self.state else {
            return LinkRead::Nothing;
        };
        if !self.readable {
            return LinkRead::Nothing;
        }
        match read(fd, into) {
            Ok(0) => LinkRead::End,
            Ok(n) => {
                // A stream socket that gives less than asked for is empty: no need to ask again.
                self.readable = self.ended || n == into.len();
                LinkRead::Bytes(n)
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                LinkRead::Nothing
            }
            Err(Errno::INTR) => LinkRead::Nothing,
            Err(_) => LinkRead::End,
        }
    }

    /// Sends what waits, as far as the link takes it.
    pub(crate) fn send(&mut self, session: &mut Session, epoll: &Epoll) {
        let LinkState::Up(fd) = &self.state else {
            return;
        };
        while self.writable && !session.output().is_empty() {
            match write(fd, session.output()) {
                Ok(n) => session.sent(n),
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(_) => return self.lose(),
            }
        }
        if self.watching == self.writable {
            self.watching = !self.writable;
            if epoll.change(fd, LINK, self.watching, true).is_err() {
                self.lose();
            }
        }
    }
}
