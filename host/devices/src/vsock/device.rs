//! The socket device on the event loop: virtqueues and the link around [`VsockMuxer`].
//!
//! System calls: none of its own. Per turn the loop's one `io_uring_enter` submits at most one
//! `sendmsg` with up to 128 pieces and one interrupt; receiving repeats by itself.
//!
//! Interrupts cost the guest three exits each (delivery, status, acknowledge), so they are saved:
//! used tx buffers are reported together with the next rx interrupt, or when [`REPORT_TX`] of them
//! or [`REPORT_BYTES`] have gathered. Until then they hold a little of the guest's memory, and a
//! command that is over does not wake its sandbox once more for that.

use super::config::{SavedConnection, VsockConfig, VsockLink};
use super::inbox::LinkInbox;
use super::muxer::{PacketVerdict, VsockMuxer};
use super::outbox::LinkOutbox;
use super::packet::PacketHeader;
use super::spec::{DEVICE_ID, HEADER_LEN, MAX_PAYLOAD, QUEUE_SIZES};
use super::state::VsockV1;
use crate::attachment::Attachment;
use crate::chain::{self, BufferChain};
use crate::device::{BrokenQueue, Device, DeviceContext, DeviceFault, NextTurn};
use crate::metrics::VsockMetrics;
use crate::mmio::{DeviceIdentity, F_EVENT_IDX};
use crate::queue_pair::{QueuePair, TX};
use crate::ring::OpCompletion;
use crate::state::{DeviceKind, StateRefusal, take};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

/// Packets per turn in each direction.
const BUDGET: usize = 256;
/// Used tx buffers that are worth an interrupt of their own.
const REPORT_TX: u16 = 32;
/// And so many bytes in them.
const REPORT_BYTES: usize = 64 << 10;

/// Keys of the device's operations.
const RECEIVE: u32 = 0;
const SEND: u32 = 1;

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    // Fixed configuration
    guest_cid: u32,
    link: OwnedFd,
    saved_connection: SavedConnection,
    // Runtime glue
    queues: Option<QueuePair>,
    chain: BufferChain,
    heads: Vec<u16>,
    metrics: Arc<VsockMetrics>,
    // Volatile state
    muxer: VsockMuxer,
    inbox: LinkInbox,
    outbox: LinkOutbox,
    /// The repeating receive is in the ring.
    receiving: bool,
    link_open: bool,
    rx_added: bool,
    tx_pending: bool,
    tx_unreported: u16,
    tx_unreported_bytes: usize,
}

impl Vsock {
    /// A device with this link.
    #[must_use]
    pub fn new(config: VsockConfig) -> Self {
        Self {
            guest_cid: config.guest_cid,
            link: config.link.socket,
            saved_connection: config.link.connection,
            queues: None,
            chain: BufferChain::default(),
            heads: Vec::new(),
            metrics: Arc::default(),
            muxer: VsockMuxer::new(config.guest_cid, config.port),
            inbox: LinkInbox::default(),
            outbox: LinkOutbox::default(),
            receiving: false,
            link_open: true,
            rx_added: false,
            tx_pending: false,
            tx_unreported: 0,
            tx_unreported_bytes: 0,
        }
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        self.metrics.clone()
    }

    /// Takes packets from the guest.
    fn take_packets(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        let mut budget = BUDGET;
        while self.tx_pending && budget > 0 && !self.muxer.is_full() {
            let Some(queues) = &mut self.queues else {
                break;
            };
            let Some(descriptors) = queues.tx.iter(cx.memory)?.next() else {
                self.tx_pending = queues.tx.enable_notification(cx.memory)?;
                continue;
            };
            budget -= 1;
            let loaded = self.chain.load(descriptors);
            let held = loaded.is_ok() && self.take_packet(cx)?;
            if !held {
                self.heads.push(self.chain.head);
            }
        }
        Ok(())
    }

    /// Takes the packet in `self.chain`; whether the chain is held until its payload is sent.
    fn take_packet(&mut self, cx: &mut DeviceContext<'_>) -> Result<bool, DeviceFault> {
        self.metrics.from_guest_packets.add(1);
        let mut bytes = [0; HEADER_LEN];
        if chain::read(cx.memory, &self.chain.readable, 0, &mut bytes).is_err() {
            self.metrics.malformed.add(1);
            return Ok(false);
        }
        let header = PacketHeader::parse(&bytes);
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD || len > chain::len(&self.chain.readable) - HEADER_LEN {
            self.metrics.malformed.add(1);
            return Ok(false);
        }
        match self.muxer.receive(&header) {
            PacketVerdict::Done => {}
            PacketVerdict::Malformed => self.metrics.malformed.add(1),
            PacketVerdict::Refused => self.metrics.refused.add(1),
            PacketVerdict::Payload => return self.take_payload(len, cx),
            PacketVerdict::Gone => self.drop_undelivered(cx),
            PacketVerdict::Opened => {
                self.metrics.connections.add(1);
                self.outbox.disown();
            }
        }
        if self.outbox.is_empty() {
            self.muxer.close_if_asked();
        }
        Ok(false)
    }

    fn take_payload(
        &mut self,
        len: usize,
        cx: &mut DeviceContext<'_>,
    ) -> Result<bool, DeviceFault> {
        let BufferChain { head, readable, .. } = &self.chain;
        let held = self
            .outbox
            .push(cx.memory, readable, HEADER_LEN, len, *head)
            .map_err(|_| BrokenQueue)?;
        let bytes = u64::try_from(len).unwrap_or(0);
        self.metrics.from_guest_bytes.add(bytes);
        if !held {
            self.metrics.copied_bytes.add(bytes);
        }
        Ok(held)
    }

    /// The connection broke: bytes of either direction that wait here belong to nobody.
    fn drop_undelivered(&mut self, cx: &mut DeviceContext<'_>) {
        self.outbox.drop_waiting(&mut self.heads);
        self.inbox.clear(cx.ring);
    }

    /// Sends what waits for the link, if nothing is under way.
    fn send(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        if !self.link_open {
            return Ok(());
        }
        if let Some(pieces) = self.outbox.next()
            && let Err(pieces) = cx.send(self.link.as_fd(), pieces, SEND)?
        {
            // A descriptor that points outside the guest's memory.
            self.outbox.sent(pieces, &mut self.heads);
            return Err(BrokenQueue.into());
        }
        Ok(())
    }

    /// Starts the link's operations that are due.
    fn drive_link(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.send(cx)?;
        if self.link_open && !self.receiving && self.muxer.is_connected() && cx.ring.pool_has_room()
        {
            self.receiving = true;
            cx.receive(self.link.as_fd(), RECEIVE)?;
        }
        Ok(())
    }

    /// Gives packets to the guest; whether the budget was used up.
    fn give_packets(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        let Some(queues) = &mut self.queues else {
            return Ok(NextTurn::Wait);
        };
        let rx = &mut queues.rx;
        let mut budget = BUDGET;
        while self.muxer.has_next(self.inbox.available()) {
            if budget == 0 {
                return Ok(NextTurn::Again);
            }
            budget -= 1;
            let Some(descriptors) = rx.iter(cx.memory)?.next() else {
                // Ask to be notified of new buffers only now that one is missing.
                if rx.enable_notification(cx.memory)? {
                    continue;
                }
                break;
            };
            let loaded = self.chain.load(descriptors);
            let room = chain::len(&self.chain.writable).checked_sub(HEADER_LEN);
            let used = match room.filter(|_| loaded.is_ok()) {
                Some(room) => give_packet(&mut self.muxer, &mut self.inbox, &self.chain, room, cx)?,
                None => {
                    self.metrics.malformed.add(1);
                    0
                }
            };
            let payload = used.saturating_sub(HEADER_LEN);
            self.metrics.to_guest_packets.add(1);
            self.metrics
                .to_guest_bytes
                .add(u64::try_from(payload).unwrap_or(0));
            let used = u32::try_from(used).map_err(|_| BrokenQueue)?;
            rx.add_used(cx.memory, self.chain.head, used)?;
            self.rx_added = true;
        }
        Ok(NextTurn::Wait)
    }

    /// Gives used tx chains back and interrupts if it is worth it, or `due` anyway.
    fn report(&mut self, cx: &mut DeviceContext<'_>, due: bool) -> Result<(), DeviceFault> {
        let Some(queues) = &mut self.queues else {
            self.heads.clear();
            return Ok(());
        };
        for head in self.heads.drain(..) {
            queues.tx.add_used(cx.memory, head, 0)?;
            self.tx_unreported = self.tx_unreported.saturating_add(1);
        }
        let rx_wants = mem::take(&mut self.rx_added) && queues.rx.needs_notification(cx.memory)?;
        let many = self.tx_unreported >= REPORT_TX || self.tx_unreported_bytes >= REPORT_BYTES;
        let tx_wants = self.tx_unreported > 0 && (rx_wants || due || many) && {
            (self.tx_unreported, self.tx_unreported_bytes) = (0, 0);
            queues.tx.needs_notification(cx.memory)?
        };
        if rx_wants || tx_wants {
            cx.interrupt()?;
        }
        Ok(())
    }

    fn link_failed(&mut self, cx: &mut DeviceContext<'_>) {
        if mem::replace(&mut self.link_open, false) {
            self.muxer.link_closed();
            self.drop_undelivered(cx);
            *cx.peer_closed = true;
        }
    }

    fn received(&mut self, done: &OpCompletion, cx: &mut DeviceContext<'_>) {
        self.receiving = done.more;
        match (done.result, done.buffer) {
            (Ok(len @ 1..), Some(id)) if self.link_open => {
                let len = usize::try_from(len).unwrap_or(0);
                self.inbox.push(id, len);
            }
            // The pool is empty: `drive_link` receives again when it is not.
            (Err(rustix::io::Errno::NOBUFS), _) => {}
            (_, buffer) => {
                if let Some(id) = buffer {
                    cx.ring.recycle(id);
                }
                self.link_failed(cx);
            }
        }
    }

    fn sent(&mut self, done: OpCompletion, cx: &mut DeviceContext<'_>) {
        let sent = self.outbox.sent(done.pieces, &mut self.heads);
        self.tx_unreported_bytes = self.tx_unreported_bytes.saturating_add(sent.bytes);
        let complete = done
            .result
            .is_ok_and(|n| usize::try_from(n) == Ok(sent.bytes));
        if complete {
            let counted = u32::try_from(sent.counted).unwrap_or(0);
            self.muxer.forwarded(counted, self.outbox.is_empty());
        } else if sent.counted > 0 {
            self.link_failed(cx);
        }
        // Otherwise a reset of the device cancelled it.
    }
}

/// Fills one rx chain; the number of bytes used, 0 when there was nothing after all.
fn give_packet(
    muxer: &mut VsockMuxer,
    inbox: &mut LinkInbox,
    chain: &BufferChain,
    room: usize,
    cx: &mut DeviceContext<'_>,
) -> Result<usize, DeviceFault> {
    let Some(header) = muxer.next(room, inbox.available()) else {
        return Ok(0);
    };
    let len = usize::try_from(header.len).map_err(|_| BrokenQueue)?;
    let put = |at, bytes: &[u8]| {
        chain::write(cx.memory, &chain.writable, at, bytes).map_err(|_| BrokenQueue)
    };
    put(0, &header.emit())?;
    put(HEADER_LEN, inbox.peek(len, cx.ring))?;
    if len > 0 {
        inbox.consume(len, cx.ring);
    }
    Ok(HEADER_LEN + len)
}

impl Device for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            tag: 0,
            name: "socket device",
        }
    }

    /// No `INDIRECT_DESC`: packets have two descriptors, and a table for them would cost the
    /// guest an allocation each.
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            device_id: DEVICE_ID,
            features: F_EVENT_IDX,
            queue_sizes: QUEUE_SIZES,
            config: u64::from(self.guest_cid).to_le_bytes().into(),
        }
    }

    fn start(
        &mut self,
        queues: Vec<Option<Queue>>,
        _: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        self.queues = Some(QueuePair::new(queues)?);
        self.tx_pending = true;
        Ok(())
    }

    fn kick(&mut self, queue: usize, _: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.tx_pending |= queue == TX;
        Ok(())
    }

    fn complete(
        &mut self,
        done: OpCompletion,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        match done.token.key {
            RECEIVE => self.received(&done, cx),
            _ => self.sent(done, cx),
        }
        Ok(())
    }

    fn turn(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        self.take_packets(cx)?;
        self.drive_link(cx)?;
        let next = self.give_packets(cx)?;
        // Buffers that became free just now let receiving continue.
        self.drive_link(cx)?;
        self.report(cx, false)?;
        let more_tx = self.tx_pending && !self.muxer.is_full();
        Ok(if more_tx { NextTurn::Again } else { next })
    }

    fn stop(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.queues = None;
        self.muxer.reset();
        self.outbox.forget_chains();
        self.inbox.clear(cx.ring);
        self.heads.clear();
        self.rx_added = false;
        self.tx_pending = false;
        (self.tx_unreported, self.tx_unreported_bytes) = (0, 0);
        if self.outbox.in_flight() {
            cx.cancel(SEND)?;
        }
        Ok(())
    }

    fn drained(&self) -> bool {
        !self.outbox.in_flight()
    }

    fn clear(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        // Nobody is notified, and what still comes is dropped.
        self.link_open = false;
        if self.receiving {
            cx.cancel(RECEIVE)?;
        }
        self.stop(cx)
    }

    fn cleared(&self) -> bool {
        self.drained() && !self.receiving
    }

    fn reset(&mut self, attachment: Attachment) -> std::io::Result<()> {
        let VsockLink { socket, connection } = attachment.take()?;
        self.link = socket;
        self.saved_connection = connection;
        self.link_open = true;
        self.muxer = self.muxer.like_new();
        self.outbox = LinkOutbox::default();
        self.heads.clear();
        Ok(())
    }

    fn settle(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.send(cx)?;
        // At once: the driver is to know of all buffers it has back.
        self.report(cx, true)
    }

    fn settled(&self) -> bool {
        self.outbox.is_empty() && self.heads.is_empty() && self.tx_unreported == 0
    }

    fn queues(&self) -> Vec<Option<&Queue>> {
        QueuePair::list(self.queues.as_ref())
    }

    /// Bytes of the link that the guest has not been given are not part of it.
    fn save(&self, running: bool, into: Vec<u8>) -> postcard::Result<Vec<u8>> {
        postcard::to_extend(&self.muxer.save(running), into)
    }

    fn load(&mut self, saved: &mut &[u8]) -> Result<(), StateRefusal> {
        let saved: VsockV1 = take(saved)?;
        Ok(self.muxer.load(saved, self.saved_connection)?)
    }

    fn check_idle(&self) -> Result<(), StateRefusal> {
        Ok(self.muxer.check_idle()?)
    }
}
