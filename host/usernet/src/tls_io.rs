//! TLS bytes to and from sockets, as rustls reads and writes them.

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use smoltcp::socket::tcp::Socket;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;

/// A flow's socket of the host, and what is known of it.
pub(crate) struct HostSide<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    /// Whether it may have bytes; none after a read that found none.
    pub(crate) readable: &'a mut bool,
    /// The same for its room.
    pub(crate) writable: &'a mut bool,
}

impl Read for HostSide<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.socket, &mut *room, RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    *self.readable = false;
                    return Err(ErrorKind::WouldBlock.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for HostSide<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(
                self.socket,
                parts,
                &mut SendAncillaryBuffer::default(),
                flags,
            ) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    *self.writable = false;
                    return Err(ErrorKind::WouldBlock.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the guest is to hear.
pub(crate) struct SocketWriter<'a, 'b>(pub(crate) &'a mut Socket<'b>);

impl Write for SocketWriter<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.send_slice(bytes);
        sent.map_err(|_| ErrorKind::NotConnected.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
