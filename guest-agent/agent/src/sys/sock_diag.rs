//! TCP connections of this network namespace, by `sock_diag(7)`: which there are, and their end.

use super::{Errno, Fd, Result, fd, nr, plain, read, write_all};

/// `AF_INET` and `AF_INET6`; the second has sockets that speak IPv4 as well.
pub(crate) const FAMILIES: [u8; 2] = [2, 10];

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// Where `struct inet_diag_sockid` lies in the body of a request and of an answer, and its bytes:
/// two ports, two addresses of 16 bytes, an interface, a cookie.
const ID: core::ops::Range<usize> = 8..56;
const ANSWER_ID: core::ops::Range<usize> = 4..52;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST: usize = HEADER + ID.end;
const REQUEST_LEN: u32 = 72;
const _: () = assert!(REQUEST_LEN as usize == REQUEST);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
/// Connections that have a peer or wait for one: `TCP_ESTABLISHED`, `SYN_SENT`, `FIN_WAIT1`,
/// `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// One connection, as the kernel names it.
#[derive(Clone, Copy)]
pub(crate) struct TcpConnection {
    family: u8,
    id: [u8; ID.end - ID.start],
}

impl TcpConnection {
    /// For places that no connection is in yet.
    pub(crate) const NONE: Self = Self {
        family: 0,
        id: [0; ID.end - ID.start],
    };

    /// The guest's own address and its peer's, where both are of IPv4.
    pub(crate) fn ipv4(&self) -> Option<([u8; 4], [u8; 4])> {
        let (_, addresses) = self.id.split_first_chunk::<4>()?;
        let (own, addresses) = addresses.split_first_chunk::<16>()?;
        let (peer, _) = addresses.split_first_chunk::<16>()?;
        Some((self.ipv4_of(own)?, self.ipv4_of(peer)?))
    }

    fn ipv4_of(&self, address: &[u8; 16]) -> Option<[u8; 4]> {
        const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let [first, rest @ ..] = address.as_chunks::<4>().0 else {
            return None;
        };
        match self.family {
            2 => Some(*first),
            _ if address.starts_with(&MAPPED) => rest.last().copied(),
            _ => None,
        }
    }
}

/// A request about TCP sockets of one family.
fn request(family: u8, kind: u16, flags: u16, id: &[u8]) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    let (header, body) = request.split_at_mut(HEADER);
    header[..4].copy_from_slice(&REQUEST_LEN.to_ne_bytes());
    header[4..6].copy_from_slice(&kind.to_ne_bytes());
    header[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    body[..2].copy_from_slice(&[family, TCP]);
    body[4..8].copy_from_slice(&CONNECTED.to_ne_bytes());
    body[ID].copy_from_slice(id);
    request
}

fn socket() -> Result<Fd> {
    const AF_NETLINK: usize = 16;
    const SOCK_RAW_CLOEXEC: usize = 0o2_000_003;
    const NETLINK_SOCK_DIAG: usize = 4;
    let kind = [AF_NETLINK, SOCK_RAW_CLOEXEC, NETLINK_SOCK_DIAG];
    plain(nr::SOCKET, &kind).map(fd)
}

/// The front message of an answer: its kind and its body; and what follows it.
fn split(answer: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&length, _) = answer.split_first_chunk::<4>()?;
    let length = u32::from_ne_bytes(length) as usize;
    let message = answer.get(..length)?;
    let (header, body) = message.split_at_checked(HEADER)?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let rest = answer.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, body, rest))
}

/// What a body of `NLMSG_ERROR` says.
fn outcome(body: &[u8]) -> Result<()> {
    let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code));
    match code.ok_or(Errno::IO)? {
        0 => Ok(()),
        code => Err(Errno(code.wrapping_neg())),
    }
}

/// Calls `each` with every connection of a family, until it says that it has seen enough.
pub(crate) fn connections(family: u8, mut each: impl FnMut(&TcpConnection) -> bool) -> Result<()> {
    let socket = socket()?;
    let all = [0; ID.end - ID.start];
    write_all(
        &socket,
        &request(family, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &all),
    )?;
    // The kernel sends no larger part than this to who has never asked for a larger one.
    let mut buffer = [0; 8192];
    loop {
        let length = read(&socket, &mut buffer)?;
        let mut answer = &buffer[..length];
        while let Some((kind, body, rest)) = split(answer) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return outcome(body),
                _ => {
                    let id = body.get(ANSWER_ID).and_then(|id| id.try_into().ok());
                    let id = id.ok_or(Errno::IO)?;
                    if !each(&TcpConnection { family, id }) {
                        return Ok(());
                    }
                }
            }
            answer = rest;
        }
    }
}

/// Ends connections: their processes find `ECONNABORTED`, their peers a reset. One that has ended
/// by itself is none.
pub(crate) fn end(connections: &[TcpConnection]) -> Result<()> {
    let socket = socket()?;
    for TcpConnection { family, id } in connections {
        write_all(&socket, &request(*family, SOCK_DESTROY, NLM_F_ACK, id))?;
        // An acknowledgement repeats what it answers.
        let mut buffer = [0; 2 * REQUEST];
        let length = read(&socket, &mut buffer)?;
        match split(&buffer[..length]) {
            Some((NLMSG_ERROR, body, _)) => match outcome(body) {
                Ok(()) | Err(Errno::NOENT | Errno::STALE) => {}
                Err(e) => return Err(e),
            },
            _ => return Err(Errno::IO),
        }
    }
    Ok(())
}
