//! One stream connection: its state and both directions' credit. No I/O.
//!
//! A short primer. The guest opens with `Request` and we answer `Response`; `Data` packets follow.
//! Flow control is by credit (§5.10.6.3): each side tells in *every* header how many bytes it can
//! buffer (`buf_alloc`) and how many it has taken out of that buffer so far (`fwd_cnt`). A side may
//! send as long as what it sent minus the peer's `fwd_cnt` stays within the peer's `buf_alloc`. A
//! side that frees room tells so with `CreditUpdate` if no other packet carries the news.
//! `Shutdown` with both flags says "I am done"; the other side answers `Reset` when it has let go.
//!
//! ```text
//!            Request/Response             Shutdown(both)        link has all data: Reset
//!   (none) ------------------> Open --------------------> Closing -----------------> (none)
//!                               |  Reset from either side, credit violation           ^
//!                               +-----------------------------------------------------+
//! ```

use super::packet::{PacketHeader, PacketOp};
use super::spec::{HOST_CID, MAX_PAYLOAD, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::state::ConnectionV1;
use crate::state::InvalidState;

/// Bytes the guest may have on the way to the link. Most of them stay in guest memory until the
/// link's socket takes them.
pub(crate) const BUFFER: u32 = 512 * 1024;
/// What a packet from the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PacketEffect {
    /// Nothing more.
    Nothing,
    /// Pass the payload on to the link.
    Payload,
    /// Reset the connection: the packet is not allowed now.
    Violation,
}

/// A connection that is open or closing.
#[derive(Debug)]
pub(crate) struct VsockConnection {
    local_cid: u64,
    guest_cid: u64,
    pub(crate) local_port: u32,
    pub(crate) guest_port: u32,
    /// Guest's view of its receive buffer, from its last header.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Bytes sent to the guest, wrapping.
    sent: u32,
    /// Bytes received from the guest and passed on to the link, wrapping.
    received: u32,
    forwarded: u32,
    /// The value of `forwarded` in the last header to the guest.
    advertised: u32,
    /// Shutdown flags the guest has sent.
    guest_shutdown: u32,
    answer: bool,
    tell_credit: bool,
}

impl VsockConnection {
    /// The connection that `request` asks for; its first packet is the `Response`.
    pub(crate) fn open(request: &PacketHeader) -> Self {
        Self {
            local_cid: request.dst_cid,
            guest_cid: request.src_cid,
            local_port: request.dst_port,
            guest_port: request.src_port,
            peer_buf_alloc: request.buf_alloc,
            peer_fwd_cnt: request.fwd_cnt,
            sent: 0,
            received: 0,
            forwarded: 0,
            advertised: 0,
            guest_shutdown: 0,
            answer: true,
            tell_credit: false,
        }
    }

    /// Whether `header` from the guest belongs to this connection.
    pub(crate) fn is_for(&self, header: &PacketHeader) -> bool {
        header.src_port == self.guest_port && header.dst_port == self.local_port
    }

    /// The guest wants no more of this connection: it ends when the link has its data.
    pub(crate) fn closing(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND
    }

    /// Takes note of a packet that [`VsockConnection::is_for`] us and is not a reset.
    pub(crate) fn receive(&mut self, header: &PacketHeader) -> PacketEffect {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        match header.op {
            PacketOp::Data if self.guest_shutdown & SHUTDOWN_SEND != 0 => PacketEffect::Violation,
            PacketOp::Data if header.len == 0 => PacketEffect::Nothing,
            PacketOp::Data => {
                self.received = self.received.wrapping_add(header.len);
                let waiting = self.received.wrapping_sub(self.forwarded);
                if waiting > BUFFER || header.len > BUFFER {
                    return PacketEffect::Violation;
                }
                PacketEffect::Payload
            }
            PacketOp::CreditUpdate => PacketEffect::Nothing,
            PacketOp::CreditRequest => {
                self.tell_credit = true;
                PacketEffect::Nothing
            }
            PacketOp::Shutdown => {
                self.guest_shutdown |= header.flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
                PacketEffect::Nothing
            }
            PacketOp::Request | PacketOp::Response | PacketOp::Reset | PacketOp::Unknown(_) => {
                PacketEffect::Violation
            }
        }
    }

    /// The link took `bytes`.
    pub(crate) fn forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
        // Linux does not send more than its own receive buffer would hold, whatever we allow.
        let window = BUFFER.min(self.peer_buf_alloc);
        // What the guest believes to be left.
        let believed = window.saturating_sub(self.received.wrapping_sub(self.advertised));
        let freed = self.forwarded != self.advertised;
        self.tell_credit |= freed && believed <= window / 3;
    }

    /// Bytes the guest has room for.
    pub(crate) fn credit(&self) -> usize {
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            return 0;
        }
        let unread = self.sent.wrapping_sub(self.peer_fwd_cnt);
        usize::try_from(self.peer_buf_alloc.saturating_sub(unread)).unwrap_or(0)
    }

    /// Whether [`VsockConnection::next`] would give a packet.
    pub(crate) fn has_next(&self, available: usize) -> bool {
        self.answer || self.tell_credit || (available > 0 && self.credit() > 0)
    }

    /// The next packet to the guest, with at most `room` bytes of the `available` ones.
    pub(crate) fn next(&mut self, room: usize, available: usize) -> Option<PacketHeader> {
        let op = if self.answer {
            PacketOp::Response
        } else if available > 0 && room > 0 && self.credit() > 0 {
            PacketOp::Data
        } else if self.tell_credit {
            PacketOp::CreditUpdate
        } else {
            return None;
        };
        let mut len = 0;
        if op == PacketOp::Data {
            let bytes = available.min(room).min(self.credit()).min(MAX_PAYLOAD);
            len = u32::try_from(bytes).unwrap_or(0);
            self.sent = self.sent.wrapping_add(len);
        }
        self.answer = false;
        self.tell_credit = false;
        self.advertised = self.forwarded;
        Some(PacketHeader {
            len,
            ..self.header(op)
        })
    }

    /// The packet that ends the connection.
    pub(crate) fn reset(&self) -> PacketHeader {
        self.header(PacketOp::Reset)
    }

    fn header(&self, op: PacketOp) -> PacketHeader {
        PacketHeader {
            src_cid: self.local_cid,
            dst_cid: self.guest_cid,
            src_port: self.local_port,
            dst_port: self.guest_port,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }
}

impl VsockConnection {
    /// What is to be saved.
    pub(super) fn save(&self) -> ConnectionV1 {
        ConnectionV1 {
            guest_port: self.guest_port,
            peer_buf_alloc: self.peer_buf_alloc,
            peer_fwd_cnt: self.peer_fwd_cnt,
            sent: self.sent,
            received: self.received,
            forwarded: self.forwarded,
            advertised: self.advertised,
            guest_shutdown: self.guest_shutdown,
            answer: self.answer,
            tell_credit: self.tell_credit,
        }
    }

    /// The connection that was saved, between our `local_port` and the guest with this id. Its
    /// counters may be anything, as in a header: they only limit what is sent.
    pub(super) fn load(
        saved: &ConnectionV1,
        guest_cid: u64,
        local_port: u32,
    ) -> Result<Self, InvalidState> {
        if saved.guest_shutdown & !(SHUTDOWN_RECEIVE | SHUTDOWN_SEND) != 0 {
            let flags = saved.guest_shutdown;
            return Err(InvalidState(format!("shutdown flags {flags:#x}")));
        }
        if saved.received != saved.forwarded {
            let (received, forwarded) = (saved.received, saved.forwarded);
            return Err(InvalidState(format!(
                "{received} bytes came from the guest and {forwarded} went on"
            )));
        }
        Ok(Self {
            local_cid: HOST_CID,
            guest_cid,
            local_port,
            guest_port: saved.guest_port,
            peer_buf_alloc: saved.peer_buf_alloc,
            peer_fwd_cnt: saved.peer_fwd_cnt,
            sent: saved.sent,
            received: saved.received,
            forwarded: saved.forwarded,
            advertised: saved.advertised,
            guest_shutdown: saved.guest_shutdown,
            answer: saved.answer,
            tell_credit: saved.tell_credit,
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;

    fn from_guest(op: PacketOp) -> PacketHeader {
        PacketHeader {
            src_cid: 3,
            dst_cid: 2,
            src_port: 77,
            dst_port: 1024,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 1000,
            fwd_cnt: 0,
        }
    }

    fn open() -> VsockConnection {
        let mut connection = VsockConnection::open(&from_guest(PacketOp::Request));
        let response = connection.next(4096, 10).unwrap();
        assert_eq!(
            (response.op, response.len, response.buf_alloc),
            (PacketOp::Response, 0, BUFFER)
        );
        connection
    }

    #[test]
    fn data_to_the_guest_stays_within_its_credit() {
        let mut connection = open();
        assert_eq!(
            connection.next(600, 5000).map(|h| (h.op, h.len)),
            Some((PacketOp::Data, 600))
        );
        assert_eq!(
            connection.next(600, 4400).map(|h| (h.op, h.len)),
            Some((PacketOp::Data, 400))
        );
        assert!(connection.next(600, 4000).is_none() && !connection.has_next(4000));
        connection.receive(&PacketHeader {
            fwd_cnt: 300,
            ..from_guest(PacketOp::CreditUpdate)
        });
        assert_eq!(connection.next(600, 4000).map(|h| h.len), Some(300));
    }

    #[test]
    fn a_peer_that_lies_about_credit_gets_none() {
        let mut connection = open();
        connection.receive(&PacketHeader {
            fwd_cnt: 5,
            ..from_guest(PacketOp::CreditUpdate)
        });
        assert_eq!(connection.credit(), 0);
        connection.receive(&PacketHeader {
            buf_alloc: u32::MAX,
            ..from_guest(PacketOp::CreditUpdate)
        });
        assert_eq!(
            connection.next(usize::MAX, usize::MAX).unwrap().len,
            64 * 1024
        );
    }

    /// A guest that sends while it believes to have credit, like Linux never more than its own
    /// buffer's size ahead; how many updates it got.
    fn send_all(own_buffer: u32, packet: u32, total: u32) -> u32 {
        let request = PacketHeader {
            buf_alloc: own_buffer,
            ..from_guest(PacketOp::Request)
        };
        let mut connection = VsockConnection::open(&request);
        let window = connection.next(4096, 0).unwrap().buf_alloc.min(own_buffer);
        let (mut sent, mut heard, mut updates) = (0, 0, 0);
        while sent < total {
            let len = packet.min(window - (sent - heard)).min(total - sent);
            assert!(len > 0, "stalled at {sent} of {total}");
            sent += len;
            let data = PacketHeader {
                len,
                buf_alloc: own_buffer,
                ..from_guest(PacketOp::Data)
            };
            assert_eq!(connection.receive(&data), PacketEffect::Payload);
            connection.forwarded(len);
            while let Some(update) = connection.next(4096, 0) {
                assert_eq!((update.op, update.fwd_cnt), (PacketOp::CreditUpdate, sent));
                heard = update.fwd_cnt;
                updates += 1;
            }
        }
        updates
    }

    #[test]
    fn the_guest_is_told_of_room_before_it_stalls() {
        assert!(send_all(256 * 1024, 64 * 1024, 4 << 20) <= 24);
        assert!(send_all(1 << 20, 64 * 1024, 4 << 20) <= 12);
    }

    proptest! {
        #[test]
        fn no_guest_stalls(
            own_buffer in 1u32..1 << 20,
            packet in 1u32..=64 * 1024,
            packets in 1u32..200,
        ) {
            let most = own_buffer.saturating_mul(100);
            send_all(own_buffer, packet, packet.saturating_mul(packets).min(most));
        }
    }

    #[test]
    fn more_than_the_credit_is_a_violation() {
        let mut connection = open();
        let data = PacketHeader {
            len: BUFFER / 4,
            ..from_guest(PacketOp::Data)
        };
        (0..4).for_each(|_| assert_eq!(connection.receive(&data), PacketEffect::Payload));
        assert_eq!(
            connection.receive(&PacketHeader { len: 1, ..data }),
            PacketEffect::Violation
        );
        let mut connection = open();
        let huge = PacketHeader {
            len: u32::MAX,
            ..data
        };
        assert_eq!(connection.receive(&huge), PacketEffect::Violation);
    }

    #[test]
    fn shutdown_stops_each_direction() {
        let mut connection = open();
        let shutdown = |flags| PacketHeader {
            flags,
            ..from_guest(PacketOp::Shutdown)
        };
        assert_eq!(
            connection.receive(&shutdown(SHUTDOWN_SEND)),
            PacketEffect::Nothing
        );
        assert!(!connection.closing());
        let data = PacketHeader {
            len: 1,
            ..from_guest(PacketOp::Data)
        };
        assert_eq!(connection.receive(&data), PacketEffect::Violation);
        assert_eq!(connection.next(10, 10).map(|h| h.len), Some(10));
        connection.receive(&shutdown(SHUTDOWN_RECEIVE));
        assert!(connection.closing() && connection.next(10, 10).is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Receive(u16, u32, u32, u32),
        Forward(u32),
        Next(usize, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u16..9, any::<u32>(), any::<u32>(), 0..=BUFFER)
                .prop_map(|(op, a, b, len)| Step::Receive(op, a, b, len)),
            any::<u32>().prop_map(Step::Forward),
            (0usize..100_000, 0usize..100_000).prop_map(|(room, n)| Step::Next(room, n)),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn neither_side_overruns_the_other(steps in steps()) {
            let mut connection = open();
            let mut waiting = 0u64;
            for step in steps {
                match step {
                    Step::Receive(op, buf_alloc, fwd_cnt, len) => {
                        let header = PacketHeader {
                            op: op.into(), buf_alloc, fwd_cnt, len, flags: fwd_cnt,
                            ..from_guest(PacketOp::Data)
                        };
                        match connection.receive(&header) {
                            PacketEffect::Payload => waiting += u64::from(len),
                            PacketEffect::Nothing => {}
                            PacketEffect::Violation => return Ok(()),
                        }
                        prop_assert!(waiting <= u64::from(BUFFER));
                    }
                    Step::Forward(n) => {
                        let n = u64::from(n).min(waiting);
                        waiting -= n;
                        connection.forwarded(u32::try_from(n).unwrap());
                    }
                    Step::Next(room, available) => {
                        let credit = connection.credit();
                        let expected = connection.has_next(available);
                        let header = connection.next(room, available);
                        prop_assert!(room == 0 || header.is_some() == expected);
                        let len = header.map_or(0, |h| h.len as usize);
                        prop_assert!(len <= room.min(available).min(credit));
                    }
                }
            }
        }
    }
}
