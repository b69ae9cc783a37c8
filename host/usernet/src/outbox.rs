//! Frames to the guest. They are made in place in one buffer and sent together.
//!
//! The socket's other end is the machine's device, which takes a frame when the guest has a buffer
//! for it. While it takes none, nothing is made: whoever makes frames asks for [room](Outbox::room)
//! first and leaves its bytes where they are.

use crate::inbound::WireAddresses;
use control::MAX_FRAME;
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, send, sendmmsg};
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Two frames of the largest size, or many small ones. It is memory when it is used.
const CAPACITY: usize = 2 * MAX_FRAME;
/// Most frames that wait.
const MOST: usize = 64;

/// The frames that wait for the guest.
#[derive(Debug)]
pub(crate) struct Outbox {
    socket: OwnedFd,
    wire: WireAddresses,
    buffer: Box<[u8]>,
    frames: Vec<Range<usize>>,
    /// The socket took nothing.
    blocked: bool,
    /// Nothing is to be made at the moment.
    held: bool,
    counts: OutboxCounts,
}

/// What has gone since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutboxCounts {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) dropped: u64,
}

impl Outbox {
    /// An empty one.
    pub(crate) fn new(socket: OwnedFd, wire: WireAddresses) -> Self {
        Self {
            socket,
            wire,
            buffer: vec![0; CAPACITY].into_boxed_slice(),
            frames: Vec::new(),
            blocked: false,
            held: false,
            counts: OutboxCounts::default(),
        }
    }

    /// The socket of the frames.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the socket takes nothing at the moment.
    pub(crate) const fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The socket may take frames again.
    pub(crate) const fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Lets nothing be made, or lets it again.
    pub(crate) const fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// What has gone.
    pub(crate) const fn counts(&self) -> OutboxCounts {
        self.counts
    }

    fn used(&self) -> usize {
        self.frames.last().map_or(0, |last| last.end)
    }

    /// Whether a frame of any size can be made; sends what waits if that helps.
    pub(crate) fn room(&mut self) -> bool {
        if self.held {
            return false;
        }
        let full = |own: &Self| own.used() + MAX_FRAME > CAPACITY || own.frames.len() >= MOST;
        if full(self) {
            self.flush();
        }
        !full(self)
    }

    /// Makes a frame with an IP packet of `length` bytes, unless there is no room: then it is
    /// dropped and counted.
    pub(crate) fn put_ip(&mut self, length: usize, make: impl FnOnce(&mut [u8])) {
        self.fill_ip(length, |packet| {
            make(packet);
            length
        });
    }

    /// As [`put_ip`](Self::put_ip), where `make` says how long the packet has become, at most
    /// `most`; 0: there is none.
    pub(crate) fn fill_ip(&mut self, most: usize, make: impl FnOnce(&mut [u8]) -> usize) {
        if most + ETHERNET > MAX_FRAME || !self.room() {
            self.counts.dropped += 1;
            return;
        }
        let start = self.used();
        let frame = &mut self.buffer[start..start + ETHERNET + most];
        let length = make(&mut frame[ETHERNET..]).min(most);
        if length == 0 {
            return;
        }
        let ethertype: [u8; 2] = match frame[ETHERNET] >> 4 {
            6 => [0x86, 0xdd],
            _ => [8, 0],
        };
        self.finish(start, length, ethertype);
    }

    /// Makes a frame with an ARP message.
    pub(crate) fn put_arp(&mut self, length: usize, make: impl FnOnce(&mut [u8])) {
        if !self.room() {
            self.counts.dropped += 1;
            return;
        }
        let start = self.used();
        make(&mut self.buffer[start + ETHERNET..start + ETHERNET + length]);
        self.finish(start, length, [8, 6]);
    }

    fn finish(&mut self, start: usize, length: usize, ethertype: [u8; 2]) {
        let head = &mut self.buffer[start..start + ETHERNET];
        head[..6].copy_from_slice(&self.wire.guest_mac.0);
        head[6..12].copy_from_slice(&self.wire.gateway_mac.0);
        head[12..].copy_from_slice(&ethertype);
        self.frames.push(start..start + ETHERNET + length);
    }

    /// Sends what waits, as far as the socket takes it. A peer that is gone takes everything: the
    /// end is told where frames are read.
    pub(crate) fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.frames.len() && !self.blocked {
            match self.send_from(sent) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => self.blocked = true,
                Err(_) => {
                    self.counts.dropped += (self.frames.len() - sent) as u64;
                    self.frames.clear();
                    return;
                }
            }
        }
        for frame in self.frames.drain(..sent) {
            self.counts.frames += 1;
            self.counts.bytes += frame.len() as u64;
        }
    }

    /// Sends the frames from the one with this number on; how many went.
    fn send_from(&self, first: usize) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let [only] = &self.frames[first..] {
            return send(&self.socket, &self.buffer[only.clone()], flags).map(|_| 1);
        }
        let slices: Vec<[IoSlice<'_>; 1]> = self.frames[first..]
            .iter()
            .map(|frame| [IoSlice::new(&self.buffer[frame.clone()])])
            .collect();
        let mut nothing: Vec<_> = slices
            .iter()
            .map(|_| SendAncillaryBuffer::default())
            .collect();
        let mut messages: Vec<_> = slices
            .iter()
            .zip(&mut nothing)
            .map(|(slice, nothing)| MMsgHdr::new(slice, nothing))
            .collect();
        sendmmsg(&self.socket, &mut messages, flags)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use control::NetSpec;
    use rustix::net::{RecvFlags, recv};

    fn outbox() -> (Outbox, OwnedFd) {
        let (ours, theirs) = control::pair().unwrap();
        let wire = WireAddresses::new(&NetSpec::standard("abc"));
        (Outbox::new(ours, wire), theirs)
    }

    #[test]
    fn frames_arrive_in_order_and_whole() {
        let (mut outbox, guest) = outbox();
        for n in 1..=40_u8 {
            outbox.put_ip(usize::from(n), |packet| packet.fill(n));
        }
        outbox.flush();
        for n in 1..=40_u8 {
            let mut frame = [0; 100];
            let (length, _) = recv(&guest, &mut frame, RecvFlags::DONTWAIT).unwrap();
            assert_eq!(length, ETHERNET + usize::from(n));
            assert!(frame[ETHERNET..length].iter().all(|b| *b == n));
        }
        assert_eq!(outbox.counts().frames, 40);
    }

    #[test]
    fn a_guest_that_does_not_read_costs_one_buffer() {
        let (mut outbox, guest) = outbox();
        let largest = MAX_FRAME - ETHERNET;
        while outbox.room() {
            outbox.put_ip(largest, |packet| packet.fill(0x45));
        }
        assert!(outbox.is_blocked());
        outbox.put_ip(largest, |_| panic!("there is no room for it"));
        assert_eq!(outbox.counts().dropped, 1);
        let mut frame = vec![0; MAX_FRAME];
        while recv(&guest, &mut frame[..], RecvFlags::DONTWAIT).is_ok() {}
        outbox.unblock();
        outbox.flush();
        assert!(outbox.room() && !outbox.is_blocked());
    }
}
