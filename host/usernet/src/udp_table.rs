//! All UDP and echo flows of a guest: a connected socket of the host each, which forgets by itself.

use crate::flow_context::FlowContext;
use crate::flow_table::FlowTable;
use crate::host_socket;
use crate::inbound::{ECHO_HEADER, EchoRequest, ICMP_ECHO, ICMPV6_ECHO, UdpDatagram};
use crate::outbox::Outbox;
use crate::poller::{FlowId, PollToken, Watch};
use crate::reply::{self, SHOWN, Unreachable};
use crate::rules::Verdict;
use crate::tcp_table::DNS_PORT;
use control::{DenyReason, NetProtocol};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::wire::IpProtocol;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A flow without a datagram for so long is forgotten.
const IDLE: Duration = Duration::from_secs(60);
/// One to a name server or of echoes.
const IDLE_SHORT: Duration = Duration::from_secs(10);
/// A flow that has been idle for so long gives way to a new one when the table is full.
const YIELDING: Duration = Duration::from_secs(1);
/// Most datagrams of one flow that are taken before others have their turn.
const MOST_AT_ONCE: usize = 64;
/// QUIC hides the name that a flow would have to say; programs go on over TCP.
const QUIC_PORT: u16 = 443;
/// Most bytes of an echo's answer, its ICMP header with it.
const MAX_ECHO: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum DatagramKey {
    Udp { port: u16, to: SocketAddr },
    Echo { ident: u16, to: IpAddr },
}

impl DatagramKey {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Udp { to, .. } => *to,
            Self::Echo { to, .. } => SocketAddr::new(*to, 0),
        }
    }

    fn idle(&self) -> Duration {
        match self {
            Self::Udp { to, .. } if to.port() != DNS_PORT => IDLE,
            Self::Udp { .. } | Self::Echo { .. } => IDLE_SHORT,
        }
    }
}

#[derive(Debug)]
struct DatagramFlow {
    host: OwnedFd,
    key: DatagramKey,
    used: Instant,
    /// It may have something; it is among the touched then.
    readable: bool,
}

/// The flows.
#[derive(Debug)]
pub(crate) struct UdpTable {
    flows: FlowTable<DatagramKey, DatagramFlow>,
    swept: Instant,
    /// Flows that are readable, each once.
    touched: Vec<FlowId>,
}

impl UdpTable {
    /// Without flows.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            flows: FlowTable::new(),
            swept: now,
            touched: Vec::new(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// When idle flows have to be looked for.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        (self.len() > 0).then(|| self.swept + IDLE_SHORT / 4)
    }

    /// A datagram from the guest. `open_flows` are those of all protocols.
    pub(crate) fn datagram(
        &mut self,
        datagram: &UdpDatagram<'_>,
        open_flows: usize,
        ctx: &mut FlowContext,
    ) {
        let (port, to) = (datagram.from.port(), datagram.to);
        let key = DatagramKey::Udp { port, to };
        let shown = reply::udp_shown(port, to.port(), datagram.payload.len());
        let tell = |why, ctx: &mut FlowContext| {
            let outbox = &mut ctx.outbox;
            reply::unreachable(why, IpProtocol::Udp, to.ip(), shown, &ctx.wire, outbox);
        };
        let id = match self.find_or_open(key, open_flows, ctx) {
            Ok(id) => id,
            Err(why) => return tell(why, ctx),
        };
        let Some(flow) = self.flows.get_mut(id) else {
            return;
        };
        flow.used = ctx.now;
        match send_once_more(&flow.host, datagram.payload) {
            Ok(()) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::MSGSIZE) => {}
            Err(error) => tell(of_error(error), ctx),
        }
    }

    /// An echo request to somewhere beyond the gateway. Where the host has no sockets for it, it
    /// is lost as any packet may be.
    pub(crate) fn echo(
        &mut self,
        echo: &EchoRequest<'_>,
        open_flows: usize,
        ctx: &mut FlowContext,
    ) {
        let (ident, to) = (echo.ident, echo.to);
        let key = DatagramKey::Echo { ident, to };
        let ([a, b], [c, d]) = (ident.to_be_bytes(), echo.sequence.to_be_bytes());
        let (request, protocol) = match to {
            IpAddr::V4(_) => (ICMP_ECHO, IpProtocol::Icmp),
            IpAddr::V6(_) => (ICMPV6_ECHO, IpProtocol::Icmpv6),
        };
        let shown = [request, 0, 0, 0, a, b, c, d];
        match self.find_or_open(key, open_flows, ctx) {
            Ok(id) => {
                let Some(flow) = self.flows.get_mut(id) else {
                    return;
                };
                flow.used = ctx.now;
                // The kernel puts in the identifier and the checksum.
                let message = [&shown[..], echo.data].concat();
                let _ = send_once_more(&flow.host, &message);
            }
            Err(why) if why == Unreachable::Prohibited => {
                reply::unreachable(why, protocol, to, shown, &ctx.wire, &mut ctx.outbox);
            }
            Err(_) => {}
        }
    }

    fn find_or_open(
        &mut self,
        key: DatagramKey,
        open_flows: usize,
        ctx: &mut FlowContext,
    ) -> Result<FlowId, Unreachable> {
        if let Some(id) = self.flows.find(&key) {
            return Ok(id);
        }
        let to = key.address();
        let (protocol, quic) = match key {
            DatagramKey::Udp { .. } => (NetProtocol::Udp, to.port() == QUIC_PORT),
            DatagramKey::Echo { .. } => (NetProtocol::Icmp, false),
        };
        let (most, now) = (ctx.most_flows, ctx.now);
        let mut yields = None;
        let room = || {
            open_flows < most || {
                yields = self.idlest(now);
                yields.is_some()
            }
        };
        match ctx.admit(protocol, to, room) {
            None => return Err(Unreachable::Prohibited),
            Some(admitted) if admitted.by_name && quic => {
                let reason = DenyReason::Name;
                ctx.report.deny(protocol, to, None, reason, ctx.now);
                return Err(Unreachable::Prohibited);
            }
            Some(_) => {}
        }
        // Only now: what is denied takes nobody's place.
        if let Some(idlest) = yields {
            self.flows.remove(idlest);
        }
        let host = match key {
            DatagramKey::Udp { to, .. } => host_socket::connect_udp(to),
            DatagramKey::Echo { to, .. } => host_socket::connect_echo(to),
        };
        let host = host.map_err(of_error)?;
        let token = PollToken::Udp(self.flows.next_id());
        let watched = ctx.poller.add(&host, token, Watch::Read);
        watched.map_err(of_error)?;
        ctx.report.counters.flows_opened += 1;
        let flow = DatagramFlow {
            host,
            key,
            used: ctx.now,
            readable: false,
        };
        Ok(self.flows.insert(key, flow))
    }

    /// The flow that has been idle for longest, if that is not short.
    fn idlest(&self, now: Instant) -> Option<FlowId> {
        let (id, _, flow) = self.flows.iter().min_by_key(|(_, _, flow)| flow.used)?;
        (now.saturating_duration_since(flow.used) >= YIELDING).then_some(id)
    }

    /// A host socket has something.
    pub(crate) fn event(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id)
            && !mem::replace(&mut flow.readable, true)
        {
            self.touched.push(id);
        }
    }

    /// Passes on what has come, as far as the guest takes it.
    pub(crate) fn turn(&mut self, ctx: &mut FlowContext) {
        let touched = mem::take(&mut self.touched);
        for id in touched {
            let Some(flow) = self.flows.get_mut(id) else {
                continue;
            };
            for _ in 0..MOST_AT_ONCE {
                if !flow.readable || !ctx.outbox.room() {
                    break;
                }
                flow.used = ctx.now;
                receive(flow, ctx);
            }
            if flow.readable {
                self.touched.push(id);
            }
        }
    }

    /// Whether something has come that could be passed on.
    pub(crate) fn is_pending(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Forgets what is idle.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.wake_at().is_none_or(|at| at > now) {
            return;
        }
        self.swept = now;
        self.remove_where(|flow| now.saturating_duration_since(flow.used) >= flow.key.idle());
    }

    fn remove_where(&mut self, gone: impl Fn(&DatagramFlow) -> bool) -> u64 {
        let all = self.flows.iter().filter(|(_, _, flow)| gone(flow));
        let all: Vec<_> = all.map(|(id, ..)| id).collect();
        let removed = all.into_iter().filter_map(|id| self.flows.remove(id));
        removed.count() as u64
    }

    /// Cuts what the policy does not allow any more; how many.
    pub(crate) fn cut(&mut self, ctx: &FlowContext) -> u64 {
        self.remove_where(|flow| {
            let to = flow.key.address();
            match ctx.verdict(to) {
                Verdict::Allow => false,
                Verdict::ByName => to.port() == QUIC_PORT,
                Verdict::Deny(_) => true,
            }
        })
    }
}

/// Sends a datagram. What the socket has heard of an earlier one is told first, and is not about
/// this one.
fn send_once_more(host: &OwnedFd, payload: &[u8]) -> Result<(), Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match send(host, payload, flags) {
        Err(Errno::CONNREFUSED) => send(host, payload, flags).map(|_| ()),
        sent => sent.map(|_| ()),
    }
}

fn of_error(error: Errno) -> Unreachable {
    match error {
        Errno::CONNREFUSED => Unreachable::Port,
        Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Unreachable::Host,
        _ => Unreachable::Net,
    }
}

/// Takes one datagram, or hears why there is none.
fn receive(flow: &mut DatagramFlow, ctx: &mut FlowContext) {
    let error = match flow.key {
        DatagramKey::Udp { port, to } => receive_udp(flow, port, to, ctx),
        DatagramKey::Echo { ident, to } => receive_echo(flow, ident, to, ctx),
    };
    match (error, flow.key) {
        (None | Some(Errno::INTR), _) => {}
        (Some(Errno::AGAIN), _) => flow.readable = false,
        (Some(error), DatagramKey::Udp { port, to }) => {
            let shown = reply::udp_shown(port, to.port(), 0);
            let (wire, outbox) = (ctx.wire, &mut ctx.outbox);
            let why = of_error(error);
            reply::unreachable(why, IpProtocol::Udp, to.ip(), shown, &wire, outbox);
        }
        (Some(_), DatagramKey::Echo { .. }) => {}
    }
}

fn receive_udp(
    flow: &DatagramFlow,
    port: u16,
    to: SocketAddr,
    ctx: &mut FlowContext,
) -> Option<Errno> {
    let mut failed = None;
    let outbox: &mut Outbox = &mut ctx.outbox;
    reply::udp(to, port, &ctx.wire, outbox, |room| {
        let most = room.len();
        // The length of the whole datagram, also of one that does not fit, which is dropped.
        match recv(&flow.host, room, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, whole)) if whole <= most => Some(whole),
            Ok(_) => None,
            Err(error) => {
                failed = Some(error);
                None
            }
        }
    });
    failed
}

fn receive_echo(
    flow: &DatagramFlow,
    ident: u16,
    to: IpAddr,
    ctx: &mut FlowContext,
) -> Option<Errno> {
    let mut message = [0; MAX_ECHO];
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    match recv(&flow.host, &mut message, flags) {
        Ok((kept, whole)) if (ECHO_HEADER..=MAX_ECHO).contains(&whole) => {
            let sequence = u16::from_be_bytes([message[6], message[7]]);
            let data = &message[ECHO_HEADER..kept];
            reply::echo(to, ident, sequence, data, &ctx.wire, &mut ctx.outbox);
            None
        }
        Ok(_) => None,
        Err(error) => Some(error),
    }
}

// A refused echo is shown by its whole header.
const _: () = assert!(SHOWN == ECHO_HEADER);

#[cfg(test)]
mod test {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_flow_that_has_something_again_has_one_turn() {
        let (now, to) = (Instant::now(), SocketAddr::from(([192, 0, 2, 1], 9)));
        let mut table = UdpTable::new(now);
        let key = DatagramKey::Udp { port: 1, to };
        let flow = DatagramFlow {
            host: UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            key,
            used: now,
            readable: false,
        };
        let id = table.flows.insert(key, flow);
        for _ in 0..3 {
            table.event(id);
        }
        assert_eq!(table.touched, [id]);
    }
}
