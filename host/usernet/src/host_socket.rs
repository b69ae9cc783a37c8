//! Sockets of the host, one a flow. All are non-blocking.

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay};
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, connect, getsockname, ipproto, socket_with,
};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

fn open(to: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    let family = match to {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(family, kind, flags, protocol)
}

/// Begins to connect; writable when that has come to an end.
pub(crate) fn connect_tcp(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = open(to.ip(), SocketType::STREAM, None)?;
    // The guest's own TCP has decided what is sent when.
    set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// A socket for datagrams to and from one address.
pub(crate) fn connect_udp(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = open(to.ip(), SocketType::DGRAM, None)?;
    connect(&socket, &to)?;
    Ok(socket)
}

/// A socket for echo requests to one address, where the host lets this user have one.
pub(crate) fn connect_echo(to: IpAddr) -> Result<OwnedFd, Errno> {
    let protocol = match to {
        IpAddr::V4(_) => ipproto::ICMP,
        IpAddr::V6(_) => ipproto::ICMPV6,
    };
    let socket = open(to, SocketType::DGRAM, Some(protocol))?;
    connect(&socket, &SocketAddr::new(to, 0))?;
    Ok(socket)
}

/// Whether an address is one of this host's, as far as the host's routes tell: it would answer from
/// the very address that it is asked at. Nothing is sent.
pub(crate) fn is_own(to: SocketAddr) -> bool {
    let source = connect_udp(to).and_then(|socket| getsockname(&socket));
    let source = source
        .ok()
        .and_then(|source| SocketAddr::try_from(source).ok());
    source.is_some_and(|source| source.ip() == to.ip())
}

/// Makes the closing of a TCP socket a reset.
pub(crate) fn reset_at_close(socket: impl AsFd) {
    // It is closed in any case.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}
