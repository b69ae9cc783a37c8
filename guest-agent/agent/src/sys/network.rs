//! Network interfaces, by the requests that a socket takes (`netdevice(7)`, `arp(7)`).

use super::{Fd, Result, call, nr, plain, signed};
use core::ffi::CStr;

const AF_INET: u16 = 2;
/// An address, a hardware address or a mask, with its family: `struct sockaddr`.
const ADDRESS: usize = 16;
/// An interface's name.
const NAME: usize = 16;

/// A guest's network card, and who is at the other end.
pub(crate) struct Card {
    pub(crate) name: &'static CStr,
    pub(crate) guest: [u8; 4],
    pub(crate) mask: [u8; 4],
    pub(crate) gateway: [u8; 4],
    pub(crate) gateway_mac: [u8; 6],
}

/// What the kernel is asked: the numbers are Linux's.
#[derive(Clone, Copy)]
enum InterfaceRequest {
    /// `SIOCADDRT`, a `struct rtentry` of 120 bytes.
    Route = 0x890b,
    /// `SIOCSIFFLAGS`, a `struct ifreq` of 40 bytes as the next two.
    Flags = 0x8914,
    /// `SIOCSIFADDR`.
    Address = 0x8916,
    /// `SIOCSIFNETMASK`.
    Mask = 0x891c,
    /// `SIOCSARP`, a `struct arpreq` of 68 bytes.
    Neighbour = 0x8955,
}

/// Bytes of the longest structure of a request here: `struct rtentry`.
const LONGEST: usize = 120;

/// A request's fields, each at its place in the structure.
struct Request([u8; LONGEST]);

impl Request {
    const fn new() -> Self {
        Self([0; LONGEST])
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// An IPv4 address.
    fn address(self, at: usize, address: [u8; 4]) -> Self {
        self.put(at, &AF_INET.to_ne_bytes()).put(at + 4, &address)
    }

    /// Asks one of the numbers of this file, whose structures are no longer than this one.
    fn of(self, socket: &Fd, request: InterfaceRequest) -> Result<()> {
        let at = self.0.as_ptr().expose_provenance();
        let number = request as usize;
        // SAFETY: the kernel reads the structure of this request, at most `LONGEST` bytes.
        unsafe { call(nr::IOCTL, [signed(socket.raw()), number, at, 0, 0, 0]) }.map(drop)
    }
}

/// What is asked of an interface: `struct ifreq`, its name and one field.
fn interface(name: &CStr) -> Request {
    let name = name.to_bytes();
    Request::new().put(0, &name[..name.len().min(NAME - 1)])
}

fn socket() -> Result<Fd> {
    const SOCK_DGRAM_CLOEXEC: usize = 0o2_000_002;
    Ok(super::fd(plain(
        nr::SOCKET,
        &[usize::from(AF_INET), SOCK_DGRAM_CLOEXEC, 0],
    )?))
}

fn up(socket: &Fd, name: &CStr) -> Result<()> {
    const IFF_UP: u16 = 1;
    let request = interface(name).put(NAME, &IFF_UP.to_ne_bytes());
    request.of(socket, InterfaceRequest::Flags)
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> Result<()> {
    up(&socket()?, c"lo")
}

/// Brings the card up: address, mask, the gateway's hardware address for good (nobody else is
/// there, so nothing need be asked), and the route to everywhere through it.
pub(crate) fn card_up(card: &Card) -> Result<()> {
    let socket = socket()?;
    let with = |address| interface(card.name).address(NAME, address);
    with(card.guest).of(&socket, InterfaceRequest::Address)?;
    with(card.mask).of(&socket, InterfaceRequest::Mask)?;
    up(&socket, card.name)?;
    neighbour(&socket, card)?;
    default_route(&socket, card)
}

/// `struct arpreq`.
fn neighbour(socket: &Fd, card: &Card) -> Result<()> {
    const ARPHRD_ETHER: u16 = 1;
    const COMPLETE_PERMANENT: u32 = 0x06;
    let name = card.name.to_bytes();
    Request::new()
        .address(0, card.gateway)
        .put(ADDRESS, &ARPHRD_ETHER.to_ne_bytes())
        .put(ADDRESS + 2, &card.gateway_mac)
        .put(2 * ADDRESS, &COMPLETE_PERMANENT.to_ne_bytes())
        .put(3 * ADDRESS + 4, name)
        .of(socket, InterfaceRequest::Neighbour)
}

/// `struct rtentry`.
fn default_route(socket: &Fd, card: &Card) -> Result<()> {
    const UP_GATEWAY: u16 = 3;
    let destination = 8;
    Request::new()
        .address(destination, [0; 4])
        .address(destination + ADDRESS, card.gateway)
        .address(destination + 2 * ADDRESS, [0; 4])
        .put(destination + 3 * ADDRESS, &UP_GATEWAY.to_ne_bytes())
        .of(socket, InterfaceRequest::Route)
}
