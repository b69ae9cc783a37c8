//! One TCP flow: the guest's connection on one side, a socket of the host on the other, and bytes
//! that move between them without a buffer of ours.
//!
//! ```text
//!  guest ──SYN──> connecting ──host has connected──> open ──both have ended──> gone
//!                     │ refused: RST; unreachable: ICMP   │ either resets: so is the other
//! ```
//!
//! The guest's SYN is kept and answered only when the host has connected. Each side's end of data
//! is passed on alone; what one side does not take stays with the other: the window of smoltcp's
//! buffer closes, or the host's socket is not read.

use crate::host_socket;
use crate::outbox::Outbox;
use crate::rules::PolicyRules;
use crate::sniff::{MAX_SNIFF, Sniffed, sniff};
use crate::tcp_stack::{TcpEndpoint, TcpStack};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Duration as StackDuration;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// A guest that acknowledges nothing for so long, once the host has ended, is reset.
const LAST_WORDS: StackDuration = StackDuration::from_secs(120);
/// Ports on which a flow that says no name is not what an allowed name is for.
const NAMED_PORTS: [u16; 2] = [80, 443];

/// Why a name is asked of a flow, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlowName {
    /// None: its address is allowed.
    NotAsked,
    /// It has not said one yet.
    Awaited,
    /// An allowed one.
    Said(String),
    /// None, on a port where none is needed.
    Unsaid,
}

/// What a flow is after its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlowOutcome {
    /// It goes on.
    Open,
    /// Both sides have ended, or one has reset.
    Ended,
    /// What it says it wants is not allowed.
    Denied(Option<String>),
}

/// An open flow. One that connects is its socket and its SYN only.
#[derive(Debug)]
pub(crate) struct TcpFlow {
    pub(crate) endpoint: TcpEndpoint,
    host: OwnedFd,
    to: SocketAddr,
    pub(crate) name: FlowName,
    readable: bool,
    writable: bool,
    /// The host's end of data is near: a short read is not the last one.
    ending: bool,
    host_ended: bool,
    host_shut: bool,
    guest_ended: bool,
}

impl TcpFlow {
    /// A flow over a host socket that has connected.
    pub(crate) fn new(
        endpoint: TcpEndpoint,
        host: OwnedFd,
        to: SocketAddr,
        by_name: bool,
        ending: bool,
    ) -> Self {
        Self {
            endpoint,
            host,
            to,
            name: if by_name {
                FlowName::Awaited
            } else {
                FlowName::NotAsked
            },
            readable: true,
            writable: true,
            ending,
            host_ended: false,
            host_shut: false,
            guest_ended: false,
        }
    }

    /// The host's socket has something to do.
    pub(crate) const fn event(&mut self, readable: bool, writable: bool, ended: bool) {
        self.readable |= readable || ended;
        self.writable |= writable;
        self.ending |= ended;
    }

    /// Moves what can be moved, both ways.
    pub(crate) fn turn(
        &mut self,
        stack: &mut TcpStack,
        outbox: &mut Outbox,
        rules: &PolicyRules,
        now: Instant,
    ) -> FlowOutcome {
        self.look_for_end();
        // A guest that resets what it has just begun is waited for by smoltcp; not by us.
        let closed = matches!(
            self.endpoint.socket().state(),
            State::Closed | State::Listen
        );
        if closed && !(self.guest_ended && self.host_ended) {
            host_socket::reset_at_close(&self.host);
            return FlowOutcome::Ended;
        }
        if let Some(denied) = self.ask_name(rules) {
            self.reset(stack, outbox, now);
            return FlowOutcome::Denied(denied);
        }
        let moved = self.feed_host().and_then(|()| self.feed_guest());
        if moved.is_err() {
            self.reset(stack, outbox, now);
            return FlowOutcome::Ended;
        }
        stack.output(&mut self.endpoint, outbox, now);
        // Everything has been said and acknowledged, and the host has taken it. Nobody waits for
        // packets that went astray: there is one wire.
        let socket = self.endpoint.socket();
        let over = matches!(socket.state(), State::Closed | State::TimeWait);
        if over && self.host_shut && !socket.can_recv() {
            FlowOutcome::Ended
        } else {
            FlowOutcome::Open
        }
    }

    fn look_for_end(&mut self) {
        self.guest_ended |= matches!(
            self.endpoint.socket().state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
    }

    /// Resets both sides.
    pub(crate) fn reset(&mut self, stack: &mut TcpStack, outbox: &mut Outbox, now: Instant) {
        self.endpoint.socket().abort();
        stack.output(&mut self.endpoint, outbox, now);
        host_socket::reset_at_close(&self.host);
    }

    /// Whether another policy lets it go on.
    pub(crate) fn may_stay(&self, rules: &PolicyRules) -> bool {
        match &self.name {
            FlowName::NotAsked => false,
            FlowName::Awaited | FlowName::Unsaid => true,
            FlowName::Said(name) => rules.name_allowed(name),
        }
    }

    /// Looks for the name that a flow has to say before anything of it goes out. The name, if it is
    /// not allowed.
    fn ask_name(&mut self, rules: &PolicyRules) -> Option<Option<String>> {
        if self.name != FlowName::Awaited {
            return None;
        }
        let needed = NAMED_PORTS.contains(&self.to.port());
        let socket = self.endpoint.socket();
        let more = matches!(socket.state(), State::Established | State::SynReceived);
        let said = sniff(socket.peek(MAX_SNIFF).unwrap_or_default());
        match said {
            Sniffed::More if more => None,
            Sniffed::Name(name) if rules.name_allowed(&name) => {
                self.name = FlowName::Said(name);
                None
            }
            Sniffed::Name(name) => Some(Some(name)),
            Sniffed::Other if !needed => {
                self.name = FlowName::Unsaid;
                None
            }
            // A flow that has ended and said nothing has nothing to be denied.
            Sniffed::More if !socket.can_recv() => {
                self.name = FlowName::Unsaid;
                None
            }
            Sniffed::More | Sniffed::Nameless | Sniffed::Other => Some(None),
        }
    }

    fn feed_host(&mut self) -> Result<(), Errno> {
        if self.name == FlowName::Awaited {
            return Ok(());
        }
        let socket = self.endpoint.socket();
        while self.writable && socket.can_recv() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = socket.recv(|bytes| match send(&self.host, bytes, flags) {
                Ok(count) => (count, Ok(count == bytes.len())),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Ok(Ok(true) | Err(Errno::INTR)) => {}
                Ok(Ok(false)) => self.writable = false,
                Ok(Err(Errno::AGAIN)) => self.writable = false,
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        let ended = !socket.may_recv() && has_opened(socket);
        if ended && !self.host_shut {
            self.host_shut = true;
            // The host may have closed altogether.
            let _ = shutdown(&self.host, Shutdown::Write);
        }
        Ok(())
    }

    fn feed_guest(&mut self) -> Result<(), Errno> {
        let socket = self.endpoint.socket();
        while self.readable && !self.host_ended && socket.can_send() {
            let received = socket.send(|room| {
                let most = room.len();
                match recv(&self.host, room, RecvFlags::DONTWAIT) {
                    Ok((count, _)) => (count, Ok((count, count == most))),
                    Err(error) => (0, Err(error)),
                }
            });
            match received {
                Ok(Ok((0, _))) => {
                    self.host_ended = true;
                    socket.close();
                    // The guest's last segments are acknowledged at once: nobody is there later.
                    socket.set_ack_delay(None);
                    socket.set_timeout(Some(LAST_WORDS));
                }
                // What comes after a short read is told as another event.
                Ok(Ok((_, filled))) => self.readable = filled || self.ending,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => self.readable = false,
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// Whether the guest has acknowledged the connection.
fn has_opened(socket: &Socket<'_>) -> bool {
    !matches!(socket.state(), State::Listen | State::SynReceived)
}
