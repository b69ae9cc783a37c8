//! smoltcp, with a socket set of its own for each flow.
//!
//! smoltcp asks every socket of a set at every frame and every poll. Here a frame finds its flow by
//! its addresses first, and smoltcp sees the set of that flow only: one socket. The interface they
//! share answers for every address (`any_ip`), and never sees Ethernet, ARP or anything but TCP.

use crate::inbound::WireAddresses;
use crate::outbox::Outbox;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Bytes of each of a flow's two buffers. Twice the largest segment: a sender fills at most half of
/// a window by one segment. The kernel gives a page when it is first used.
const LARGE: usize = 128 * 1024;
/// The same, when there are many flows.
const SMALL: usize = 16 * 1024;
/// How many flows have large buffers.
const MAX_LARGE: usize = 24;

/// One end of a guest's connection.
pub(crate) struct TcpEndpoint {
    set: SocketSet<'static>,
    handle: SocketHandle,
    large: bool,
}

impl fmt::Debug for TcpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpEndpoint")
            .field("large", &self.large)
            .finish_non_exhaustive()
    }
}

impl TcpEndpoint {
    /// The socket.
    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.set.get_mut(self.handle)
    }
}

/// What all flows share.
pub(crate) struct TcpStack {
    interface: Interface,
    /// What segments meet that belong to no flow: they are answered by a reset.
    nobody: SocketSet<'static>,
    begin: Instant,
    mtu: u16,
    large: usize,
}

impl fmt::Debug for TcpStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStack")
            .field("large", &self.large)
            .finish_non_exhaustive()
    }
}

impl TcpStack {
    /// A stack on a wire. `seed` is random: sequence numbers come of it.
    pub(crate) fn new(wire: &WireAddresses, seed: u64, outbox: &mut Outbox, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = PacketDevice {
            input: None,
            outbox,
            mtu: wire.mtu,
        };
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            // There is room for four.
            let _ = addresses.push(IpCidr::new(wire.gateway.into(), wire.prefix));
            if let Some(ipv6) = wire.ipv6 {
                let _ = addresses.push(IpCidr::new(ipv6.gateway.into(), ipv6.prefix));
            }
        });
        Self {
            interface,
            nobody: SocketSet::new(Vec::new()),
            begin: now,
            mtu: wire.mtu,
            large: 0,
        }
    }

    /// An endpoint that waits for the segment that opens a connection to `to`.
    pub(crate) fn listen(&mut self, to: SocketAddr) -> Option<TcpEndpoint> {
        let large = self.large < MAX_LARGE;
        let size = if large { LARGE } else { SMALL };
        let buffer = || SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let address = Some(to.ip().into());
        let at = IpListenEndpoint {
            addr: address,
            port: to.port(),
        };
        socket.listen(at).ok()?;
        self.large += usize::from(large);
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Some(TcpEndpoint { set, handle, large })
    }

    /// Gives up an endpoint.
    #[expect(clippy::needless_pass_by_value, reason = "it is gone afterwards")]
    pub(crate) fn close(&mut self, endpoint: TcpEndpoint) {
        self.large -= usize::from(endpoint.large);
    }

    fn time(&self, now: Instant) -> StackInstant {
        let passed = now.saturating_duration_since(self.begin).as_micros();
        StackInstant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }

    /// Hands a segment to its endpoint, or to nobody.
    pub(crate) fn input(
        &mut self,
        packet: &[u8],
        endpoint: Option<&mut TcpEndpoint>,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        let time = self.time(now);
        let mut device = PacketDevice {
            input: Some(packet),
            outbox,
            mtu: self.mtu,
        };
        let set = endpoint.map_or(&mut self.nobody, |endpoint| &mut endpoint.set);
        self.interface.poll_ingress_single(time, &mut device, set);
    }

    /// Lets an endpoint say all that it has to say.
    pub(crate) fn output(&mut self, endpoint: &mut TcpEndpoint, outbox: &mut Outbox, now: Instant) {
        let time = self.time(now);
        let mut device = PacketDevice {
            input: None,
            outbox,
            mtu: self.mtu,
        };
        // A poll makes at most one segment; there are not more than its buffer has, and room ends.
        for _ in 0..LARGE / 512 {
            let polled = self
                .interface
                .poll_egress(time, &mut device, &mut endpoint.set);
            if polled == smoltcp::iface::PollResult::None {
                break;
            }
        }
    }

    /// When an endpoint has something to say if nobody says anything to it.
    pub(crate) fn wake_at(&mut self, endpoint: &TcpEndpoint, now: Instant) -> Option<Instant> {
        let time = self.time(now);
        let at = self.interface.poll_at(time, &endpoint.set)?;
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        Some(self.begin + Duration::from_micros(micros))
    }
}

/// The wire as smoltcp sees it: one packet comes in, any number go out.
struct PacketDevice<'a> {
    input: Option<&'a [u8]>,
    outbox: &'a mut Outbox,
    mtu: u16,
}

impl Device for PacketDevice<'_> {
    type RxToken<'b>
        = PacketIn<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = PacketOut<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: StackInstant) -> Option<(PacketIn<'_>, PacketOut<'_>)> {
        let packet = self.input.take()?;
        Some((PacketIn(packet), PacketOut(self.outbox)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<PacketOut<'_>> {
        self.outbox.room().then_some(PacketOut(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

struct PacketIn<'a>(&'a [u8]);

impl RxToken for PacketIn<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct PacketOut<'a>(&'a mut Outbox);

impl TxToken for PacketOut<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut f = Some(f);
        let mut result = None;
        self.0.put_ip(length, |packet| {
            result = f.take().map(|f| f(packet));
        });
        match (result, f) {
            (Some(result), _) => result,
            // An answer for which there is no room: it is made for nobody.
            (None, Some(f)) => f(&mut vec![0; length]),
            (None, None) => unreachable!("a closure that ran gave its result"),
        }
    }
}
