//! What the gateway itself says to the guest: ARP and neighbour answers, echo replies, refusals,
//! and the headers of datagrams that come back.

use crate::inbound::WireAddresses;
use crate::outbox::Outbox;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Icmpv4DstUnreachable,
    Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpProtocol,
    Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr, UDP_HEADER_LEN,
    UdpPacket,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const HOPS: u8 = 64;
/// Neighbour discovery is from the same wire, and says so.
const HOPS_OF_NEIGHBOURS: u8 = 255;
/// Bytes of a refused packet behind its IP header that a refusal shows.
pub(crate) const SHOWN: usize = 8;

/// Why something cannot be reached, in ICMP's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// No way to it.
    Net,
    /// It does not answer.
    Host,
    /// It has nobody at that port.
    Port,
    /// It may not be reached.
    Prohibited,
}

/// Answers an ARP request for the gateway: the guest's network has nobody else. Tells whether the
/// message was one.
pub(crate) fn arp(message: &[u8], wire: &WireAddresses, outbox: &mut Outbox) -> bool {
    let parsed = ArpPacket::new_checked(message).and_then(|packet| ArpRepr::parse(&packet));
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = parsed
    else {
        return false;
    };
    // A probe for a duplicate of its own address gets no answer.
    if operation != ArpOperation::Request || target_protocol_addr != wire.gateway {
        return true;
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: wire.gateway_mac,
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: wire.guest_mac,
        target_protocol_addr: source_protocol_addr,
    };
    outbox.put_arp(answer.buffer_len(), |message| {
        answer.emit(&mut ArpPacket::new_unchecked(message));
    });
    true
}

/// Answers a neighbour solicitation for the gateway. Routers are not announced: the guest's routes
/// are set by its agent.
pub(crate) fn neighbour(
    message: &[u8],
    source: Ipv6Addr,
    wire: &WireAddresses,
    outbox: &mut Outbox,
) -> bool {
    let Some(ipv6) = wire.ipv6 else {
        return true;
    };
    let parsed = Icmpv6Packet::new_checked(message).and_then(|packet| NdiscRepr::parse(&packet));
    let Ok(NdiscRepr::NeighborSolicit { target_addr, .. }) = parsed else {
        return parsed.is_ok();
    };
    if target_addr != ipv6.gateway || source.is_unspecified() {
        return true;
    }
    let flags =
        NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::ROUTER;
    let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr,
        lladdr: Some(wire.gateway_mac.into()),
    });
    put_icmpv6(&advert, ipv6.gateway, source, HOPS_OF_NEIGHBOURS, outbox);
    true
}

/// Sends an echo reply from an address.
pub(crate) fn echo(
    from: IpAddr,
    ident: u16,
    seq_no: u16,
    data: &[u8],
    wire: &WireAddresses,
    outbox: &mut Outbox,
) {
    match (from, wire.guest_for(from)) {
        (IpAddr::V4(from), IpAddr::V4(guest)) => {
            let reply = Icmpv4Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            put_icmpv4(&reply, from, guest, outbox);
        }
        (IpAddr::V6(from), IpAddr::V6(guest)) => {
            let reply = Icmpv6Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            put_icmpv6(&reply, from, guest, HOPS, outbox);
        }
        _ => {}
    }
}

/// Tells the guest that what it sent to `to` does not arrive. `shown` are the first bytes behind
/// that packet's IP header, by which the guest finds whom to tell.
pub(crate) fn unreachable(
    why: Unreachable,
    protocol: IpProtocol,
    to: IpAddr,
    shown: [u8; SHOWN],
    wire: &WireAddresses,
    outbox: &mut Outbox,
) {
    match (to, wire.guest_for(to), wire.ipv6) {
        (IpAddr::V4(to), IpAddr::V4(guest), _) => {
            let reason = match why {
                Unreachable::Net => Icmpv4DstUnreachable::NetUnreachable,
                Unreachable::Host => Icmpv4DstUnreachable::HostUnreachable,
                Unreachable::Port => Icmpv4DstUnreachable::PortUnreachable,
                Unreachable::Prohibited => Icmpv4DstUnreachable::CommProhibited,
            };
            let header = ipv4_header(guest, to, protocol, SHOWN);
            let refusal = Icmpv4Repr::DstUnreachable {
                reason,
                header,
                data: &shown,
            };
            put_icmpv4(&refusal, wire.gateway, guest, outbox);
        }
        (IpAddr::V6(to), IpAddr::V6(guest), Some(ipv6)) => {
            let reason = match why {
                Unreachable::Net => Icmpv6DstUnreachable::NoRoute,
                Unreachable::Host => Icmpv6DstUnreachable::AddrUnreachable,
                Unreachable::Port => Icmpv6DstUnreachable::PortUnreachable,
                Unreachable::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
            };
            let header = ipv6_header(guest, to, protocol, SHOWN, HOPS);
            let refusal = Icmpv6Repr::DstUnreachable {
                reason,
                header,
                data: &shown,
            };
            put_icmpv6(&refusal, ipv6.gateway, guest, HOPS, outbox);
        }
        _ => {}
    }
}

/// What a refusal shows of a UDP datagram.
pub(crate) fn udp_shown(from: u16, to: u16, payload: usize) -> [u8; SHOWN] {
    let length = u16::try_from(UDP_HEADER_LEN + payload).unwrap_or(u16::MAX);
    let ([a, b], [c, d], [e, f]) = (from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes());
    [a, b, c, d, e, f, 0, 0]
}

/// Sends a datagram from `from` to a port of the guest, whose payload `receive` writes, at most
/// what it is given; it says how long it is, `None` for nothing.
pub(crate) fn udp(
    from: SocketAddr,
    port: u16,
    wire: &WireAddresses,
    outbox: &mut Outbox,
    receive: impl FnOnce(&mut [u8]) -> Option<usize>,
) {
    let guest = wire.guest_for(from.ip());
    let head = if from.is_ipv4() {
        IPV4_HEADER_LEN
    } else {
        IPV6_HEADER_LEN
    };
    outbox.fill_ip(usize::from(wire.mtu), |packet| {
        let Some(length) = receive(&mut packet[head + UDP_HEADER_LEN..]) else {
            return 0;
        };
        let length = length.min(packet.len() - head - UDP_HEADER_LEN);
        match (from.ip(), guest) {
            (IpAddr::V4(from), IpAddr::V4(guest)) => {
                let header = ipv4_header(from, guest, IpProtocol::Udp, UDP_HEADER_LEN + length);
                let mut packet = Ipv4Packet::new_unchecked(&mut *packet);
                header.emit(&mut packet, &ChecksumCapabilities::default());
            }
            (IpAddr::V6(from), IpAddr::V6(guest)) => {
                let header =
                    ipv6_header(from, guest, IpProtocol::Udp, UDP_HEADER_LEN + length, HOPS);
                header.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
            }
            _ => return 0,
        }
        let mut datagram = UdpPacket::new_unchecked(&mut packet[head..]);
        datagram.set_src_port(from.port());
        datagram.set_dst_port(port);
        datagram.set_len(u16::try_from(UDP_HEADER_LEN + length).unwrap_or(u16::MAX));
        datagram.set_checksum(0);
        head + UDP_HEADER_LEN + length
    });
}

/// The header of a packet with so many bytes behind it.
pub(crate) fn ipv4_header(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: IpProtocol,
    payload: usize,
) -> Ipv4Repr {
    Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload,
        hop_limit: HOPS,
    }
}

fn ipv6_header(
    from: Ipv6Addr,
    to: Ipv6Addr,
    protocol: IpProtocol,
    payload: usize,
    hops: u8,
) -> Ipv6Repr {
    Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload,
        hop_limit: hops,
    }
}

fn put_icmpv4(message: &Icmpv4Repr<'_>, from: Ipv4Addr, to: Ipv4Addr, outbox: &mut Outbox) {
    let checksums = ChecksumCapabilities::default();
    let header = ipv4_header(from, to, IpProtocol::Icmp, message.buffer_len());
    outbox.put_ip(IPV4_HEADER_LEN + message.buffer_len(), |packet| {
        header.emit(&mut Ipv4Packet::new_unchecked(&mut *packet), &checksums);
        let mut body = Icmpv4Packet::new_unchecked(&mut packet[IPV4_HEADER_LEN..]);
        message.emit(&mut body, &checksums);
    });
}

fn put_icmpv6(
    message: &Icmpv6Repr<'_>,
    from: Ipv6Addr,
    to: Ipv6Addr,
    hops: u8,
    outbox: &mut Outbox,
) {
    let checksums = ChecksumCapabilities::default();
    let header = ipv6_header(from, to, IpProtocol::Icmpv6, message.buffer_len(), hops);
    outbox.put_ip(IPV6_HEADER_LEN + message.buffer_len(), |packet| {
        header.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
        let mut body = Icmpv6Packet::new_unchecked(&mut packet[IPV6_HEADER_LEN..]);
        message.emit(&from, &to, &mut body, &checksums);
    });
}
