//! The service's end of a machine's frame socket: one Ethernet frame a message.

use crate::machine::ready;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that wait in the socket each way, at least: a few of the largest frames. What a guest
/// sends beyond that waits in its own queue.
const BUFFER: usize = 256 << 10;
/// The first bit of a frame's first byte: it is for more than one receiver.
const GROUP: u8 = 1;

/// The end of a frame socket that is not the machine's.
#[derive(Debug)]
pub struct FrameSocket(OwnedFd);

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FrameSocket {
    /// A pair: ours, and the machine's.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        for end in [&ours, &theirs] {
            set_socket_send_buffer_size(end, BUFFER)?;
        }
        Ok((Self(ours), theirs))
    }

    /// Waits for a frame that somebody has to answer, and leaves it there; `None` when the
    /// machine is gone. Frames for groups, which a machine sends by itself, are dropped.
    pub(super) async fn wanted(self) -> io::Result<Option<Self>> {
        fcntl_setfl(&self.0, OFlags::NONBLOCK)?;
        let watched = ready::for_input(self.0)?;
        loop {
            let mut ready = watched.readable().await?;
            let mut first = [0];
            match recv(
                &watched,
                &mut first[..],
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            ) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(None),
                Ok(_) if first[0] & GROUP == 0 => break,
                Ok(_) => drop(recv(&watched, &mut first[..], RecvFlags::DONTWAIT)),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Nobody is to be woken by what another process reads.
        Ok(Some(Self(watched.into_inner())))
    }
}
