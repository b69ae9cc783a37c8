//! TCP connections to the guest itself: to its loopback addresses, and to nothing else.

use super::event::SOCK_NONBLOCK_CLOEXEC;
use super::{Errno, Fd, Result, call, fd, nr, plain};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: usize = 1;

/// Which of the guest's loopback addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoopbackAddress {
    /// 127.0.0.1.
    V4,
    /// `::1`.
    V6,
}

/// Begins to connect to a port of the guest; beside the socket, whether it is connected already.
/// Otherwise it becomes writable when that is decided.
pub(crate) fn connect_loopback(to: LoopbackAddress, port: u16) -> Result<(Fd, bool)> {
    // `struct sockaddr_in6`, and with fewer bytes `struct sockaddr_in`.
    let mut address = [0u8; 28];
    let (family, length) = match to {
        LoopbackAddress::V4 => {
            address[4..8].copy_from_slice(&[127, 0, 0, 1]);
            (AF_INET, 16)
        }
        LoopbackAddress::V6 => {
            address[23] = 1;
            (AF_INET6, 28)
        }
    };
    address[..2].copy_from_slice(&family.to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    let kind = SOCK_STREAM | SOCK_NONBLOCK_CLOEXEC;
    let socket = fd(plain(nr::SOCKET, &[usize::from(family), kind, 0])?);
    // Pieces of a request must not wait for each other.
    let _ = set_number(&socket, TCP, NODELAY, &[1]);
    let at = address.as_ptr().expose_provenance();
    // SAFETY: the kernel reads `length` bytes of the address, at most all of it.
    match unsafe { call(nr::CONNECT, [socket.arg(), at, length, 0, 0, 0]) } {
        Ok(_) => Ok((socket, true)),
        Err(Errno::INPROGRESS) => Ok((socket, false)),
        Err(e) => Err(e),
    }
}

const SOCKET: usize = 1;
const LINGER: usize = 13;
const TCP: usize = 6;
const NODELAY: usize = 1;

fn set_number(socket: &Fd, level: usize, name: usize, value: &[i32]) -> Result<()> {
    let (at, size) = (value.as_ptr().expose_provenance(), size_of_val(value));
    // SAFETY: the kernel reads `size` bytes of the value.
    unsafe { call(nr::SETSOCKOPT, [socket.arg(), level, name, at, size, 0]) }.map(drop)
}

/// Ends the connection with a reset instead of an end, so that its peer takes nothing half for all.
pub(crate) fn reset(socket: Fd) {
    // `struct linger`: on, for no time.
    let _ = set_number(&socket, SOCKET, LINGER, &[1, 0]);
    drop(socket);
}

/// Nothing more will be written: the peer reads an end.
pub(crate) fn end_writing(socket: &Fd) -> Result<()> {
    const WRITES: usize = 1;
    plain(nr::SHUTDOWN, &[socket.arg(), WRITES]).map(drop)
}
