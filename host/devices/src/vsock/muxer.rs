//! Which packet goes where: one listening port, at most one connection, and a bounded queue of
//! resets for everything else. No I/O.
//!
//! A new connection replaces the old one, which is reset: the guest's agent reconnects after it
//! restarts its end. When the guest floods us with packets that must be answered but takes no
//! answers, [`Muxer::is_full`] says to take no more packets until it does.

use super::SavedConnection;
use super::connection::{Connection, Effect};
use super::packet::{Header, Op};
use super::spec::{HOST_CID, TYPE_STREAM};
use super::state::{ResetV1, VsockV1};
use crate::state::Invalid;
use std::collections::VecDeque;

/// Resets waiting to be taken by the guest.
pub(crate) const MAX_RESETS: usize = 64;

/// What the device has to do about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Done,
    /// Not a packet we can make sense of.
    Malformed,
    /// Answered by a reset.
    Refused,
    /// Pass the payload on to the link.
    Payload,
    /// A connection is open. What waits for the link from one before is to be dropped if it was
    /// not closed in an orderly way.
    Opened {
        /// The connection before was still open.
        replaced: bool,
    },
    /// The connection is gone: drop what waits for the link.
    Gone,
}

/// The host's side of all connections.
#[derive(Debug)]
pub(crate) struct Muxer {
    guest_cid: u64,
    port: u32,
    link_open: bool,
    connection: Option<Connection>,
    resets: VecDeque<Header>,
}

impl Muxer {
    pub(crate) fn new(guest_cid: u32, port: u32) -> Self {
        Self {
            guest_cid: guest_cid.into(),
            port,
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
    pub(crate) fn receive(&mut self, header: &Header) -> Verdict {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return Verdict::Malformed;
        }
        let known = header.kind == TYPE_STREAM
            && self.connection.as_ref().is_some_and(|c| c.is_for(header));
        match header.op {
            Op::Reset if known => {
                self.connection = None;
                Verdict::Gone
            }
            Op::Reset => Verdict::Done,
            Op::Request => self.request(header),
            _ if known => self.pass(header),
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) -> Verdict {
        self.resets.push_back(header.reply(Op::Reset));
        Verdict::Refused
    }

    fn request(&mut self, header: &Header) -> Verdict {
        let welcome = header.kind == TYPE_STREAM && header.dst_port == self.port && self.link_open;
        if !welcome {
            return self.refuse(header);
        }
        let old = self.connection.replace(Connection::open(header));
        if let Some(old) = &old
            && !old.is_for(header)
        {
            self.resets.push_back(old.reset());
        }
        Verdict::Opened {
            replaced: old.is_some_and(|c| !c.closing()),
        }
    }

    fn pass(&mut self, header: &Header) -> Verdict {
        let Some(connection) = &mut self.connection else {
            return Verdict::Done;
        };
        match connection.receive(header) {
            Effect::Nothing => Verdict::Done,
            Effect::Payload => Verdict::Payload,
            Effect::Violation => {
                self.resets.push_back(connection.reset());
                self.connection = None;
                Verdict::Gone
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

    /// Whether [`Muxer::next`] would give a packet.
    pub(crate) fn has_next(&self, available: usize) -> bool {
        !self.resets.is_empty()
            || self
                .connection
                .as_ref()
                .is_some_and(|c| c.has_next(available))
    }

    /// The next packet to the guest, with at most `room` payload bytes of the `available` ones.
    pub(crate) fn next(&mut self, room: usize, available: usize) -> Option<Header> {
        let reset = self.resets.pop_front();
        reset.or_else(|| self.connection.as_mut()?.next(room, available))
    }
}

impl Muxer {
    /// What is to be saved: of a device that is not `running`, that it has nothing to say.
    pub(super) fn save(&self, running: bool) -> VsockV1 {
        let reset = |header: &Header| ResetV1 {
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
                .map(Connection::save),
            resets: resets.map(reset).collect(),
        }
    }

    /// Takes over what was saved.
    pub(super) fn load(&mut self, saved: VsockV1, fate: SavedConnection) -> Result<(), Invalid> {
        let (cid, port) = (saved.guest_cid, saved.port);
        if (cid, port) != (self.guest_cid, self.port) {
            return Err(Invalid(format!("guest {cid} and port {port}")));
        }
        // The end of a connection may add one to a full queue.
        if saved.resets.len() > MAX_RESETS + 1 {
            return Err(Invalid(format!("{} resets", saved.resets.len())));
        }
        let connection = saved
            .connection
            .map(|c| Connection::load(&c, self.guest_cid, self.port))
            .transpose()?;
        self.resets = saved.resets.iter().map(|r| self.saved_reset(r)).collect();
        match fate {
            SavedConnection::Kept => self.connection = connection,
            SavedConnection::Broken => self.resets.extend(connection.map(|c| c.reset())),
        }
        Ok(())
    }

    /// Refuses a loaded state that has something to say to a guest without a driver.
    pub(super) fn check_idle(&self) -> Result<(), Invalid> {
        if self.connection.is_some() || !self.resets.is_empty() {
            return Err(Invalid("packets for a guest without a driver".into()));
        }
        Ok(())
    }

    fn saved_reset(&self, saved: &ResetV1) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: saved.local_port,
            dst_port: saved.guest_port,
            len: 0,
            kind: saved.kind,
            op: Op::Reset,
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

    fn packet(op: Op, src_port: u32, dst_port: u32) -> Header {
        Header {
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

    fn muxer() -> Muxer {
        Muxer::new(3, 1024)
    }

    fn drain(muxer: &mut Muxer) -> Vec<(Op, u32)> {
        std::iter::from_fn(|| muxer.next(100, 0))
            .map(|h| (h.op, h.dst_port))
            .collect()
    }

    #[test]
    fn only_the_one_port_answers() {
        let mut muxer = muxer();
        assert_eq!(
            muxer.receive(&packet(Op::Request, 9, 1025)),
            Verdict::Refused
        );
        assert_eq!(
            muxer.receive(&packet(Op::Request, 8, 1024)),
            Verdict::Opened { replaced: false }
        );
        assert_eq!(muxer.receive(&packet(Op::Data, 7, 1024)), Verdict::Refused);
        let dgram = Header {
            kind: 3,
            ..packet(Op::Request, 6, 1024)
        };
        assert_eq!(muxer.receive(&dgram), Verdict::Refused);
        let expected = [
            (Op::Reset, 9),
            (Op::Reset, 7),
            (Op::Reset, 6),
            (Op::Response, 8),
        ];
        assert_eq!(drain(&mut muxer), expected);
    }

    #[test]
    fn strangers_and_resets_are_not_answered() {
        let mut muxer = muxer();
        let stranger = Header {
            src_cid: 4,
            ..packet(Op::Request, 1, 1024)
        };
        assert_eq!(muxer.receive(&stranger), Verdict::Malformed);
        let elsewhere = Header {
            dst_cid: 1,
            ..packet(Op::Request, 1, 1024)
        };
        assert_eq!(muxer.receive(&elsewhere), Verdict::Malformed);
        assert_eq!(muxer.receive(&packet(Op::Reset, 1, 1024)), Verdict::Done);
        assert!(!muxer.has_next(1));
    }

    #[test]
    fn a_new_connection_replaces_the_old_one() {
        let mut muxer = muxer();
        muxer.receive(&packet(Op::Request, 1, 1024));
        assert_eq!(
            muxer.receive(&packet(Op::Request, 2, 1024)),
            Verdict::Opened { replaced: true }
        );
        assert_eq!(drain(&mut muxer), [(Op::Reset, 1), (Op::Response, 2)]);
        assert_eq!(muxer.receive(&packet(Op::Reset, 1, 1024)), Verdict::Done);
        assert!(muxer.is_connected());
        assert_eq!(muxer.receive(&packet(Op::Reset, 2, 1024)), Verdict::Gone);
        assert!(!muxer.is_connected());
    }

    #[test]
    fn an_orderly_close_waits_for_the_link() {
        let mut muxer = muxer();
        muxer.receive(&packet(Op::Request, 1, 1024));
        drain(&mut muxer);
        let data = Header {
            len: 10,
            ..packet(Op::Data, 1, 1024)
        };
        assert_eq!(muxer.receive(&data), Verdict::Payload);
        let flags = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        assert_eq!(
            muxer.receive(&Header {
                flags,
                ..packet(Op::Shutdown, 1, 1024)
            }),
            Verdict::Done
        );
        muxer.forwarded(4, false);
        assert!(!muxer.has_next(0));
        muxer.forwarded(6, true);
        assert_eq!(drain(&mut muxer), [(Op::Reset, 1)]);
        assert!(!muxer.is_connected());
    }

    #[test]
    fn a_closed_link_resets_and_refuses() {
        let mut muxer = muxer();
        muxer.receive(&packet(Op::Request, 1, 1024));
        muxer.link_closed();
        assert_eq!(
            muxer.receive(&packet(Op::Request, 2, 1024)),
            Verdict::Refused
        );
        assert_eq!(drain(&mut muxer), [(Op::Reset, 1), (Op::Reset, 2)]);
    }

    #[test]
    fn a_flood_fills_the_queue_and_no_more() {
        let mut muxer = muxer();
        let mut port = 0;
        while !muxer.is_full() {
            port += 1;
            muxer.receive(&packet(Op::Request, port, 1024));
        }
        assert!(muxer.resets.len() <= MAX_RESETS);
        assert_eq!(
            muxer.resets.capacity(),
            VecDeque::<Header>::with_capacity(MAX_RESETS).capacity()
        );
        muxer.next(0, 0);
        assert!(!muxer.is_full());
    }
}
