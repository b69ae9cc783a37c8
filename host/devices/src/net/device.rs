//! The network device on the event loop.
//!
//! System calls: none of its own. Each way one operation is in flight at most, which carries a
//! frame out of guest memory or into it; the socket copies, nobody else.
//!
//! - A socket that takes nothing more holds the frame that is being sent, the queue fills, and the
//!   guest's own queueing sees it.
//! - A receive waits in the ring with a buffer of the guest's. Before a save it is cancelled, and
//!   its buffer counts as not taken.

use super::config::FrameSocket;
use super::spec::{
    DEVICE_ID, FEATURES, HEADER_LEN, MAX_FRAME, MIN_FRAME, QUEUE_SIZES, RX_HEADER, config,
};
use crate::attachment::Attachment;
use crate::chain::{self, BufferChain};
use crate::device::{BrokenQueue, Device, DeviceContext, DeviceFault, NextTurn};
use crate::metrics::NetMetrics;
use crate::mmio::{DeviceIdentity, F_EVENT_IDX};
use crate::queue_pair::{QueuePair, RX, TX};
use crate::ring::OpCompletion;
use crate::state::DeviceKind;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

/// Chains that are given back without an operation, per turn and way.
const BUDGET: usize = 64;

/// Keys of the device's operations.
const RECEIVE: u32 = 0;
const SEND: u32 = 1;

/// The network device. Nothing of it is saved: frames on their way are lost, as on any wire.
#[derive(Debug)]
pub struct Net {
    // Fixed configuration
    socket: OwnedFd,
    // Runtime glue
    queues: Option<QueuePair>,
    metrics: Arc<NetMetrics>,
    // Volatile state
    receive: Lane,
    send: Lane,
}

/// One direction.
#[derive(Debug, Default)]
struct Lane {
    /// The chain that the operation in flight works on.
    chain: BufferChain,
    in_flight: bool,
    cancelled: bool,
    /// The queue may have something.
    pending: bool,
    /// The other end has closed this way, or an empty message said so: nothing passes any more.
    closed: bool,
}

impl Lane {
    /// Asks for the end of the operation in flight, once.
    fn cancel(&mut self, key: u32, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        if self.in_flight && !self.cancelled {
            self.cancelled = true;
            cx.cancel(key)?;
        }
        Ok(())
    }

    fn completed(&mut self) {
        self.in_flight = false;
        self.cancelled = false;
    }
}

impl Net {
    /// A device with this socket.
    #[must_use]
    pub fn new(socket: FrameSocket) -> Self {
        Self {
            socket: socket.0,
            queues: None,
            metrics: Arc::default(),
            receive: Lane::default(),
            send: Lane::default(),
        }
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<NetMetrics> {
        self.metrics.clone()
    }

    /// Begins to send the next frame, if there is one and none is under way.
    fn drive_send(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        let lane = &mut self.send;
        for _ in 0..BUDGET {
            let Some(QueuePair { tx, .. }) = self.queues.as_mut().filter(|_| !lane.in_flight)
            else {
                return Ok(NextTurn::Wait);
            };
            if !lane.pending {
                return Ok(NextTurn::Wait);
            }
            let Some(descriptors) = tx.iter(cx.memory)?.next() else {
                lane.pending = tx.enable_notification(cx.memory)?;
                continue;
            };
            let loaded = lane.chain.load(descriptors);
            let len = chain::len(&lane.chain.readable).saturating_sub(HEADER_LEN);
            if loaded.is_err() || !(MIN_FRAME..=MAX_FRAME).contains(&len) {
                self.metrics.malformed.add(1);
            } else if lane.closed {
                self.metrics.dropped.add(1);
            } else {
                let pieces = chain::pieces(&lane.chain.readable, HEADER_LEN, len).collect();
                if cx.send(self.socket.as_fd(), pieces, SEND)?.is_err() {
                    return Err(BrokenQueue.into());
                }
                lane.in_flight = true;
                return Ok(NextTurn::Wait);
            }
            tx.add_used(cx.memory, lane.chain.head, 0)?;
            cx.interrupt_if_needed(tx)?;
        }
        Ok(NextTurn::Again)
    }

    /// Has the ring wait for the next frame, if there is a buffer for it.
    fn drive_receive(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        let lane = &mut self.receive;
        for _ in 0..BUDGET {
            let Some(QueuePair { rx, .. }) = self.queues.as_mut().filter(|_| !lane.in_flight)
            else {
                return Ok(NextTurn::Wait);
            };
            if !lane.pending || lane.closed {
                return Ok(NextTurn::Wait);
            }
            let Some(descriptors) = rx.iter(cx.memory)?.next() else {
                // Ask to be notified of new buffers only now that one is missing.
                lane.pending = rx.enable_notification(cx.memory)?;
                continue;
            };
            let loaded = lane.chain.load(descriptors);
            let room = chain::len(&lane.chain.writable).saturating_sub(HEADER_LEN);
            if loaded.is_err() || room < MIN_FRAME {
                self.metrics.malformed.add(1);
                rx.add_used(cx.memory, lane.chain.head, 0)?;
                cx.interrupt_if_needed(rx)?;
                continue;
            }
            let room = room.min(MAX_FRAME);
            let pieces = chain::pieces(&lane.chain.writable, HEADER_LEN, room).collect();
            if cx.read(self.socket.as_fd(), pieces, 0, RECEIVE)?.is_err() {
                return Err(BrokenQueue.into());
            }
            lane.in_flight = true;
        }
        Ok(NextTurn::Again)
    }

    fn sent(&mut self, done: &OpCompletion, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.send.completed();
        match done.result {
            Ok(bytes) => self.metrics.from_guest_bytes.add(bytes.into()),
            Err(error) => {
                self.metrics.dropped.add(1);
                self.send.closed |= matches!(error, Errno::PIPE | Errno::CONNRESET);
            }
        }
        self.metrics.from_guest_frames.add(1);
        let Some(QueuePair { tx, .. }) = &mut self.queues else {
            return Ok(());
        };
        tx.add_used(cx.memory, self.send.chain.head, 0)?;
        cx.interrupt_if_needed(tx)
    }

    fn received(
        &mut self,
        done: &OpCompletion,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        let lane = &mut self.receive;
        lane.completed();
        let Some(QueuePair { rx, .. }) = &mut self.queues else {
            return Ok(());
        };
        let len = match done.result {
            Ok(len @ 1..) => len,
            other => {
                // Its buffer was not used: it is the next one again.
                rx.set_next_avail(rx.next_avail().wrapping_sub(1));
                lane.closed |= other != Err(Errno::CANCELED);
                return Ok(());
            }
        };
        self.metrics.to_guest_bytes.add(len.into());
        self.metrics.to_guest_frames.add(1);
        chain::write(cx.memory, &lane.chain.writable, 0, &RX_HEADER).map_err(|_| BrokenQueue)?;
        let header = u32::try_from(HEADER_LEN).map_err(|_| BrokenQueue)?;
        rx.add_used(cx.memory, lane.chain.head, len + header)?;
        cx.interrupt_if_needed(rx)
    }
}

impl Device for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            tag: 3,
            name: "network device",
        }
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            device_id: DEVICE_ID,
            features: FEATURES | F_EVENT_IDX,
            queue_sizes: QUEUE_SIZES,
            config: config(),
        }
    }

    fn start(
        &mut self,
        queues: Vec<Option<Queue>>,
        _: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        self.queues = Some(QueuePair::new(queues)?);
        (self.receive.pending, self.send.pending) = (true, true);
        Ok(())
    }

    fn kick(&mut self, queue: usize, _: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.receive.pending |= queue == RX;
        self.send.pending |= queue == TX;
        Ok(())
    }

    fn complete(
        &mut self,
        done: OpCompletion,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        match done.token.key {
            RECEIVE => self.received(&done, cx),
            _ => self.sent(&done, cx),
        }
    }

    fn turn(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        let send = self.drive_send(cx)?;
        let receive = self.drive_receive(cx)?;
        Ok(if send == NextTurn::Again {
            send
        } else {
            receive
        })
    }

    fn stop(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.queues = None;
        (self.receive.pending, self.send.pending) = (false, false);
        self.settle(cx)
    }

    fn drained(&self) -> bool {
        !self.receive.in_flight && !self.send.in_flight
    }

    fn reset(&mut self, attachment: Attachment) -> std::io::Result<()> {
        let FrameSocket(socket) = attachment.take()?;
        self.socket = socket;
        (self.receive, self.send) = Default::default();
        Ok(())
    }

    fn may_be_missing(&self) -> bool {
        true
    }

    /// Nothing waits for a socket that takes nothing: what is under way is cancelled.
    fn settle(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.receive.cancel(RECEIVE, cx)?;
        self.send.cancel(SEND, cx)
    }

    fn queues(&self) -> Vec<Option<&Queue>> {
        QueuePair::list(self.queues.as_ref())
    }
}
