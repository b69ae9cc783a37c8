//! Frames from the guest: the one gate through which they come. What has passed it has the guest's
//! addresses, whole headers and lengths that fit.
//!
//! Checksums of TCP and UDP are not looked at: the guest leaves them to its device, which has none
//! to send them over.

use control::{NetIpv6, NetSpec};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
    TcpPacket, UdpPacket,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Both ends of a guest's wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WireAddresses {
    pub(crate) guest_mac: EthernetAddress,
    pub(crate) gateway_mac: EthernetAddress,
    pub(crate) guest: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) ipv6: Option<NetIpv6>,
    pub(crate) mtu: u16,
}

impl WireAddresses {
    pub(crate) fn new(spec: &NetSpec) -> Self {
        Self {
            guest_mac: EthernetAddress(spec.guest_mac),
            gateway_mac: EthernetAddress(spec.gateway_mac),
            guest: spec.guest,
            gateway: spec.gateway,
            prefix: spec.prefix,
            ipv6: spec.ipv6,
            mtu: spec.mtu,
        }
    }

    /// Whether an address is the gateway's.
    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.gateway,
            IpAddr::V6(v6) => self.ipv6.is_some_and(|ipv6| v6 == ipv6.gateway),
        }
    }

    /// The guest's address of a kind.
    pub(crate) fn guest_for(&self, address: IpAddr) -> IpAddr {
        match (address, self.ipv6) {
            (IpAddr::V6(_), Some(ipv6)) => ipv6.guest.into(),
            _ => self.guest.into(),
        }
    }
}

/// A frame that has passed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Inbound<'a> {
    /// An ARP message.
    Arp(&'a [u8]),
    /// Neighbour discovery: the ICMPv6 message, and its source.
    Neighbour { message: &'a [u8], source: Ipv6Addr },
    /// A TCP segment.
    Tcp(TcpSegment<'a>),
    /// A UDP datagram.
    Udp(UdpDatagram<'a>),
    /// An echo request.
    Echo(EchoRequest<'a>),
}

/// A TCP segment, in its IP packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpSegment<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// Whether it opens a connection: SYN alone.
    pub(crate) opens: bool,
    pub(crate) packet: &'a [u8],
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UdpDatagram<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) payload: &'a [u8],
}

/// An echo request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EchoRequest<'a> {
    pub(crate) to: IpAddr,
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) data: &'a [u8],
}

/// Why a frame does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// Too short, lengths that do not fit, or a protocol that nobody speaks here.
    Malformed,
    /// A source that is not the guest's.
    Spoofed,
    /// A part of a packet.
    Fragment,
    /// Fine, and for nobody: multicast of the guest's own, an answer that nobody asked for.
    Unwanted,
}

/// The type of an echo request.
pub(crate) const ICMP_ECHO: u8 = 8;
/// The same, for IPv6.
pub(crate) const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ROUTER_SOLICIT: u8 = 133;
const ICMPV6_NEIGHBOUR_SOLICIT: u8 = 135;
/// Bytes of an echo's header: type, code, checksum, identifier, sequence number.
pub(crate) const ECHO_HEADER: usize = 8;

/// Passes a frame, or says why not.
pub(crate) fn parse<'a>(frame: &'a [u8], wire: &WireAddresses) -> Result<Inbound<'a>, Unfit> {
    let ethernet = EthernetFrame::new_checked(frame).map_err(|_| Unfit::Malformed)?;
    if ethernet.src_addr() != wire.guest_mac {
        return Err(Unfit::Spoofed);
    }
    let to = ethernet.dst_addr();
    if to != wire.gateway_mac && !to.is_multicast() {
        return Err(Unfit::Unwanted);
    }
    let body = ethernet.payload();
    match ethernet.ethertype() {
        EthernetProtocol::Arp => Ok(Inbound::Arp(body)),
        EthernetProtocol::Ipv4 => ipv4(body, wire),
        EthernetProtocol::Ipv6 => match wire.ipv6 {
            Some(ipv6) => self::ipv6(body, ipv6.guest),
            None => Err(Unfit::Unwanted),
        },
        EthernetProtocol::Unknown(_) => Err(Unfit::Malformed),
    }
}

fn ipv4<'a>(body: &'a [u8], wire: &WireAddresses) -> Result<Inbound<'a>, Unfit> {
    let packet = Ipv4Packet::new_checked(body).map_err(|_| Unfit::Malformed)?;
    if packet.version() != 4 || !packet.verify_checksum() {
        return Err(Unfit::Malformed);
    }
    let (source, to) = (packet.src_addr(), packet.dst_addr());
    if source != wire.guest {
        return Err(Unfit::Spoofed);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Unfit::Fragment);
    }
    if to.is_multicast() || to.is_broadcast() {
        return Err(Unfit::Unwanted);
    }
    let whole = &body[..usize::from(packet.total_len())];
    let inner = &whole[usize::from(packet.header_len())..];
    match packet.next_header() {
        IpProtocol::Tcp => tcp(source.into(), to.into(), whole, inner),
        IpProtocol::Udp => udp(source.into(), to.into(), inner),
        IpProtocol::Icmp => match inner {
            [ICMP_ECHO, 0, ..] => echo(to.into(), inner),
            [_, _, ..] => Err(Unfit::Unwanted),
            _ => Err(Unfit::Malformed),
        },
        _ => Err(Unfit::Malformed),
    }
}

fn ipv6(body: &[u8], guest: Ipv6Addr) -> Result<Inbound<'_>, Unfit> {
    let packet = Ipv6Packet::new_checked(body).map_err(|_| Unfit::Malformed)?;
    if packet.version() != 6 {
        return Err(Unfit::Malformed);
    }
    let (source, to) = (packet.src_addr(), packet.dst_addr());
    let own = source == guest;
    let local = source.is_unicast_link_local() || source.is_unspecified();
    if !own && !local {
        return Err(Unfit::Spoofed);
    }
    let whole = &body[..packet.total_len()];
    let inner = &whole[packet.header_len()..];
    let protocol = packet.next_header();
    if protocol == IpProtocol::Icmpv6 {
        return match inner {
            [ICMPV6_NEIGHBOUR_SOLICIT | ICMPV6_ROUTER_SOLICIT, 0, ..] => Ok(Inbound::Neighbour {
                message: inner,
                source,
            }),
            [ICMPV6_ECHO, 0, ..] if own && !to.is_multicast() => echo(to.into(), inner),
            [_, _, ..] => Err(Unfit::Unwanted),
            _ => Err(Unfit::Malformed),
        };
    }
    if protocol == IpProtocol::Ipv6Frag {
        return Err(Unfit::Fragment);
    }
    // Listener reports of the guest's kernel come behind a hop-by-hop header.
    if to.is_multicast() {
        return Err(Unfit::Unwanted);
    }
    if !own {
        return Err(Unfit::Spoofed);
    }
    match protocol {
        IpProtocol::Tcp => tcp(source.into(), to.into(), whole, inner),
        IpProtocol::Udp => udp(source.into(), to.into(), inner),
        _ => Err(Unfit::Malformed),
    }
}

fn tcp<'a>(
    source: IpAddr,
    to: IpAddr,
    packet: &'a [u8],
    inner: &'a [u8],
) -> Result<Inbound<'a>, Unfit> {
    let segment = TcpPacket::new_checked(inner).map_err(|_| Unfit::Malformed)?;
    if segment.src_port() == 0 || segment.dst_port() == 0 {
        return Err(Unfit::Malformed);
    }
    Ok(Inbound::Tcp(TcpSegment {
        from: SocketAddr::new(source, segment.src_port()),
        to: SocketAddr::new(to, segment.dst_port()),
        opens: segment.syn() && !segment.ack() && !segment.rst() && !segment.fin(),
        packet,
    }))
}

fn udp(source: IpAddr, to: IpAddr, inner: &[u8]) -> Result<Inbound<'_>, Unfit> {
    let datagram = UdpPacket::new_checked(inner).map_err(|_| Unfit::Malformed)?;
    if datagram.src_port() == 0 || datagram.dst_port() == 0 {
        return Err(Unfit::Malformed);
    }
    Ok(Inbound::Udp(UdpDatagram {
        from: SocketAddr::new(source, datagram.src_port()),
        to: SocketAddr::new(to, datagram.dst_port()),
        payload: datagram.payload(),
    }))
}

fn echo(to: IpAddr, inner: &[u8]) -> Result<Inbound<'_>, Unfit> {
    let (head, data) = inner
        .split_at_checked(ECHO_HEADER)
        .ok_or(Unfit::Malformed)?;
    Ok(Inbound::Echo(EchoRequest {
        to,
        ident: u16::from_be_bytes([head[4], head[5]]),
        sequence: u16::from_be_bytes([head[6], head[7]]),
        data,
    }))
}

#[cfg(test)]
mod test {
    use super::*;
    use control::{GATEWAY_IPV4, GUEST_IPV4};
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::Ipv4Repr;

    fn wire() -> WireAddresses {
        WireAddresses::new(&NetSpec::standard("abc"))
    }

    /// A UDP datagram of four bytes in a frame of the guest's.
    fn frame(source: Ipv4Addr, change: impl Fn(&mut Ipv4Packet<&mut [u8]>)) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 8 + 4];
        frame[..6].copy_from_slice(&wire().gateway_mac.0);
        frame[6..12].copy_from_slice(&wire().guest_mac.0);
        frame[12..14].copy_from_slice(&[8, 0]);
        let repr = Ipv4Repr {
            src_addr: source,
            dst_addr: GATEWAY_IPV4,
            next_header: IpProtocol::Udp,
            payload_len: 12,
            hop_limit: 64,
        };
        frame[34..42].copy_from_slice(&[0, 1, 0, 53, 0, 12, 0xba, 0xad]);
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        change(&mut packet);
        packet.fill_checksum();
        frame
    }

    #[test]
    fn the_guests_own_frames_pass_without_a_right_udp_checksum() {
        let padded = [frame(GUEST_IPV4, |_| {}), vec![0; 20]].concat();
        let Ok(Inbound::Udp(datagram)) = parse(&padded, &wire()) else {
            panic!("{:?}", parse(&padded, &wire()));
        };
        assert_eq!((datagram.payload.len(), datagram.to.port()), (4, 53));
    }

    #[test]
    fn what_is_not_the_guests_or_not_whole_is_told_apart() {
        let of = |frame: Vec<u8>| parse(&frame, &wire()).unwrap_err();
        let good = frame(GUEST_IPV4, |_| {});
        assert_eq!(of(frame(GATEWAY_IPV4, |_| {})), Unfit::Spoofed);
        assert_eq!(
            of(frame(GUEST_IPV4, |p| p.set_more_frags(true))),
            Unfit::Fragment
        );
        assert_eq!(
            of(frame(GUEST_IPV4, |p| p.set_frag_offset(8))),
            Unfit::Fragment
        );
        assert_eq!(
            of(frame(GUEST_IPV4, |p| p.set_version(6))),
            Unfit::Malformed
        );
        assert_eq!(
            of(frame(GUEST_IPV4, |p| p.set_total_len(27))),
            Unfit::Malformed
        );
        assert_eq!(
            of(frame(GUEST_IPV4, |p| p.set_total_len(900))),
            Unfit::Malformed
        );
        assert_eq!(of(good[..40].to_vec()), Unfit::Malformed);
        let changed = |at: usize, to: u8| {
            let mut frame = good.clone();
            frame[at] = to;
            frame
        };
        assert_eq!(of(changed(6, 4)), Unfit::Spoofed);
        assert_eq!(of(changed(5, 4)), Unfit::Unwanted);
        assert_eq!(
            of(changed(24, 7)),
            Unfit::Malformed,
            "a wrong header checksum"
        );
        assert_eq!(of(changed(13, 9)), Unfit::Malformed, "another protocol");
    }

    proptest! {
        #[test]
        fn any_frame_is_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
            kind in 0..3_usize,
        ) {
            let mut frame = frame(GUEST_IPV4, |_| {});
            frame[12..14].copy_from_slice([&[8, 0], &[0x86, 0xdd], &[8, 6]][kind]);
            for (at, byte) in bytes.iter().enumerate() {
                let length = frame.len();
                frame[14 + at * 5 % (length - 14)] ^= byte;
            }
            let _ = parse(&frame, &wire());
            let _ = parse(&bytes, &wire());
        }
    }
}
