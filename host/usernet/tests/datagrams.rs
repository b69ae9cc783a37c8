//! Datagrams, names, echoes and neighbours, frame by frame, through a real `hatchery-net` process.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use common::{LIMIT, NetGuest, only};
use control::{
    DenyReason, GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, NetEvent, NetPolicy, NetSpec,
};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use simple_dns::rdata::{A, RData};
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE,
};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    NdiscRepr, UdpPacket,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

const UDP: u8 = 17;
const ICMP: u8 = 1;

/// An IPv4 packet of the guest's in its frame.
fn frame(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, body: &[u8]) -> Vec<u8> {
    let spec = NetSpec::standard("test");
    let head = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: protocol,
        payload_len: body.len(),
        hop_limit: 64,
    };
    let mut bytes = [0; 20];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    head.emit(&mut packet, &ChecksumCapabilities::default());
    [
        &spec.gateway_mac[..],
        &spec.guest_mac,
        &[8, 0],
        &bytes,
        body,
    ]
    .concat()
}

/// A UDP datagram without a checksum that means anything.
fn datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let head = [from, to, length, 0xbad].map(u16::to_be_bytes).concat();
    [&head[..], payload].concat()
}

/// The frame again, as raw bytes to and from a process.
struct RawGuest(NetGuest);

impl RawGuest {
    fn send_udp(&self, from: u16, to: SocketAddr, payload: &[u8]) {
        let SocketAddr::V4(v4) = to else {
            unreachable!()
        };
        let body = datagram(from, to.port(), payload);
        self.send(&frame(GUEST_IPV4, *v4.ip(), IpProtocol::Udp, &body));
    }

    fn send(&self, frame: &[u8]) {
        send(&self.0.wire.socket, frame, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next frame; `None` if there is none for a moment.
    fn hear_within(&self, limit: Duration) -> Option<Vec<u8>> {
        let begin = Instant::now();
        let mut bytes = vec![0; 65_534];
        while begin.elapsed() < limit {
            if let Ok((length, _)) = recv(&self.0.wire.socket, &mut bytes[..], RecvFlags::DONTWAIT)
            {
                bytes.truncate(length);
                return Some(bytes);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        None
    }

    /// The body of the next IPv4 packet, which must be of this protocol and have a right header.
    fn hear(&self, protocol: u8) -> (Ipv4Addr, Vec<u8>) {
        let frame = self.hear_within(LIMIT).expect("nothing came");
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert!(packet.verify_checksum() && packet.dst_addr() == GUEST_IPV4);
        assert_eq!(u8::from(packet.next_header()), protocol, "{frame:?}");
        (packet.src_addr(), packet.payload().to_vec())
    }

    fn hear_udp(&self, port: u16) -> Vec<u8> {
        let (_, body) = self.hear(UDP);
        let datagram = UdpPacket::new_checked(&body[..]).unwrap();
        assert_eq!(datagram.dst_port(), port);
        datagram.payload().to_vec()
    }

    fn denied(&mut self) -> (DenyReason, Option<String>) {
        loop {
            match self.0.event() {
                Some(NetEvent::Denied(denied)) => return (denied.reason, denied.name),
                Some(_) => {}
                None => panic!("the process has ended"),
            }
        }
    }
}

fn start(spec: NetSpec) -> RawGuest {
    RawGuest(NetGuest::start(spec))
}

fn udp_server() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let (class, kind) = (QCLASS::CLASS(CLASS::IN), QTYPE::TYPE(TYPE::A));
    let name = Name::new_unchecked(name);
    packet
        .questions
        .push(Question::new(name, kind, class, false));
    packet.build_bytes_vec().unwrap()
}

/// The answer that a name has this address.
fn reply_to(question: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let asked = Packet::parse(question).unwrap();
    let mut reply = Packet::new_reply(asked.id());
    let name = asked.questions[0].qname.clone();
    let data = RData::A(A::from(address));
    let record = ResourceRecord::new(name, CLASS::IN, 5, data);
    reply.answers.push(record);
    reply.questions.clone_from(&asked.questions);
    reply.build_bytes_vec().unwrap()
}

/// A message over TCP, behind its length.
fn streamed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&length[..], message].concat()
}

/// A name server that says the same address for every name, to the next `count` questions.
fn name_server(address: Ipv4Addr, count: usize) -> SocketAddr {
    let (socket, at) = udp_server();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        for _ in 0..count {
            let Ok((length, from)) = socket.recv_from(&mut bytes) else {
                return;
            };
            let reply = reply_to(&bytes[..length], address);
            socket.send_to(&reply, from).unwrap();
        }
    });
    at
}

fn gateway(port: u16) -> SocketAddr {
    SocketAddr::new(GATEWAY_IPV4.into(), port)
}

fn code_of(answer: &[u8]) -> (u16, RCODE, usize) {
    let packet = Packet::parse(answer).unwrap();
    (packet.id(), packet.rcode(), packet.answers.len())
}

#[test]
fn datagrams_go_there_and_come_back_to_the_right_port() {
    let (server, address) = udp_server();
    let guest = start(only(&[address]));
    let large = vec![5; 60_000];
    for (port, payload) in [(1111, &b"one"[..]), (2222, b"two"), (3333, &large)] {
        guest.send_udp(port, address, payload);
        let mut bytes = vec![0; 65_535];
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        assert!(&bytes[..length] == payload);
        server.send_to(&bytes[..length], from).unwrap();
        assert!(guest.hear_udp(port) == payload);
    }
}

#[test]
fn a_denied_or_unheard_datagram_is_told_by_icmp() {
    let (server, address) = udp_server();
    drop(server);
    let mut guest = start(only(&[address]));
    for (to, code) in [
        (address, 3),
        (gateway(80), 13),
        ("10.0.0.1:9".parse().unwrap(), 13),
    ] {
        guest.send_udp(77, to, b"x");
        let (_, body) = guest.hear(ICMP);
        let message = Icmpv4Packet::new_checked(&body[..]).unwrap();
        assert!(message.verify_checksum());
        assert_eq!(
            (u8::from(message.msg_type()), message.msg_code()),
            (3, code),
            "{to}"
        );
        // The guest finds the socket by what is shown of the packet.
        let shown = &message.data()[20..24];
        assert_eq!(shown, [77_u16, to.port()].map(u16::to_be_bytes).concat());
    }
    assert_eq!(guest.denied().0, DenyReason::Reserved);
}

#[test]
fn the_gateway_answers_arp_echo_and_neighbours() {
    let guest = start(only(&[]));
    let spec = NetSpec::standard("test");
    let arp = [
        &[0xff; 6][..],
        &spec.guest_mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &spec.guest_mac,
        &GUEST_IPV4.octets(),
        &[0; 6],
        &GATEWAY_IPV4.octets(),
    ];
    guest.send(&arp.concat());
    let heard = guest.hear_within(LIMIT).unwrap();
    assert_eq!(heard[..6], spec.guest_mac);
    assert_eq!(
        (&heard[20..22], &heard[22..28]),
        (&[0, 2][..], &spec.gateway_mac[..])
    );
    let mut echo = [8, 0, 0, 0, 0, 7, 0, 9, 1, 2, 3];
    Icmpv4Packet::new_unchecked(&mut echo[..]).fill_checksum();
    guest.send(&frame(GUEST_IPV4, GATEWAY_IPV4, IpProtocol::Icmp, &echo));
    let (from, body) = guest.hear(ICMP);
    assert_eq!((from, &body[4..]), (GATEWAY_IPV4, &echo[4..]));
    assert!(
        Icmpv4Packet::new_checked(&body[..])
            .unwrap()
            .verify_checksum()
    );
    let solicit = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
        target_addr: GATEWAY_IPV6,
        lladdr: None,
    });
    let to = GATEWAY_IPV6.solicited_node();
    let head = Ipv6Repr {
        src_addr: GUEST_IPV6,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: solicit.buffer_len(),
        hop_limit: 255,
    };
    let mut packet = vec![0; 40 + solicit.buffer_len()];
    head.emit(&mut Ipv6Packet::new_unchecked(&mut packet[..]));
    let mut message = Icmpv6Packet::new_unchecked(&mut packet[40..]);
    solicit.emit(
        &GUEST_IPV6,
        &to,
        &mut message,
        &ChecksumCapabilities::default(),
    );
    let multicast = [0x33, 0x33, 0xff, 0, 0, 1];
    guest.send(&[&multicast[..], &spec.guest_mac, &[0x86, 0xdd], &packet].concat());
    let heard = guest.hear_within(LIMIT).unwrap();
    let answer = Icmpv6Packet::new_checked(&heard[54..]).unwrap();
    assert_eq!(u8::from(answer.msg_type()), 136);
    assert!(answer.verify_checksum(&GATEWAY_IPV6, &GUEST_IPV6));
}

trait SolicitedNode {
    fn solicited_node(self) -> std::net::Ipv6Addr;
}

impl SolicitedNode for std::net::Ipv6Addr {
    fn solicited_node(self) -> std::net::Ipv6Addr {
        let low = u128::from(self) & 0xff_ffff;
        std::net::Ipv6Addr::from(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
    }
}

#[test]
fn a_source_that_is_not_the_guests_and_fragments_are_dropped_and_counted() {
    let (server, address) = udp_server();
    let SocketAddr::V4(v4) = address else {
        unreachable!()
    };
    let mut guest = start(only(&[address]));
    let body = datagram(1, address.port(), b"spoofed");
    guest.send(&frame(
        Ipv4Addr::new(1, 2, 3, 4),
        *v4.ip(),
        IpProtocol::Udp,
        &body,
    ));
    let mut fragment = frame(GUEST_IPV4, *v4.ip(), IpProtocol::Udp, &body);
    let mut packet = Ipv4Packet::new_unchecked(&mut fragment[14..]);
    packet.set_more_frags(true);
    packet.fill_checksum();
    guest.send(&fragment);
    guest.send(&[0; 9]);
    guest.send_udp(1, address, b"good");
    let mut bytes = [0; 64];
    let (length, _) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"good", "and nothing before it");
    let request = control::NetRequest::SetPolicy(Box::default());
    control::send(&guest.0.control, &request, &[]).unwrap();
    let Some(NetEvent::Counters(counters)) = guest.0.event() else {
        panic!("no counters");
    };
    let counted = (counters.spoofed, counters.fragments, counters.malformed);
    assert_eq!(counted, (1, 1, 1));
}

#[test]
fn names_are_asked_of_the_hosts_servers() {
    let public = Ipv4Addr::new(93, 184, 216, 34);
    let mut spec = only(&[]);
    spec.name_servers = vec![name_server(public, 1)];
    let guest = start(spec);
    guest.send_udp(5353, gateway(53), &query(7, "Example.com"));
    let answer = guest.hear_udp(5353);
    assert_eq!(code_of(&answer), (7, RCODE::NoError, 1));
}

#[test]
fn another_server_is_asked_when_one_does_not_answer_and_none_is_told_in_time() {
    let (_silent, nobody) = udp_server();
    let mut spec = only(&[]);
    spec.name_servers = vec![nobody, name_server(Ipv4Addr::new(1, 1, 1, 1), 1)];
    let guest = start(spec);
    let begin = Instant::now();
    guest.send_udp(1, gateway(53), &query(1, "a.com"));
    assert_eq!(code_of(&guest.hear_udp(1)), (1, RCODE::NoError, 1));
    guest.send_udp(1, gateway(53), &query(2, "a.com"));
    assert_eq!(code_of(&guest.hear_udp(1)), (2, RCODE::ServerFailure, 0));
    assert!(
        begin.elapsed() < Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );
    // A host without name servers says so at once.
    let guest = start(only(&[]));
    guest.send_udp(1, gateway(53), &query(3, "a.com"));
    assert_eq!(code_of(&guest.hear_udp(1)), (3, RCODE::ServerFailure, 0));
}

#[test]
fn names_that_are_denied_or_lead_to_private_addresses_do_not_exist() {
    let mut spec = only(&[]);
    spec.name_servers = vec![name_server(Ipv4Addr::new(10, 0, 0, 5), 1)];
    spec.policy.internet = false;
    spec.policy.allow_out = vec!["*.example.com".parse().unwrap()];
    let mut guest = start(spec);
    let begin = Instant::now();
    guest.send_udp(1, gateway(53), &query(1, "secret.evil.net"));
    assert_eq!(code_of(&guest.hear_udp(1)), (1, RCODE::NameError, 0));
    assert!(begin.elapsed() < Duration::from_secs(1), "nobody was asked");
    let denied = (DenyReason::Name, Some("secret.evil.net".to_owned()));
    assert_eq!(guest.denied(), denied);
    guest.send_udp(1, gateway(53), &query(2, "a.example.com"));
    assert_eq!(code_of(&guest.hear_udp(1)), (2, RCODE::NameError, 0));
    assert_eq!(guest.denied().0, DenyReason::Rebinding);
}

#[test]
fn an_allowed_name_opens_its_address_and_a_denied_flow_is_not_sent() {
    // Nothing answers at this address; that it is tried and not denied shows by the difference.
    let public = Ipv4Addr::new(192, 0, 2, 77);
    let mut spec = only(&[]);
    spec.name_servers = vec![name_server(public, 1)];
    spec.policy = NetPolicy {
        internet: false,
        allow_out: vec!["a.example.com".parse().unwrap()],
        ..NetPolicy::default()
    };
    let mut guest = start(spec);
    let to = SocketAddr::new(public.into(), 9999);
    guest.send_udp(1, to, b"x");
    assert_eq!(guest.hear(ICMP).1[..2], [3, 13]);
    assert_eq!(guest.denied().0, DenyReason::Internet);
    guest.send_udp(1, gateway(53), &query(2, "a.example.com"));
    assert_eq!(code_of(&guest.hear_udp(1)), (2, RCODE::NoError, 1));
    guest.send_udp(1, to, b"x");
    let heard = guest.hear_within(Duration::from_millis(300));
    assert!(
        heard.is_none_or(|frame| frame[34..36] != [3, 13]),
        "it is not prohibited now"
    );
    // QUIC hides its name.
    guest.send_udp(1, SocketAddr::new(public.into(), 443), b"x");
    assert_eq!(guest.denied().0, DenyReason::Name);
}

#[test]
fn names_over_tcp_are_answered_as_those_over_udp() {
    let mut spec = only(&[]);
    spec.policy.internet = false;
    let mut guest = NetGuest::start(spec);
    let flow = guest.connect(gateway(53));
    guest.until_state(flow, State::Established);
    for id in 1..4 {
        let asked = query(id, "denied.net");
        guest.send_all(flow, &streamed(&asked));
        let head = guest.receive(flow, 2);
        let length = usize::from(u16::from_be_bytes([head[0], head[1]]));
        let answer = guest.receive(flow, length);
        assert_eq!(code_of(&answer), (id, RCODE::NameError, 0));
    }
    guest.tcp(flow).close();
    guest.until_state(flow, State::TimeWait);
}

#[test]
fn what_has_no_answer_does_not_keep_a_connection_to_the_name_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut spec = only(&[]);
    spec.name_servers = vec![listener.local_addr().unwrap()];
    let asked = streamed(&query(7, "a.com"));
    let mut question = vec![0; asked.len()];
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut question).unwrap();
        let reply = reply_to(&question[2..], Ipv4Addr::new(1, 1, 1, 1));
        stream.write_all(&streamed(&reply)).unwrap();
    });
    let mut guest = NetGuest::start(spec);
    let flow = guest.connect(gateway(53));
    // Two that are none, and one that is asked again before its answer is there.
    let none = streamed(b"none");
    guest.send_when_open(flow, &[&none[..], &asked, &none, &asked].concat());
    guest.tcp(flow).close();
    let head = guest.receive(flow, 2);
    let length = usize::from(u16::from_be_bytes([head[0], head[1]]));
    let answer = guest.receive(flow, length);
    assert_eq!(code_of(&answer), (7, RCODE::NoError, 1));
    guest.until_state(flow, State::TimeWait);
    server.join().unwrap();
}

#[test]
fn a_limit_of_frames_holds() {
    let (_server, address) = udp_server();
    let mut spec = only(&[address]);
    spec.limits.packets_per_s = 200;
    let guest = start(spec);
    let begin = Instant::now();
    let mut echo = [8, 0, 0, 0, 0, 7, 0, 9];
    Icmpv4Packet::new_unchecked(&mut echo[..]).fill_checksum();
    for _ in 0..150 {
        guest.send(&frame(GUEST_IPV4, GATEWAY_IPV4, IpProtocol::Icmp, &echo));
    }
    for _ in 0..150 {
        guest.hear(ICMP);
    }
    let took = begin.elapsed();
    // 300 frames both ways, a quarter of a second's worth at once.
    assert!((1.0..4.0).contains(&took.as_secs_f64()), "{took:?}");
}
