//! A guest's own stack at the other end of the wire: smoltcp, as an Ethernet host, over the frames
//! of a `hatchery-net` process.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![allow(dead_code, reason = "not every test file needs all of it")]

pub(crate) mod tls;

use control::{HeaderRules, MAX_FRAME, NetEvent, NetRequest, NetSpec};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes longer on an idle machine than a hundredth of this.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The wire of a guest.
pub(crate) struct FrameWire {
    pub(crate) socket: OwnedFd,
    buffer: Vec<u8>,
    /// The guest takes no frames.
    pub(crate) deaf: bool,
}

pub(crate) struct WireIn<'a>(&'a [u8]);
pub(crate) struct WireOut<'a>(&'a OwnedFd);

impl RxToken for WireIn<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

impl TxToken for WireOut<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        send(self.0, &frame, SendFlags::NOSIGNAL).unwrap();
        result
    }
}

impl Device for FrameWire {
    type RxToken<'a> = WireIn<'a>;
    type TxToken<'a> = WireOut<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(WireIn<'_>, WireOut<'_>)> {
        if self.deaf {
            return None;
        }
        let (length, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT).ok()?;
        (length > 0).then_some((WireIn(&self.buffer[..length]), WireOut(&self.socket)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<WireOut<'_>> {
        Some(WireOut(&self.socket))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        // As a guest with a device that makes and checks them; IP and ICMP are checked.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::None;
        checksum.udp = Checksum::None;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// Memory that is a process's own, KiB: what one more costs. Its program is shared.
pub(crate) fn private_kib(process: &Child) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", process.id());
    let text = std::fs::read_to_string(path).unwrap();
    let of = |field: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    of("Anonymous:")
}

/// A guest with its network process.
pub(crate) struct NetGuest {
    pub(crate) process: Child,
    pub(crate) control: OwnedFd,
    pub(crate) wire: FrameWire,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    begin: Instant,
    next_port: u16,
}

/// The standard wire with nothing allowed but these addresses.
pub(crate) fn only(openings: &[SocketAddr]) -> NetSpec {
    let mut spec = NetSpec::standard("test");
    spec.policy.openings = openings.to_vec();
    spec
}

impl NetGuest {
    pub(crate) fn start(spec: NetSpec) -> Self {
        let mut guest = Self::start_unconfigured(&spec);
        let request = NetRequest::Configure(Box::new(spec));
        control::send(&guest.control, &request, &[]).unwrap();
        assert_eq!(guest.event(), Some(NetEvent::Ready));
        guest
    }

    /// One whose requests get headers, with hosts verified by the certificates in a file.
    pub(crate) fn start_with(spec: NetSpec, rules: HeaderRules, roots: &OwnedFd) -> Self {
        let mut guest = Self::start_unconfigured(&spec);
        guest.say_rules(rules, roots);
        let request = NetRequest::Configure(Box::new(spec));
        control::send(&guest.control, &request, &[]).unwrap();
        assert_eq!(guest.event(), Some(NetEvent::Ready));
        guest
    }

    /// Says which headers hold with the next policy.
    pub(crate) fn say_rules(&self, rules: HeaderRules, roots: &OwnedFd) {
        let request = NetRequest::HeaderRules(Box::new(rules));
        control::send(&self.control, &request, &[roots.as_fd()]).unwrap();
    }

    pub(crate) fn start_unconfigured(spec: &NetSpec) -> Self {
        let (frames, theirs) = control::pair().unwrap();
        let (control, their_control) = control::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hatchery-net"));
        if rustix::process::geteuid().is_root() {
            command.args(["--uid", "1879048191", "--gid", "1879048191"]);
        }
        let process = command
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(their_control))
            .spawn()
            .unwrap();
        drop(command);
        let mut wire = FrameWire {
            socket: frames,
            buffer: vec![0; MAX_FRAME],
            deaf: false,
        };
        let mac = HardwareAddress::Ethernet(EthernetAddress(spec.guest_mac));
        let mut config = Config::new(mac);
        config.random_seed = 7;
        let begin = Instant::now();
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        let ipv6 = spec.ipv6.unwrap();
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(spec.guest.into(), spec.prefix))
                .unwrap();
            addresses
                .push(IpCidr::new(ipv6.guest.into(), ipv6.prefix))
                .unwrap();
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(spec.gateway).unwrap();
        routes.add_default_ipv6_route(ipv6.gateway).unwrap();
        Self {
            process,
            control,
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            begin,
            next_port: 40_000,
        }
    }

    /// The next event of the process; `None` when it has ended.
    pub(crate) fn event(&mut self) -> Option<NetEvent> {
        control::recv(&self.control)
            .unwrap()
            .map(|(event, _)| event)
    }

    /// Lets the guest's stack work once.
    pub(crate) fn poll(&mut self) {
        let passed = i64::try_from(self.begin.elapsed().as_micros()).unwrap();
        let now = StackInstant::from_micros(passed);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    /// Lets it work until something holds.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        loop {
            self.poll();
            if let Some(found) = holds(self) {
                return found;
            }
            assert!(
                begin.elapsed() < LIMIT,
                "{what} did not happen in {LIMIT:?}"
            );
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Begins a connection.
    pub(crate) fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 256 * 1024]);
        let mut socket = Socket::new(buffer(), buffer());
        self.next_port += 1;
        let remote = (IpAddress::from(to.ip()), to.port());
        let own: IpAddress = match to {
            SocketAddr::V4(_) => control::GUEST_IPV4.into(),
            SocketAddr::V6(_) => control::GUEST_IPV6.into(),
        };
        let local = (own, self.next_port);
        let context = self.interface.context();
        socket.connect(context, remote, local).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Waits for a state.
    pub(crate) fn until_state(&mut self, handle: SocketHandle, state: State) {
        self.until(&format!("{state}"), |guest| {
            (guest.tcp(handle).state() == state).then_some(())
        });
    }

    /// Sends all of it.
    pub(crate) fn send_all(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut sent = 0;
        self.until("sending", |guest| {
            sent += guest.tcp(handle).send_slice(&bytes[sent..]).unwrap();
            (sent == bytes.len()).then_some(())
        });
    }

    /// Sends when the connection is open.
    pub(crate) fn send_when_open(&mut self, handle: SocketHandle, bytes: &[u8]) {
        self.until_state(handle, State::Established);
        self.send_all(handle, bytes);
    }

    /// Receives so many bytes.
    pub(crate) fn receive(&mut self, handle: SocketHandle, count: usize) -> Vec<u8> {
        let mut got = vec![0; count];
        let mut length = 0;
        self.until("receiving", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_recv() {
                length += socket.recv_slice(&mut got[length..]).unwrap();
            }
            (length == count).then_some(())
        });
        got
    }
}

impl Drop for NetGuest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
