//! Any frames in the place of a guest's.

use crate::interception::Interception;
use crate::net_stack::NetStack;
use crate::reply::ipv4_header;
use control::{NetPolicy, NetSpec};
use rustix::net::{RecvFlags, recv};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, Ipv6Repr};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Most frames of one input.
const FRAMES: usize = 32;
const PROTOCOLS: [IpProtocol; 4] = [
    IpProtocol::Tcp,
    IpProtocol::Udp,
    IpProtocol::Icmp,
    IpProtocol::Icmpv6,
];

/// Servers of this process that a guest may reach: one that takes connections and never reads, and
/// one for datagrams.
fn servers() -> Option<[SocketAddr; 2]> {
    static SERVERS: OnceLock<Option<(TcpListener, UdpSocket)>> = OnceLock::new();
    let servers = SERVERS.get_or_init(|| {
        let datagrams = UdpSocket::bind("127.0.0.1:0").ok()?;
        Some((TcpListener::bind("127.0.0.1:0").ok()?, datagrams))
    });
    let (connections, datagrams) = servers.as_ref()?;
    Some([connections.local_addr().ok()?, datagrams.local_addr().ok()?])
}

/// Fuzz entry point: a guest sends any frames. A piece of input is a frame: its kind, its length,
/// and what is in it, raw or behind headers that are right.
pub fn fuzz_frames(mut bytes: &[u8]) {
    let Some(servers) = servers() else {
        return;
    };
    let mut spec = NetSpec::standard("fuzz");
    spec.policy = NetPolicy {
        internet: false,
        openings: servers.to_vec(),
        allow_out: "*.example.com".parse().into_iter().collect(),
        ..NetPolicy::default()
    };
    spec.limits.flows = 8;
    let (Ok((frames, guest)), Ok((control, _service))) = (control::pair(), control::pair()) else {
        return;
    };
    let set = rustix::io::ioctl_fionbio(&control, true);
    assert!(set.is_ok(), "a pair of sockets is as it was made");
    let Ok(mut stack) = NetStack::new(spec.clone(), Interception::new(None), frames, control, 7)
    else {
        return;
    };
    let mut answer = [0; 2048];
    for _ in 0..FRAMES {
        let [kind, length, rest @ ..] = bytes else {
            break;
        };
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        bytes = rest;
        stack.frame(&frame(*kind, body, &spec, servers));
        if let Ok(events) = stack.ctx.poller.wait(Some(Duration::ZERO)) {
            stack.ctx.now = Instant::now();
            events.into_iter().for_each(|event| stack.event(event));
        }
        stack.turn();
        assert!(
            stack.ctx.report.counters.flows_open <= 8,
            "the table is bounded"
        );
        // Some guests do not read.
        while kind & 0x80 == 0 && recv(&guest, &mut answer, RecvFlags::DONTWAIT).is_ok() {}
    }
}

/// A frame with these bytes in it.
fn frame(kind: u8, body: &[u8], spec: &NetSpec, servers: [SocketAddr; 2]) -> Vec<u8> {
    let ethertype = match kind & 7 {
        0 => return body.to_vec(),
        1 => [8, 6],
        2 => [0x86, 0xdd],
        _ => [8, 0],
    };
    let mut frame = [&spec.gateway_mac[..], &spec.guest_mac, &ethertype].concat();
    let protocol = PROTOCOLS[usize::from(kind >> 3 & 3)];
    let mut body = body.to_vec();
    // Where it goes to, of three, and its port there.
    let to: Ipv4Addr = match kind >> 5 & 3 {
        0 => spec.gateway,
        1 => Ipv4Addr::new(1, 2, 3, 4),
        _ => Ipv4Addr::LOCALHOST,
    };
    if to.is_loopback()
        && let Some(port) = body.get_mut(2..4)
    {
        let server = servers[usize::from(protocol == IpProtocol::Udp)];
        port.copy_from_slice(&server.port().to_be_bytes());
    }
    match (kind & 7, spec.ipv6) {
        (3.., _) => {
            let head = ipv4_header(spec.guest, to, protocol, body.len());
            let mut bytes = [0; 20];
            let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
            head.emit(&mut packet, &ChecksumCapabilities::default());
            frame.extend(bytes);
        }
        (2, Some(ipv6)) => {
            let head = Ipv6Repr {
                src_addr: ipv6.guest,
                dst_addr: ipv6.gateway,
                next_header: protocol,
                payload_len: body.len(),
                hop_limit: 255,
            };
            let mut bytes = [0; 40];
            head.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[..]));
            frame.extend(bytes);
        }
        _ => {}
    }
    frame.append(&mut body);
    frame
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_frames_are_survived(
            frames in proptest::collection::vec(
                (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..90)),
                0..12,
            ),
        ) {
            let piece = |(kind, body): (u8, Vec<u8>)| {
                [&[kind, u8::try_from(body.len()).unwrap()][..], &body].concat()
            };
            fuzz_frames(&frames.into_iter().flat_map(piece).collect::<Vec<_>>());
        }
    }
}
