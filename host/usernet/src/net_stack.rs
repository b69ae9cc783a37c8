//! One guest's network: what comes in on one side goes out on the other, or is refused.

use crate::dns_relay::{DnsAnswer, DnsAsker, DnsRelay};
use crate::flow_context::FlowContext;
use crate::inbound::{self, EchoRequest, Inbound, UdpDatagram, Unfit, WireAddresses};
use crate::interception::Interception;
use crate::outbox::{Outbox, OutboxCounts};
use crate::pace::FramePace;
use crate::poller::{PollEvent, PollToken, Poller};
use crate::reply;
use crate::report::EventReport;
use crate::rules::PolicyRules;
use crate::tcp_stack::TcpStack;
use crate::tcp_table::{DNS_PORT, TcpTable};
use crate::udp_table::UdpTable;
use control::{HeaderRules, NetPolicy, NetSpec};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A network.
#[derive(Debug)]
pub(crate) struct NetStack {
    pub(crate) ctx: FlowContext,
    tcp: TcpTable,
    udp: UdpTable,
    relay: DnsRelay,
    pace: FramePace,
    paced: OutboxCounts,
}

impl NetStack {
    /// A network without flows, of a specification that has passed its gate. `seed` is random.
    pub(crate) fn new(
        spec: NetSpec,
        interception: Interception,
        frames: OwnedFd,
        control: OwnedFd,
        seed: u64,
    ) -> Result<Self, Errno> {
        let now = Instant::now();
        let wire = WireAddresses::new(&spec);
        let mut outbox = Outbox::new(frames, wire);
        let stack = TcpStack::new(&wire, seed, &mut outbox, now);
        let limits = spec.limits;
        Ok(Self {
            ctx: FlowContext {
                wire,
                outbox,
                rules: PolicyRules::new(spec.policy, spec.host_addresses),
                interception,
                report: EventReport::new(control, now),
                poller: Poller::new()?,
                now,
                most_flows: usize::try_from(limits.flows).unwrap_or(usize::MAX),
            },
            tcp: TcpTable::new(stack),
            udp: UdpTable::new(now),
            relay: DnsRelay::new(spec.name_servers),
            pace: FramePace::new(limits.bytes_per_s, limits.packets_per_s, now),
            paced: OutboxCounts::default(),
        })
    }

    fn open_flows(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    /// How long nothing may move, because too much has.
    pub(crate) fn pause(&mut self) -> Duration {
        self.pace.wait(self.ctx.now)
    }

    /// One frame of the guest's.
    pub(crate) fn frame(&mut self, frame: &[u8]) {
        self.pace.take(frame.len());
        let counters = &mut self.ctx.report.counters;
        counters.tx_frames += 1;
        counters.tx_bytes += frame.len() as u64;
        let wire = self.ctx.wire;
        let inbound = match inbound::parse(frame, &wire) {
            Ok(inbound) => inbound,
            Err(unfit) => {
                match unfit {
                    Unfit::Malformed => counters.malformed += 1,
                    Unfit::Spoofed => counters.spoofed += 1,
                    Unfit::Fragment => counters.fragments += 1,
                    Unfit::Unwanted => {}
                }
                return;
            }
        };
        let open_flows = self.open_flows();
        let fine = match inbound {
            Inbound::Arp(message) => reply::arp(message, &wire, &mut self.ctx.outbox),
            Inbound::Neighbour { message, source } => {
                reply::neighbour(message, source, &wire, &mut self.ctx.outbox)
            }
            Inbound::Tcp(segment) => {
                self.tcp.segment(&segment, open_flows, &mut self.ctx);
                true
            }
            Inbound::Udp(datagram) => {
                self.datagram(&datagram, open_flows);
                true
            }
            Inbound::Echo(echo) => {
                self.echo(&echo, open_flows);
                true
            }
        };
        if !fine {
            self.ctx.report.counters.malformed += 1;
        }
    }

    fn datagram(&mut self, datagram: &UdpDatagram<'_>, open_flows: usize) {
        let to = datagram.to;
        if !self.ctx.wire.is_gateway(to.ip()) || to.port() != DNS_PORT {
            self.udp.datagram(datagram, open_flows, &mut self.ctx);
            return;
        }
        let asker = DnsAsker::Datagram {
            port: datagram.from.port(),
            gateway: to.ip(),
        };
        let message = datagram.payload.to_vec();
        let answer = self.relay.ask(asker, message, &mut self.ctx);
        self.answer(answer);
    }

    fn echo(&mut self, echo: &EchoRequest<'_>, open_flows: usize) {
        if self.ctx.wire.is_gateway(echo.to) {
            let EchoRequest {
                to,
                ident,
                sequence,
                data,
            } = *echo;
            let (wire, outbox) = (self.ctx.wire, &mut self.ctx.outbox);
            reply::echo(to, ident, sequence, data, &wire, outbox);
        } else {
            self.udp.echo(echo, open_flows, &mut self.ctx);
        }
    }

    fn answer(&mut self, answer: impl IntoIterator<Item = DnsAnswer>) {
        for DnsAnswer { asker, message } in answer {
            match asker {
                DnsAsker::Stream(id) => self.tcp.answer(id, message.as_deref(), self.ctx.now),
                DnsAsker::Datagram { port, gateway } => {
                    let Some(message) = message else {
                        continue;
                    };
                    let from = (gateway, DNS_PORT).into();
                    let (wire, outbox) = (self.ctx.wire, &mut self.ctx.outbox);
                    reply::udp(from, port, &wire, outbox, |room| {
                        let room = room.get_mut(..message.len())?;
                        room.copy_from_slice(&message);
                        Some(message.len())
                    });
                }
            }
        }
    }

    /// A host socket has something to do.
    pub(crate) fn event(&mut self, event: PollEvent) {
        match event.token {
            PollToken::Tcp(id) => self.tcp.event(id, event, &mut self.ctx),
            PollToken::Udp(id) => self.udp.event(id),
            PollToken::Dns(id) => {
                let answer = self.relay.event(id, event, &mut self.ctx);
                self.answer(answer);
            }
            PollToken::Frames | PollToken::Control => {}
        }
    }

    /// Lets every flow do what it can, and sends what they have made.
    pub(crate) fn turn(&mut self) {
        let held = !self.pause().is_zero();
        self.ctx.outbox.hold(held);
        if self.ctx.outbox.room() {
            self.tcp.expire(&mut self.ctx);
        }
        self.udp.expire(self.ctx.now);
        let answers = self.relay.expire(&mut self.ctx);
        self.answer(answers);
        // What is asked may be answered at once, which is something to do for the one that asked.
        for _ in 0..2 {
            for question in self.tcp.turn(&mut self.ctx) {
                let asker = DnsAsker::Stream(question.asker);
                let answer = self.relay.ask(asker, question.message, &mut self.ctx);
                self.answer(answer);
            }
        }
        self.udp.turn(&mut self.ctx);
        self.ctx.outbox.flush();
        self.account();
    }

    fn account(&mut self) {
        let counts = self.ctx.outbox.counts();
        let bytes = counts.bytes - self.paced.bytes;
        let frames = counts.frames - self.paced.frames;
        self.pace.take_many(bytes, frames);
        self.paced = counts;
        let open = self.open_flows() as u64;
        let counters = &mut self.ctx.report.counters;
        counters.rx_frames = counts.frames;
        counters.rx_bytes = counts.bytes;
        counters.rx_dropped = counts.dropped;
        counters.flows_open = open;
    }

    /// Puts another policy in place, and cuts what it does not allow.
    pub(crate) fn set_policy(
        &mut self,
        policy: NetPolicy,
        headers: Option<(HeaderRules, OwnedFd)>,
    ) {
        self.ctx.rules.replace(policy);
        self.ctx.interception.replace(headers);
        let cut = self.tcp.cut(&mut self.ctx) + self.udp.cut(&self.ctx);
        self.ctx.outbox.flush();
        self.account();
        let report = &mut self.ctx.report;
        report.counters.flows_cut += cut;
        report.counters.policies += 1;
        report.tell(self.ctx.now, true);
    }

    /// How long the network may sleep; `None` until something comes.
    pub(crate) fn sleep(&mut self) -> Option<Duration> {
        let pause = self.pause();
        let makes = pause.is_zero() && self.ctx.outbox.room();
        if makes && self.udp.is_pending() {
            return Some(Duration::ZERO);
        }
        let held = (!pause.is_zero()).then(|| self.ctx.now + pause);
        let flows = self.tcp.wake_at().filter(|_| makes);
        let others = [
            self.udp.wake_at(),
            self.relay.wake_at(),
            self.ctx.report.due_at(),
        ];
        let all = [held, flows].into_iter().chain(others).flatten();
        let at = all.min()?;
        Some(at.saturating_duration_since(self.ctx.now))
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::reply::ipv4_header;
    use crate::reserved::is_reserved;
    use control::{GATEWAY_IPV4, GUEST_IPV4};
    use rustix::net::{RecvFlags, recv};
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket};
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};

    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;

    /// A network whose time is the test's, and the other ends of its sockets.
    struct TestNet {
        stack: NetStack,
        guest: OwnedFd,
        _service: OwnedFd,
    }

    impl TestNet {
        fn new(spec: NetSpec) -> Self {
            let (frames, guest) = control::pair().unwrap();
            let (control, service) = control::pair().unwrap();
            rustix::io::ioctl_fionbio(&control, true).unwrap();
            Self {
                stack: NetStack::new(spec, Interception::new(None), frames, control, 7).unwrap(),
                guest,
                _service: service,
            }
        }

        /// So much later, one turn of the loop.
        fn later(&mut self, passed: Duration) {
            self.stack.ctx.now += passed;
            self.stack.turn();
        }

        fn send(&mut self, to: Ipv4Addr, protocol: IpProtocol, body: &[u8]) {
            let wire = self.stack.ctx.wire;
            let head = ipv4_header(GUEST_IPV4, to, protocol, body.len());
            let mut bytes = [0; 20];
            let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
            head.emit(&mut packet, &ChecksumCapabilities::default());
            let macs = [wire.gateway_mac.0, wire.guest_mac.0].concat();
            let frame = [&macs[..], &[8, 0], &bytes, body].concat();
            self.stack.frame(&frame);
            self.later(Duration::ZERO);
        }

        /// A segment from port 5000, without checksum and data.
        fn tcp(&mut self, to: SocketAddrV4, flags: u8, sequence: u32, acknowledged: u32) {
            let ports = [5000, to.port()].map(u16::to_be_bytes).concat();
            let numbers = [sequence, acknowledged].map(u32::to_be_bytes).concat();
            let rest = [5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0];
            let body = [&ports[..], &numbers, &rest].concat();
            self.send(*to.ip(), IpProtocol::Tcp, &body);
        }

        /// A datagram of one byte from port 5000.
        fn udp(&mut self, to: SocketAddrV4) {
            let head = [5000, to.port(), 9, 0].map(u16::to_be_bytes).concat();
            self.send(*to.ip(), IpProtocol::Udp, &[&head[..], b"x"].concat());
        }

        /// The segments that have come: their flags, and the sequence numbers behind them.
        fn heard_tcp(&self) -> Vec<(u8, u32)> {
            let mut frame = [0; 2000];
            let mut heard = Vec::new();
            while let Ok((length, _)) = recv(&self.guest, &mut frame, RecvFlags::DONTWAIT) {
                let packet = TcpPacket::new_checked(&frame[34..length]).unwrap();
                let next = packet.seq_number() + packet.segment_len();
                heard.push((frame[34 + 13], next.0.cast_unsigned()));
            }
            heard
        }
    }

    #[test]
    fn an_idle_connection_to_the_name_server_is_reset_whichever_side_is_open() {
        let to = SocketAddrV4::new(GATEWAY_IPV4, DNS_PORT);
        for ends in [false, true] {
            let mut net = TestNet::new(NetSpec::standard("test"));
            net.tcp(to, SYN, 100, 0);
            let [(flags, next)] = net.heard_tcp()[..] else {
                panic!("no answer");
            };
            assert_eq!(flags, SYN | ACK);
            net.tcp(to, ACK, 101, next);
            if ends {
                // And does not hear that the other side does so too.
                net.tcp(to, FIN | ACK, 101, next);
            }
            // No policy cuts it.
            net.stack.set_policy(NetPolicy::default(), None);
            assert_eq!(net.stack.open_flows(), 1);
            net.later(Duration::from_secs(29));
            assert_eq!(net.stack.open_flows(), 1);
            net.heard_tcp();
            net.later(Duration::from_secs(1));
            let heard = net.heard_tcp();
            assert!(heard.iter().any(|(flags, _)| flags & RST != 0), "{heard:?}");
            assert_eq!(net.stack.open_flows(), 0);
            net.stack.ctx.report.tell(net.stack.ctx.now, true);
            assert_eq!(net.stack.sleep(), None, "there is nothing to wake for");
        }
    }

    #[test]
    fn what_is_denied_takes_no_idle_flows_place() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(good) = server.local_addr().unwrap() else {
            unreachable!()
        };
        let mut spec = NetSpec::standard("test");
        spec.policy = NetPolicy {
            internet: false,
            allow_out: vec!["a.example.com".parse().unwrap()],
            openings: vec![good.into()],
            ..NetPolicy::default()
        };
        spec.limits.flows = 1;
        let mut net = TestNet::new(spec);
        net.udp(good);
        net.later(Duration::from_secs(2));
        let named = Ipv4Addr::new(198, 51, 100, 7);
        let (ttl, now) = (Duration::ZERO, net.stack.ctx.now);
        let rules = &mut net.stack.ctx.rules;
        let learned = rules.answer("a.example.com", IpAddr::V4(named), ttl, now);
        assert_eq!(learned, Ok(()));
        // Reserved, by no rule, the gateway itself, and QUIC, which hides its name.
        let denied = [
            SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 9),
            SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 8), 9),
            SocketAddrV4::new(GATEWAY_IPV4, 9),
            SocketAddrV4::new(named, 443),
        ];
        for to in denied {
            net.udp(to);
        }
        let counters = net.stack.ctx.report.counters;
        assert_eq!((counters.denied, counters.flows_refused), (4, 0));
        net.udp(good);
        let counters = net.stack.ctx.report.counters;
        assert_eq!((counters.flows_opened, counters.flows_open), (1, 1));
    }

    #[test]
    fn own_name_servers_must_be_allowed() {
        let mut spec = NetSpec::standard("test");
        let servers = ["10.0.0.1:53", "10.0.0.2:53", "8.8.8.8:53"];
        spec.policy.openings = vec!["10.0.0.2:53".parse().unwrap()];
        let mut net = TestNet::new(spec.clone());
        assert_eq!(net.stack.ctx.name_servers(), None);
        spec.policy.dns_servers = servers.iter().map(|s| s.parse().unwrap()).collect();
        net.stack.set_policy(spec.policy, None);
        let allowed = net.stack.ctx.name_servers().unwrap();
        let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["10.0.0.2:53", "8.8.8.8:53"]);
    }

    /// An address of this host that no list denies, if it has one.
    fn own_address() -> Option<Ipv4Addr> {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect("8.8.8.8:53").ok()?;
        match socket.local_addr().ok()? {
            SocketAddr::V4(v4) if !is_reserved((*v4.ip()).into()) => Some(*v4.ip()),
            _ => None,
        }
    }

    #[test]
    fn what_only_its_routes_tell_to_be_the_hosts_is_denied_everywhere() {
        let Some(own) = own_address() else {
            eprintln!("skipped: this host has reserved addresses only");
            return;
        };
        let server = TcpListener::bind((own, 0)).unwrap();
        let to = SocketAddrV4::new(own, server.local_addr().unwrap().port());
        let mut spec = NetSpec::standard("test");
        spec.policy.openings = vec![to.into()];
        spec.policy.dns_servers = vec![to.into()];
        let mut net = TestNet::new(spec.clone());
        net.udp(to);
        net.tcp(to, SYN, 100, 0);
        assert_eq!(net.stack.open_flows(), 2);
        assert_eq!(net.stack.ctx.name_servers(), Some(vec![to.into()]));
        // The policy that stays allows all of the Internet.
        spec.policy.openings.clear();
        net.stack.set_policy(spec.policy, None);
        assert_eq!(net.stack.ctx.name_servers(), Some(Vec::new()));
        assert_eq!(net.stack.ctx.report.counters.flows_cut, 2);
        net.udp(to);
        net.tcp(to, SYN, 100, 0);
        assert_eq!(net.stack.open_flows(), 0);
    }
}
