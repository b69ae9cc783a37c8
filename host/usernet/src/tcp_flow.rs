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
use crate::intercept_fault::InterceptFault;
use crate::intercepted_flow::InterceptedFlow;
use crate::interception::Interception;
use crate::outbox::Outbox;
use crate::rules::PolicyRules;
use crate::sniff::{MAX_SNIFF, Sniffed, is_tls, sniff};
use crate::tcp_stack::{TcpEndpoint, TcpStack};
use crate::tls_io::HostSide;
use control::DenyReason;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Duration as StackDuration;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// A guest that acknowledges nothing for so long, once the host has ended, is reset.
const LAST_WORDS: StackDuration = StackDuration::from_secs(120);
/// Ports on which a flow that says no name is not what an allowed name is for.
const NAMED_PORTS: [u16; 2] = [80, 443];

/// Why a name is asked of a flow, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlowName {
    /// None.
    NotAsked,
    /// It has not said one yet.
    Awaited,
    /// An allowed one, where that is asked.
    Said(String),
    /// None, where none is needed.
    Unsaid,
}

/// What a flow's name is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameAsked {
    /// Nothing: its address is allowed.
    No,
    /// It goes on without one; its requests may get headers by it.
    ForHeaders,
    /// It goes on by an allowed one only.
    ToPass,
}

/// What a flow is after its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlowOutcome {
    /// It goes on.
    Open,
    /// Both sides have ended, or one has reset.
    Ended,
    /// What it says it wants is not allowed, or it cannot be given its headers.
    Denied(DenyReason, Option<String>),
}

/// An open flow. One that connects is its socket and its SYN only.
#[derive(Debug)]
pub(crate) struct TcpFlow {
    pub(crate) endpoint: TcpEndpoint,
    host: OwnedFd,
    to: SocketAddr,
    name: FlowName,
    /// It may go on only by its name.
    by_name: bool,
    /// Its name has been looked up in the rules for headers.
    looked: bool,
    /// What was looked at was TLS.
    tls: bool,
    /// Its TLS is ended here.
    intercepted: Option<Box<InterceptedFlow>>,
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
        asked: NameAsked,
        ending: bool,
    ) -> Self {
        Self {
            endpoint,
            host,
            to,
            name: match asked {
                NameAsked::No => FlowName::NotAsked,
                NameAsked::ForHeaders | NameAsked::ToPass => FlowName::Awaited,
            },
            by_name: asked == NameAsked::ToPass,
            looked: false,
            tls: false,
            intercepted: None,
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
        (rules, interception): (&PolicyRules, &mut Interception),
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
            return FlowOutcome::Denied(DenyReason::Name, denied);
        }
        let moved = match self.intercept(interception) {
            Ok(true) => Ok(()),
            Ok(false) => self.feed_host().and_then(|()| self.feed_guest()),
            Err(InterceptFault::Lost) => Err(Errno::CONNRESET),
            Err(fault) => return self.refuse(fault, stack, outbox, now),
        };
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

    /// Whether it goes on under other rules for headers: those that it was begun by.
    pub(crate) fn follows(&self, interception: &Interception) -> bool {
        match (&self.intercepted, &self.name) {
            (Some(intercepted), _) => intercepted.follows(interception),
            (None, FlowName::Said(name)) if self.tls => interception.rule(name).is_none(),
            _ => true,
        }
    }

    /// Whether another policy, by which it has to say a name, lets it go on.
    pub(crate) fn may_stay(&self, rules: &PolicyRules) -> bool {
        match &self.name {
            FlowName::NotAsked => false,
            FlowName::Awaited | FlowName::Unsaid if !self.by_name => false,
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
        let bytes = socket.peek(MAX_SNIFF).unwrap_or_default();
        // Only TLS gets headers: nothing else waits for them.
        if !self.by_name && !bytes.is_empty() && !is_tls(bytes) {
            self.name = FlowName::Unsaid;
            return None;
        }
        let said = sniff(bytes);
        match said {
            Sniffed::More if more => None,
            Sniffed::Name(name) if !self.by_name || rules.name_allowed(&name) => {
                self.name = FlowName::Said(name);
                None
            }
            Sniffed::Name(name) => Some(Some(name)),
            Sniffed::Other if !needed => {
                self.name = FlowName::Unsaid;
                None
            }
            Sniffed::Other | Sniffed::Nameless | Sniffed::More if !self.by_name => {
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

    /// Ends its TLS here if its name has headers; whether that is so.
    fn intercept(&mut self, interception: &mut Interception) -> Result<bool, InterceptFault> {
        let socket = self.endpoint.socket();
        if let FlowName::Said(name) = &self.name
            && self.intercepted.is_none()
            && !self.looked
        {
            self.looked = true;
            self.tls = is_tls(socket.peek(1).unwrap_or_default());
            if let Some(rule) = interception.rule(name)
                && self.tls
            {
                let rule = Arc::new(rule.clone());
                let opening = interception.begin(name)?;
                let begun = InterceptedFlow::new(name, rule, opening);
                self.intercepted = Some(Box::new(begun));
            }
        }
        let Some(intercepted) = &mut self.intercepted else {
            return Ok(false);
        };
        let mut host = HostSide {
            socket: self.host.as_fd(),
            readable: &mut self.readable,
            writable: &mut self.writable,
        };
        intercepted.turn(socket, &mut host, interception, self.guest_ended)?;
        if intercepted.host_is_told() && !self.host_shut {
            self.host_shut = true;
            let _ = shutdown(&self.host, Shutdown::Write);
        }
        if intercepted.guest_is_told() && !self.host_ended {
            self.host_ended = true;
            close(socket);
        }
        Ok(true)
    }

    /// Ends it, and lets the guest hear why as far as it can.
    fn refuse(
        &mut self,
        fault: InterceptFault,
        stack: &mut TcpStack,
        outbox: &mut Outbox,
        now: Instant,
    ) -> FlowOutcome {
        let socket = self.endpoint.socket();
        match &mut self.intercepted {
            Some(intercepted) => intercepted.refuse(fault, socket),
            None => socket.abort(),
        }
        socket.close();
        stack.output(&mut self.endpoint, outbox, now);
        host_socket::reset_at_close(&self.host);
        let name = match &self.name {
            FlowName::Said(name) => Some(name.clone()),
            _ => None,
        };
        match fault.reason() {
            Some(reason) => FlowOutcome::Denied(reason, name),
            None => FlowOutcome::Ended,
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
                    close(socket);
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

/// Tells the guest that the host has ended.
fn close(socket: &mut Socket<'_>) {
    socket.close();
    // The guest's last segments are acknowledged at once: nobody is there later.
    socket.set_ack_delay(None);
    socket.set_timeout(Some(LAST_WORDS));
}

/// Whether the guest has acknowledged the connection.
fn has_opened(socket: &Socket<'_>) -> bool {
    !matches!(socket.state(), State::Listen | State::SynReceived)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::inbound::WireAddresses;
    use crate::reply::ipv4_header;
    use crate::sniff::test::hello;
    use control::{NetPolicy, NetSpec};
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        IpAddress, IpProtocol, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
        TcpTimestampRepr,
    };
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    const FIRST: i32 = 1000;

    /// A flow that was let go by its address, and has to say a name.
    struct NamedFlow {
        stack: TcpStack,
        outbox: Outbox,
        guest: OwnedFd,
        rules: PolicyRules,
        flow: TcpFlow,
        host: TcpStream,
        to: SocketAddr,
        acknowledged: Option<TcpSeqNumber>,
    }

    fn segment(to: SocketAddr, repr: &TcpRepr<'_>) -> Vec<u8> {
        let spec = NetSpec::standard("test");
        let SocketAddr::V4(v4) = to else {
            unreachable!()
        };
        let head = ipv4_header(spec.guest, *v4.ip(), IpProtocol::Tcp, repr.buffer_len());
        let mut bytes = vec![0; 20 + repr.buffer_len()];
        let checksums = ChecksumCapabilities::default();
        head.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &checksums);
        let mut packet = TcpPacket::new_unchecked(&mut bytes[20..]);
        let (from, to) = (IpAddress::from(spec.guest), IpAddress::from(*v4.ip()));
        repr.emit(&mut packet, &from, &to, &checksums);
        bytes
    }

    impl NamedFlow {
        fn open(port: u16) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let host = listener.accept().unwrap().0;
            host.set_nonblocking(true).unwrap();
            let (ours, guest) = control::pair().unwrap();
            let (wire, now) = (
                WireAddresses::new(&NetSpec::standard("test")),
                Instant::now(),
            );
            let mut outbox = Outbox::new(ours, wire);
            let mut stack = TcpStack::new(&wire, 7, &mut outbox, now);
            let to = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), port));
            let endpoint = stack.listen(to).unwrap();
            let policy = NetPolicy {
                internet: false,
                allow_out: vec!["*.example.com".parse().unwrap()],
                ..NetPolicy::default()
            };
            let mut named = Self {
                stack,
                outbox,
                guest,
                rules: PolicyRules::new(policy, Vec::new()),
                flow: TcpFlow::new(endpoint, connected.into(), to, NameAsked::ToPass, false),
                host,
                to,
                acknowledged: None,
            };
            named.send(TcpControl::Syn, FIRST, b"");
            assert_eq!(named.turn(), FlowOutcome::Open);
            named
        }

        fn turn(&mut self) -> FlowOutcome {
            let now = Instant::now();
            let (stack, outbox) = (&mut self.stack, &mut self.outbox);
            let outcome = self.flow.turn(
                stack,
                outbox,
                (&self.rules, &mut Interception::new(None)),
                now,
            );
            self.outbox.flush();
            let mut frame = [0; 2000];
            while let Ok((length, _)) = recv(&self.guest, &mut frame, RecvFlags::DONTWAIT) {
                let packet = TcpPacket::new_checked(&frame[34..length]).unwrap();
                let next = packet.seq_number() + packet.segment_len();
                self.acknowledged = Some(next);
            }
            outcome
        }

        fn send(&mut self, control: TcpControl, sequence: i32, payload: &[u8]) {
            let repr = TcpRepr {
                src_port: 5000,
                dst_port: self.to.port(),
                control,
                seq_number: TcpSeqNumber(sequence),
                ack_number: self.acknowledged,
                window_len: 60_000,
                window_scale: None,
                max_seg_size: None,
                sack_permitted: false,
                sack_ranges: [None; 3],
                timestamp: None::<TcpTimestampRepr>,
                payload,
            };
            let packet = segment(self.to, &repr);
            let endpoint = Some(&mut self.flow.endpoint);
            let now = Instant::now();
            self.stack.input(&packet, endpoint, &mut self.outbox, now);
        }

        /// What becomes of it when these are its first bytes, in two parts; what the host hears.
        fn says(mut self, bytes: &[u8]) -> (FlowOutcome, Vec<u8>) {
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            self.send(TcpControl::None, FIRST + 1, first);
            let mut outcome = self.turn();
            let mut heard = [0; 4096];
            if outcome == FlowOutcome::Open && !rest.is_empty() {
                let more = i32::try_from(first.len()).unwrap();
                self.send(TcpControl::Psh, FIRST + 1 + more, rest);
                outcome = self.turn();
            }
            let count = self.host.read(&mut heard).unwrap_or(0);
            (outcome, heard[..count].to_vec())
        }
    }

    #[test]
    fn a_flow_that_is_allowed_by_name_has_to_say_one() {
        let host = |name: &str| format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").into_bytes();
        let denied =
            |name: Option<&str>| FlowOutcome::Denied(DenyReason::Name, name.map(str::to_owned));
        for (port, bytes, outcome) in [
            (443, hello(Some("a.example.com")), FlowOutcome::Open),
            (8443, hello(Some("a.example.com")), FlowOutcome::Open),
            (80, host("a.example.com"), FlowOutcome::Open),
            (22, b"SSH-2.0-client\r\n".to_vec(), FlowOutcome::Open),
            (443, hello(Some("evil.net")), denied(Some("evil.net"))),
            (8443, hello(Some("evil.net")), denied(Some("evil.net"))),
            (80, host("evil.net"), denied(Some("evil.net"))),
            (443, hello(None), denied(None)),
            (443, b"SSH-2.0-client\r\n".to_vec(), denied(None)),
            (80, b"PRI * HTTP/2.0\r\n\r\n".to_vec(), denied(None)),
        ] {
            let (became, heard) = NamedFlow::open(port).says(&bytes);
            assert_eq!(became, outcome, "port {port}");
            let expected = if outcome == FlowOutcome::Open {
                bytes
            } else {
                Vec::new()
            };
            assert!(
                heard == expected,
                "nothing of a denied flow goes out, all of others does"
            );
        }
    }
}
