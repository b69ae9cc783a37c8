//! Which packet goes where: one listening port, at most one connection, and a bounded queue of
//! resets for everything else. No I/O.
//!
//! Whoever holds the connection is the guest's agent to the service, so nobody else in the guest is
//! to have it: it comes from a [privileged](LAST_PRIVILEGED_PORT) port, and while it stands there
//! is no other. The agent's own next one comes after the end of the one before. A machine that was
//! saved with a connection from another port has an agent that knows no better: it may come again
//! from any. The host never connects to the guest, so there is no listener in it to be taken.
//!
//! When the guest floods us with packets that must be answered but takes no answers,
//! [`VsockMuxer::is_full`] says to take no more packets until it does.

use super::config::SavedConnection;
use super::connection::{PacketEffect, VsockConnection};
use super::packet::{PacketHeader, PacketOp};
use super::spec::{HOST_CID, LAST_PRIVILEGED_PORT, TYPE_STREAM};
use super::state::{ResetV1, VsockV1};
use crate::state::InvalidState;
use std::collections::VecDeque;

/// Resets waiting to be taken by the guest.
pub(crate) const MAX_RESETS: usize = 64;

/// What the device has to do about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PacketVerdict {
    /// Nothing.
    Done,
    /// Not a packet we can make sense of.
    Malformed,
    /// Answered by a reset.
    Refused,
    /// Pass the payload on to the link.
    Payload,
    /// A connection is open. One before was closed, and what of it waits for the link goes on.
    Opened,
    /// The connection is gone: drop what waits for the link.
    Gone,
}

/// The host's side of all connections.
#[derive(Debug)]
pub(crate) struct VsockMuxer {
    guest_cid: u64,
    port: u32,
    /// The guest's agent is of those that call from any port.
    any_caller: bool,
    link_open: bool,
    connection: Option<VsockConnection>,
    resets: VecDeque<PacketHeader>,
}

impl VsockMuxer {
    pub(crate) fn new(guest_cid: u32, port: u32) -> Self {
        Self {
            guest_cid: guest_cid.into(),
            port,
            any_caller: false,
            link_open: true,
            connection: None,
            resets: VecDeque::with_capacity(MAX_RESETS),
        }
    }

    /// One that has met no packet and no end of the link.
    pub(crate) fn like_new(&self) -> Self {
        Self {
            guest_cid: self.guest_cid,
            port: self.port,
            any_caller: false,
            link_open: true,
            connection: None,
            resets: VecDeque::with_capacity(MAX_RESETS),
        }
    }

    /// The driver reset the device: all connections are gone, without a word to the guest.
    pub(crate) fn reset(&mut self) {
        self.connection = None;
        self.resets.clear();
    }

    /// No packet may be received until the guest has taken some.
    pub(crate) fn is_full(&self) -> bool {
        // A packet makes at most two resets.
        self.resets.len() + 2 > MAX_RESETS
    }

    /// There is a connection.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// A packet from the guest, whose payload is as long as the header says. Not when full.
    pub(crate) fn receive(&mut self, header: &PacketHeader) -> PacketVerdict {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return PacketVerdict::Malformed;
        }
        let known = header.kind == TYPE_STREAM
            && self.connection.as_ref().is_some_and(|c| c.is_for(header));
        match header.op {
            PacketOp::Reset if known => {
                self.connection = None;
                PacketVerdict::Gone
            }
            PacketOp::Reset => PacketVerdict::Done,
            PacketOp::Request => self.request(header),
            _ if known => self.pass(header),
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &PacketHeader) -> PacketVerdict {
        self.resets.push_back(header.reply(PacketOp::Reset));
        PacketVerdict::Refused
    }

    fn request(&mut self, header: &PacketHeader) -> PacketVerdict {
        let called = header.kind == TYPE_STREAM && header.dst_port == self.port && self.link_open;
        let by_agent = self.any_caller || header.src_port <= LAST_PRIVILEGED_PORT;
        let free = self
            .connection
            .as_ref()
            .is_none_or(VsockConnection::closing);
        if !(called && by_agent && free) {
            return self.refuse(header);
        }
        let old = self.connection.replace(VsockConnection::open(header));
        if let Some(old) = old.filter(|c| !c.is_for(header)) {
            self.resets.push_back(old.reset());
        }
        PacketVerdict::Opened
    }

    fn pass(&mut self, header: &PacketHeader) -> PacketVerdict {
        let Some(connection) = &mut self.connection else {
            return PacketVerdict::Done;
        };
        match connection.receive(header) {
            PacketEffect::Nothing => PacketVerdict::Done,
            PacketEffect::Payload => PacketVerdict::Payload,
            PacketEffect::Violation => {
                self.resets.push_back(connection.reset());
                self.connection = None;
                PacketVerdict::Gone
            }
        }
    }

    /// The link took `bytes`; nothing waits any more if `empty`.
    pub(crate) fn forwarded(&mut self, bytes: u32, empty: bool) {
        if let Some(connection) = &mut self.connection {
            connection.forwarded(bytes);
        }
        if empty {
            self.close_if_asked();
        }
    }

    /// Nothing waits for the link: a closing connection can end.
    pub(crate) fn close_if_asked(&mut self) {
        if let Some(connection) = self.connection.take_if(|c| c.closing()) {
            self.resets.push_back(connection.reset());
        }
    }

    /// The link is gone for good.
    pub(crate) fn link_closed(&mut self) {
        self.link_open = false;
        if let Some(connection) = self.connection.take() {
            self.resets.push_back(connection.reset());
        }
    }

    /// Whether [`VsockMuxer::next`] would give a packet.
    pub(crate) fn has_next(&self, available: usize) -> bool {
        !self.resets.is_empty()
            || self
                .connection
                .as_ref()
                .is_some_and(|c| c.has_next(available))
    }

    /// The next packet to the guest, with at most `room` payload bytes of the `available` ones.
    pub(crate) fn next(&mut self, room: usize, available: usize) -> Option<PacketHeader> {
        let reset = self.resets.pop_front();
        reset.or_else(|| self.connection.as_mut()?.next(room, available))
    }
}

impl VsockMuxer {
    /// What is to be saved: of a device that is not `running`, that it has nothing to say.
    pub(super) fn save(&self, running: bool) -> VsockV1 {
        let reset = |header: &PacketHeader| ResetV1 {
            local_port: header.src_port,
            guest_port: header.dst_port,
            kind: header.kind,
            buf_alloc: header.buf_alloc,
            fwd_cnt: header.fwd_cnt,
        };
        let resets = self.resets.iter().filter(|_| running);
        VsockV1 {
            guest_cid: self.guest_cid,
            port: self.port,
            connection: self
                .connection
                .as_ref()
                .filter(|_| running)
                .map(VsockConnection::save),
            resets: resets.map(reset).collect(),
        }
    }

    /// Takes over what was saved.
    pub(super) fn load(
        &mut self,
        saved: VsockV1,
        fate: SavedConnection,
    ) -> Result<(), InvalidState> {
        let (cid, port) = (saved.guest_cid, saved.port);
        if (cid, port) != (self.guest_cid, self.port) {
            return Err(InvalidState(format!("guest {cid} and port {port}")));
        }
        // The end of a connection may add one to a full queue.
        if saved.resets.len() > MAX_RESETS + 1 {
            return Err(InvalidState(format!("{} resets", saved.resets.len())));
        }
        let connection = saved
            .connection
            .map(|c| VsockConnection::load(&c, self.guest_cid, self.port))
            .transpose()?;
        self.resets = saved.resets.iter().map(|r| self.saved_reset(r)).collect();
        // None before the saved machine would have been let in from such a port.
        self.any_caller = connection
            .as_ref()
            .is_some_and(|c| c.guest_port > LAST_PRIVILEGED_PORT);
        match fate {
            SavedConnection::Kept => self.connection = connection,
            SavedConnection::Broken => self.resets.extend(connection.map(|c| c.reset())),
        }
        Ok(())
    }

    /// Refuses a loaded state that has something to say to a guest without a driver.
    pub(super) fn check_idle(&self) -> Result<(), InvalidState> {
        if self.connection.is_some() || !self.resets.is_empty() {
            return Err(InvalidState("packets for a guest without a driver".into()));
        }
        Ok(())
    }

    fn saved_reset(&self, saved: &ResetV1) -> PacketHeader {
        PacketHeader {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: saved.local_port,
            dst_port: saved.guest_port,
            len: 0,
            kind: saved.kind,
            op: PacketOp::Reset,
            flags: 0,
            buf_alloc: saved.buf_alloc,
            fwd_cnt: saved.fwd_cnt,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::vsock::spec::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

    fn packet(op: PacketOp, src_port: u32, dst_port: u32) -> PacketHeader {
        PacketHeader {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port,
            dst_port,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 4096,
            fwd_cnt: 0,
        }
    }

    fn muxer() -> VsockMuxer {
        VsockMuxer::new(3, 1024)
    }

    fn drain(muxer: &mut VsockMuxer) -> Vec<(PacketOp, u32)> {
        std::iter::from_fn(|| muxer.next(100, 0))
            .map(|h| (h.op, h.dst_port))
            .collect()
    }

    #[test]
    fn only_the_one_port_answers() {
        let mut muxer = muxer();
        assert_eq!(
            muxer.receive(&packet(PacketOp::Request, 9, 1025)),
            PacketVerdict::Refused
        );
        assert_eq!(
            muxer.receive(&packet(PacketOp::Request, 8, 1024)),
            PacketVerdict::Opened
        );
        assert_eq!(
            muxer.receive(&packet(PacketOp::Data, 7, 1024)),
            PacketVerdict::Refused
        );
        let dgram = PacketHeader {
            kind: 3,
            ..packet(PacketOp::Request, 6, 1024)
        };
        assert_eq!(muxer.receive(&dgram), PacketVerdict::Refused);
        let expected = [
            (PacketOp::Reset, 9),
            (PacketOp::Reset, 7),
            (PacketOp::Reset, 6),
            (PacketOp::Response, 8),
        ];
        assert_eq!(drain(&mut muxer), expected);
    }

    #[test]
    fn strangers_and_resets_are_not_answered() {
        let mut muxer = muxer();
        let stranger = PacketHeader {
            src_cid: 4,
            ..packet(PacketOp::Request, 1, 1024)
        };
        assert_eq!(muxer.receive(&stranger), PacketVerdict::Malformed);
        let elsewhere = PacketHeader {
            dst_cid: 1,
            ..packet(PacketOp::Request, 1, 1024)
        };
        assert_eq!(muxer.receive(&elsewhere), PacketVerdict::Malformed);
        assert_eq!(
            muxer.receive(&packet(PacketOp::Reset, 1, 1024)),
            PacketVerdict::Done
        );
        assert!(!muxer.has_next(1));
    }

    #[test]
    fn only_privileged_ports_are_let_in() {
        let mut muxer = muxer();
        for port in [LAST_PRIVILEGED_PORT + 1, 5000, u32::MAX] {
            let refused = muxer.receive(&packet(PacketOp::Request, port, 1024));
            assert_eq!(refused, PacketVerdict::Refused);
            assert!(!muxer.is_connected());
            assert_eq!(drain(&mut muxer), [(PacketOp::Reset, port)]);
        }
        let agent = packet(PacketOp::Request, LAST_PRIVILEGED_PORT, 1024);
        assert_eq!(muxer.receive(&agent), PacketVerdict::Opened);
    }

    #[test]
    fn a_second_connection_is_refused_while_one_stands() {
        let mut muxer = muxer();
        muxer.receive(&packet(PacketOp::Request, 1, 1024));
        drain(&mut muxer);
        // Half a close is none.
        let half = PacketHeader {
            flags: SHUTDOWN_SEND,
            ..packet(PacketOp::Shutdown, 1, 1024)
        };
        muxer.receive(&half);
        assert_eq!(
            muxer.receive(&packet(PacketOp::Request, 2, 1024)),
            PacketVerdict::Refused
        );
        assert_eq!(drain(&mut muxer), [(PacketOp::Reset, 2)]);
        assert_eq!(
            muxer.receive(&packet(PacketOp::Reset, 2, 1024)),
            PacketVerdict::Done
        );
        assert!(muxer.is_connected());
        assert_eq!(
            muxer.receive(&packet(PacketOp::Reset, 1, 1024)),
            PacketVerdict::Gone
        );
        assert_eq!(
            muxer.receive(&packet(PacketOp::Request, 2, 1024)),
            PacketVerdict::Opened
        );
    }

    #[test]
    fn the_next_connection_may_come_when_the_one_before_closes() {
        let mut muxer = muxer();
        muxer.receive(&packet(PacketOp::Request, 1, 1024));
        drain(&mut muxer);
        let closed = PacketHeader {
            flags: SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
            ..packet(PacketOp::Shutdown, 1, 1024)
        };
        muxer.receive(&closed);
        assert_eq!(
            muxer.receive(&packet(PacketOp::Request, 2, 1024)),
            PacketVerdict::Opened
        );
        assert_eq!(
            drain(&mut muxer),
            [(PacketOp::Reset, 1), (PacketOp::Response, 2)]
        );
    }

    #[test]
    fn a_machine_that_was_saved_by_an_older_agent_may_come_again_from_any_port() {
        for fate in [SavedConnection::Kept, SavedConnection::Broken] {
            let mut older = muxer();
            older.any_caller = true;
            older.receive(&packet(PacketOp::Request, 5000, 1024));
            drain(&mut older);
            let mut copy = muxer();
            copy.load(older.save(true), fate).unwrap();
            copy.receive(&packet(PacketOp::Reset, 5000, 1024));
            assert_eq!(
                copy.receive(&packet(PacketOp::Request, 5001, 1024)),
                PacketVerdict::Opened
            );
            // It is told by the saved connection, and by nothing that is left of another state.
            let mut newer = muxer();
            newer.receive(&packet(PacketOp::Request, 1023, 1024));
            let mut reset = copy.like_new();
            assert!(!reset.any_caller);
            reset.load(newer.save(true), fate).unwrap();
            reset.receive(&packet(PacketOp::Reset, 1023, 1024));
            assert_eq!(
                reset.receive(&packet(PacketOp::Request, 5001, 1024)),
                PacketVerdict::Refused
            );
        }
    }

    #[test]
    fn a_state_without_a_connection_lets_in_privileged_ports_only() {
        let mut muxer = muxer();
        // A refused stranger is in the saved resets, and no reason to let it in.
        muxer.receive(&packet(PacketOp::Request, 5000, 1024));
        let mut copy = self::muxer();
        copy.load(muxer.save(true), SavedConnection::Kept).unwrap();
        assert_eq!(
            copy.receive(&packet(PacketOp::Request, 5000, 1024)),
            PacketVerdict::Refused
        );
    }

    #[test]
    fn an_orderly_close_waits_for_the_link() {
        let mut muxer = muxer();
        muxer.receive(&packet(PacketOp::Request, 1, 1024));
        drain(&mut muxer);
        let data = PacketHeader {
            len: 10,
            ..packet(PacketOp::Data, 1, 1024)
        };
        assert_eq!(muxer.receive(&data), PacketVerdict::Payload);
        let flags = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        assert_eq!(
            muxer.receive(&PacketHeader {
                flags,
                ..packet(PacketOp::Shutdown, 1, 1024)
            }),
            PacketVerdict::Done
        );
        muxer.forwarded(4, false);
        assert!(!muxer.has_next(0));
        muxer.forwarded(6, true);
        assert_eq!(drain(&mut muxer), [(PacketOp::Reset, 1)]);
        assert!(!muxer.is_connected());
    }

    #[test]
    fn a_closed_link_resets_and_refuses() {
        let mut muxer = muxer();
        muxer.receive(&packet(PacketOp::Request, 1, 1024));
        muxer.link_closed();
        assert_eq!(
            muxer.receive(&packet(PacketOp::Request, 2, 1024)),
            PacketVerdict::Refused
        );
        assert_eq!(
            drain(&mut muxer),
            [(PacketOp::Reset, 1), (PacketOp::Reset, 2)]
        );
    }

    #[test]
    fn a_flood_fills_the_queue_and_no_more() {
        let mut muxer = muxer();
        let mut port = 0;
        while !muxer.is_full() {
            port += 1;
            muxer.receive(&packet(PacketOp::Request, port, 1024));
        }
        assert!(muxer.resets.len() <= MAX_RESETS);
        assert_eq!(
            muxer.resets.capacity(),
            VecDeque::<PacketHeader>::with_capacity(MAX_RESETS).capacity()
        );
        muxer.next(0, 0);
        assert!(!muxer.is_full());
    }
}
