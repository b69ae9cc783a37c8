//! The service's end of a machine's frame socket: one Ethernet frame a message.

use crate::machine::ready;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use tokio::time::sleep;

/// Bytes that wait in the socket each way, at least: a few of the largest frames. What a guest
/// sends beyond that waits in its own queue.
const BUFFER: usize = 256 << 10;
/// Frames that ask for nothing, and the rest after so many.
const DROPPED_AT_ONCE: u32 = 64;
const REST: Duration = Duration::from_millis(10);
/// Bytes of a frame that are looked at: the headers of Ethernet, IPv4 with all options, and TCP.
const HEADERS: usize = 14 + 60 + 20;

/// Whether a frame asks for something. Those for groups do not, which a machine sends by itself;
/// nor do resets of TCP, by which a copy ends the connections that its original has.
fn asks(frame: &[u8]) -> bool {
    const GROUP: u8 = 1;
    const RESET: u8 = 1 << 2;
    let of_group = frame.first().is_none_or(|byte| byte & GROUP != 0);
    !of_group && tcp_flags(frame).is_none_or(|flags| flags & RESET == 0)
}

/// The flags of a frame that is a whole TCP segment over IPv4, or its first fragment.
fn tcp_flags(frame: &[u8]) -> Option<u8> {
    const TCP: u8 = 6;
    let packet = frame.get(12..)?.strip_prefix(&[0x08, 0x00])?;
    let length = match packet.first()? {
        version_and_words @ 0x45..=0x4f => usize::from(version_and_words & 0xf) * 4,
        _ => return None,
    };
    let first = packet.get(6)? & 0x1f == 0 && *packet.get(7)? == 0;
    let is_tcp = *packet.get(9)? == TCP && first;
    packet.get(length + 13).copied().filter(|_| is_tcp)
}

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
    /// machine is gone. Frames that ask for nothing are dropped.
    pub(super) async fn wanted(self) -> io::Result<Option<Self>> {
        fcntl_setfl(&self.0, OFlags::NONBLOCK)?;
        let watched = ready::for_input(self.0)?;
        let mut dropped = 0;
        loop {
            let mut ready = watched.readable().await?;
            let mut front = [0; HEADERS];
            match recv(
                &watched,
                &mut front[..],
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            ) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(None),
                Ok((length, _)) if asks(&front[..length]) => break,
                Ok(_) => {
                    let _ = recv(&watched, &mut front[..], RecvFlags::DONTWAIT);
                    dropped += 1;
                    // A guest that sends nothing else fills its queue, and waits.
                    if dropped % DROPPED_AT_ONCE == 0 {
                        sleep(REST).await;
                    }
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Nobody is to be woken by what another process reads.
        Ok(Some(Self(watched.into_inner())))
    }
}

#[cfg(test)]
mod test {
    use super::asks;

    /// A TCP segment from the machine to the gateway, with options of IPv4 of so many words.
    fn segment(options: u8, flags: u8) -> Vec<u8> {
        let mut frame = vec![2, 0xfc, 0, 0, 0, 6, 2, 0xfc, 0, 0, 0, 5, 0x08, 0x00];
        frame.push(0x45 + options);
        frame.extend([0; 8]);
        frame.push(6);
        frame.resize(14 + 20 + 4 * usize::from(options) + 13, 0);
        frame.extend([flags, 0, 0, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn a_connection_asks_and_a_reset_does_not() {
        const SYN: u8 = 2;
        const RESET_AND_ACK: u8 = 0x14;
        for options in 0..=10 {
            assert!(asks(&segment(options, SYN)));
            assert!(!asks(&segment(options, RESET_AND_ACK)));
        }
        // What is cut short, or is no segment's front, is for the network process to look at.
        assert!(asks(&segment(0, RESET_AND_ACK)[..47]));
        let mut datagram = segment(0, RESET_AND_ACK);
        datagram[14 + 9] = 17;
        assert!(asks(&datagram));
        let mut fragment = segment(0, RESET_AND_ACK);
        fragment[14 + 7] = 1;
        assert!(asks(&fragment));
    }

    #[test]
    fn frames_for_groups_ask_for_nothing() {
        let mut frame = segment(0, 2);
        frame[0] = 0x33;
        assert!(!asks(&frame));
        assert!(!asks(&[]));
    }
}
